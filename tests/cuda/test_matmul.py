"""Matrix steps of a device against the CPU's kernels: equal bytes, for every type, shape of launch and awkward size."""

from __future__ import annotations

import numpy as np
import pytest
from matmul_native import FLOATS, TYPES, Tiles, block_len, make_tiles, random_blocks, row_bytes
from matmul_native import matmul as cpu_matmul
from matmul_native import quantize as cpu_quantize
from ops_native import assert_same_bits, available_isas

from .matrix_native import KINDS, Floats, Job, act_bytes, matmul, quantize

FAST = available_isas()[-1]


def smallest_cols(name: str) -> int:
    return 5 if name in FLOATS else block_len(name)


def make_x(n: int, cols: int, rng: np.random.Generator) -> Floats:
    x = rng.standard_normal((n, cols)).astype(np.float32)
    x[rng.random((n, cols)) < 0.02] *= 20
    return x


def check(device: str, name: str, rows: int, cols: int, n: int) -> None:
    rng = np.random.default_rng([rows, cols, n, TYPES.index(name)])
    tiles = make_tiles(FAST, name, random_blocks(name, rows, cols, rng), cols)
    acts, _ = cpu_quantize(FAST, name, make_x(n, cols, rng))
    expected, _ = cpu_matmul(FAST, tiles, acts, n)
    found = np.full((n, rows), np.nan, dtype=np.float32)
    matmul(device, [Job(tiles, acts, found)], n)
    assert_same_bits(found, expected, f"{name} {rows} x {cols}, {n} tokens")


SIZES = [(1, 1, 1), (15, 1, 2), (16, 3, 3), (17, 9, 7), (33, 2, 8), (33, 2, 9), (17, 1, 16), (33, 1, 33), (1, 1, 130)]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("rows", "blocks_per_row", "n"), SIZES)
def test_the_device_multiplies_like_the_cpu(device: str, name: str, rows: int, blocks_per_row: int, n: int) -> None:
    check(device, name, rows, smallest_cols(name) * blocks_per_row, n)


@pytest.mark.parametrize("name", TYPES)
def test_a_large_batch_multiplies_like_the_cpu(device: str, name: str) -> None:
    """Enough work for the launch of many tokens, with tails in rows and tokens, and in steps of 256 columns where a type can."""
    check(device, name, 500, 37 if name in FLOATS else 288 if block_len(name) == 32 else 512, 505)


@pytest.mark.parametrize("name", TYPES)
def test_every_bit_pattern_of_a_block_means_what_it_means_on_the_cpu(device: str, name: str) -> None:
    """Scales too small or too large for normal floats, infinite or NaN among them."""
    rng = np.random.default_rng(TYPES.index(name))
    rows, cols, n = 200, smallest_cols(name), 3
    blocks = rng.integers(0, 256, (rows, row_bytes(name, cols)), dtype=np.uint8)
    tiles = make_tiles(FAST, name, blocks, cols)
    acts, _ = cpu_quantize(FAST, name, make_x(n, cols, rng))
    expected, _ = cpu_matmul(FAST, tiles, acts, n)
    assert np.isfinite(expected).any()
    found = np.full((n, rows), 0.5, dtype=np.float32)
    matmul(device, [Job(tiles, acts, found)], n)
    assert_same_bits(found, expected, name)


def make_job(name: str, rows: int, cols: int, n: int, rng: np.random.Generator) -> tuple[Tiles, Floats]:
    tiles = make_tiles(FAST, name, random_blocks(name, rows, cols, rng), cols)
    acts, _ = cpu_quantize(FAST, name, make_x(n, cols, rng))
    return tiles, acts


@pytest.mark.parametrize("n", [1, 12, 420])
def test_a_list_of_matrices_of_any_types(device: str, n: int) -> None:
    rng = np.random.default_rng(n)
    jobs, expected = [], []
    for name, rows, cols in [("Q4_K", 130, 256), ("F32", 20, 70), ("Q8_0", 16, 96), ("Q6_K", 7, 512)]:
        tiles, acts = make_job(name, rows, cols, n, rng)
        bias = rng.standard_normal(rows).astype(np.float32)
        expected.append(cpu_matmul(FAST, tiles, acts, n, bias=bias)[0])
        jobs.append(Job(tiles, acts, np.full((n, rows + 3), 0.25, dtype=np.float32), bias))
    matmul(device, jobs, n)
    for job, y in zip(jobs, expected, strict=True):
        rows = job.tiles.rows
        assert_same_bits(job.y[:, :rows], y, f"{job.tiles.name}, {n} tokens")
        assert (job.y[:, rows:] == 0.25).all()  # beyond the rows


