"""Experts on a device against the CPU's kernels called in FeedForward's order (engine/feed_forward.cpp): equal bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from matmul_native import TYPES, TYPES_256, Bytes, Floats, block_len, make_tiles, random_blocks
from matmul_native import matmul as cpu_matmul
from matmul_native import quantize as cpu_quantize
from ops_native import Vector, assert_same_bits, available_isas

from .matrix_native import Entries, Granules, Reduction, act_bytes, experts, reduce

FAST = available_isas()[-1]
GLUS = ["silu", "silu_clamped", "gelu", "sigmoid"]


@dataclass(frozen=True)
class Case:
    """Sizes and options of one layer's experts."""

    types: tuple[str, str, str]
    n_embd: int
    granule: int
    n_granules: int
    counts: list[int]  # entries of each expert
    n_tokens: int
    biases: bool = False
    weighted_input: bool = False
    glu: int = 0


def make(case: Case, many: bool, skip: int = 0) -> tuple[Granules, Entries, Floats]:
    """Granules of all experts with entries; without the first `skip` granules of the first expert."""
    rng = np.random.default_rng(
        [len(case.counts), case.granule, case.n_tokens, case.glu, *map(TYPES.index, case.types)]
    )
    tasks: list[list[int]] = []
    runs: list[list[int]] = []
    first = 0
    for expert, count in enumerate(case.counts):
        start = skip if expert == 0 else 0
        runs.append([len(tasks), case.n_granules - start])
        tasks += [[g, first, count, first * case.n_granules + g] for g in range(start, case.n_granules)]
        first += count

    def tiles(name: str, rows: int, cols: int) -> list:
        # A small scale: an intermediate is a product of two sums and must stay finite.
        blocks = [random_blocks(name, rows, cols, rng) for _ in tasks]
        return [make_tiles(FAST, name, one, cols) for one in blocks]

    shape = case.n_embd, case.granule
    bias = rng.standard_normal((2, len(tasks), case.granule)).astype(np.float32)
    granules = Granules(
        *shape, case.n_granules, case.types, tiles(case.types[0], shape[1], shape[0]), tiles(case.types[1], shape[1], shape[0]),
        tiles(case.types[2], *shape), *(bias if case.biases else (None, None)),
    )  # fmt: skip
    token = rng.integers(0, case.n_tokens, first).astype(np.int32)
    weight = rng.random(first).astype(np.float32) if case.weighted_input else None
    entries = Entries(np.array(tasks, np.int32), np.array(runs, np.int32) if many else None, token, weight)
    return granules, entries, rng.standard_normal((case.n_tokens, case.n_embd)).astype(np.float32) * 0.1


def cpu_intermediate(case: Case, granules: Granules, entries: Entries, x: Floats) -> Bytes:
    """FeedForward::intermediate for every task; rows nobody writes are 0."""
    vector = Vector(FAST)
    row = act_bytes(case.types[2], case.granule)
    out = np.zeros((len(entries.token), case.n_granules, row), np.uint8)
    for i, (granule, first, count, _) in enumerate(entries.tasks):
        if count == 0:
            continue
        gather = np.ascontiguousarray(entries.token[first : first + count])
        sums = []
        for tiles, bias in ((granules.gate[i], granules.gate_bias), (granules.up[i], granules.up_bias)):
            acts, _ = cpu_quantize(FAST, tiles.name, x)
            bias_row = None if bias is None else np.ascontiguousarray(bias[i])
            sums.append(cpu_matmul(FAST, tiles, acts, count, gather=gather, bias=bias_row)[0])
            if entries.weight is not None:
                for y, a in zip(sums[-1], entries.weight[first : first + count], strict=True):
                    y[:] = vector.scale(y, float(a))
        joined = getattr(vector, GLUS[case.glu] + "_glu")(*sums)
        assert np.isfinite(joined).all()
        out[first : first + count, granule] = cpu_quantize(FAST, case.types[2], joined)[0].reshape(count, row)
    return out


def cpu_down(case: Case, granules: Granules, entries: Entries, intermediate: Bytes, partials: Floats) -> Floats:
    out = partials.copy()
    for i, (granule, first, count, first_row) in enumerate(entries.tasks):
        if count == 0:
            continue
        acts = np.ascontiguousarray(intermediate[first : first + count, granule]).reshape(-1)
        y, _ = cpu_matmul(FAST, granules.down[i], acts, count)
        if entries.runs is None:
            out[first_row : first_row + count * case.n_granules : case.n_granules] = y
        elif granule == 0:
            out[first : first + count] = y
        else:
            out[first : first + count] = Vector(FAST).add(out[first : first + count], y)
    return out


def check_case(device: str, case: Case, many: bool, skip: int = 0) -> None:
    granules, entries, x = make(case, many, skip)
    n_rows = len(entries.token) * (1 if many else case.n_granules)
    before = np.full((n_rows, case.n_embd), 0.5, np.float32)
    partials = before.copy()
    found = experts(device, granules, entries, x, case.glu, partials)
    expected = cpu_intermediate(case, granules, entries, x)
    np.testing.assert_array_equal(found, expected, f"intermediates of {case}")
    assert_same_bits(partials, cpu_down(case, granules, entries, expected, before), f"down of {case}, many {many}")


