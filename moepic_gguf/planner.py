"""Plan a budget before anything is loaded: what is cached in which layer, how experts are cut, which lanes serve the rest, and how long a token takes.

Thin over native/src/plan/, which does the arithmetic; inputs are measurements (a machine file) and routing (recorded, or a stated prior).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._ffi import ffi, lib
from .errors import ArgumentError, IoError, ModelFormatError
from .metadata import checked
from .replay import CacheOptions, Lanes, Replay, hit_curves, profile_of, replay
from .trace import DECODE, Trace

MODES = {"auto": 0, "paper": 1, "uniform": 2, "fixed": 3, "none": 4, "worth": 5}


@dataclass(frozen=True)
class Machine:
    """Rates of one machine in bytes per second and fixed costs in seconds, each measured; see native/src/plan/problem.h.

    link_bytes_s      the slow tier: PCIe to a device, or the file.
    cpu_bytes_s       granules computed where they lie; 0: no such lane.
    together_bytes_s  what link and CPU get between them when both run; 0: their sum.
    device_bytes_s    resident granules and all other weights.
    cpu_sync_s        what a layer pays for using the CPU lane at all.
    layer_s           fixed cost of a layer besides its bytes.
    miss_latency_s    what a layer that misses anything waits besides its bytes.
    landing_bytes_s   granules made ready for the kernels once they came, by n_threads together; 0: they come ready.
    spread            how far the slowest and fastest measurement lay from the rates, as factors of them; (1, 1): not known.
    """

    link_bytes_s: float
    device_bytes_s: float
    cpu_bytes_s: float = 0.0
    together_bytes_s: float = 0.0
    cpu_sync_s: float = 0.0
    layer_s: float = 0.0
    miss_latency_s: float = 0.0
    landing_bytes_s: float = 0.0
    n_threads: float = 1.0
    spread: tuple[float, float] = (1.0, 1.0)

    @property
    def miss_bytes_s(self) -> float:
        both = self.link_bytes_s + self.cpu_bytes_s
        return min(both, self.together_bytes_s) if self.cpu_bytes_s and self.together_bytes_s else both

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Machine:
        """A machine file: a JSON object with the names above, and the `spread` of what was measured (docs/planning.md); others are ignored.

        Raises `IoError`, `ModelFormatError`.
        """
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
            names = [field.name for field in fields(cls) if field.name != "spread"]
            return cls(**{name: float(given[name]) for name in names if name in given}, spread=_spread(given))
        except OSError as error:
            raise IoError(f"machine file: cannot read '{path}': {error.strerror}") from error
        except (ValueError, TypeError, KeyError, ZeroDivisionError, AttributeError) as error:
            raise ModelFormatError(f"machine file '{path}': {error}") from error


# A reading of nothing (the core was taken away for all of it) says no more than a tenth of the median: a band has to end somewhere.
LEAST_RATE = 0.1


def _spread(given: dict[str, Any]) -> tuple[float, float]:
    """From a machine file's `measured_bytes_s`: the widest of what rates rest on, the slow tier's and the fast one's."""
    measured = given.get("measured_bytes_s", {})
    used = [measured[name] for name in ("file_together", "compute") if name in measured]
    if given.get("given"):  # a link that was given and not measured
        used = [measured["compute"]] if "compute" in measured else []
    low = min((float(row["min"]) / float(row["median"]) for row in used), default=1.0)
    high = max((float(row["max"]) / float(row["median"]) for row in used), default=1.0)
    return max(low, LEAST_RATE), high


@dataclass(frozen=True)
class Costs:
    """Per-layer inputs of a plan, [n_layer] each: seconds, seconds, share, legal tops in granules (None: every one)."""

    compute_s: Sequence[float]
    window_s: Sequence[float]
    recall: Sequence[float]
    cuts: Sequence[Sequence[int]] | None = None
    hits: Sequence[NDArray[np.float64]] | None = None  # [n_expert + 1]; None: from the routing, concave

    @classmethod
    def flat(cls, n_layer: int, *, compute_s: float = 0.0, window_s: float = 0.0, recall: float = 0.0) -> Costs:
        return cls([compute_s] * n_layer, [window_s] * n_layer, [recall] * n_layer)


