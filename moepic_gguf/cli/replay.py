"""moepic-bench replay: cache policies over recorded routing, without weights. Arguments and the table; `moepic_gguf.replay` does the work."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ..budgets import parse_budget, show_bytes
from ..choosing import choose_cache
from ..errors import ArgumentError
from ..planner import MODES, Costs, Machine, make_plan, recent
from ..replay import POLICIES, CacheOptions, Lanes, Replay, choose, profile_of, replay
from ..trace import Trace, read_trace
from . import common

AUTO = ("lrfu", "lru", "lfu", "lcp")  # the default first: it stays unless another is better beyond doubt
PLANS = tuple(mode for mode in MODES if mode not in ("none", "fixed"))  # a fixed cut is --top


@dataclass(frozen=True)
class Row:
    """One policy at one budget."""

    policy: str
    budget_bytes: int
    found: Replay

    def as_dict(self) -> dict[str, Any]:
        found = self.found
        totals = ("demand_bytes", "useful_bytes", "wasted_bytes", "late_bytes", "needed_bytes", "stall_s")
        return {
            "policy": self.policy,
            "budget_bytes": self.budget_bytes,
            "capacity_bytes": found.capacity_bytes,
            "tokens": len(found.token_stall_s),
            **{f"{name}_per_token": found.per_token(name) for name in totals},
            "stall_s_p95": found.stall_quantile(0.95),
            "hit": found.share("n_hit"),
            "partial_hit": found.share("n_partial"),
            "miss": found.share("n_miss"),
            "loads": found.loads,
            "evictions": found.evictions,
            "note": found.note,
        }


@click.command("replay", context_settings=common.SETTINGS)
@click.argument("trace", type=click.Path())
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    default=("12.5%", "25%", "50%"),
    help="Bytes, 8GiB, or a share of all experts' bytes; may be repeated.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice([*POLICIES, "auto", "all"]),
    default=(),
    help="May be repeated; all of them where neither a policy nor a plan is named.",
)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    type=click.Choice([*PLANS, "all"]),
    default=(),
    help="Caches of these planner modes, planned on the tokens before those counted; may be repeated.",
)
@click.option(
    "--evict",
    type=click.Choice(["granules", "whole"]),
    default="granules",
    help="What leaves at once; granules go bottoms first.",
)
@click.option(
    "--scope", type=click.Choice(["layer", "global"]), default="layer", help="A pool per layer, or one for all."
)
@click.option("--bypass", is_flag=True, help="Keep only what is worth more than what must leave.")
@click.option(
    "--top",
    type=click.IntRange(1),
    default=None,
    help="Granules of an expert that may be cached (theta = top / granules).",
)
@click.option(
    "--granules", type=click.IntRange(1), default=None, help="Cut experts into so many, where the trace does not say."
)
@click.option("--expert-bytes", default=None, metavar="SIZE", help="Of one expert, where the trace does not say.")
@click.option("--rho", type=float, default=0.25, help="lcp.")
@click.option("--omega", type=float, default=128.0, help="lcp, tokens.")
@click.option("--half-life", type=float, default=24.0, help="lrfu, tokens.")
@click.option("--miss-rate", type=float, default=25.0, help="GB/s at which missing bytes are served.")
@click.option("--prefetch-rate", type=float, default=None, help="GB/s in the window; the miss rate by default.")
@click.option(
    "--window-us", type=float, default=0.0, help="Microseconds per layer in which predicted granules may arrive."
)
@click.option(
    "--predictor", type=click.Choice(["none", "recorded", "previous_token"]), default="none", help="Who guesses."
)
@click.option(
    "--warm", type=click.IntRange(0), default=None, help="Tokens that are not counted; by default those of the prefill."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row instead of the table.")
@common.one_line_errors
def main(
    trace: str,
    budgets: tuple[str, ...],
    policies: tuple[str, ...],
    plans: tuple[str, ...],
    granules: int | None,
    expert_bytes: str | None,
    warm: int | None,
    miss_rate: float,
    prefetch_rate: float | None,
    window_us: float,
    predictor: str,
    top: int | None,
    evict: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay TRACE (a moepic trace, route_trace v1 CSV, or JSON steps) through cache policies.

    Token by token; bytes and stall first, hit rates after. --policy names a way to evict, --plan a planner mode with the cache that runs it. belady knows the future and is a bound. A static cache is filled from the tokens that are not
    counted, so it needs some.
    """
    recorded = read_trace(trace, expert_bytes=parse_budget(expert_bytes, name="--expert-bytes"))
    recorded = recorded.cut_into(granules) if granules else recorded
    n_warm = recorded.n_prefill if warm is None else warm
    if n_warm >= recorded.n_token:
        raise ArgumentError(f"--warm: {n_warm} leaves none of {recorded.n_token} tokens to count")
    windows = [window_us * 1e-6] * recorded.n_layer if predictor != "none" else None
    lanes = Lanes(miss_rate * 1e9, (prefetch_rate or miss_rate) * 1e9, windows)
    common_options = CacheOptions(eviction=evict, top=[top] * recorded.n_layer if top else None, **options)
    names = list(policies)
    if "all" in policies or not (policies or plans):
        names = [name for name in POLICIES if name != "static" or n_warm] + ["auto"]
    modes = list(PLANS if "all" in plans else plans)
    rows = []
    for budget in budgets:
        n_bytes = parse_budget(budget, name="--budget", whole_bytes=recorded.total_bytes) or 0
        for name in names:
            chosen, label = _options(name, common_options, recorded, n_bytes, lanes, predictor, n_warm)
            rows.append(
                Row(label, n_bytes, replay(recorded, n_bytes, chosen, lanes, predictor=predictor, n_warm=n_warm))
            )
        for mode in modes:
            chosen, label = _planned(mode, recorded, n_bytes, lanes, predictor, n_warm)
            rows.append(
                Row(label, n_bytes, replay(recorded, n_bytes, chosen, lanes, predictor=predictor, n_warm=n_warm))
            )
    if as_json:
        for row in rows:
            click.echo(json.dumps(row.as_dict()))
    else:
        click.echo(_table(recorded, rows, n_warm, lanes), nl=False)


