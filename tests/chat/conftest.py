"""The tiny model of tests/python, for the console scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "python"))

from tiny_gguf import Shape, write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("chat") / "tiny.gguf")


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """Speaks slowly enough to be interrupted: some ms per token, thousands of positions."""
    shape = Shape(n_layer=24, n_embd=256, n_head=8, n_head_kv=8, n_ff=256, n_ctx=8192)
    return write(tmp_path_factory.mktemp("chat") / "slow.gguf", shape)


@pytest.fixture
def command(tmp_path):
    """Run a console script's module: (name, *arguments, stdin=text) -> CompletedProcess of text."""

    def run(name, *arguments, stdin=""):
        return subprocess.run(
            [sys.executable, "-m", f"moepic_gguf.cli.{name}", *map(str, arguments)],
            input=stdin, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip

    return run
