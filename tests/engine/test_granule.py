"""The granule rule: native and converter agree, and the rule is what docs/architecture.md says."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType

from convert.granule import default_granule
from moepic_gguf._ffi import lib

F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, MXFP4 = 0, 1, 2, 8, 12, 14, 39
UNIT = {F32: 1, F16: 1, Q4_0: 32, Q8_0: 32, Q4_K: 256, Q6_K: 256, MXFP4: 32}


@pytest.mark.parametrize(
    ("n_ff", "down", "granule"),
    [
        (14336, Q4_K, 256),
        (768, Q6_K, 256),
        (512, Q4_K, 256),
        (1408, Q8_0, 352),
        (2880, MXFP4, 288),
        (704, Q4_0, 352),
        (640, Q8_0, 320),
        (1536, Q8_0, 256),
        (96, F32, 96),
        (256, F16, 256),
    ],
)
def test_known_shapes(n_ff, down, granule):
    assert lib.moepic_test_granule(n_ff, down) == granule


def test_native_and_converter_have_one_rule():
    for down, unit in UNIT.items():
        for n_ff in range(unit, 3000, unit if unit > 1 else 7):
            native = lib.moepic_test_granule(n_ff, down)
            assert native == default_granule(n_ff, GGMLQuantizationType(down)), (n_ff, down)
            assert n_ff % native == 0
            assert native % unit == 0
