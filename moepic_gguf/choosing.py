"""The cache that mode `auto` runs: candidates made from plans, cuts and policies, tried on recent routing; the one that stalls least.

A plan is made for a mean; a cache lives through tokens in their order. What suits a routing (whole experts or tops, keep or pass through, recency or
frequency) is cheaper tried than derived: a candidate costs some milliseconds. Thin over `replay.choose`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .planner import Costs, Machine, Plan, make_plan, recent
from .replay import CacheOptions, Lanes, choose
from .trace import Trace

CUTS = (0.25, 0.5, 0.75, 1.0)  # shares of an expert that are tried as tops, beside the budget's own share
POLICIES = {
    "lru": CacheOptions("lru"),
    "lfu": CacheOptions("lfu"),
    "lcp": CacheOptions("lcp"),
    "lrfu 8": CacheOptions("lrfu", half_life=8.0),
    "lrfu 96": CacheOptions("lrfu", half_life=96.0),
}
FINALISTS = 3  # shapes that are tried with every policy


@dataclass(frozen=True)
class Chosen:
    """A cache and how it came to be chosen: `name` says its shape and policy, `stall_s` the stall of every candidate on the tokens tried."""

    name: str
    options: CacheOptions
    stall_s: Mapping[str, float]


def choose_cache(
    trace: Trace,
    budget_bytes: int,
    machine: Machine,
    costs: Costs,
    *,
    lanes: Lanes | None = None,
    predictor: str = "none",
    plan: Plan | None = None,
    n_token: int = 384,
    finalists: int = FINALISTS,
) -> Chosen:
    """Try caches of `budget_bytes` on the last `n_token` tokens of `trace`, a quarter of them to fill the cache.

    lanes      what the tokens wait at; by default those of `machine` with the windows of `costs` (where there is a predictor).
    plan       of mode auto for this budget, where it is made already.
    finalists  shapes that are tried with every policy; the others run the default one only.
    Raises   `ArgumentError`, `BudgetError`.
    """
    seen = recent(trace, n_token)
    lanes = lanes or lanes_of(machine, costs, predictor=predictor, with_cpu=plan is not None and plan.link_share < 1.0)
    plans = [
        plan or make_plan(recent(seen), budget_bytes, machine, costs),
        make_plan(recent(seen), budget_bytes, machine, costs, mode="paper"),
    ]
    tried: dict[str, float] = {}

    def attempt(candidates: dict[str, CacheOptions]) -> list[str]:
        n_warm = seen.n_token // 4
        _, stall = choose(seen, budget_bytes, list(candidates.values()), lanes, predictor=predictor, n_warm=n_warm)
        tried.update(zip(candidates, stall, strict=True))
        return sorted(candidates, key=tried.__getitem__)

    shapes = _shapes(seen, budget_bytes, plans)
    best_shapes = attempt(shapes)[:finalists]
    more = {
        f"{name}, {policy}": replace(shapes[name], policy=with_.policy, half_life=with_.half_life)
        for name in best_shapes
        for policy, with_ in POLICIES.items()
    }
    more |= {
        f"{name}, bypass": replace(options, bypass=True)
        for name, options in (shapes | more).items()
        if name.split(",")[0] in best_shapes
    }
    attempt(more)
    best = min(tried, key=tried.__getitem__)
    return Chosen(best, (shapes | more)[best], tried)


def lanes_of(machine: Machine, costs: Costs, *, predictor: str, with_cpu: bool) -> Lanes:
    """Missing bytes at the rate of the lanes that serve them; windows where somebody predicts."""
    rate = machine.miss_bytes_s if with_cpu else machine.link_bytes_s
    return Lanes(rate, machine.link_bytes_s, list(costs.window_s) if predictor != "none" else None)


def _shapes(trace: Trace, budget_bytes: int, plans: list[Plan]) -> dict[str, CacheOptions]:
    """What of an expert is kept and in which steps it leaves, all under the default policy."""
    made = {
        "granules": CacheOptions(),
        "granules of the plan": plans[0].cache_options(),
        "tops of the paper's plan": plans[1].cache_options(),
    }
    for share in sorted({*CUTS, min(1.0, budget_bytes / trace.total_bytes)}):
        top = [max(1, round(share * int(g))) for g in trace.n_granule]
        made[f"tops of {share:.2f}"] = CacheOptions(eviction="whole", top=top)
        made[f"granules up to {share:.2f}"] = CacheOptions(top=top)
    return made
