"""Where one expert's matrix `[rows, cols]` is in a Hugging Face checkpoint, and how a run of its rows is read: as floats,
or as the blocks it is stored in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from ..quantize import encode
from ..tensors import Bytes, Floats
from .safetensors import Weights

MXFP4 = GGMLQuantizationType.MXFP4


class Matrix(Protocol):
    """`rows` gives float32 `[last - first, cols]`; `blocks` the bytes in type `kind`, `[last - first, row bytes]`."""

    def rows(self, first: int, last: int) -> Floats: ...

    def blocks(self, first: int, last: int, kind: GGMLQuantizationType) -> Bytes: ...


@dataclass(frozen=True)
class Plain:
    """Rows one after another from row `base` of a tensor on: one expert's own tensor, or a part of a stack."""

    weights: Weights
    base: int = 0

    def rows(self, first: int, last: int) -> Floats:
        return self.weights.rows(self.base + first, self.base + last)

    def blocks(self, first: int, last: int, kind: GGMLQuantizationType) -> Bytes:
        return encode(self.rows(first, last), kind, self.weights.name)


@dataclass(frozen=True)
class Turned:
    """Row r is column `start + r * step` of the `cols` rows from `base` on: gpt-oss stores inputs by outputs, gate and
    up in alternate columns.
    """

    weights: Weights
    base: int
    cols: int
    start: int = 0
    step: int = 1

    def rows(self, first: int, last: int) -> Floats:
        wanted = slice(self.start + first * self.step, self.start + last * self.step, self.step)
        return np.ascontiguousarray(self.weights.rows(self.base, self.base + self.cols)[:, wanted].T)

    def blocks(self, first: int, last: int, kind: GGMLQuantizationType) -> Bytes:
        return encode(self.rows(first, last), kind, self.weights.name)


@dataclass(frozen=True)
class Packed:
    """MXFP4 as gpt-oss stores it: row r is row `base + r * step` of codes `[.., cols / 32, 16]`, two neighbours to a
    byte (the first in the low half), and of exponents `[.., cols / 32]`. GGUF's block is the exponent, then 16 bytes
    with weight j in the low half and weight j + 16 in the high half. Moved, never rounded.
    """

    codes: Weights
    exponents: Weights
    base: int
    step: int = 1

    def _moved(self, first: int, last: int) -> Bytes:
        begin, end, per_row = self.base + first * self.step, self.base + (last - 1) * self.step + 1, self.exponents.cols
        pairs = self.codes.codes(begin * per_row, end * per_row).reshape(-1, per_row, 16)[:: self.step]
        weights = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(len(pairs), per_row, 2, 16)
        halves = weights[:, :, 0] | (weights[:, :, 1] << 4)
        exponents = self.exponents.codes(begin, end)[:: self.step, :, None]
        return np.concatenate((exponents, halves), axis=-1).reshape(len(pairs), -1)

    def rows(self, first: int, last: int) -> Floats:
        return dequantize(self._moved(first, last), MXFP4)

    def blocks(self, first: int, last: int, kind: GGMLQuantizationType) -> Bytes:
        return self._moved(first, last) if kind is MXFP4 else encode(self.rows(first, last), kind, self.codes.name)
