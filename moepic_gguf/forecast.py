"""What a model will do on a machine under a budget: plans, the caches that run them, and times with an error band. Numbers only; `cli.plan` prints them.

Everything here is modelled: bytes are counted by replaying routing, seconds are bytes over measured rates. Where the numbers come from, and what the bands
mean, is in docs/planning.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from .choosing import FINALISTS, choose_cache
from .footprint import Footprint, past_bytes
from .inspection import FileReport
from .planner import Costs, Machine, Plan, make_plan, predict, prior_trace, recent, with_guesses
from .replay import CacheOptions
from .trace import Trace

# A prompt token's arithmetic, as a share of the time a decoded token takes when everything is resident: 1/13, and 1/22 to 1/10 over nine files
# (bench/results/2026-11-23-zen5-2core-first). What it is on another machine, `moepic-bench FILE` says.
PREFILL_SHARE, PREFILL_SPREAD = 1 / 13, (10 / 13, 22 / 13)
UNKNOWN_RATES = 0.2  # half width of the band where no machine file says how far rates spread
PRIORS = ((0.4, 0.2), (0.7, 0.35), (1.1, 0.5))  # skew and stay: flat, assumed, skewed


@dataclass(frozen=True)
class Band:
    """Seconds: what is expected, and from where to where it may well be."""

    mean_s: float
    low_s: float
    high_s: float

    def widened(self, low: float, high: float) -> Band:
        """With another, independent cause of error: factors of the mean. Independent errors add as squares."""
        down = sqrt((1 - self.low_s / self.mean_s) ** 2 + (1 - low) ** 2)
        up = sqrt((self.high_s / self.mean_s - 1) ** 2 + (high - 1) ** 2)
        return Band(self.mean_s, self.mean_s * max(0.0, 1 - down), self.mean_s * (1 + up))


@dataclass(frozen=True)
class Subject:
    """What is planned for: a model, a machine, routing, and how long its prompts are.

    trace      routing to plan for, with the model's sizes; `predicted` where guesses are to be used.
    is_prior   the routing is assumed and not recorded.
    """

    report: FileReport
    memory: Footprint
    machine: Machine
    trace: Trace
    costs: Costs
    is_prior: bool
    n_prompt: int = 512
    n_batch: int = 512

    @property
    def predictor(self) -> str:
        return "none" if self.trace.predicted is None else "recorded"


@dataclass(frozen=True)
class Forecast:
    """One mode under one budget. cache: the one that runs the plan, by name; None where everything is resident."""

    plan: Plan
    cache: str | None
    tpot: Band
    ttft: Band
    stall_s: float
    missed_bytes: float  # per token, after routing
    is_resident: bool
    options: CacheOptions | None = None  # of that cache

    def as_dict(self) -> dict[str, Any]:
        times = {
            f"{name}{part}": getattr(band, field)
            for name, band in (("tpot", self.tpot), ("ttft", self.ttft))
            for part, field in _PARTS
        }
        return {
            **times,
            "stall_s": self.stall_s,
            "missed_bytes": self.missed_bytes,
            "cache": self.cache,
            "is_resident": self.is_resident,
        }


_PARTS = (("_s", "mean_s"), ("_low_s", "low_s"), ("_high_s", "high_s"))


def costs_of(report: FileReport, memory: Footprint, machine: Machine, *, n_context: int, recall: float) -> Costs:
    """What a layer pays whatever is cached: its share of the weights besides experts, of the keys and values of `n_context` positions and of the states
    (read and written), at the fast tier's rate. A predictor that looks one layer ahead has as long.
    """
    read = memory.dense - memory.lookup + past_bytes(report, n_context) + 2 * (report.state_bytes or 0)
    layer_s = read / report.moe_layers / machine.device_bytes_s + machine.layer_s
    return Costs.flat(report.moe_layers, compute_s=layer_s, window_s=layer_s if recall else 0.0, recall=recall)


def forecast(subject: Subject, room_bytes: int, mode: str, *, top: int = 0, quick: bool = False) -> Forecast:
    """Plan `room_bytes` of experts in `mode` and predict it.

    The plan knows all routing there is. What it will do on later tokens is predicted by one that knows the first half, run over the second.
    quick    no band, and the plan of the first half: for curves.
    Raises   `ArgumentError`.
    """
    work, first = _work_s(subject), subject.trace.tokens(slice(0, subject.trace.n_token // 2))
    if mode != "none" and room_bytes >= subject.memory.experts:
        plan = _make(subject, subject.trace, room_bytes, mode, top)
        return Forecast(
            plan, None, _banded(subject, Band(work, work, work)), _ttft(subject, subject.memory.experts), 0.0, 0.0, True
        )
    tried = _make(subject, first, room_bytes, mode, top)
    _, options = _cache(subject, first, tried, quick)
    found = predict(
        tried,
        subject.trace,
        subject.machine,
        subject.costs,
        predictor=subject.predictor,
        cache=options,
        n_warm=first.n_token,
        is_full=True,
    )
    tpot = Band(found.tpot_s, found.low_s, found.high_s)
    missed = found.found.per_token("demand_bytes")
    if quick:
        return Forecast(tried, None, tpot, _ttft(subject, tried.bytes), found.stall_s, missed, False)
    if subject.is_prior:
        tpot = _over_priors(subject, tried, options, tpot)
    plan = _make(subject, subject.trace, room_bytes, mode, top)
    cache, chosen = _cache(subject, subject.trace, plan, quick)
    return Forecast(
        plan, cache, _banded(subject, tpot), _ttft(subject, plan.bytes), found.stall_s, missed, False, chosen
    )


def _make(subject: Subject, trace: Trace, room_bytes: int, mode: str, top: int) -> Plan:
    return make_plan(recent(trace), room_bytes, subject.machine, subject.costs, mode=mode, top=top)


def _banded(subject: Subject, tpot: Band) -> Band:
    """With what the machine's rates may be: twice the rate, half the time."""
    low, high = _rates(subject.machine)
    return tpot.widened(1 / high, 1 / low)


