"""Devices that tests of this folder run on: the emulated one, and with -m gpu an NVIDIA GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moepic_gguf._ffi import ffi, lib

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A name from matrix_native.DEVICES; skips where this machine has no such device."""
    name = str(request.param)
    if name == "cuda" and lib.moepic_test_device_quantize(1, 0, ffi.NULL, 0, 0, 0, ffi.NULL, ffi.NULL, ffi.NULL) != 0:
        pytest.skip(ffi.string(lib.moepic_last_error()).decode())
    return name