@pytest.mark.parametrize(("n", "height"), [(1, 32), (40, 32), (350, 160)])
@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K"])
def test_groups_of_rows_have_their_own_activations(device: str, name: str, n: int, height: int) -> None:
    rng = np.random.default_rng(3)
    n_group, cols, y_group = 3, max(64, block_len(name)), height + 5
    tiles, acts = make_job(name, n_group * height, cols, n_group * n, rng)
    y = np.full((n, n_group * y_group), np.nan, dtype=np.float32)
    matmul(device, [Job(tiles, acts, y, None, n_group, y_group)], n)
    for group in range(n_group):
        own = acts.reshape(n_group, -1)[group].copy()
        whole, _ = cpu_matmul(FAST, tiles, own, n)
        rows = slice(group * height, (group + 1) * height)
        assert_same_bits(y[:, group * y_group : group * y_group + height], whole[:, rows], f"group {group}")


@pytest.mark.parametrize(
    ("name", "cols"), [("Q4_K", 7168), ("Q8_0", 1536), ("MXFP4", 2880), ("Q4_1", 544), ("F16", 2000), ("F32", 700)]
)
@pytest.mark.parametrize("n", [1, 11, 40])
def test_rows_longer_than_a_chunk_of_a_thread_block(device: str, name: str, cols: int, n: int) -> None:
    rng = np.random.default_rng(cols)
    tiles, acts = make_job(name, 18, cols, n, rng)
    found = np.full((n, 18), np.nan, dtype=np.float32)
    matmul(device, [Job(tiles, acts, found)], n)
    assert_same_bits(found, cpu_matmul(FAST, tiles, acts, n)[0], f"{name}, {cols} columns")


def significant(acts: np.ndarray, kind: int, cols: int) -> np.ndarray:
    """Bytes that hold something, any NaN among the floats turned into one."""
    n = len(acts)
    if kind == 0:
        return acts[:, : 4 * cols]
    size, floats = ((44, 2), (308, 1))[kind - 1]
    blocks = acts[:, : cols // (32 if kind == 1 else 256) * size].reshape(n, -1, size).copy()
    scales = blocks[:, :, : 4 * floats].copy().view(np.float32)
    scales[np.isnan(scales)] = np.nan
    blocks[:, :, : 4 * floats] = scales.view(np.uint8)
    return blocks


@pytest.mark.parametrize("cols", [256, 2560])
@pytest.mark.parametrize("kinds", [[0], [1], [2], [0, 1, 2]])
def test_quantized_activations_are_the_cpu_s_bytes(device: str, kinds: list[int], cols: int) -> None:
    rng = np.random.default_rng(cols)
    x = (rng.standard_normal((9, cols + 8)) * 3.0 ** rng.integers(-60, 60, (9, 1))).astype(np.float32)
    x[1] = 0.0
    x[2] *= np.float32(1e-34)  # too small to be told from zero
    x[3, 7] = np.inf
    x[4, 40], x[4, 250] = -np.inf, np.nan
    x[5, 100] = np.nan
    x[6] = np.float32(3.4e38)
    x[7, :cols] = rng.integers(-254, 255, cols) / np.float32(2)  # ties
    x[7, ::32] = 127
    for kind, found in zip(kinds, quantize(device, kinds, x, cols), strict=True):
        name = KINDS[kind]
        expected = cpu_quantize(FAST, name, x[:, :cols])[0].reshape(len(x), act_bytes(name, cols))
        np.testing.assert_array_equal(significant(found, kind, cols), significant(expected, kind, cols), name)


def test_blocks_of_32_need_no_whole_step_of_256(device: str) -> None:
    x = make_x(3, 96, np.random.default_rng(1))
    (found,) = quantize(device, [1], x, 96)
    np.testing.assert_array_equal(found, cpu_quantize(FAST, "Q8_0", x)[0].reshape(3, -1))
