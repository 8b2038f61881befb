"""Devices that tests of this folder run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))


@pytest.fixture(params=["emulated"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
