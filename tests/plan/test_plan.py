"""Plans against brute force and linear programs (HiGHS), and against what must hold for every machine, model and budget."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepic_gguf.errors import ArgumentError, BudgetError
from moepic_gguf.planner import Costs, Machine, evaluate_residency, make_plan, predict, prior_trace
from moepic_gguf.replay import hit_curves
from moepic_gguf.trace import Trace

from ..cache.routings import make_trace, random_ids

MACHINE = Machine(link_bytes_s=1e6, device_bytes_s=1e8)


def expected_stall(
    h: float, theta: float, k: int, expert_bytes: float, q: float, window_s: float, rate: float
) -> float:
    """The cost model of routing-and-split.md section 1.4 in expectation over binomial hits, retold."""
    total = 0.0
    for hits in range(k + 1):
        load = expert_bytes * (k - theta * hits) / rate
        total += comb(k, hits) * h**hits * (1 - h) ** (k - hits) * (max(0.0, q * load - window_s) + (1 - q) * load)
    return total


def brute_paper(trace: Trace, budget: int, machine: Machine, costs: Costs) -> float:
    """Least stall over every division of the budget and every legal ratio."""
    options = []
    for layer in range(trace.n_layer):
        g, size, n_expert = int(trace.n_granule[layer]), int(trace.granule_bytes[layer]), int(trace.n_expert[layer])
        rows = {}
        for top in costs.cuts[layer] if costs.cuts else range(1, g + 1):
            for n in range(n_expert + 1):
                used = n * top * size
                stall = expected_stall(
                    costs.hits[layer][n],
                    top / g,
                    trace.n_used,
                    g * size,
                    costs.recall[layer],
                    costs.window_s[layer],
                    machine.link_bytes_s,
                )
                rows[used] = min(rows.get(used, np.inf), stall)
        options.append(list(rows.items()))
    best = np.inf
    for choice in itertools.product(*options):
        if sum(used for used, _ in choice) <= budget:
            best = min(best, sum(stall for _, stall in choice))
    return best


@st.composite
def problems(
    draw: st.DrawFn, *, max_expert: int = 6, max_layer: int = 3, max_granule: int = 4
) -> tuple[Trace, Costs, Machine]:
    n_layer, n_expert = draw(st.integers(1, max_layer)), draw(st.integers(2, max_expert))
    n_used, g = draw(st.integers(1, min(3, n_expert))), draw(st.integers(1, max_granule))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = random_ids(rng, 40, n_layer, n_expert, n_used, skew=draw(st.sampled_from([0.0, 0.7, 1.5])), stay=0.3)
    trace = make_trace(ids, n_expert, n_granule=g)
    load = n_used * g * 1000 / MACHINE.link_bytes_s
    costs = Costs(
        compute_s=[0.001] * n_layer,
        window_s=(rng.random(n_layer) * load * draw(st.sampled_from([0.0, 0.3, 1.0]))).tolist(),
        recall=rng.uniform(0.5, 1.0, n_layer).tolist() if draw(st.booleans()) else [1.0] * n_layer,
        hits=hit_curves(trace, concave=draw(st.booleans())),
    )
    cpu = draw(st.sampled_from([0.0, 0.5e6, 3e6]))
    return (
        trace,
        costs,
        replace(MACHINE, cpu_bytes_s=cpu, together_bytes_s=draw(st.sampled_from([0.0, 3.2e6])) if cpu else 0.0),
    )


@given(problems(max_expert=5, max_layer=2, max_granule=3), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_papers_mode_is_within_a_percent_of_brute_force(problem: Any, share: float) -> None:
    trace, costs, machine = problem
    budget = int(trace.total_bytes * share)
    plan = make_plan(trace, budget, machine, costs, mode="paper")
    best = brute_paper(trace, budget, machine, costs)
    load = float((trace.n_used * trace.expert_bytes).sum()) / machine.link_bytes_s
    # 1 % of the objective; where nothing stalls, the millionth that bytes cost in a tie (plan/cost.h).
    assert plan.stall_s <= 1.01 * best + 2e-6 * load


@given(problems(), st.floats(0, 1.1), st.sampled_from(["auto", "worth", "paper", "uniform"]))
@settings(max_examples=150, deadline=None)
def test_plans_are_feasible_and_never_predicted_worse_than_no_cache(problem: Any, share: float, mode: str) -> None:
    trace, costs, machine = problem
    budget = int(trace.total_bytes * share)
    plan = make_plan(trace, budget, machine, costs, mode=mode)
    assert plan.bytes == sum(layer.bytes for layer in plan.layers) <= budget
    for layer, row in enumerate(plan.layers):
        assert 0 <= row.slots <= trace.n_expert[layer]
        assert 0 <= row.top <= trace.n_granule[layer]
        assert 0.0 <= row.theta <= 1.0
        assert row.bytes <= row.slots * row.top * trace.granule_bytes[layer]
    nothing = make_plan(trace, 0, machine, costs, mode=mode)
    assert nothing.bytes == 0
    assert plan.objective_s <= nothing.objective_s * (1 + 1e-9)


@given(
    problems(),
    st.lists(st.floats(0, 1.1), min_size=4, max_size=8),
    st.sampled_from(["auto", "worth", "paper", "uniform"]),
)
@settings(max_examples=80, deadline=None)
def test_a_larger_budget_is_never_predicted_slower(problem: Any, shares: list[float], mode: str) -> None:
    trace, costs, machine = problem
    times = [
        make_plan(trace, int(trace.total_bytes * share), machine, costs, mode=mode).objective_s
        for share in sorted(shares)
    ]
    for smaller, larger in itertools.pairwise(times):
        assert larger <= smaller * (1 + 3e-6), times


def concave(n_expert: int, power: float) -> np.ndarray:
    return (np.arange(n_expert + 1) / n_expert) ** power


@given(st.integers(4, 64), st.integers(1, 8), st.floats(0.1, 0.95), st.floats(0.02, 0.98), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_without_a_window_and_with_a_concave_hit_curve_experts_stay_whole(
    n_expert: int, n_used: int, power: float, share: float, g: int
) -> None:
    trace = make_trace(np.zeros((0, 2, min(n_used, n_expert)), int), n_expert, n_granule=g)
    costs = replace(Costs.flat(2, recall=0.9), hits=[concave(n_expert, power)] * 2)
    # A budget that whole experts can use up in both layers alike; a remainder below an expert per layer may well hold tops.
    slots = max(1, int(n_expert * share))
    plan = make_plan(trace, 2 * slots * g * 1000, MACHINE, costs, mode="paper")
    assert [layer.theta for layer in plan.layers] == [1.0, 1.0]


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5, 0.75])
def test_linear_hits_and_no_window_keep_experts_whole_too(share: float) -> None:
    trace = make_trace(np.zeros((0, 2, 2), int), 8, n_granule=8)
    costs = replace(Costs.flat(2), hits=[concave(8, 1.0)] * 2)
    plan = make_plan(trace, int(trace.total_bytes * share), MACHINE, costs, mode="paper")
    assert {layer.top for layer in plan.layers if layer.slots} == {8}


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5, 0.75])
def test_linear_hits_and_a_window_that_hides_the_bottoms_make_tops_as_small_as_can_be(share: float) -> None:
    """All tops resident: every token misses K (1 - theta) experts exactly, and the window hides them; with whole experts some tokens miss K."""
    trace = make_trace(np.zeros((0, 2, 2), int), 8, n_granule=8)
    window = 2 * 8000 * (1 - share) / MACHINE.link_bytes_s
    costs = replace(Costs.flat(2, window_s=window * 1.001, recall=1.0), hits=[concave(8, 1.0)] * 2)
    plan = make_plan(trace, int(trace.total_bytes * share), MACHINE, costs, mode="paper")
    assert {layer.top for layer in plan.layers} == {int(8 * share)}
    assert {layer.slots for layer in plan.layers} == {8}
    assert plan.stall_s == pytest.approx(0.0, abs=1e-12)
    assert make_plan(trace, plan.bytes, MACHINE, costs, mode="fixed", top=8).stall_s > 0.0


def linear_program(trace: Trace, budget: int, machine: Machine, costs: Costs, with_cpu: bool, integer: bool) -> float:
    """simulation.md section 9 as a (mixed-integer) linear program for HiGHS: the exact optimum of what `auto` minimises."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_array

    n_expert, n_layer, n_token = int(trace.n_expert.sum()), trace.n_layer, trace.n_token
    first = np.concatenate([[0], np.cumsum(trace.n_expert)])
    rate = machine.miss_bytes_s if with_cpu else machine.link_bytes_s
    device = machine.device_bytes_s + (machine.cpu_bytes_s if with_cpu else 0.0)
    # Variables: resident granules of each expert, then the time of each (layer, token), in milliseconds.
    n = n_expert + n_layer * n_token
    rows, low = lil_array((n_layer * n_token + 1, n)), np.full(n_layer * n_token + 1, -np.inf)
    floor = np.zeros(n)
    for layer in range(n_layer):
        size, whole = float(trace.granule_bytes[layer]), float(trace.expert_bytes[layer])
        hidden = costs.recall[layer] * costs.window_s[layer] * machine.link_bytes_s
        for token in range(n_token):
            row = layer * n_token + token
            used = [int(e) for e in trace.ids[token, layer] if e >= 0]
            for expert in used:
                rows[row, first[layer] + expert] = 1e3 * size / rate
            rows[row, n_expert + row] = 1.0
            low[row] = 1e3 * (whole * len(used) - hidden) / rate
            floor[n_expert + row] = 1e3 * trace.n_used * whole / device
    rows[-1, :n_expert] = -np.repeat(trace.granule_bytes, trace.n_expert)
    low[-1] = -budget
    upper = np.concatenate([np.repeat(trace.n_granule, trace.n_expert), np.full(n_layer * n_token, np.inf)])
    cost = np.concatenate([np.zeros(n_expert), np.full(n_layer * n_token, 1.0 / n_token)])
    kind = np.concatenate([np.full(n_expert, int(integer)), np.zeros(n_layer * n_token)])
    found = milp(
        cost,
        integrality=kind,
        bounds=Bounds(floor, upper),
        constraints=LinearConstraint(rows.tocsr(), low, np.inf),
        options={"time_limit": 20},
    )
    assert found.status == 0, found.message
    return float(found.fun / 1e3 + sum(costs.compute_s))


