"""Experts of a layer to the tensors of `docs/design.md`, section 2: tops and bottoms, down granule-major. Or uncut,
as llama.cpp has them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .tensors import Bytes, Experts, Neurons, Tensor, flat

# Orders of the neurons of each expert, [n_expert, n_ff]; None is the natural order.
Order = npt.NDArray[np.int64] | None


def _neurons(order: Order, expert: int, first: int, last: int) -> Neurons:
    return slice(first, last) if order is None else order[expert, first:last]


def _tensor(
    experts: Experts, which: str, suffix: str, role: str, first: int, last: int, granule: int, order: Order
) -> Tensor:
    n_expert, n_embd, width = experts.n_expert, experts.n_embd, last - first
    kind = experts.kinds[which]

    def rows() -> Iterator[Bytes]:
        for e in range(n_expert):
            yield flat(experts.rows(which, e, _neurons(order, e, first, last)))

    def granules() -> Iterator[Bytes]:
        # [n_embd, granule count, bytes of a granule's row] to [granule count, n_embd, ...]
        for e in range(n_expert):
            whole = experts.columns(e, _neurons(order, e, first, last))
            yield flat(whole.reshape(n_embd, width // granule, -1).transpose(1, 0, 2))

    if which != "down":
        shape: tuple[int, ...] = (n_expert, width, n_embd)
    elif suffix:
        shape = (n_expert, width // granule, n_embd, granule)
    else:
        shape = (n_expert, n_embd, width)
    name = f"blk.{experts.layer}.ffn_{which}_exps{suffix}.weight"
    return Tensor(name, shape, kind, role, granules if which == "down" else rows, experts.work_bytes())


def _bias(experts: Experts, which: str, suffix: str, role: str, first: int, last: int, order: Order) -> list[Tensor]:
    """The biases `[n_expert, width]` of a run of neurons of gate or up, where they exist."""
    kind = experts.bias_kind(which)
    if kind is None:
        return []

    def chunks() -> Iterator[Bytes]:
        values = experts.biases(which)
        yield flat(np.stack([values[e][_neurons(order, e, first, last)] for e in range(experts.n_expert)]))

    shape = (experts.n_expert, last - first)
    return [Tensor(f"blk.{experts.layer}.ffn_{which}_exps{suffix}.bias", shape, kind, role, chunks)]


def split(experts: Experts, granule: int, top: int, order: Order = None) -> list[Tensor]:
    """The pre-split tensors of a layer: `top` granules of `granule` neurons in the tops, the rest in the bottoms; an
    empty part has none.
    """
    border = top * granule
    out: list[Tensor] = []
    for suffix, role, first, last in (
        ("_top", "expert top", 0, border),
        ("_bot", "expert bottom", border, experts.n_ff),
    ):
        if first < last:
            out += [_tensor(experts, w, suffix, role, first, last, granule, order) for w in ("gate", "up", "down")]
            out += [bias for w in ("gate", "up") for bias in _bias(experts, w, suffix, role, first, last, order)]
    return out


def whole(experts: Experts, order: Order = None) -> list[Tensor]:
    """The ordinary `ffn_{gate,up,down}_exps` tensors of llama.cpp."""
    n_ff = experts.n_ff
    out = [_tensor(experts, w, "", "expert", 0, n_ff, n_ff, order) for w in ("gate", "up", "down")]
    return out + [bias for w in ("gate", "up") for bias in _bias(experts, w, "", "expert", 0, n_ff, order)]
