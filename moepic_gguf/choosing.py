"""The cache that mode `auto` runs: candidates made from plans, cuts and policies, tried on recent routing; the one that stalls least.

A plan is made for a mean; a cache lives through tokens in their order. What suits a routing (whole experts or tops, keep or pass through, recency or
frequency) is cheaper tried than derived: a candidate costs some milliseconds. What is chosen here is a start: the policy goes on being chosen while the model
runs (native/src/engine/policy_chooser.h), from routing that nobody has seen yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .planner import Costs, Machine, Plan, lanes_of, make_plan, recent
from .replay import CacheOptions, Lanes, replay
from .trace import Trace

CUTS = (0.25, 0.5, 0.75, 1.0)  # shares of an expert that are tried as tops, beside the budget's own share
POLICIES = {
    "lru": CacheOptions("lru"),
    "lfu": CacheOptions("lfu"),
    "lcp": CacheOptions("lcp"),
    "lrfu 8": CacheOptions("lrfu", half_life=8.0),
    "lrfu 96": CacheOptions("lrfu", half_life=96.0),
}
FINALISTS = 2  # shapes that are tried with every policy, beside the plan's
# Of the tokens make plans and fill caches, the others judge them: a plan needs more tokens than a comparison of a dozen shapes.
FIT = 2 / 3
GRANULES = "granules"  # equal budgets and decayed frequency: what runs where there are too few tokens to try anything
PLAN = "granules of the plan"  # what runs unless another is better beyond doubt, where an expert was used USES times on average while the plan was made
USES = 2.0
BLOCK = 8  # tokens: those that follow each other are alike, so blocks of them are compared, not single ones
# Of some forty policies one looks good by luck. It must be better by so many standard errors over blocks, and by this many over n more where there are n:
# few blocks say little.
SURE, SURER = 1.0, 4.0


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
    """Try caches of `budget_bytes` on the last `n_token` tokens of `trace`: the first of them fill them and make the plans, the others judge.

    A shape is judged by its mean over all policies, since the policy goes on being chosen while the model runs: of single caches the best of a few dozen tokens is
    often the luckiest. The plan's own shape stays unless another is better beyond doubt; so does the default policy.

    lanes      what the tokens wait at; by default those of `machine` with the windows of `costs` (where there is a predictor).
    plan       of mode auto for this budget, where it is made already.
    finalists  shapes that are tried with every policy, beside the plan's; the others run the default one only.
    Raises     `ArgumentError`, `BudgetError`.
    """
    seen = recent(trace, n_token)
    n_fit = round(FIT * seen.n_token)
    lanes = lanes or lanes_of(
        trace, machine, costs, predictor=predictor, with_cpu=plan is not None and plan.link_share < 1.0
    )

    def plans_of(tokens: Trace) -> list[Plan]:
        return [make_plan(recent(tokens), budget_bytes, machine, costs, mode=mode) for mode in ("auto", "paper")]

    stalls: dict[str, NDArray[np.float64]] = {}

    def attempt(candidates: Mapping[str, CacheOptions]) -> list[str]:
        for name, options in candidates.items():
            stalls[name] = replay(seen, budget_bytes, options, lanes, predictor=predictor, n_warm=n_fit).token_stall_s
        return sorted(candidates, key=lambda name: stalls[name].sum())

    # A plan that is tried on the tokens it was made of looks better than it is.
    shapes = _shapes(seen, budget_bytes, plans_of(seen.tokens(slice(0, n_fit))))
    order = attempt(shapes)
    trusts_plan = n_fit * seen.n_used >= USES * float(seen.n_expert.mean())
    variants = {
        shape: _variants(shape, shapes[shape])
        for shape in dict.fromkeys([*order[:finalists], *([PLAN] if trusts_plan else [])])
    }
    means: dict[str, NDArray[np.float64]] = {}
    for shape, of in variants.items():
        attempt(of)
        means[shape] = np.mean([stalls[name] for name in of], axis=0)
    if seen.n_token - n_fit < BLOCK:
        shape = best = GRANULES
    else:
        shape = _convincing(means, PLAN) if trusts_plan else min(means, key=lambda name: means[name].sum())
        best = _convincing({name: stalls[name] for name in variants[shape]}, shape)
    # What is run may know all that was seen.
    auto, paper = plans_of(seen)
    made = _variants(shape, _shapes(seen, budget_bytes, [plan or auto, paper])[shape])
    return Chosen(best, made[best], {name: float(stall.sum()) for name, stall in stalls.items()})


def _convincing(stalls: Mapping[str, NDArray[np.float64]], default: str) -> str:
    """The candidate that stalls least, or `default` where the tokens tried do not tell them apart (cache/replay.h has the same rule)."""
    best = min(stalls, key=lambda name: stalls[name].sum())
    saved = stalls[default] - stalls[best]
    n = len(saved) // BLOCK
    if n < 2:
        return default
    blocks = saved[: n * BLOCK].reshape(n, BLOCK).mean(axis=1)
    return best if blocks.mean() > (SURE + SURER / n) * blocks.std(ddof=1) / np.sqrt(n) else default


def _variants(name: str, shape: CacheOptions) -> dict[str, CacheOptions]:
    """The shape with every policy, each also with bypass."""
    made = {name: shape}
    for policy, with_ in POLICIES.items():
        made[f"{name}, {policy}"] = replace(shape, policy=with_.policy, half_life=with_.half_life)
    return made | {f"{of}, bypass": replace(options, bypass=True) for of, options in made.items()}


def _shapes(trace: Trace, budget_bytes: int, plans: Sequence[Plan]) -> dict[str, CacheOptions]:
    """What of an expert is kept and in which steps it leaves, all under the default policy."""
    made = {
        GRANULES: CacheOptions(),
        PLAN: plans[0].cache_options(),
        "tops of the paper's plan": plans[1].cache_options(),
    }
    for share in sorted({*CUTS, min(1.0, budget_bytes / trace.total_bytes)}):
        top = [max(1, round(share * int(g))) for g in trace.n_granule]
        made[f"tops of {share:.2f}"] = CacheOptions(eviction="whole", top=top)
        if share < 1.0:
            made[f"granules up to {share:.2f}"] = CacheOptions(top=top)
    return made
