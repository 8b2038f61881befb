"""config.json of a Hugging Face folder, asked key by key; every complaint names key and value."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from moepic_gguf.errors import ConversionError

from ..arch import FAMILIES
from .per_layer import text_part


class Config:
    """config.json, asked key by key; every complaint names key and value."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        try:
            raw = self.path.read_bytes()
        except OSError as error:
            raise ConversionError(f"'{folder}' has no readable config.json: {error.strerror}") from None
        try:
            self.values: dict[str, Any] = json.loads(raw)
        except ValueError as error:
            raise ConversionError(f"'{self.path}' is not JSON: {error}") from None
        if not isinstance(self.values, dict):
            raise ConversionError(f"'{self.path}' is {type(self.values).__name__}, expected an object")
        self.values = text_part(self.values)
        if family := FAMILIES.get(str(self.values.get("model_type"))):
            self.values = family.defaults | self.values
        self.sha256 = hashlib.sha256(raw).hexdigest()

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]  # the same for every layer
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConversionError(
                f"config.json: '{key}' is {json.dumps(value)}, expected an integer of at least {least}"
            )
        return value

    def first_integer(self, keys: tuple[str, ...]) -> int:
        """The value of the first of several spellings that is there."""
        return self.integer(next((key for key in keys if self.values.get(key) is not None), keys[0]))

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConversionError(f"config.json: '{key}' is {json.dumps(value)}, expected a number")
        return float(value)

    def flag(self, key: str | bool) -> bool:
        if isinstance(key, bool):
            return key
        value = self.values.get(key)
        if not isinstance(value, (bool, type(None))):
            raise ConversionError(f"config.json: '{key}' is {json.dumps(value)}, expected true or false")
        return bool(value)

    def refuse_unless(self, key: str, allowed: tuple[Any, ...]) -> None:
        if key in self.values and self.values[key] not in allowed:
            listed = " or ".join(json.dumps(value) for value in allowed)
            raise ConversionError(
                f"config.json: '{key}' is {json.dumps(self.values[key])}, which the engine cannot run; supported: "
                f"{listed}"
            )
