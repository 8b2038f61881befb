"""What a budget is spent on before the first expert is cached: every byte that is not an expert's, from the file's header alone.

The engine knows its own figures once a model is loaded; these are for plans made before that. One function, so that they can be replaced in one place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .budgets import show_bytes
from .errors import BudgetError
from .inspection import FileReport
from .metadata import GgufFile

if TYPE_CHECKING:
    from .weights import MemoryNeeds

STAGING_BYTES = 32 * 2**20  # frames of a lane, unless two transfers need more
PROCESS_BYTES = 256 * 2**20  # interpreter and libraries, in RAM
RING_MARGIN, RING_STEP = (
    512,
    256,
)  # positions that a layer with a window keeps to go back; a ring's unit (native/src/engine/kv_cache.h)
DEVICE_BYTES = 384 * 2**20  # context and kernels of a device, in its memory; assumed, no device was at hand


@dataclass(frozen=True)
class Embedding:
    """Bytes of the token embedding, and whether it is the output head too."""

    n_bytes: int
    is_tied: bool


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part; together with the experts cached they are the budget.

    dense    all weights but routed experts, a tied embedding twice (rows to look up, tiles to multiply).
    kv       keys and values for the positions asked for; of layers with a window, the window, a batch and a margin.
    state    states of a sequence, and the checkpoints that a context keeps of them.
    scratch  activations of a batch; an estimate.
    staging  frames that missing bytes land in, and a landing granule per thread.
    process  what the process needs beside them: a constant.
    experts  all routed experts of all layers.
    lookup   of `dense`: embedding rows, of which a token reads one.
    unit     of one transfer: a granule of a pre-split file, a whole expert of an ordinary one, whose down projection can't be read by granules.
    """

    dense: int
    kv: int
    state: int
    scratch: int
    staging: int
    process: int
    experts: int
    unit: int
    lookup: int = 0

    @property
    def overhead(self) -> int:
        """Everything but experts: the smallest budget that works, with every expert streamed."""
        return self.dense + self.kv + self.state + self.scratch + self.staging + self.process

    @property
    def whole(self) -> int:
        """With every expert resident. Nothing is staged then, but the budget it takes is the same one."""
        return self.overhead + self.experts

    def room(self, budget_bytes: int, *, name: str = "budget") -> int:
        """Bytes of a budget that are left for experts. Raises `BudgetError` with need, have, and the smallest budget that works."""
        left = budget_bytes - self.overhead
        if left < 0:
            parts = ", ".join(f"{show_bytes(size)} {what}" for what, size in self.parts().items() if size)
            raise BudgetError(
                f"{name}: need {show_bytes(self.overhead)} ({parts}), have {show_bytes(budget_bytes)}; the smallest that works is {self.overhead} bytes "
                f"({show_bytes(self.overhead)}), with no expert cached; fewer positions need less"
            )
        return min(left, self.experts)

    def parts(self) -> dict[str, int]:
        """The parts of `overhead`, named for people."""
        return {
            "weights besides experts": self.dense,
            "keys and values": self.kv,
            "states": self.state,
            "scratch": self.scratch,
            "staging": self.staging,
            "process": self.process,
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"overhead": self.overhead, "whole": self.whole}


