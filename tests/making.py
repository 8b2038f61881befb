"""From a tiny random transformers model to a GGUF file, once per test run and kind. Shared by the family tests and the gates."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from tests.tiny import models

_FOLDER = tempfile.TemporaryDirectory(prefix="moepic-tests-")


def convert(source: Path, target: Path, *options: str) -> Path:
    """Run the converter as its command line does."""
    from convert.to_gguf import main

    main([str(source), str(target), "--force", *options], standalone_mode=False)
    return target


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    """(config, model) of a variant of `tests.tiny.models.MODELS`."""
    return models.make(name)


@functools.cache
def saved(name: str, layout: str = "hub") -> Path:
    """A Hugging Face folder of that variant."""
    folder = Path(_FOLDER.name) / f"{name}-{layout}"
    models.save(built(name)[1], folder, layout=layout)
    return folder


@functools.cache
def gguf_file(name: str, *options: str, layout: str = "hub") -> Path:
    """A GGUF of that variant, made with the given converter options."""
    label = "_".join(option.strip("-").replace(".", "").replace("/", "") for option in options) or "plain"
    return convert(saved(name, layout), Path(_FOLDER.name) / f"{name}-{layout}-{label}.gguf", *options)


@functools.cache
def resplit(source: Path, *options: str) -> Path:
    """A GGUF re-cut from another."""
    label = "_".join(option.strip("-").replace(".", "") for option in options) or "plain"
    return convert(source, source.with_name(f"{source.stem}--{label}.gguf"), *options)
