"""The type table and the plain decoders against gguf's numpy dequantizers: every bit of every float32."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from quant_native import NAMES, as_void, assert_same_floats, check, gguf_type, native_type

from moepic_gguf._ffi import ffi, lib

# Where the binary16 scales of a block lie, as byte offsets (from gguf's dequantizers).
SCALE_OFFSETS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0],
}  # fmt: skip

# Zero, smallest and largest subnormal, smallest normal, one, largest finite, infinity; the same negative; NaN.
EXTREME_HALVES = [
    0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0x8000, 0x8001, 0x83FF, 0x8400, 0xBC00, 0xFBFF, 0xFC00,
    0x7E01,
]  # fmt: skip


def random_blocks(name: str, n_blocks: int, seed: int) -> np.ndarray:
    """Uniformly random bytes, [n_blocks, block_bytes]: all codes, and scales that may be infinite or NaN."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, size=(n_blocks, native_type(name).block_bytes), dtype=np.uint8)


def assert_decodes_like_gguf(name: str, blocks: np.ndarray) -> None:
    info = native_type(name)
    with np.errstate(all="ignore"):
        expected = dequantize(blocks, gguf_type(name)).astype(np.float32).reshape(-1)
    found = info.decode(blocks.reshape(-1))
    assert_same_floats(
        found,
        expected,
        lambda i: (
            f"{name} block {i // info.block_len} weight {i % info.block_len}, "
            f"bytes {blocks[i // info.block_len].tobytes().hex()}"
        ),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_ggufs_ids_lengths_and_sizes(name: str) -> None:
    info = native_type(name)
    assert info.name == name
    assert info.id == int(gguf_type(name))
    assert (info.block_len, info.block_bytes) == GGML_QUANT_SIZES[gguf_type(name)]
    assert native_type(name.lower()) == info


@pytest.mark.parametrize("name", ["", "Q4", "Q4_K_M", "Q4_KX", "Q9_9"])
def test_an_unknown_name_is_not_found(name: str) -> None:
    with pytest.raises(KeyError):
        native_type(name)


@pytest.mark.parametrize("type_id", [4, 5, 31, 99, 2**32 - 1])
def test_an_unknown_id_is_an_error(type_id: int) -> None:
    assert lib.moepic_test_decode(type_id, ffi.NULL, ffi.NULL, 0) < 0


def test_a_torn_block_is_an_error() -> None:
    assert lib.moepic_test_decode(native_type("Q4_K").id, ffi.NULL, ffi.NULL, 255) < 0


# 3001 blocks of random bytes name every entry of a codebook of 1024 with every sign (one is missed with a chance below 1e-37).
@pytest.mark.parametrize("n_blocks", [1, 2, 3001])
@pytest.mark.parametrize("name", NAMES)
def test_random_bytes_decode_bit_equal_to_gguf(name: str, n_blocks: int) -> None:
    assert_decodes_like_gguf(name, random_blocks(name, n_blocks, seed=n_blocks))


@pytest.mark.parametrize("name", SCALE_OFFSETS)
def test_extreme_scales_decode_bit_equal_to_gguf(name: str) -> None:
    offsets = SCALE_OFFSETS[name]
    combinations = np.stack(np.meshgrid(*[np.array(EXTREME_HALVES, dtype="<u2")] * len(offsets)), axis=-1).reshape(
        -1, len(offsets)
    )
    blocks = random_blocks(name, len(combinations), seed=3)
    for column, offset in enumerate(offsets):
        blocks[:, offset : offset + 2] = combinations[:, column : column + 1].copy().view(np.uint8).reshape(-1, 2)
    assert_decodes_like_gguf(name, blocks)


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x55, 0xAA])
@pytest.mark.parametrize("name", NAMES)
def test_constant_bytes_decode_bit_equal_to_gguf(name: str, fill: int) -> None:
    assert_decodes_like_gguf(name, np.full((3, native_type(name).block_bytes), fill, dtype=np.uint8))


def test_every_mxfp4_exponent_decodes_bit_equal_to_gguf() -> None:
    blocks = random_blocks("MXFP4", 256, seed=4)
    blocks[:, 0] = np.arange(256)
    blocks[:, 1:9] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]  # every code
    assert_decodes_like_gguf("MXFP4", blocks)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_need_no_alignment(name: str) -> None:
    info = native_type(name)
    blocks = random_blocks(name, 5, seed=5).reshape(-1)
    aligned = info.decode(blocks)
    for shift in (1, 2, 3):
        room = np.zeros(blocks.size + 64, dtype=np.uint8)
        start = -room.ctypes.data % 64 + shift
        room[start : start + blocks.size] = blocks
        out = np.empty_like(aligned)
        code = lib.moepic_test_decode(info.id, as_void(room[start:]), ffi.cast("float *", out.ctypes.data), out.size)
        check(code)
        assert_same_floats(out, aligned)


def convert(kind: int, values: np.ndarray, result: type) -> np.ndarray:
    out = np.empty(values.shape, dtype=result)
    check(lib.moepic_test_convert_half(kind, as_void(values), as_void(out), values.size))
    return out


def test_all_halves_become_the_same_floats_as_in_numpy() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    assert_same_floats(convert(0, halves, np.float32), halves.view(np.float16).astype(np.float32))
    assert_same_floats(convert(2, halves, np.float32), (halves.astype(np.uint32) << 16).view(np.float32))


def test_floats_round_to_halves_as_in_numpy() -> None:
    """All halves, the midpoints between neighbours (ties), the floats beside those, and random bits."""
    rng = np.random.default_rng(6)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
    floats = np.concatenate([halves, middles, np.float32([65504, 65519.996, 65520, 1e6, np.inf, 0, 1e-45, 2**-25])])
    floats = np.concatenate(
        [floats, np.nextafter(floats, np.float32(np.inf)), np.nextafter(floats, np.float32(-np.inf))]
    )
    floats = np.concatenate([floats, -floats, rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)])
    found = convert(1, floats, np.uint16)
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    assert_same_floats(
        found.view(np.float16).astype(np.float32), expected.astype(np.float32), lambda i: f"{floats[i]!r}"
    )


def test_floats_round_to_bfloats_to_nearest_even() -> None:
    """Against torch, which rounds to nearest even and keeps NaN; ties are in the corpus."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    floats = np.concatenate(
        [bits, ties, ties + 1, ties - 1, np.uint32([0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 0])]
    ).view(np.float32)
    found = convert(3, floats, np.uint16)
    expected = torch.from_numpy(floats).to(torch.bfloat16).to(torch.float32).numpy()
    assert_same_floats((found.astype(np.uint32) << 16).view(np.float32), expected, lambda i: f"{floats[i]!r}")