def footprint(
    report: FileReport,
    n_granule: int,
    *,
    n_ctx: int,
    n_batch: int = 512,
    n_threads: int = 1,
    embedding: Embedding | None = None,
    on_device: bool = False,
) -> Footprint:
    """Of a model with experts.

    n_granule  granules of an expert.
    on_device  the budget is a device's memory: its constant instead of the process's, and no landing granules.
    """
    expert = report.expert_bytes or 0
    experts = expert * report.n_expert * report.moe_layers
    granule = -(-expert // n_granule)
    unit = granule if report.granule is not None else expert
    landing = 0 if on_device else n_threads * granule
    embedding = embedding or Embedding(0, False)
    return Footprint(
        dense=report.file_bytes - experts + (embedding.n_bytes if embedding.is_tied else 0),
        kv=past_bytes(report, n_ctx, ring=min(n_batch, n_ctx) + RING_MARGIN),
        state=_states(report),
        scratch=_scratch(report, n_granule, min(n_batch, n_ctx)),
        staging=max(STAGING_BYTES, 2 * unit) + landing,
        process=DEVICE_BYTES if on_device else PROCESS_BYTES,
        experts=experts,
        unit=unit,
        lookup=embedding.n_bytes,
    )


def engine_footprint(
    path: str, estimate: Footprint, *, ram_bytes: int, n_ctx: int, n_batch: int, n_threads: int
) -> Footprint:
    """`estimate` with the engine's own figures for a budget of RAM (it decides as it would when loading, and reads no weight). The interpreter and
    its libraries are not part of such a budget: they take up to PROCESS_BYTES beside it.
    """
    from .config import ContextOptions, LoadOptions
    from .weights import memory_needs

    context = ContextOptions(n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads)
    return with_needs(estimate, memory_needs(path, LoadOptions(ram=ram_bytes, n_threads=n_threads), context))


def with_needs(estimate: Footprint, needs: MemoryNeeds) -> Footprint:
    """`estimate` with what the engine said, which leaves the process, or a driver, out."""
    least = needs.least - needs.weights - needs.kv - needs.state - needs.scratch
    return replace(
        estimate,
        dense=needs.weights,
        kv=needs.kv,
        state=needs.state,
        scratch=needs.scratch,
        staging=needs.staging or least,
        process=0,
        experts=needs.experts,
    )


def past_bytes(report: FileReport, n: int, *, ring: int = 0) -> int:
    """Keys and values of `n` positions: as many as are read, or, with the positions that a ring has beside its window, held."""
    in_window = -(-(report.kv_window + ring) // RING_STEP) * RING_STEP if ring else report.kv_window
    per_window_token = report.kv_window_bytes // max(1, report.kv_window)
    return (report.kv_bytes_per_token or 0) * n + per_window_token * min(n, in_window)


def _states(report: FileReport) -> int:
    """Of a context: as many as 256 MiB hold, from 4 to 16 (native/src/engine/sequence_state.h says what for)."""
    one = report.state_bytes or 0
    return one * min(max(2**28 // one, 4), 16) if one else 0


def _scratch(report: FileReport, n_granule: int, n_batch: int) -> int:
    """Activations of a batch in the decoder: residual, norm, q, k, v and their quantized copies; router; the feed-forward's partial rows and intermediate.
    Quantized values take 9/8 bytes at most.
    """
    n_embd, k, n_ff = report.n_embd or 0, report.n_expert_used + 1, max(report.n_ff_exp or 0, report.n_ff_shared or 0)
    heads = ((report.n_head or 0) + 2 * (report.n_head_kv or 0)) * (report.head_dim or 0)
    attention = 4 * (4 * n_embd + 2 * heads) + 9 * (n_embd + heads) // 8
    experts = 4 * (report.n_expert + k * n_embd) + 9 * k * n_ff // 8
    few = 8 * k * n_granule * n_embd * 4  # up to 8 tokens keep a partial row per granule
    return n_batch * (attention + experts) + few + 4 * (report.n_vocab or 0)


def embedding_of(file: GgufFile) -> Embedding:
    """The token embedding of `file`."""
    names = {tensor.name: tensor.n_bytes for tensor in file.tensors}
    return Embedding(names.get("token_embd.weight", 0), "output.weight" not in names)


def granules_of(file: GgufFile, report: FileReport) -> int:
    """Granules of an expert by the engine's rule: the model decides, not how a file is cut (docs/architecture.md)."""
    from ._ffi import ffi, lib
    from .metadata import checked

    down = next((t.type for t in file.tensors if ".ffn_down_exps" in t.name and t.name.endswith(".weight")), None)
    if down is None or not report.n_ff_exp or down.startswith("?"):
        return 1
    type_id = ffi.new("uint32_t *")
    checked(lib.moepic_test_type_by_name(down.encode(), type_id))
    return int(report.n_ff_exp // max(1, checked(lib.moepic_test_granule(report.n_ff_exp, type_id[0]))))