def case_of(name: str, **given: object) -> Case:
    """Small granules of one type, with down's scales over 32 or 256 neurons as the type has them."""
    cols = max(32, block_len(name))
    return replace(Case((name, name, name), cols, cols, 2, [1, 0, 3], 3), **given)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_experts_of_every_type(device: str, name: str, many: bool) -> None:
    check_case(device, case_of(name), many)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("counts", [[8], [9, 1], [16, 17], [40, 0, 2]])
def test_any_number_of_entries(device: str, counts: list[int], many: bool) -> None:
    check_case(device, case_of("Q8_0", counts=counts, n_tokens=7), many)
    check_case(device, case_of("Q4_0", counts=counts, n_tokens=7, n_embd=160, granule=96, n_granules=3), many)


@pytest.mark.parametrize(
    "types", [("Q4_K", "Q5_K", "Q6_K"), ("IQ4_XS", "Q8_0", "Q5_0"), ("F16", "F32", "Q4_K"), ("MXFP4", "MXFP4", "BF16")]
)
@pytest.mark.parametrize("many", [False, True])
def test_mixed_types(device: str, types: tuple[str, str, str], many: bool) -> None:
    granule = 256 if types[2] in TYPES_256 else 64
    check_case(device, Case(types, 256, granule, 1, [2, 1], 2), many)


@pytest.mark.parametrize("glu", range(4))
def test_biases_weighted_inputs_and_every_activation(device: str, glu: int) -> None:
    check_case(device, case_of("Q8_0", glu=glu, biases=True, weighted_input=True, n_embd=96), many=False)


def test_a_granule_that_fills_no_tile(device: str) -> None:
    check_case(device, case_of("F32", granule=24, n_embd=40), many=False)
    check_case(device, case_of("F16", granule=50, n_embd=17), many=True)


def test_a_run_goes_on_from_the_granules_that_were_added_before(device: str) -> None:
    check_case(device, case_of("Q4_0", n_granules=4), many=True, skip=2)


@pytest.mark.parametrize("shared", ["none", "same residual", "own residual"])
@pytest.mark.parametrize("options", ["plain", "rows, bias", "many, no weights"])
def test_reduction_adds_in_the_order_of_the_engine(device: str, shared: str, options: str) -> None:
    rng = np.random.default_rng(7)
    n, k, n_embd, n_expert, shared_granules = 3, 4, 150, 6, 5
    granules = 1 if "many" in options else 3
    floats = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    n_rows = n * k * granules
    given = Reduction(
        token_entry=np.concatenate([rng.permutation(n * k).reshape(n, k), n * k + np.arange(n)[:, None]], 1).astype(np.int32),
        ids=rng.integers(0, n_expert, (n, k)).astype(np.int32),
        weights=None if "no weights" in options else floats(n, k),
        down_bias=floats(n_expert, n_embd) if "bias" in options else None,
        partials=floats(n_rows, n_embd),
        rows=rng.permutation(n_rows).astype(np.int32) if "rows" in options else None,
        n_granules=granules,
        shared_partials=None if shared == "none" else floats(n * shared_granules, n_embd),
        shared_granules=0 if shared == "none" else shared_granules,
        first_shared=n * k,
        shared_weight=None if "no weights" in options else floats(n),
        residual_scale=0.7,
    )  # fmt: skip
    x = floats(n, n_embd)
    shared_x = floats(n, n_embd) if shared == "own residual" else x
    expected = [x.copy(), shared_x.copy()]

    vector = Vector(FAST)
    scale = 0.7
    for t in range(n):
        total = np.zeros(n_embd, np.float32)
        for j in range(k):
            first = given.token_entry[t, j] * granules
            numbers = [first + g if given.rows is None else given.rows[first + g] for g in range(granules)]
            y = given.partials[numbers[0]]
            for number in numbers[1:]:
                y = vector.add(y, given.partials[number])
            if given.down_bias is not None:
                y = vector.add(y, given.down_bias[given.ids[t, j]])
            total = vector.scale_add(total, 1.0 if given.weights is None else float(given.weights[t, j]), y)
        target = 0
        if shared == "own residual":
            expected[0][t] = vector.scale_add(expected[0][t], scale, total)
            total, target = np.zeros(n_embd, np.float32), 1
        if given.shared_partials is not None:
            own = given.shared_partials[t * shared_granules : (t + 1) * shared_granules]
            y = own[0]
            for row in own[1:]:
                y = vector.add(y, row)
            total = vector.scale_add(total, 1.0 if given.shared_weight is None else float(given.shared_weight[t]), y)
        expected[target][t] = vector.scale_add(expected[target][t], scale, total)

    reduce(device, given, x, shared_x)
    assert_same_bits(x, expected[0], f"{shared}, {options}")
    if shared == "own residual":
        assert_same_bits(shared_x, expected[1], f"{shared}, {options}: the shared residual")
