"""Run cache policies over recorded routing, without weights: what would have moved, and for how long a token would have waited.

Thin over native/src/cache/replay.h, which does the counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._ffi import ffi, lib
from .errors import ArgumentError
from .metadata import checked
from .trace import Trace

POLICIES = {"lru": 0, "lfu": 1, "lcp": 2, "lrfu": 3, "static": 4, "belady": 5}
SCOPES = {"layer": 0, "global": 1}
EVICTIONS = {"whole": 0, "granules": 1}


@dataclass(frozen=True)
class CacheOptions:
    """How an expert cache decides; see native/src/cache/{policy,cache,scope}.h.

    policy         of POLICIES. belady knows the future: a bound, not a policy one can run.
    rho, omega     of lcp: P = mu * rho^(nu / omega), omega in tokens.
    half_life      of lrfu, tokens.
    eviction       whole: an expert's cached part comes and goes at once; granules: bottoms first, by worth.
    bypass         keep only what is worth more than what must leave; moved up to 15 % more bytes on four recorded traces.
    granule_omega  weight of the cut in a granule's worth; negative: 4 budget / bytes of all experts.
    top            [n_layer] granules of an expert that may be cached (theta = top / G), None for all.
    layer_budget   [n_layer] bytes, None: the budget is divided in proportion to the layers' bytes.
    profile        [all experts] uses to start warm from; static needs it.
    """

    policy: str = "lrfu"
    scope: str = "layer"
    eviction: str = "granules"
    bypass: bool = False
    rho: float = 0.25
    omega: float = 128.0
    half_life: float = 24.0
    granule_omega: float = -1.0
    top: Sequence[int] | None = None
    layer_budget: Sequence[int] | None = None
    profile: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Lanes:
    """Rates in bytes per second, windows in seconds per layer (None: nothing is prefetched).

    wait_s           what a layer that misses anything waits besides its bytes.
    landing_bytes_s  granules made ready for the kernels once they came; 0: they come ready.
    compute_bytes_s  of routed experts, behind which what is missing hides; 0: nothing does.
    """

    miss_bytes_s: float
    prefetch_bytes_s: float = 0.0
    window_s: Sequence[float] | None = None
    wait_s: float = 0.0
    landing_bytes_s: float = 0.0
    compute_bytes_s: float = 0.0


@dataclass(frozen=True)
class LayerTally:
    """Of counted tokens, per layer; bytes, seconds, and routed experts (hit: all granules resident, partial: some, miss: none)."""

    n_hit: int
    n_partial: int
    n_miss: int
    needed_bytes: int
    demand_bytes: int
    useful_bytes: int
    wasted_bytes: int
    late_bytes: int
    stall_s: float


@dataclass(frozen=True)
class Replay:
    """What a replay found. Bytes and stall first: hit rates explain them and prove nothing alone."""

    layers: tuple[LayerTally, ...]
    token_stall_s: NDArray[np.float64]  # [counted tokens]
    loads: int  # granules, all tokens
    evictions: int
    capacity_bytes: int
    note: str

    def total(self, name: str) -> float:
        """Sum of a LayerTally field over layers."""
        return float(sum(getattr(layer, name) for layer in self.layers))

    def per_token(self, name: str) -> float:
        return self.total(name) / max(1, len(self.token_stall_s))

    def share(self, name: str) -> float:
        """Share of routed experts that were n_hit, n_partial or n_miss."""
        routed = sum(self.total(kind) for kind in ("n_hit", "n_partial", "n_miss"))
        return self.total(name) / routed if routed else 0.0

    def stall_quantile(self, q: float) -> float:
        return float(np.quantile(self.token_stall_s, q)) if len(self.token_stall_s) else 0.0


class _Call:
    """C structs of one native call; keeps the arrays they point into alive."""

    def __init__(self) -> None:
        self._alive: list[Any] = []

    def pointer(self, values: Any, dtype: str, kind: str) -> Any:
        if values is None:
            return ffi.NULL
        array = np.ascontiguousarray(values, dtype)
        self._alive.append(array)
        return ffi.cast(kind, array.ctypes.data)

    def shape(self, trace: Trace) -> Any:
        made = ffi.new("moepic_test_shape *")
        made.n_layer, made.n_used = trace.n_layer, trace.n_used
        made.n_expert = self.pointer(trace.n_expert, "i4", "int32_t *")
        made.n_granule = self.pointer(trace.n_granule, "i4", "int32_t *")
        made.granule_bytes = self.pointer(trace.granule_bytes, "i8", "int64_t *")
        return made

    def trace(self, trace: Trace, lanes: Lanes, predicted: Any, n_warm: int) -> Any:
        made = ffi.new("moepic_test_trace *")
        made.ids = self.pointer(trace.ids, "i4", "int32_t *")
        made.predicted = self.pointer(predicted, "i4", "int32_t *")
        made.n_token, made.n_warm = trace.n_token, n_warm
        made.n_guess = 0 if predicted is None else predicted.shape[2]
        made.miss_bytes_s, made.prefetch_bytes_s = lanes.miss_bytes_s, lanes.prefetch_bytes_s
        made.wait_s, made.landing_bytes_s = lanes.wait_s, lanes.landing_bytes_s
        made.compute_bytes_s = lanes.compute_bytes_s
        made.window_s = self.pointer(_sized(lanes.window_s, trace.n_layer, "windows"), "f8", "double *")
        return made

    def options(self, made: Any, options: CacheOptions, trace: Trace, budget_bytes: int) -> Any:
        for name, table in (("policy", POLICIES), ("scope", SCOPES), ("eviction", EVICTIONS)):
            value = getattr(options, name)
            if value not in table:
                raise ArgumentError(f"{name}: {value!r} is none of {', '.join(table)}")
            setattr(made, name, table[value])
        made.bypass = options.bypass
        made.rho, made.omega, made.half_life = options.rho, options.omega, options.half_life
        made.granule_omega, made.budget_bytes = options.granule_omega, budget_bytes
        made.top = self.pointer(_sized(options.top, trace.n_layer, "tops"), "i4", "int32_t *")
        made.layer_budget = self.pointer(_sized(options.layer_budget, trace.n_layer, "budgets"), "i8", "int64_t *")
        made.profile = self.pointer(_sized(options.profile, int(trace.n_expert.sum()), "weights"), "f8", "double *")
        return made


def _sized(values: Any, expected: int, what: str) -> Any:
    if values is not None and len(values) != expected:
        raise ArgumentError(f"{len(values)} {what}, expected {expected}")
    return values


def replay(
    trace: Trace,
    budget_bytes: int,
    options: CacheOptions | None = None,
    lanes: Lanes | None = None,
    *,
    predictor: str = "none",
    n_warm: int = 0,
) -> Replay:
    """Replay `trace` through one cache of `budget_bytes`.

    predictor   none; recorded: the ids in the trace; previous_token: what the layer used for the token before.
    n_warm      tokens that fill the cache and are not counted.
    Raises      `ArgumentError`, `BudgetError`.
    """
    options, lanes, call = options or CacheOptions(), lanes or Lanes(1e9), _Call()
    if not 0 <= n_warm <= trace.n_token:
        raise ArgumentError(f"n_warm: {n_warm} of {trace.n_token} tokens")
    if options.policy == "static" and options.profile is None:
        raise ArgumentError("policy static needs a profile")
    layers = ffi.new("moepic_test_tally[]", trace.n_layer)
    stall = np.zeros(max(1, trace.n_token - n_warm))
    totals = ffi.new("moepic_test_totals *")
    made = call.options(ffi.new("moepic_test_cache_options *"), options, trace, budget_bytes)
    recorded = call.trace(trace, lanes, guesses(trace, predictor), n_warm)
    stalls = ffi.cast("double *", stall.ctypes.data)
    checked(lib.moepic_test_cache_replay(layers, stalls, totals, call.shape(trace), recorded, made))
    names = LayerTally.__dataclass_fields__
    return Replay(
        tuple(LayerTally(**{name: getattr(row, name) for name in names}) for row in layers),
        stall[: trace.n_token - n_warm],
        totals.loads,
        totals.evictions,
        totals.capacity_bytes,
        ffi.string(totals.note).decode(),
    )


def choose(
    trace: Trace,
    budget_bytes: int,
    candidates: Sequence[CacheOptions],
    lanes: Lanes,
    *,
    predictor: str = "none",
    n_warm: int = 0,
) -> tuple[int, list[float]]:
    """Policy `auto`: the index of the candidate that stalls least on `trace`, and the stall of each in seconds. predictor: as for `replay`."""
    call = _Call()
    array = ffi.new("moepic_test_cache_options[]", max(1, len(candidates)))
    for i, candidate in enumerate(candidates):
        call.options(array[i], candidate, trace, budget_bytes)
    best, stall = ffi.new("int32_t *"), ffi.new("double[]", max(1, len(candidates)))
    recorded = call.trace(trace, lanes, guesses(trace, predictor), n_warm)
    checked(lib.moepic_test_cache_choose(best, stall, call.shape(trace), recorded, array, len(candidates)))
    return best[0], list(stall)


def hit_curves(trace: Trace, *, n_warm: int = 0, concave: bool = True) -> list[NDArray[np.float64]]:
    """Per layer [n_expert + 1]: the hit rate of n slots under per-layer LRU."""
    call = _Call()
    recorded, shape, curves = call.trace(trace, Lanes(1.0), None, n_warm), call.shape(trace), []
    for layer in range(trace.n_layer):
        curve = np.zeros(int(trace.n_expert[layer]) + 1)
        hits = ffi.cast("double *", curve.ctypes.data)
        checked(lib.moepic_test_hit_curve(hits, shape, recorded, layer, concave))
        curves.append(curve)
    return curves


def guesses(trace: Trace, predictor: str) -> NDArray[np.int32] | None:
    """[n_token, n_layer, n_guess] ids known before the router spoke, -1 for none; None for no predictor."""
    if predictor == "none":
        return None
    if predictor == "recorded":
        if trace.predicted is None:
            raise ArgumentError("predictor recorded: the trace holds no predicted ids")
        return trace.predicted
    if predictor == "previous_token":
        before = np.roll(trace.ids, 1, axis=0)
        before[0] = -1
        new = np.flatnonzero(np.diff(trace.sequence)) + 1
        before[new] = -1
        return before
    raise ArgumentError(f"predictor: {predictor!r} is none of none, recorded, previous_token")


def profile_of(trace: Trace, n_token: int | None = None) -> NDArray[np.float64]:
    """[all experts] how often each was used in the first `n_token` tokens: a profile for `static`, or a warm start."""
    counts = [
        np.bincount(layer[layer >= 0], minlength=int(n))
        for layer, n in zip(np.moveaxis(trace.ids[:n_token], 1, 0), trace.n_expert, strict=True)
    ]
    return np.concatenate(counts).astype(np.float64)
