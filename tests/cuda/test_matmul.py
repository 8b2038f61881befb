"""Matrix steps of a device against the CPU's kernels: equal bytes, for every type, shape of launch and awkward size."""

from __future__ import annotations

import numpy as np
import pytest
from matrix_native import DEVICES, Floats, Job, matmul, quantize

from matmul_native import FLOATS, TYPES, block_len, make_tiles, random_blocks
from matmul_native import matmul as cpu_matmul
from matmul_native import quantize as cpu_quantize
from ops_native import assert_same_bits, available_isas

FAST = available_isas()[-1]


def smallest_cols(name: str) -> int:
    return 5 if name in FLOATS else block_len(name)


def make_x(n: int, cols: int, rng: np.random.Generator) -> Floats:
    x = rng.standard_normal((n, cols)).astype(np.float32)
    x[rng.random((n, cols)) < 0.02] *= 20
    return x


# Tokens on both sides of every change of launch: 8 | 9 and 32 | 33.
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    ("rows", "blocks_per_row", "n"),
    [(1, 1, 1), (15, 1, 2), (16, 3, 3), (17, 9, 7), (33, 2, 8), (33, 2, 9), (17, 1, 16), (33, 1, 32), (33, 2, 33), (1, 1, 130)],
)
def test_the_device_multiplies_like_the_cpu(device: str, name: str, rows: int, blocks_per_row: int, n: int) -> None:
    rng = np.random.default_rng([rows, blocks_per_row, n, TYPES.index(name)])
    cols = smallest_cols(name) * blocks_per_row
    tiles, _ = make_tiles(FAST, name, random_blocks(name, rows, cols, rng), cols)
    acts, _ = cpu_quantize(FAST, name, make_x(n, cols, rng))
    expected, _ = cpu_matmul(FAST, tiles, acts, n)
    found = np.full((n, rows), np.nan, dtype=np.float32)
    matmul(device, [Job(tiles, acts, found)], n)
    assert_same_bits(found, expected, f"{name} {rows} x {cols}, {n} tokens")
