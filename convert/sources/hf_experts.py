"""Routed experts of a Hugging Face checkpoint, in their output types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..quantize import encode
from ..tensors import Bytes, Floats, Neurons, row_bytes
from .matrix import MXFP4, Matrix, Packed, Turned


class HfExperts:
    """Routed experts of one layer, a matrix each. See `tensors.Experts`.

    bias   `[n_expert, n_ff]` of gate and up, as float32, or nothing.
    """

    def __init__(
        self,
        layer: int,
        kinds: dict[str, GGMLQuantizationType],
        stored: dict[str, list[Matrix]],
        n_ff: int,
        n_embd: int,
        bias: dict[str, Callable[[], Floats]] | None = None,
    ) -> None:
        self.layer, self.kinds, self.n_ff, self.n_embd, self.n_expert = layer, kinds, n_ff, n_embd, len(stored["gate"])
        self._stored, self._bias = stored, bias or {}
        packed = kinds["down"] is MXFP4 and isinstance(stored["down"][0], Packed)
        self.order_unit = int(GGML_QUANT_SIZES[MXFP4][0]) if packed else 1

    def rows(self, which: str, expert: int, neurons: Neurons) -> Bytes:
        matrix, kind = self._stored[which][expert], self.kinds[which]
        if isinstance(neurons, slice):
            return matrix.blocks(neurons.start, neurons.stop, kind)
        return matrix.blocks(0, self.n_ff, kind)[neurons]

    def columns(self, expert: int, neurons: Neurons) -> Bytes:
        matrix, kind = self._stored["down"][expert], self.kinds["down"]
        if self.order_unit == 1:
            return encode(matrix.rows(0, self.n_embd)[:, neurons], kind, f"down of expert {expert}, layer {self.layer}")
        # Blocks as they are stored; neurons come in whole ones.
        wanted = np.arange(self.n_ff)[neurons][:: self.order_unit] // self.order_unit
        stored = matrix.blocks(0, self.n_embd, kind).reshape(self.n_embd, self.n_ff // self.order_unit, -1)
        return np.ascontiguousarray(stored[:, wanted]).reshape(self.n_embd, -1)

    def bias_kind(self, which: str) -> GGMLQuantizationType | None:
        return GGMLQuantizationType.F32 if which in self._bias else None

    def biases(self, which: str) -> Bytes:
        values = np.ascontiguousarray(self._bias[which]())
        return values.view(np.uint8).reshape(self.n_expert, self.n_ff, 4)

    def work_bytes(self) -> int:
        # Stored bytes, float32, a contiguous copy of the columns wanted, and the encoded result twice (before and
        # after turning it round). A turned matrix is read with its neighbour.
        copies = 20 if isinstance(self._stored["gate"][0], Turned) else 12
        return self.n_ff * self.n_embd * copies + 2 * self.n_embd * row_bytes(self.n_ff, self.kinds["down"])