@dataclass(frozen=True)
class LayerPlan:
    """Bytes reserved, granules per cached expert, experts cached, their mean share, and what a token is expected to miss and wait for."""

    bytes: int
    top: int
    slots: int
    theta: float
    miss_bytes: float
    stall_s: float


@dataclass(frozen=True)
class Plan:
    """A plan and what its own model predicts per decoded token.

    resident   auto: granules of every expert of every layer, in order; else empty
    link_share of missing bytes; the CPU computes the rest in place
    rounds     paper: rounds until budgets and ratios agreed
    """

    mode: str
    budget_bytes: int
    layers: tuple[LayerPlan, ...]
    resident: NDArray[np.int32]
    bytes: int
    objective_s: float
    stall_s: float
    link_share: float
    link_only_s: float
    both_s: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        made = asdict(self)
        made["resident"] = self.resident.tolist()
        return made

    def cache_options(self, policy: str = "lrfu") -> CacheOptions:
        """The cache that runs this plan: budgets per layer; tops and whole eviction for a ratio per layer, granules by worth for auto."""
        budget = [layer.bytes for layer in self.layers]
        if self.mode in ("auto", "worth"):
            return CacheOptions(policy=policy, eviction="granules", layer_budget=budget)
        return CacheOptions(
            policy=policy, eviction="whole", layer_budget=budget, top=[max(1, layer.top) for layer in self.layers]
        )


def make_plan(
    trace: Trace, budget_bytes: int, machine: Machine, costs: Costs | None = None, *, mode: str = "auto", top: int = 0
) -> Plan:
    """Divide `budget_bytes` among the experts of the model `trace` was recorded from.

    trace   sizes of the model, and the routing to plan for; `prior_trace` makes one where none was recorded.
    mode    of MODES; fixed: every layer alike with tops of `top` granules.
    Raises  `ArgumentError`, `BudgetError`.
    """
    if mode not in MODES:
        raise ArgumentError(f"mode: {mode!r} is none of {', '.join(MODES)}")
    layers, resident, totals = _run(trace, budget_bytes, machine, costs, MODES[mode], top, None)
    return _plan(mode, budget_bytes, layers, resident if mode in ("auto", "worth") else resident[:0], totals)


def evaluate_residency(trace: Trace, resident: NDArray[np.int32], machine: Machine, costs: Costs | None = None) -> Plan:
    """What the model of `auto` says about a residency [all experts; granules] that someone else chose."""
    granules = int((resident * np.repeat(trace.granule_bytes, trace.n_expert)).sum())
    layers, resident, totals = _run(trace, granules, machine, costs, 6, 0, resident)
    return _plan("given", granules, layers, resident, totals)


def _plan(mode: str, budget_bytes: int, layers: Any, resident: NDArray[np.int32], totals: Any) -> Plan:
    rows = tuple(LayerPlan(**{name: getattr(row, name) for name in LayerPlan.__dataclass_fields__}) for row in layers)
    names = ("bytes", "objective_s", "stall_s", "link_share", "link_only_s", "both_s", "rounds")
    return Plan(mode, budget_bytes, rows, resident, **{name: getattr(totals, name) for name in names})