def _cache(subject: Subject, trace: Trace, plan: Plan, quick: bool) -> tuple[str, CacheOptions]:
    """Mode auto takes the cache that stalls least on recent tokens; the others run what they are named after."""
    if plan.mode != "auto":
        policy = "lcp" if plan.mode == "paper" else "lrfu"
        return policy, plan.cache_options(policy)
    chosen = choose_cache(
        trace,
        plan.budget_bytes,
        subject.machine,
        subject.costs,
        predictor=subject.predictor,
        plan=plan,
        n_token=192,
        finalists=1 if quick else FINALISTS,
    )
    return chosen.name, chosen.options


def _over_priors(subject: Subject, plan: Plan, options: CacheOptions, band: Band) -> Band:
    """The band where routing is assumed: it covers flat and skewed assumptions, run by the same cache."""
    trace = subject.trace
    sizes = (int(trace.n_expert[0]), trace.n_used, int(trace.expert_bytes[0]), int(trace.n_granule[0]))
    times = [band.low_s, band.high_s]
    for skew, stay in (PRIORS[0], PRIORS[-1]):
        other = prior_trace(trace.n_layer, *sizes, n_token=trace.n_token, skew=skew, stay=stay)
        if trace.predicted is not None:
            other = with_guesses(other, float(subject.costs.recall[0]))
        found = predict(
            plan,
            other,
            subject.machine,
            subject.costs,
            predictor=subject.predictor,
            cache=options,
            n_warm=trace.n_token // 2,
            is_full=True,
        )
        times.append(found.tpot_s)
    return Band(band.mean_s, min(times), max(times))


def _rates(machine: Machine) -> tuple[float, float]:
    low, high = machine.spread
    return (1 - UNKNOWN_RATES, 1 + UNKNOWN_RATES) if low == high == 1.0 else (low, high)


def _work_s(subject: Subject) -> float:
    """A decoded token with everything resident."""
    trace = subject.trace
    return float(
        sum(subject.costs.compute_s) + (trace.n_used * trace.expert_bytes).sum() / subject.machine.device_bytes_s
    )


def _ttft(subject: Subject, resident_bytes: int) -> Band:
    """A prompt goes through in batches, each of which uses nearly every expert once: what is not resident is streamed per batch, beside the arithmetic."""
    trace, machine = subject.trace, subject.machine
    missing = max(0, subject.memory.experts - resident_bytes)
    total = [0.0, 0.0, 0.0]
    rates = (1.0, *_rates(machine)[::-1])  # the fastest machine makes the lowest time
    for start in range(0, subject.n_prompt, subject.n_batch):
        n = min(subject.n_batch, subject.n_prompt - start)
        used = 1.0 - (1.0 - trace.n_used / float(trace.n_expert.mean())) ** n
        stream = missing * used / machine.link_bytes_s
        arithmetic = n * PREFILL_SHARE * _work_s(subject)
        for i, (rate, share) in enumerate(zip(rates, (1.0, *PREFILL_SPREAD), strict=True)):
            # Weights are read once per batch at least, however little is computed with them.
            least = (subject.memory.dense + subject.memory.experts * used) / machine.device_bytes_s
            total[i] += max(stream, share * arithmetic if i else arithmetic, least) / rate
    low, high = min(total), max(total)
    return Band(total[0], low, high)


def curve(subject: Subject, modes: list[str], *, points: int = 11, top: int = 0) -> dict[str, list[tuple[int, float]]]:
    """Per mode, (budget in bytes, seconds per token) from the smallest budget that works to everything resident."""
    memory = subject.memory
    short = replace(subject, trace=recent(subject.trace, 256))
    rooms = [round(memory.experts * i / (points - 1)) for i in range(points)]
    return {
        mode: [(memory.overhead + room, forecast(short, room, mode, top=top, quick=True).tpot.mean_s) for room in rooms]
        for mode in modes
    }
