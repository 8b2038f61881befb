"""What passes between a source and the writer: tensors whose bytes are made on demand, and sets of experts. Knows no
file format.

Shapes are row-major (`[rows, cols]`); the writer turns them round for GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
# Neurons of an expert: a run, or any order of them.
Neurons = slice | npt.NDArray[np.int64]

# Floats of one step when a big matrix is streamed: 16 Mi, 64 MiB.
STEP_FLOATS = 16 << 20


def row_bytes(cols: int, kind: GGMLQuantizationType) -> int:
    """Bytes of a row of `cols` weights; `cols` is a multiple of the block length."""
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    assert cols % block_len == 0, (cols, kind)
    return int(cols // block_len * block_bytes)


@dataclass(frozen=True)
class Tensor:
    """One tensor of the output.

    shape       row-major; 1 to 4 dimensions.
    role        a word for reports: embedding, output, norm, attention, mixer, router, feed-forward, shared expert,
                expert top, expert bottom, expert.
    chunks      makes the data, in order, some megabytes at a time; may be called more than once.
    work_bytes  the most memory a chunk needs while it is made, for the report.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    role: str
    chunks: Callable[[], Iterable[Bytes]]
    work_bytes: int = 0

    @property
    def n_weights(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def n_bytes(self) -> int:
        return self.n_weights // self.shape[-1] * row_bytes(self.shape[-1], self.kind)


class Experts(Protocol):
    """The routed experts of one layer, already in their output types."""

    layer: int
    n_expert: int
    n_embd: int
    n_ff: int
    kinds: dict[str, GGMLQuantizationType]  # of "gate", "up" and "down"
    order_unit: int  # neurons that must stay together when an order is changed

    def rows(self, which: str, expert: int, neurons: Neurons) -> Bytes:
        """Rows of "gate" or "up": uint8 [len(neurons), row bytes of n_embd]."""

    def columns(self, expert: int, neurons: Neurons) -> Bytes:
        """Columns of "down": uint8 [n_embd, row bytes of len(neurons)]. Neurons come in whole blocks."""

    def bias_kind(self, which: str) -> GGMLQuantizationType | None:
        """The float type of the biases of "gate" or "up"; None where there are none. (That of "down" belongs to no neuron.)"""

    def biases(self, which: str) -> Bytes:
        """Biases of "gate" or "up" of all experts: uint8 [n_expert, n_ff, bytes of one]."""

    def work_bytes(self) -> int:
        """The most memory one call needs."""


def flat(array: npt.NDArray[np.generic]) -> Bytes:
    """The bytes of an array as uint8, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def made(name: str, shape: tuple[int, ...], role: str, make: Callable[[], Floats]) -> Tensor:
    """A small tensor in F32 that is computed from others when it is written."""

    def chunks() -> Iterable[Bytes]:
        yield flat(make().astype(np.float32, copy=False))

    return Tensor(name, shape, GGMLQuantizationType.F32, role, chunks)
