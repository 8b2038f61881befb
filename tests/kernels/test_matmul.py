"""Matmul of every weight type: bits against a plain reference over GGUF rows, values against float64.

Tolerance against float64 over gguf-py's weights. Activations are rounded to the nearest of 255 levels of amax / 127 per
block, so each is off by at most amax / 254 (and a hair for the rounding of 127 / amax): the sum is off by at most
sum_k |w_k| amax_b(k) / 254. Floats add, per block, the roundings of the scale, of float(I), and of one fused
multiply-add, each at most u = 2^-24 of the largest magnitude the sum can have, S = sum_k |w'_k| |x_k| where
|w'| = |scale code| + |min|: (blocks + 6) u S covers them. For float weights only the chain of cols roundings counts.
"""

from __future__ import annotations

import numpy as np
import pytest
from matmul_native import (
    CODEBOOKS,
    FLOATS,
    TYPES,
    TYPES_32,
    TYPES_256,
    Bytes,
    Floats,
    act_codes,
    aligned,
    block_len,
    dequantize,
    make_tiles,
    matmul,
    quantize,
    random_blocks,
    reference,
    sizes,
    write_tiles,
)
from ops_native import assert_close, assert_same_bits, available_isas

from moepic_gguf.cli.bench_record import code_products
from moepic_gguf.errors import ArgumentError

ISAS = available_isas()
FAST = ISAS[-1]
U = 2.0**-24


def smallest_cols(name: str) -> int:
    """One block; for floats a count that fills no vector."""
    return 5 if name in FLOATS else block_len(name)


def make_case(name: str, rows: int, cols: int, n: int) -> tuple[Bytes, Floats]:
    """Blocks of every bit pattern and activations with an outlier here and there."""
    rng = np.random.default_rng([rows, cols, n, TYPES.index(name)])
    x = rng.standard_normal((n, cols)).astype(np.float32)
    x[rng.random((n, cols)) < 0.02] *= 20
    return random_blocks(name, rows, cols, rng), x


def run(isa: str, name: str, blocks: Bytes, x: Floats) -> Floats:
    tiles = make_tiles(isa, name, blocks, x.shape[1])
    acts, _ = quantize(isa, name, x)
    return matmul(isa, tiles, acts, len(x))[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("rows", "blocks_per_row"), [(1, 1), (16, 1), (17, 2), (31, 3), (48, 4)])
def test_every_instruction_set_gives_the_bits_of_the_plain_reference(
    isa: str, name: str, rows: int, blocks_per_row: int
) -> None:
    cols = smallest_cols(name) * blocks_per_row
    blocks, x = make_case(name, rows, cols, 3)
    assert_same_bits(run(isa, name, blocks, x), reference(name, blocks, x), f"{isa} {name} {rows} x {cols}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TYPES)
def test_the_number_of_tokens_changes_no_bit(isa: str, name: str) -> None:
    cols = max(64, smallest_cols(name))
    blocks, x = make_case(name, 40, cols, 37)
    tiles = make_tiles(isa, name, blocks, cols)
    expected = reference(name, blocks, x)
    for n in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 33, 37]:
        acts, _ = quantize(isa, name, x[:n])
        assert_same_bits(matmul(isa, tiles, acts, n)[0], expected[:n], f"{isa} {name}, {n} tokens")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_K", "Q6_K"])
def test_more_tokens_than_scratch_holds_change_no_bit(isa: str, name: str) -> None:
    """Scratch has room for the sums of some 2000 tokens and two tiles, or 4000 and one; a longer prompt is taken in parts."""
    cols, n = max(32, smallest_cols(name)), 4200
    blocks, x = make_case(name, 37, cols, n)
    picked = np.array([0, 1, 2009, 2010, 2011, 2012, 3000, 4020, 4021, 4022, 4023, 4024, n - 1])
    tiles = make_tiles(isa, name, blocks, cols)
    y, _ = matmul(isa, tiles, quantize(isa, name, x)[0], n)
    assert np.isfinite(y).all()
    assert_same_bits(y[picked], reference(name, blocks, x[picked]), f"{isa} {name}")


