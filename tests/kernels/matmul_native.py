"""Tiles, activations and matmul of the native library as numpy functions, for the tests here and bench/kernels.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
ISAS = {"scalar": 0, "avx2": 1, "avx512": 2}
FLOATS = ["F32", "F16", "BF16"]
TYPES_32 = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"]
CODEBOOKS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
TYPES_256 = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", *CODEBOOKS]
TYPES = FLOATS + TYPES_32 + TYPES_256


def check(code: int) -> None:
    """Raise RuntimeError for a negative code."""
    if code != 0:
        raise RuntimeError(f"native code {code}")


def pointer(array: NDArray[np.generic] | None, kind: str) -> object:
    """The first element of a contiguous array as a C pointer, or NULL."""
    if array is None:
        return ffi.NULL
    assert array.flags.c_contiguous
    return ffi.cast(kind, array.ctypes.data)


def aligned(n_bytes: int, fill: int = 0) -> Bytes:
    """n_bytes that start on a 64-byte border."""
    raw = np.full(n_bytes + 64, fill, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n_bytes]


def block_len(name: str) -> int:
    """Weights per block."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[name]][0])


def row_bytes(name: str, cols: int) -> int:
    """Bytes of a row in a GGUF file."""
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return int(cols // length * size)


# Where the float16 scales of a block are, and how far below 1 they are kept so that sums stay finite.
_HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
    **{name: [0] for name in CODEBOOKS},
}  # fmt: skip


def random_blocks(name: str, rows: int, cols: int, rng: np.random.Generator) -> Bytes:
    """Rows of GGUF blocks [rows, row_bytes]: codes and sub-block scales take every bit pattern, float scales are tamed."""
    if name == "F32":
        return rng.standard_normal((rows, cols), dtype=np.float32).view(np.uint8).reshape(rows, -1)
    if name == "F16":
        return rng.standard_normal((rows, cols)).astype(np.float16).view(np.uint8).reshape(rows, -1)
    if name == "BF16":
        floats = rng.standard_normal((rows, cols), dtype=np.float32)
        return (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(rows, -1)
    size = int(GGML_QUANT_SIZES[GGMLQuantizationType[name]][1])
    blocks = rng.integers(0, 256, (rows * (cols // block_len(name)), size), dtype=np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(118, 130, len(blocks))
    for at in _HALVES.get(name, []):
        scales = (rng.standard_normal(len(blocks)) * 0.05).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def dequantize(name: str, blocks: Bytes) -> Floats:
    """gguf-py's decoder: [rows, row_bytes] to [rows, cols]."""
    return np.asarray(quants.dequantize(blocks, GGMLQuantizationType[name]), dtype=np.float32).reshape(len(blocks), -1)


@dataclass(frozen=True)
class Tiles:
    """A re-tiled matrix."""

    name: str
    rows: int
    cols: int
    data: Bytes

    @property
    def type(self) -> int:
        return int(GGMLQuantizationType[self.name])

    @property
    def n_tiles(self) -> int:
        return (self.rows + 15) // 16


def sizes(name: str, rows: int, cols: int) -> tuple[int, int]:
    """Bytes of the tiles, and of one token's activations."""
    tiles, acts = ffi.new("int64_t *"), ffi.new("int64_t *")
    check(lib.moepic_test_matmul_bytes(int(GGMLQuantizationType[name]), rows, cols, tiles, acts))
    return tiles[0], acts[0]


def write_tiles(isa: str, name: str, blocks: Bytes, cols: int, out: Bytes, *, past: bool = False) -> float:
    """Re-tile GGUF rows [rows, row_bytes] to `out`, past the caches or through them; the seconds it took."""
    seconds = ffi.new("double *")
    source, to, type_id = pointer(blocks, "void *"), pointer(out, "void *"), int(GGMLQuantizationType[name])
    check(lib.moepic_test_tile(ISAS[isa], type_id, source, blocks.shape[1], len(blocks), cols, to, past, 1, seconds))
    return seconds[0]


def make_tiles(isa: str, name: str, blocks: Bytes, cols: int) -> Tiles:
    """Tiles of GGUF rows [rows, row_bytes]."""
    tiles = Tiles(name, len(blocks), cols, aligned(sizes(name, len(blocks), cols)[0]))
    write_tiles(isa, name, blocks, cols, tiles.data)
    return tiles


def quantize(isa: str, name: str, x: Floats, repeats: int = 1) -> tuple[Bytes, float]:
    """Activations of tokens x [n, cols] for weights of a type, as bytes, and the seconds it took."""
    n, cols = x.shape
    x = np.ascontiguousarray(x, dtype=np.float32)
    out = aligned(n * sizes(name, 1, cols)[1])
    seconds, type_id = ffi.new("double *"), int(GGMLQuantizationType[name])
    to = pointer(out, "void *")
    check(lib.moepic_test_quantize(ISAS[isa], type_id, pointer(x, "float *"), n, cols, to, repeats, seconds))
    return out, seconds[0]


def act_codes(name: str, acts: Bytes, n: int, cols: int) -> tuple[NDArray[np.int8], Floats]:
    """Codes [n, cols] and scales [n, cols / block] of quantized activations."""
    codes = np.empty((n, cols), dtype=np.int8)
    scales = np.empty((n, cols // block_len(name)), dtype=np.float32)
    type_id = int(GGMLQuantizationType[name])
    out = pointer(codes, "int8_t *"), pointer(scales, "float *")
    check(lib.moepic_test_act_codes(type_id, pointer(acts, "void *"), n, cols, *out))
    return codes, scales


def matmul(
    isa: str,
    tiles: Tiles,
    acts: Bytes,
    n_tokens: int,
    *,
    gather: NDArray[np.int32] | None = None,
    bias: Floats | None = None,
    accumulate: bool = False,
    y: Floats | None = None,
    tile_range: tuple[int, int] | None = None,
    repeats: int = 1,
    cold_bytes: int = 0,
) -> tuple[Floats, float]:
    """y [n_tokens, >= rows] of one job, and the shortest seconds of its repeats. y given is written in place."""
    if y is None:
        y = np.full((n_tokens, tiles.rows), np.nan, dtype=np.float32)
    first, last = tile_range or (0, tiles.n_tiles)
    job = ffi.new("moepic_test_matmul_job *")
    job.type, job.rows, job.cols = tiles.type, tiles.rows, tiles.cols
    job.tiles, job.acts = pointer(tiles.data, "void *"), pointer(acts, "void *")
    job.gather, job.n_tokens = pointer(gather, "int32_t *"), n_tokens
    job.y, job.y_stride = pointer(y, "float *"), y.shape[1]
    job.tile_begin, job.tile_end = first, last
    job.bias, job.accumulate = pointer(bias, "float *"), int(accumulate)
    seconds = ffi.new("double *")
    check(lib.moepic_test_matmul(ISAS[isa], job, repeats, cold_bytes, seconds))
    return y, seconds[0]


def reference(name: str, blocks: Bytes, x: Floats) -> Floats:
    """y [n, rows] of the plain native reference over GGUF rows."""
    rows, (n, cols) = len(blocks), x.shape
    y = np.empty((n, rows), dtype=np.float32)
    x = np.ascontiguousarray(x, dtype=np.float32)
    source, type_id = pointer(blocks, "void *"), int(GGMLQuantizationType[name])
    out = pointer(y, "float *")
    check(lib.moepic_test_matmul_reference(type_id, source, rows, cols, pointer(x, "float *"), n, out))
    return y
