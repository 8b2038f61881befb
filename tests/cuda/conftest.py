"""Devices that tests of this folder run on: the emulated one, and with -m gpu an NVIDIA GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cuda.devices import CUDA, EMULATED, need

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A name from matrix_native.DEVICES; skips where this machine has no such device."""
    name = str(request.param)
    need(CUDA if name == "cuda" else EMULATED)
    return name