def _run(
    trace: Trace, budget_bytes: int, machine: Machine, costs: Costs | None, mode: int, top: int, given: Any
) -> tuple[Any, NDArray[np.int32], Any]:
    n_layer = trace.n_layer
    costs = costs or Costs.flat(n_layer)
    cuts = costs.cuts or [list(range(1, int(g) + 1)) for g in trace.n_granule]
    hits = costs.hits or hit_curves(trace)
    sizes = {
        "compute_s": len(costs.compute_s),
        "window_s": len(costs.window_s),
        "recall": len(costs.recall),
        "cuts": len(cuts),
        "hits": len(hits),
    }
    for name, size in sizes.items():
        if size != n_layer:
            raise ArgumentError(f"costs: {size} values of {name} for {n_layer} layers")
    for curve, n_expert in zip(hits, trace.n_expert, strict=True):
        if len(curve) != n_expert + 1:
            raise ArgumentError(f"costs: a hit curve of {len(curve)} values for {n_expert} experts, expected one more")
    arrays = {
        "n_expert": (trace.n_expert, "i4", "int32_t *"),
        "n_granule": (trace.n_granule, "i4", "int32_t *"),
        "granule_bytes": (trace.granule_bytes, "i8", "int64_t *"),
        "compute_s": (costs.compute_s, "f8", "double *"),
        "window_s": (costs.window_s, "f8", "double *"),
        "recall": (costs.recall, "f8", "double *"),
        "cuts": (np.concatenate([np.asarray(c) for c in cuts]), "i4", "int32_t *"),
        "n_cut": ([len(c) for c in cuts], "i4", "int32_t *"),
        "hits": (np.concatenate(list(hits)), "f8", "double *"),
        "routing": (trace.ids, "i4", "int32_t *"),
    }
    problem = ffi.new("moepic_test_problem *")
    problem.link, problem.cpu, problem.together = machine.link_bytes_s, machine.cpu_bytes_s, machine.together_bytes_s
    problem.device, problem.cpu_sync_s = machine.device_bytes_s, machine.cpu_sync_s
    problem.budget_bytes, problem.n_layer = budget_bytes, n_layer
    problem.n_used, problem.n_token = trace.n_used, trace.n_token
    alive: list[NDArray[Any]] = []
    for name, (values, dtype, kind) in arrays.items():
        alive.append(np.ascontiguousarray(values, dtype))
        setattr(problem, name, ffi.cast(kind, alive[-1].ctypes.data))
    resident = np.zeros(int(trace.n_expert.sum()), np.int32) if given is None else np.ascontiguousarray(given, "i4")
    if len(resident) != trace.n_expert.sum():
        raise ArgumentError(f"residency: {len(resident)} experts, expected {trace.n_expert.sum()}")
    layers, totals = ffi.new("moepic_test_layer_plan[]", n_layer), ffi.new("moepic_test_plan_totals *")
    checked(lib.moepic_test_plan(layers, ffi.cast("int32_t *", resident.ctypes.data), totals, problem, mode, top))
    return layers, resident, totals


@dataclass(frozen=True)
class Prediction:
    """Seconds per decoded token of a cache run over recorded routing, the only prediction that compares modes: each mode's own objective rests on its
    own model. `low_s` and `high_s` are the 10th and 90th percentile over windows of WINDOW tokens.
    """

    tpot_s: float
    low_s: float
    high_s: float
    stall_s: float
    found: Replay


WINDOW = 16  # tokens: a sentence or two; single tokens spread more than anybody notices


def predict(
    plan: Plan,
    trace: Trace,
    machine: Machine,
    costs: Costs,
    *,
    predictor: str = "none",
    policy: str = "lrfu",
    n_warm: int | None = None,
    cache: CacheOptions | None = None,
    is_full: bool = False,
) -> Prediction:
    """Replay `plan` over `trace` and add what is paid whatever is cached.

    cache    what runs instead of the plan's own cache: `choosing.choose_cache` finds the one that mode `auto` would take.
    n_warm   tokens not counted; by default those of the prefill, or a quarter where the trace has none.
    is_full  the cache starts full, with what those tokens use most: a prompt of some hundred tokens has touched every expert, and a short trace would count
             the first use of each as a miss.
    """
    lanes = lanes_of(trace, machine, costs, predictor=predictor, with_cpu=plan.link_share < 1.0)
    if n_warm is None:
        n_warm = trace.n_prefill if 0 < trace.n_prefill < trace.n_token else trace.n_token // 4
    options = cache or plan.cache_options(policy)
    if is_full:
        options = replace(options, profile=profile_of(trace, n_warm) + 1e-6)
    found = replay(trace, plan.budget_bytes, options, lanes, predictor=predictor, n_warm=n_warm)
    work = float(sum(costs.compute_s) + (trace.n_used * trace.expert_bytes).sum() / machine.device_bytes_s)
    stall, windows = found.per_token("stall_s"), _windows(found.token_stall_s)
    low, high = np.quantile(windows, [0.1, 0.9]) if len(windows) else (stall, stall)
    # Few windows: their percentiles need not enclose the mean.
    return Prediction(work + stall, work + min(stall, float(low)), work + max(stall, float(high)), stall, found)


