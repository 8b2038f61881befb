"""Tokenizer and chat template of a Hugging Face folder to GGUF keys. (Being written: for now every folder converts without one.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import keys as k


def vocabulary_keys(
    folder: Path, config: dict[str, Any], n_vocab: int, warnings: list[str], *, pre: str | None, wanted: bool
) -> k.Keys:
    """Keys of the vocabulary."""
    warnings.append("no tokenizer was carried over: the file serves token ids only")
    return {"tokenizer.ggml.model": k.string("none")}