@pytest.mark.parametrize("name", TYPES)
def test_a_real_shape_is_close_to_float64_over_the_decoded_weights(name: str) -> None:
    rows, cols, n = 96, 1024, 5
    blocks, x = make_case(name, rows, cols, n)
    w = dequantize(name, blocks).astype(np.float64)
    length = block_len(name)
    if name in FLOATS:
        bound = (cols + 1) * U * np.abs(x.astype(np.float64)) @ np.abs(w).T
    else:
        amax = np.repeat(np.abs(x).reshape(n, -1, length).max(axis=2), length, axis=1).astype(np.float64)
        # |scale code| + |min| is taken as at most 5 times the largest |w| of the block.
        largest = np.repeat(np.abs(w).reshape(rows, -1, length).max(axis=2), length, axis=1)
        bound = amax / 253.9 @ np.abs(w).T + (cols // length + 6) * U * (np.abs(x).astype(np.float64) @ (5 * largest).T)
    assert_close(run(FAST, name, blocks, x), x.astype(np.float64) @ w.T, bound, name)


@pytest.mark.parametrize("name", TYPES)
def test_typical_error_is_that_of_random_activation_rounding(name: str) -> None:
    """A wrong scale or a shifted sub-block would pass a worst-case bound; the root mean square would not."""
    rows, cols, n = 64, 2048, 4
    blocks, x = make_case(name, rows, cols, n)
    w = dequantize(name, blocks).astype(np.float64)
    exact = x.astype(np.float64) @ w.T
    error = run(FAST, name, blocks, x) - exact
    if name in FLOATS:
        # A chain of cols random roundings, each of a partial sum: generously 4 u |x| |w| sqrt(cols).
        limit = 4 * U * np.sqrt(cols) * np.sqrt((x.astype(np.float64) ** 2) @ (w**2).T)
    else:
        length = block_len(name)
        step = np.repeat(np.abs(x).reshape(n, -1, length).max(axis=2), length, axis=1).astype(np.float64) / 127
        limit = np.sqrt((step**2 / 12) @ (w**2).T)
    ratio = float(np.sqrt(np.mean((error / limit) ** 2)))
    assert ratio < 1.15, f"{name}: root mean square error is {ratio:.3f} of that of uniform rounding"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_gather_bias_accumulate_and_tile_ranges_leave_the_rest_alone(isa: str, name: str) -> None:
    rows, cols, n = 41, max(32, smallest_cols(name)), 6
    blocks, x = make_case(name, rows, cols, 4)
    rng = np.random.default_rng(7)
    tiles = make_tiles(isa, name, blocks, cols)
    acts, _ = quantize(isa, name, x)
    plain = reference(name, blocks, x)
    gather = np.array([3, 0, 0, 2, 1, 3], dtype=np.int32)
    bias = rng.standard_normal(rows).astype(np.float32)
    before = rng.standard_normal((n, rows + 9)).astype(np.float32)
    y = before.copy()
    matmul(isa, tiles, acts, n, gather=gather, bias=bias, accumulate=True, y=y, tile_range=(1, 3))
    expected = before.copy()
    expected[:, 16:41] = before[:, 16:41] + (plain[gather, 16:] + bias[16:])
    assert_same_bits(y, expected, f"{isa} {name}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_activations_round_half_to_even_on_amax_over_127(isa: str, name: str) -> None:
    length = block_len(name)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 2 * length)).astype(np.float32)
    x[1] = 0
    x[2, :length] = np.float32(1e-35)  # below 2^-100: zero
    x[3, :length] = (np.arange(length) % 255 - 127) / np.float32(2)  # halves: ties
    x[3, 5] = 127
    x[4] *= np.float32(1e30)
    codes, scales = act_codes(name, quantize(isa, name, x)[0], len(x), 2 * length)
    groups = x.reshape(len(x), -1, length)
    amax = np.abs(groups).max(axis=2)
    zero = amax < np.float32(2.0**-100)
    inverse = np.where(zero, np.float32(0), np.float32(127) / np.where(zero, np.float32(1), amax))
    expected = np.rint(groups * inverse[:, :, None]).astype(np.int8).reshape(codes.shape)
    assert_same_bits(scales, np.where(zero, np.float32(0), amax / np.float32(127)), f"{isa} {name} scales")
    assert np.array_equal(codes, expected), f"{isa} {name}: {np.argwhere(codes != expected)[:3]}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["F32", "Q4_0", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_activations_show_in_the_output(isa: str, name: str, bad: float) -> None:
    cols = 2 * max(32, smallest_cols(name))
    blocks, x = make_case(name, 20, cols, 2)
    x[0, 7] = bad
    y = run(isa, name, blocks, x)
    assert not np.isfinite(y[0]).any()
    assert_same_bits(y[1:], reference(name, blocks, x[1:]), "the token beside it")