def small_problems(count: int) -> list[tuple[Trace, int, Machine, Costs]]:
    """Seeded models of up to 3 layers of 8 experts of 4 granules, with windows from none to a whole layer's load."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        n_layer, n_expert, g = int(rng.integers(1, 4)), int(rng.integers(2, 9)), int(rng.integers(1, 5))
        n_used = int(rng.integers(1, min(3, n_expert) + 1))
        ids = random_ids(rng, 32, n_layer, n_expert, n_used, skew=float(rng.choice([0, 0.7, 1.5])))
        trace = make_trace(ids, n_expert, n_granule=g)
        window = rng.random(n_layer) * n_used * g * 1e-3 * rng.choice([0, 0.3, 1])
        cpu = float(rng.choice([0.0, 0.5e6, 3e6]))
        machine = replace(MACHINE, cpu_bytes_s=cpu, together_bytes_s=float(rng.choice([0.0, 3.2e6])) if cpu else 0.0)
        costs = Costs([0.001] * n_layer, window.tolist(), [1.0] * n_layer)
        made.append((trace, int(trace.total_bytes * rng.uniform(0.05, 0.9)), machine, costs))
    return made


def test_auto_is_within_a_percent_of_the_best_division_into_granules() -> None:
    """Against the integer optimum, on every model drawn; those whose windows hide nearly everything among them."""
    pytest.importorskip("scipy")
    for trace, budget, machine, costs in small_problems(60):
        lanes = [False, True] if machine.cpu_bytes_s else [False]
        best = min(linear_program(trace, budget, machine, costs, cpu, True) for cpu in lanes)
        assert make_plan(trace, budget, machine, costs).objective_s <= 1.01 * best


def brute_auto(trace: Trace, budget: int, machine: Machine, costs: Costs) -> float:
    """Least mean time over every residency of granules and both choices of lanes; the CPU lane pays its round trip where it works."""
    best = np.inf
    layers = range(trace.n_layer)
    for with_cpu in (False, True) if machine.cpu_bytes_s else (False,):
        rate = machine.miss_bytes_s if with_cpu else machine.link_bytes_s
        device = machine.device_bytes_s + (machine.cpu_bytes_s if with_cpu else 0.0)
        options = []
        for layer in layers:
            size, g = int(trace.granule_bytes[layer]), int(trace.n_granule[layer])
            hidden = costs.recall[layer] * costs.window_s[layer] * machine.link_bytes_s
            floor = trace.n_used * g * size / device
            least: dict[int, float] = {}
            for resident in itertools.product(range(g + 1), repeat=int(trace.n_expert[layer])):
                missed = ((g - np.array(resident)) * size)[trace.ids[:, layer]].sum(axis=1)
                times = (
                    np.maximum(floor, (missed - hidden) / rate)
                    + np.where(missed > hidden, with_cpu, 0) * machine.cpu_sync_s
                )
                used = sum(resident) * size
                least[used] = min(least.get(used, np.inf), float(times.mean()))
            options.append(list(least.items()))
        for choice in itertools.product(*options):
            if sum(used for used, _ in choice) <= budget:
                best = min(best, sum(time for _, time in choice))
    return best + sum(costs.compute_s)


@given(problems(max_expert=4, max_layer=2, max_granule=2), st.floats(0, 1), st.sampled_from([0.0, 1e-4, 2e-3]))
@settings(max_examples=40, deadline=None)
def test_auto_is_within_a_percent_of_brute_force_whatever_a_round_trip_costs(
    problem: Any, share: float, sync_s: float
) -> None:
    trace, costs, machine = problem
    machine = replace(machine, cpu_sync_s=sync_s if machine.cpu_bytes_s else 0.0)
    budget = int(trace.total_bytes * share)
    assert make_plan(trace, budget, machine, costs).objective_s <= 1.01 * brute_auto(trace, budget, machine, costs)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.integers(2, 6), st.sampled_from([0.0, 0.8]))
@settings(max_examples=40, deadline=None)
def test_without_a_window_auto_cuts_at_most_one_expert_of_a_layer(seed: int, share: float, g: int, skew: float) -> None:
    trace = make_trace(random_ids(np.random.default_rng(seed), 40, 2, 12, 2, skew=skew), 12, n_granule=g)
    # A device so fast that resident work is no floor for misses to hide under: a floor hides as a window does.
    machine = replace(MACHINE, device_bytes_s=1e21)
    resident = make_plan(trace, int(trace.total_bytes * share), machine).resident.reshape(2, 12)
    assert (((resident > 0) & (resident < g)).sum(axis=1) <= 1).all(), resident


@pytest.mark.parametrize(("skew", "phi"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.1), (1.2, 0.1)])
def test_auto_with_16_granules_is_within_a_percent_of_the_linear_program(skew: float, phi: float) -> None:
    """Against fractional residency, at the windows quantised models have (simulation.md section 1: 3 to 16 % of the active bytes)."""
    pytest.importorskip("scipy")
    trace = make_trace(random_ids(np.random.default_rng(1), 48, 3, 24, 3, skew=skew), 24, n_granule=16)
    costs = Costs.flat(3, compute_s=1e-3, window_s=phi * 3 * 16000 / MACHINE.link_bytes_s, recall=0.9)
    machine = replace(MACHINE, device_bytes_s=2e7)
    for share in (0.1, 0.25, 0.5):
        budget = int(trace.total_bytes * share)
        assert make_plan(trace, budget, machine, costs).objective_s <= 1.01 * linear_program(
            trace, budget, machine, costs, False, False
        )


def test_one_sort_by_worth_is_near_the_greedy_plan() -> None:
    trace = make_trace(random_ids(np.random.default_rng(2), 64, 4, 48, 4, skew=0.8), 48, n_granule=8)
    for share in (0.1, 0.25, 0.5):
        budget = int(trace.total_bytes * share)
        auto, worth = (make_plan(trace, budget, MACHINE, mode=mode) for mode in ("auto", "worth"))
        # On the tokens it was made from; the frequency it sorts by forgets with a half-life of 24 of these 64 tokens.
        assert auto.objective_s <= worth.objective_s <= 1.15 * auto.objective_s


def test_an_evaluated_residency_costs_what_its_plan_said() -> None:
    trace = make_trace(random_ids(np.random.default_rng(3), 40, 3, 16, 2), 16, n_granule=4)
    plan = make_plan(trace, trace.total_bytes // 3, MACHINE)
    again = evaluate_residency(trace, plan.resident, MACHINE)
    assert again.objective_s == pytest.approx(plan.objective_s)
    assert again.bytes == plan.bytes


def test_the_cpu_lane_is_refused_where_its_round_trip_costs_more_than_it_saves() -> None:
    trace = make_trace(random_ids(np.random.default_rng(4), 40, 3, 16, 2), 16, n_granule=4)
    fast = make_plan(trace, trace.total_bytes // 3, replace(MACHINE, cpu_bytes_s=2e6))
    assert fast.link_share == pytest.approx(1 / 3)
    assert fast.both_s < fast.link_only_s
    slow = make_plan(trace, trace.total_bytes // 3, replace(MACHINE, cpu_bytes_s=2e6, cpu_sync_s=1.0))
    assert slow.link_share == 1.0
    assert slow.objective_s == slow.link_only_s < slow.both_s


def test_sixty_layers_of_512_experts_are_planned_in_a_moment() -> None:
    trace = prior_trace(60, 512, 10, 1_769_472, 4, n_token=64)
    costs = replace(Costs.flat(60, compute_s=1e-4, window_s=1e-4, recall=0.8), hits=hit_curves(trace))
    for mode in ("auto", "worth", "paper"):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            make_plan(trace, trace.total_bytes // 4, Machine(25e9, 1e12), costs, mode=mode)
            times.append(time.perf_counter() - start)
        # Tens of milliseconds; the bound is wide because test machines are shared.
        assert min(times) < 0.5, f"{mode}: {times}"


def test_a_prediction_compares_modes_by_replaying_their_caches() -> None:
    trace = make_trace(random_ids(np.random.default_rng(5), 120, 3, 32, 3, skew=1.0), 32, n_granule=4, n_prefill=20)
    costs = Costs.flat(3, compute_s=1e-3)
    budget = trace.total_bytes // 4
    found = {
        mode: predict(make_plan(trace, budget, MACHINE, costs, mode=mode), trace, MACHINE, costs)
        for mode in ("auto", "paper", "none")
    }
    assert found["auto"].tpot_s < found["none"].tpot_s
    assert found["paper"].tpot_s < found["none"].tpot_s
    # Three layers, three experts of 4000 bytes each; all granules but the last are computed while others come.
    assert found["none"].stall_s == pytest.approx(3 * (12000 / MACHINE.link_bytes_s - 11000 / MACHINE.device_bytes_s))
    for one in found.values():
        assert one.low_s <= one.tpot_s <= one.high_s or one.low_s == one.high_s


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"recall": [1.5]}, "recall"),
        ({"cuts": [[2, 1]]}, "ascend"),
        ({"cuts": [[1]]}, "ascend"),
        ({"hits": [np.array([0.0, 0.5, 0.4])]}, "rising"),
        ({"hits": [np.array([0.0, 0.5])]}, "expected one more"),
        ({"window_s": [-1.0]}, "negative"),
    ],
)
def test_problems_that_make_no_sense_are_refused(change: dict[str, Any], text: str) -> None:
    trace = make_trace(np.zeros((1, 1, 1), int), 2, n_granule=2)
    with pytest.raises(ArgumentError, match=text):
        make_plan(trace, 1000, MACHINE, replace(Costs.flat(1), **change))


def test_a_negative_budget_and_an_unknown_mode_are_refused() -> None:
    trace = make_trace(np.zeros((1, 1, 1), int), 2)
    with pytest.raises(BudgetError, match="-5"):
        make_plan(trace, -5, MACHINE)
    with pytest.raises(ArgumentError, match="mode"):
        make_plan(trace, 5, MACHINE, mode="best")
    with pytest.raises(ArgumentError, match="fixed"):
        make_plan(trace, 5, MACHINE, mode="fixed")
