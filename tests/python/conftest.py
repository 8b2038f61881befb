"""Tiny models for the tests of the Python API: one file per shape and session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_gguf import Shape, write

from moepic_gguf import Model


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shape], Path]:
    """Path of a file of the given shape."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[Shape, Path] = {}

    def get(shape: Shape = Shape()) -> Path:  # noqa: B008
        if shape not in made:
            made[shape] = write(folder / f"tiny{len(made)}.gguf", shape)
        return made[shape]

    return get


@pytest.fixture
def model(tiny_file: Callable[..., Path]) -> Iterator[Model]:
    with Model.load(tiny_file(), n_threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def slow_file(tiny_file: Callable[[Shape], Path]) -> Path:
    """A model whose prefill of 4000 tokens takes seconds, so that stopping it early can be seen."""
    return tiny_file(Shape(n_layer=24, n_embd=256, n_head=8, n_head_kv=8, n_ff=256, n_ctx=8192))
