"""Experts that do not all fit: how they are kept and brought, as plain options, and what was served, as plain figures.

The work is done in native/src/engine/streamer.h; docs/streaming.md explains it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .budgets import Budget, parse_budget, physical_ram_bytes, show_bytes
from .config import need, need_int, need_number

if TYPE_CHECKING:
    from .replay import CacheOptions

# Position or number: the C API's.
POLICIES = {"lru": 0, "lfu": 1, "lcp": 2, "lrfu": 3, "static": 4, "auto": 6}
EVICTIONS = {"auto": -1, "whole": 0, "granules": 1}
SCOPES = ("per_layer", "global")
PREDICTORS = ("none", "previous_token", "next_layer")
IO_KINDS = ("auto", "io_uring", "threads")


@dataclass(frozen=True)
class StreamingOptions:
    """How experts that are not all in memory are kept and brought. They are streamed when `ram` is too small for all of
    them, or when `always` or `link_bytes_s` ask for it.

    always         through the expert cache even where every expert would fit
    cache          size of the expert cache: bytes, '2GiB'; None: what `ram` leaves
    staging        buffers of transfers under way; None: 32 MiB, and never less than two transfers
    policy         who stays: lrfu (decayed frequency), lru, lfu, lcp (MoEpic: rho, omega), static (needs a profile),
                   auto (begins with policy_start; replays the recent routing through the others in the background and
                   takes one that is better beyond doubt)
    eviction       granules (bottoms first), whole, or auto: granules where the file can be read by granules
    scope          per_layer, or global; a global pool too small for one token becomes per_layer, and that is said
    bypass         keep only what is worth more than what must leave
    predictor      next_layer (the next router, run early; `lookahead` 1 or 2 layers), previous_token, none
    io, direct     file reads: io_uring or a pool of threads; past the page cache
    top            granules of an expert that may be cached, per MoE layer (MoEpic's split ratio); None: all
    layer_budget   bytes per MoE layer; None: the cache in proportion to the layers' bytes
    profile        uses of every expert, for a warm start: a file saved by `Model.save_profile`, or numbers
    link_bytes_s   an EMULATED link: experts lie in RAM, the cache plays a device's memory, copies take their time
    cpu_bytes_s    beside it a CPU lane that computes granules where they lie, no faster than this
    adapt          try out, by wall time, whether prefetching and the CPU lane pay, and leave off what does not
    """

    always: bool = False
    cache: Budget = None
    staging: Budget = None
    policy: str = "lrfu"
    policy_start: str = "lrfu"
    eviction: str = "auto"
    scope: str = "per_layer"
    bypass: bool = False
    rho: float = 0.25
    omega: float = 128.0
    half_life: float = 24.0
    granule_omega: float = -1.0
    predictor: str = "next_layer"
    lookahead: int = 1
    io: str = "auto"
    direct: bool = True
    top: Sequence[int] | None = None
    layer_budget: Sequence[int] | None = None
    profile: str | os.PathLike[str] | Sequence[float] | None = None
    link_bytes_s: float = 0.0
    link_latency_s: float = 0.0
    cpu_bytes_s: float = 0.0
    adapt: bool = True

    def __str__(self) -> str:
        def show(value: object) -> str:
            many = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 8
            return f"{len(value)} values" if many else str(value)  # type: ignore[arg-type]

        return "\n".join(f"{item.name:18} {show(getattr(self, item.name))}" for item in fields(self))

    def validate(self) -> None:
        """Raise `ArgumentError` or `BudgetError` for the option that is out of range."""
        for name, known in (
            ("policy", POLICIES),
            ("eviction", EVICTIONS),
            ("scope", SCOPES),
            ("predictor", PREDICTORS),
            ("io", IO_KINDS),
        ):
            value = getattr(self, name)
            need(value in known, f"{name}: expected {', '.join(known)}, found {value!r}")
        need(
            POLICIES.get(self.policy_start, 4) <= POLICIES["lrfu"],
            f"policy_start: expected lru, lfu, lcp, lrfu, found {self.policy_start!r}",
        )
        need_number("rho", self.rho, 0.0, 1.0)
        for name in ("omega", "half_life", "link_bytes_s", "link_latency_s", "cpu_bytes_s"):
            need_number(name, getattr(self, name), 0.0, 1e15)
        need_int("lookahead", self.lookahead, 1, 2)
        need(
            self.policy != "static" or self.profile is not None,
            "policy: 'static' needs a profile that says which experts to keep",
        )
        _ = self.cache_bytes, self.staging_bytes

    @property
    def cache_bytes(self) -> int | None:
        return parse_budget(self.cache, name="cache", whole_bytes=physical_ram_bytes())

    @property
    def staging_bytes(self) -> int | None:
        return parse_budget(self.staging, name="staging", whole_bytes=physical_ram_bytes())

    def with_cache(self, cache: CacheOptions, *, learns: bool = False) -> StreamingOptions:
        """These options with the cache a plan chose (`moepic_gguf.forecast`); learns: its policy is what policy 'auto' starts with."""
        return replace(
            self,
            policy="auto" if learns else cache.policy,
            policy_start=cache.policy if learns else self.policy_start,
            eviction=cache.eviction,
            scope="global" if cache.scope == "global" else "per_layer",
            bypass=cache.bypass,
            rho=cache.rho,
            omega=cache.omega,
            half_life=cache.half_life,
            granule_omega=cache.granule_omega,
            top=None if cache.top is None else [int(value) for value in cache.top],
            layer_budget=None if cache.layer_budget is None else [int(value) for value in cache.layer_budget],
            profile=self.profile if cache.profile is None else [float(value) for value in cache.profile],
        )

    def to_native(self, profile: Sequence[float] | None) -> tuple[Any, list[Any]]:
        """The C struct, and what has to live as long."""
        from ._ffi import ffi, lib

        native = ffi.new("moepic_stream_options*")
        lib.moepic_stream_options_init(native)
        for name in ("always", "bypass", "direct", "adapt"):
            setattr(native, name, int(getattr(self, name)))
        native.cache_bytes = -1 if self.cache_bytes is None else self.cache_bytes
        native.staging_bytes = self.staging_bytes or 0
        native.policy, native.policy_start = POLICIES[self.policy], POLICIES[self.policy_start]
        native.eviction = EVICTIONS[self.eviction]
        native.scope, native.predictor = SCOPES.index(self.scope), PREDICTORS.index(self.predictor)
        native.io = IO_KINDS.index(self.io)
        for name in (
            "rho",
            "omega",
            "half_life",
            "granule_omega",
            "lookahead",
            "link_bytes_s",
            "link_latency_s",
            "cpu_bytes_s",
        ):
            setattr(native, name, getattr(self, name))
        keep: list[Any] = []
        for name, kind, values in (("top", "int32_t[]", self.top), ("budget", "int64_t[]", self.layer_budget)):
            if values is not None:
                keep.append(ffi.new(kind, [int(value) for value in values]))
                setattr(native, name, keep[-1])
                native.n_moe_layer = len(values)
        if profile is not None:
            keep.append(ffi.new("double[]", [float(value) for value in profile]))
            native.profile, native.n_profile = keep[-1], len(profile)
        return native, keep


@dataclass(frozen=True)
class LayerStreamStats:
    """One MoE layer of `StreamStats`. Counts are of routed experts (n_hit, n_partial, n_miss: everything, something, or
    nothing was resident) and of granules, by how they were served; bytes are of granules; stall_s is wall time in which
    every compute thread waited for bytes. n_right of n_used predicted ids were right.
    """

    layer: int
    n_hit: int
    n_partial: int
    n_miss: int
    n_resident: int
    n_link: int
    n_in_place: int
    n_prefetched: int
    demand_bytes: int
    useful_bytes: int
    wasted_bytes: int
    late_bytes: int
    stall_s: float
    n_guessed: int
    n_right: int
    n_used: int
    prefetches: bool
    n_switched_off: int

    @property
    def recall(self) -> float | None:
        return self.n_right / self.n_used if self.n_used else None


@dataclass(frozen=True)
class StreamStats:
    """What was streamed since load (or `reset_stats()`), all contexts together; decode and prefill apart.

    lane_bytes were delivered, lane_raw_bytes moved (with what alignment added), lane_dropped_bytes moved in vain;
    lane_busy_s is wall time during which something moved, lane_bytes_s and cpu_bytes_s rates of late. prefetch_cost, cpu_lane_cost and graphs_cost are
    what the last trial found it to cost, as shares of a token's time; below 0 it saves, 0 before a trial decided. Of a device:
    n_device_routed layers, all of whose experts were resident, it routed itself, and n_graph_tokens tokens of nothing but such layers were launched
    as one of n_graphs graphs; in n_round_trips layers of decode the host waited waited_s for the
    router and took planned_s from there to the first launch; given_back_bytes are what its cache gave up since load for contexts that found no
    other memory, and of the experts in RAM pinned_bytes are pinned for the link and to_pin_bytes still to be;
    cpu_bytes_s is one thread's, for one token.
    """

    cache_bytes: int
    resident_bytes: int
    loads: int
    evictions: int
    lane_bytes: int
    lane_raw_bytes: int
    lane_dropped_bytes: int
    n_transfers: int
    n_cancelled: int
    n_failed: int
    lane_busy_s: float
    lane_bytes_s: float
    cpu_bytes_s: float
    n_policy_changes: int
    prefetch_on: int
    cpu_lane_on: int
    graphs_on: int
    prefetch_cost: float
    cpu_lane_cost: float
    graphs_cost: float
    n_prefetch_off: int
    n_cpu_lane_off: int
    n_graphs_off: int
    n_device_routed: int
    n_graph_tokens: int
    n_graphs: int
    n_round_trips: int
    waited_s: float
    planned_s: float
    lane: str
    policy: str
    note: str
    given_back_bytes: int
    pinned_bytes: int
    to_pin_bytes: int
    decode: tuple[LayerStreamStats, ...]
    prefill: tuple[LayerStreamStats, ...]

    def total(self, name: str, *, prefill: bool = False) -> float:
        """The sum of one column over the layers."""
        return float(sum(getattr(row, name) for row in (self.prefill if prefill else self.decode)))

    @property
    def stall_s(self) -> float:
        return self.total("stall_s") + self.total("stall_s", prefill=True)

    @property
    def n_layers_switched_off(self) -> int:
        return sum(not row.prefetches for row in self.decode)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        hit, partial, miss = (int(self.total(name)) for name in ("n_hit", "n_partial", "n_miss"))
        routed = max(1, hit + partial + miss)
        right, used = self.total("n_right"), self.total("n_used")
        recall = f"recall {right / used:.0%}, " if used else ""
        off = self.n_layers_switched_off
        switched = f", off in {off} of {len(self.decode)} layers where it lost time" if off and used else ""
        in_place = int(self.total("n_in_place"))
        tried = "".join(
            f"tried         {name}: {abs(cost):.1%} of a token's time {'lost' if cost > 0.0 else 'saved'}, so it is {'off' if cost > 0.0 else 'on'}\n"
            for name, cost in (
                ("prefetch", self.prefetch_cost),
                ("CPU lane", self.cpu_lane_cost),
                ("graphs", self.graphs_cost),
            )
            if cost
        )
        return (
            f"expert cache  {show_bytes(self.resident_bytes)} of {show_bytes(self.cache_bytes)} in use, policy "
            f"{self.policy}"
            f"{f' (changed {self.n_policy_changes} times)' if self.n_policy_changes else ''}"
            f"{f', {show_bytes(self.given_back_bytes)} given back' if self.given_back_bytes else ''}\n"
            f"decode        waited {self.total('stall_s'):.2f} s for {show_bytes(int(self.total('demand_bytes')))}; "
            f"experts found: "
            f"{hit / routed:.0%} whole, {partial / routed:.0%} in part, {miss / routed:.0%} not at all"
            f"{f'; {in_place} granules computed in place' if in_place else ''}\n"
            f"prefetch      {recall}{show_bytes(int(self.total('useful_bytes')))} useful, "
            f"{show_bytes(int(self.total('wasted_bytes')))} wasted, "
            f"{show_bytes(int(self.total('late_bytes')))} late{switched}\n{tried}"
            f"lane          {self.lane}: {show_bytes(self.lane_bytes)} in {self.lane_busy_s:.2f} s, "
            f"{self.lane_bytes_s / 1e9:.2f} GB/s of late{self._pinning()}{self._round_trips()}"
            + (f"\nnote          {self.note}" if self.note else "")
        )

    def _pinning(self) -> str:
        if not self.to_pin_bytes:
            return ""
        return f"\npinning       {show_bytes(self.pinned_bytes)} of {show_bytes(self.pinned_bytes + self.to_pin_bytes)} so far; the rest takes one more copy"

    def _round_trips(self) -> str:
        n, said = self.n_round_trips, []
        if n:
            said.append(
                f"{1e6 * self.waited_s / n:.0f} us a layer for the router, {1e6 * self.planned_s / n:.0f} us to the first launch"
            )
        if self.n_device_routed:
            graphs = f", {self.n_graph_tokens} tokens as a graph" if self.n_graph_tokens else ""
            said.append(f"{self.n_device_routed} layers were routed on the device, without one{graphs}")
        return f"\nround trips   {'; '.join(said)}" if said else ""


def read_stream_stats(pointer: Any, n_moe_layer: int) -> StreamStats:
    """The figures of a `moepic_model` that streams."""
    from ._ffi import ffi, lib
    from .metadata import checked, text_of

    raw = ffi.new("moepic_stream_stats*")
    raw.size = ffi.sizeof("moepic_stream_stats")
    checked(lib.moepic_model_stream_stats(raw, pointer))
    texts = ("lane", "policy", "note")
    totals: dict[str, Any] = {
        name: text_of(getattr(raw, name)) if name in texts else getattr(raw, name)
        for name, _ in ffi.typeof("moepic_stream_stats").fields
        if name != "size"
    }

    def row(layer: int, prefill: int) -> LayerStreamStats:
        one = ffi.new("moepic_stream_layer*")
        one.size = ffi.sizeof("moepic_stream_layer")
        checked(lib.moepic_model_stream_layer(one, pointer, layer, prefill))
        values = {item.name: getattr(one, item.name) for item in fields(LayerStreamStats)}
        return LayerStreamStats(**{**values, "prefetches": bool(one.prefetches)})

    rows = [tuple(row(il, prefill) for il in range(n_moe_layer)) for prefill in (0, 1)]
    return StreamStats(**totals, decode=rows[0], prefill=rows[1])