def lanes_of(trace: Trace, machine: Machine, costs: Costs, *, predictor: str, with_cpu: bool) -> Lanes:
    """Missing bytes at the rate of the lanes that serve them; windows where somebody predicts. While bytes are read those before them land and resident
    granules are computed; the last granule's landing, by one thread, is waited for.
    """
    rate = machine.miss_bytes_s if with_cpu else machine.link_bytes_s
    last_s = (
        machine.n_threads * float(trace.granule_bytes.mean()) / machine.landing_bytes_s
        if machine.landing_bytes_s
        else 0.0
    )
    return Lanes(
        rate,
        machine.link_bytes_s,
        list(costs.window_s) if predictor != "none" else None,
        wait_s=machine.miss_latency_s + last_s,
        landing_bytes_s=machine.landing_bytes_s,
        compute_bytes_s=machine.device_bytes_s,
    )


def _windows(stall_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over windows of WINDOW tokens; a last one cut short counts where it is the only one."""
    n = len(stall_s) // WINDOW
    return (
        stall_s[: n * WINDOW].reshape(n, WINDOW).mean(axis=1)
        if n
        else stall_s[:1] * 0 + stall_s.mean()
        if len(stall_s)
        else stall_s
    )


def with_guesses(trace: Trace, recall: float, *, seed: int = 0) -> Trace:
    """`trace` with made-up predictions that hold each used expert with probability `recall`, and another one otherwise: an assumption."""
    rng = np.random.default_rng(seed)
    # The first of a random order in which the used experts come last: different from those and from each other.
    order = rng.random((*trace.ids.shape[:2], int(trace.n_expert.min())))
    used = np.where((trace.ids >= 0) & (trace.ids < order.shape[2]), trace.ids, 0)
    np.put_along_axis(order, used, 2.0, axis=2)
    others = np.argsort(order, axis=2)[..., : trace.n_used]
    # Where the used experts leave too few others, a wrong guess names nobody.
    others = np.where(np.take_along_axis(order, others, axis=2) < 2.0, others, -1)
    guessed = np.where((rng.random(trace.ids.shape) < recall) & (trace.ids >= 0), trace.ids, others)
    return replace(
        trace, predicted=guessed.astype(np.int32), info=trace.info | {"guesses": f"recall {recall:g}, assumed"}
    )


def prior_trace(
    n_layer: int,
    n_expert: int,
    n_used: int,
    expert_bytes: int,
    n_granule: int,
    *,
    n_token: int = 192,
    skew: float = 0.7,
    stay: float = 0.35,
    seed: int = 0,
) -> Trace:
    """Routing to plan for where none was recorded: an assumption, and to be named as one.

    Popularity falls as rank^-skew, in each layer in its own order; an expert of the last token is used again with probability `stay` (recorded models:
    0.28 to 0.45, routing-and-split.md section 3.1). Seeded, so the same model gives the same plan.
    """
    rng = np.random.default_rng(seed)
    popularity = (np.arange(n_expert) + 1.0) ** -skew
    ids = np.zeros((n_token, n_layer, n_used), np.int32)
    for layer in range(n_layer):
        # The n_used largest of log p + Gumbel noise are a draw without replacement; an offset makes last token's experts stick.
        log_p = np.log(rng.permutation(popularity / popularity.sum()))
        noise = rng.gumbel(size=(n_token, n_expert))
        keep = rng.random((n_token, n_used)) < stay
        for token in range(n_token):
            score = log_p + noise[token]
            if token:
                score[ids[token - 1, layer][keep[token]]] += 1e3
            ids[token, layer] = np.argpartition(score, -n_used)[-n_used:]
    granule_bytes = -(-expert_bytes // n_granule)
    return Trace(
        ids=ids,
        weights=np.full(ids.shape, 1.0 / n_used, np.float32),
        sequence=np.zeros(n_token, np.int32),
        phase=np.full(n_token, DECODE, np.uint8),
        n_expert=np.full(n_layer, n_expert, np.int32),
        n_granule=np.full(n_layer, n_granule, np.int32),
        granule_bytes=np.full(n_layer, granule_bytes, np.int64),
        info={"source": f"prior: skew {skew}, stay {stay}", "assumed": ["routing"]},
    )


def recent(trace: Trace, n_token: int = 128) -> Trace:
    """The last tokens of a trace: what a plan for the next ones looks at."""
    return trace.tokens(slice(max(0, trace.n_token - n_token), None))