@pytest.mark.parametrize(
    "name", ["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", *CODEBOOKS]
)
def test_the_largest_codes_and_activations_do_not_overflow(name: str) -> None:
    """Activations at +-127 against each constant byte: extremes of the sums, where a 16-bit step would saturate."""
    cols = block_len(name)
    x = np.where(np.arange(3 * cols).reshape(3, cols) % [[1], [2], [3]] == 0, 1.0, -1.0).astype(np.float32)
    rng = np.random.default_rng(5)
    tame = random_blocks(name, 256, cols, rng)
    full = np.repeat(np.arange(256, dtype=np.uint8)[:, None], tame.shape[1], axis=1)
    scale_at = {"MXFP4": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_1": [0, 2], "Q6_K": [208]}.get(
        name, [0]
    )
    width = 1 if name == "MXFP4" else 2
    for at in scale_at:
        full[:, at : at + width] = tame[:, at : at + width]
    expected = reference(name, full, x)
    for isa in ISAS:
        assert_same_bits(run(isa, name, full, x), expected, f"{isa} {name}")


@pytest.mark.parametrize("name", TYPES)
def test_tiles_are_the_same_bytes_whatever_wrote_them(name: str) -> None:
    cols = 3 * smallest_cols(name)
    blocks, _ = make_case(name, 37, cols, 1)
    first = make_tiles(ISAS[0], name, blocks, cols).data
    for isa in ISAS[1:]:
        assert np.array_equal(make_tiles(isa, name, blocks, cols).data, first), f"{isa} {name}"
    for isa in ISAS:
        past = aligned(len(first))
        write_tiles(isa, name, blocks, cols, past, past=True)  # some of these tiles begin inside a cache line
        assert np.array_equal(past, first), f"{isa} {name}"
    padded = 48 * blocks.shape[1]
    assert sizes(name, 37, cols)[0] == (padded + 63) // 64 * 64


@pytest.mark.parametrize("name", TYPES_32 + TYPES_256)
def test_all_instruction_sets_quantize_to_the_same_bytes(name: str) -> None:
    _, x = make_case(name, 1, 4 * block_len(name), 5)
    first = quantize(ISAS[0], name, x)[0]
    for isa in ISAS[1:]:
        assert np.array_equal(quantize(isa, name, x)[0], first), isa


@pytest.mark.parametrize("isa", ISAS)
def test_the_ceiling_of_products_counts_what_it_multiplied(isa: str) -> None:
    """Each product is 1, so the sums prove the count, or the call fails; a rate is all that comes out. No time is asserted."""
    assert code_products(isa, 1, seconds=1e-3) > 0.0
    with pytest.raises(ArgumentError, match="n_threads from 0"):
        code_products(isa, -1)
