"""The native codecs as numpy functions, for the tests of this folder and for bench/quantizers.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib

FLOATS = ["F32", "F16", "BF16"]
QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
QUANTIZED += ["MXFP4"]
CODEBOOKS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]  # read, never written
NAMES = FLOATS + QUANTIZED + CODEBOOKS


@dataclass(frozen=True)
class NativeType:
    """A row of the native type table; raises KeyError from `native_type` when the library does not know the name."""

    id: int
    name: str
    block_len: int
    block_bytes: int
    has_encoder: bool

    def decode(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Blocks as bytes [n_bytes] to weights [n_bytes / block_bytes * block_len]."""
        blocks = np.ascontiguousarray(blocks, dtype=np.uint8)
        out = np.empty(blocks.size // self.block_bytes * self.block_len, dtype=np.float32)
        check(lib.moepic_test_decode(self.id, as_void(blocks), as_float(out), out.size))
        return out

    def encode(self, weights: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Weights [n] to bytes; importance [n] weighs the squared error of each."""
        weights = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1)
        out = np.empty(weights.size // self.block_len * self.block_bytes, dtype=np.uint8)
        given = ffi.NULL
        if importance is not None:
            importance = np.ascontiguousarray(importance, dtype=np.float32).reshape(-1)
            assert importance.size == weights.size
            given = as_float(importance)
        check(lib.moepic_test_encode(self.id, as_float(weights), given, as_void(out), weights.size))
        return out

    def round_trip(
        self, weights: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """What a reader of the encoded weights sees, [n]."""
        return self.decode(self.encode(weights, importance))


def native_type(name: str) -> NativeType:
    """The table's row with this name."""
    type_id = ffi.new("uint32_t *")
    if lib.moepic_test_type_by_name(name.encode(), type_id) != 0:
        raise KeyError(name)
    label, length, size, encoder = (
        ffi.new("char const **"),
        ffi.new("uint32_t *"),
        ffi.new("uint32_t *"),
        ffi.new("int *"),
    )
    check(lib.moepic_test_type_info(type_id[0], label, length, size, encoder))
    return NativeType(type_id[0], ffi.string(label[0]).decode(), length[0], size[0], bool(encoder[0]))


def gguf_type(name: str) -> GGMLQuantizationType:
    """gguf's enum member of a type name."""
    return GGMLQuantizationType[name]


def check(code: int) -> None:
    """Raise RuntimeError for a negative code."""
    if code != 0:
        raise RuntimeError(f"native code {code}")


def as_void(array: NDArray) -> object:
    """The first byte of a contiguous array, as void *."""
    return ffi.cast("void *", array.ctypes.data)


def as_float(array: NDArray[np.float32]) -> object:
    """The first element of a contiguous array, as float *."""
    return ffi.cast("float *", array.ctypes.data)


def assert_same_floats(
    found: NDArray[np.float32], expected: NDArray[np.float32], describe: Callable[[int], str] = str
) -> None:
    """Bit equality, except that any NaN equals any NaN; a failure names the first differing place and both values."""
    assert found.shape == expected.shape
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    if not same.all():
        at = int(np.argmin(same))
        raise AssertionError(
            f"{(~same).sum()} of {same.size} differ; first at {describe(at)}: "
            f"found {found[at]!r} ({found.view(np.uint32)[at]:#010x}), "
            f"expected {expected[at]!r} ({expected.view(np.uint32)[at]:#010x})"
        )