def _options(
    name: str, options: CacheOptions, trace: Trace, budget_bytes: int, lanes: Lanes, predictor: str, n_warm: int
) -> tuple[CacheOptions, str]:
    """Options of one policy, and what to call it."""
    if name == "static":
        return replace(options, policy="static", profile=profile_of(trace, n_warm)), name
    if name != "auto":
        return replace(options, policy=name), name
    # As at run time, only the past may decide: the first half of what is counted.
    past = n_warm + max(1, (trace.n_token - n_warm) // 2)
    seen = trace.tokens(slice(0, past))
    candidates = [replace(options, policy=policy) for policy in AUTO]
    best, _ = choose(seen, budget_bytes, candidates, lanes, predictor=predictor, n_warm=n_warm)
    return candidates[best], f"auto: {AUTO[best]}"


def _planned(
    mode: str, trace: Trace, budget_bytes: int, lanes: Lanes, predictor: str, n_warm: int
) -> tuple[CacheOptions, str]:
    """The cache of a planner mode, and what to call it. As before a run, only what came earlier may decide: the tokens that are not counted."""
    if n_warm < 2:
        raise ArgumentError(f"--plan: planned on the tokens before those counted, which are {n_warm}; give --warm")
    seen = trace.tokens(slice(0, n_warm))
    # Resident work is left out: this command compares what moves and what waits.
    machine = Machine(link_bytes_s=lanes.miss_bytes_s, device_bytes_s=1e3 * lanes.miss_bytes_s)
    windows = list(lanes.window_s) if lanes.window_s is not None else [0.0] * trace.n_layer
    recall = {"none": 0.0, "recorded": seen.recall, "previous_token": seen.stays}[predictor]
    costs = Costs([0.0] * trace.n_layer, windows, [recall] * trace.n_layer)
    plan = make_plan(recent(seen), budget_bytes, machine, costs, mode=mode)
    if mode != "auto":
        return plan.cache_options("lcp" if mode == "paper" else "lrfu"), f"plan {mode}"
    chosen = choose_cache(seen, budget_bytes, machine, costs, lanes=lanes, predictor=predictor, plan=plan)
    return chosen.options, f"plan auto: {chosen.name}"


def _table(trace: Trace, rows: list[Row], n_warm: int, lanes: Lanes) -> str:
    console = Console(highlight=False, soft_wrap=True, width=140)
    table = Table(box=None, pad_edge=False)
    heads = (
        "budget",
        "policy",
        "MB/token",
        "stall ms/token",
        "p95",
        "useful MB",
        "wasted MB",
        "hit",
        "partial",
        "miss",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
    for row in rows:
        found = row.found
        table.add_row(
            f"{100 * row.budget_bytes / trace.total_bytes:.1f}%",
            row.policy,
            f"{found.per_token('demand_bytes') / 1e6:.2f}",
            f"{1e3 * found.per_token('stall_s'):.3f}",
            f"{1e3 * found.stall_quantile(0.95):.3f}",
            f"{found.per_token('useful_bytes') / 1e6:.2f}",
            f"{found.per_token('wasted_bytes') / 1e6:.2f}",
            *(f"{100 * found.share(name):.1f}%" for name in ("n_hit", "n_partial", "n_miss")),
        )
    with console.capture() as capture:
        console.print(
            f"{trace.n_token - n_warm} tokens counted of {trace.n_token}, {trace.n_layer} MoE layers, {trace.n_used} of {int(trace.n_expert.max())} experts of "
            f"{show_bytes(int(trace.expert_bytes.max()))} in {int(trace.n_granule.max())} granules; all experts {show_bytes(trace.total_bytes)}; missing "
            f"bytes at {lanes.miss_bytes_s / 1e9:g} GB/s (modelled)",
            markup=False,
        )
        if "assumed" in trace.info:
            console.print(f"assumed, not recorded: {', '.join(trace.info['assumed'])}", markup=False)
        console.print(table)
        for note in sorted({row.found.note for row in rows if row.found.note}):
            console.print(f"note: {note}", markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
