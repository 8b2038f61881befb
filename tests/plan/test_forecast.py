"""What a plan promises before loading: memory that adds up, bands that hold what they name, the engine's own figures where it has them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf.errors import BudgetError
from moepic_gguf.footprint import (
    PROCESS_BYTES,
    STAGING_BYTES,
    Footprint,
    embedding_of,
    footprint,
    granules_of,
    past_bytes,
)
from moepic_gguf.forecast import Band, Subject, costs_of, curve, forecast
from moepic_gguf.inspection import FileReport, inspect_file
from moepic_gguf.metadata import GgufFile
from moepic_gguf.planner import Machine, prior_trace, with_guesses

from ..making import gguf_file
from ..python.tiny_gguf import Shape, write

MACHINE = Machine(link_bytes_s=1e8, device_bytes_s=1e10)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(n_layer=4, n_ff=1024, n_expert=8)
    return write(tmp_path_factory.mktemp("forecast") / "moe.gguf", shape)


@pytest.fixture(scope="module")
def report(model_file: Path) -> FileReport:
    with GgufFile(model_file) as file:
        return inspect_file(file)


@pytest.fixture
def memory(report: FileReport) -> Footprint:
    return footprint(report, 4, n_ctx=64, n_threads=2)


@pytest.fixture
def subject(report: FileReport, memory: Footprint) -> Subject:
    trace = prior_trace(4, 8, 2, report.expert_bytes or 0, 4)
    costs = costs_of(report, memory, MACHINE, n_context=32, recall=0.0)
    return Subject(report, memory, MACHINE, trace, costs, is_prior=True, n_prompt=48)


def test_granules_follow_the_engines_rule(model_file: Path, report: FileReport) -> None:
    with GgufFile(model_file) as file, Model.load(model_file, n_ctx=64) as model:
        assert granules_of(file, report) == 1024 // model.info.layers[0].granule == 4
        assert not embedding_of(file).is_tied
        assert embedding_of(file).n_bytes == report.n_vocab * report.n_embd * 4


def test_memory_is_what_the_engine_reserves(model_file: Path, memory: Footprint) -> None:
    with Model.load(model_file, n_ctx=64, n_threads=2) as model:
        info, stats = model.info, model.stats
        assert memory.experts == info.expert_bytes
        # Alignment of tensors in the file and of regions in memory.
        assert memory.dense == pytest.approx(info.weight_bytes - info.expert_bytes, abs=64 * 1024)
        # Positions are rounded up to whole chunks of attention.
        assert memory.kv <= stats.kv_bytes <= memory.kv * 2 + 2**16
        # Scratch is an estimate without the threads' own, which do not depend on the model.
        assert 0.4 * stats.scratch_bytes <= memory.scratch + 2 * 2**18 <= 4 * stats.scratch_bytes


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe_256", "lfm2_moe"])
def test_states_are_those_that_the_engine_reserves(name: str) -> None:
    path = gguf_file(name, "--outtype", "q8_0", "--no-split")
    with GgufFile(path) as file, Model.load(path, n_ctx=64) as model:
        held = footprint(inspect_file(file), 2, n_ctx=64)
        assert held.state == pytest.approx(model.stats.state_bytes, abs=4096)  # regions are whole pages
        assert held.state > 0
        assert held.overhead == sum(held.parts().values())


@pytest.mark.parametrize(("name", "n_ctx"), [("gemma4", 4096), ("gpt_oss", 4096), ("gemma4", 256)])
def test_windows_are_counted_as_the_rings_that_the_engine_keeps(name: str, n_ctx: int) -> None:
    path = gguf_file(name, "--outtype", "q8_0", "--no-split")
    with GgufFile(path) as file, Model.load(path, n_ctx=n_ctx, n_batch=64) as model:
        report = inspect_file(file)
        held = footprint(report, 2, n_ctx=n_ctx, n_batch=64)
        assert held.kv == pytest.approx(model.stats.kv_bytes, abs=4096)  # regions are whole pages
        assert past_bytes(report, 5000) == report.kv_bytes_per_token * 5000 + report.kv_window_bytes


def test_staging_holds_two_transfers_and_a_landing_granule_per_thread(report: FileReport) -> None:
    expert = 100 * 2**20
    big = replace(report, expert_bytes=expert, file_bytes=expert * 8 * 4 + 1000)
    ordinary = footprint(big, 4, n_ctx=8, n_threads=3)
    assert ordinary.unit == expert
    assert ordinary.staging == 2 * expert + 3 * expert // 4
    presplit = footprint(replace(big, granule=256), 4, n_ctx=8, n_threads=3)
    assert presplit.unit == expert // 4
    assert presplit.staging == 2 * expert // 4 + 3 * expert // 4
    small = footprint(report, 4, n_ctx=8, n_threads=1)
    assert small.staging == STAGING_BYTES + small.unit // 4
    assert small.process == PROCESS_BYTES


def test_a_budget_too_small_says_need_have_and_the_smallest_that_works(memory: Footprint) -> None:
    with pytest.raises(BudgetError, match=r"need .* have 1\.00 KiB; the smallest that works is") as caught:
        memory.room(1024, name="--ram")
    assert str(memory.overhead) in str(caught.value)
    assert memory.room(memory.overhead) == 0
    assert memory.room(memory.whole) == memory.room(2 * memory.whole) == memory.experts
    assert sum(memory.parts().values()) == memory.overhead


def test_bands_enclose_their_mean_and_independent_errors_add_as_squares() -> None:
    band = Band(1.0, 0.97, 1.03).widened(0.96, 1.04)
    assert (band.low_s, band.high_s) == (pytest.approx(0.95), pytest.approx(1.05))
    assert Band(1.0, 1.0, 1.0).widened(1.0, 1.0) == Band(1.0, 1.0, 1.0)


@pytest.mark.parametrize("mode", ["auto", "paper", "uniform", "none"])
def test_more_memory_is_not_slower_and_all_of_it_waits_for_nothing(subject: Subject, mode: str) -> None:
    rooms = [round(subject.memory.experts * share) for share in (0.0, 0.3, 0.6, 1.0)]
    found = [forecast(subject, room, mode) for room in rooms]
    for one in found:
        assert one.tpot.low_s <= one.tpot.mean_s <= one.tpot.high_s
        assert one.ttft.low_s <= one.ttft.mean_s <= one.ttft.high_s
    times = [one.tpot.mean_s for one in found]
    # Caches are replayed, not proven: one that is larger may miss a little more.
    assert all(larger <= 1.02 * smaller for smaller, larger in itertools.pairwise(times)), times
    assert found[-1].is_resident == (mode != "none")
    assert (found[-1].stall_s == 0.0) == (mode != "none")


def test_the_band_follows_the_machine(subject: Subject) -> None:
    room = subject.memory.experts // 2
    narrow = forecast(replace(subject, machine=replace(MACHINE, spread=(0.99, 1.01)), is_prior=False), room, "auto")
    wide = forecast(replace(subject, machine=replace(MACHINE, spread=(0.5, 1.5)), is_prior=False), room, "auto")
    assert wide.tpot.high_s - wide.tpot.low_s > narrow.tpot.high_s - narrow.tpot.low_s
    assert wide.tpot.high_s >= 1.9 * wide.tpot.mean_s  # half the rate, twice the time


def test_what_a_miss_costs_besides_its_bytes_is_paid_by_layers_that_wait(subject: Subject) -> None:
    """The latency, and the landing of one granule by one of two threads; without a cache each of four layers pays."""
    granule = float(subject.trace.granule_bytes[0])
    dear = replace(MACHINE, miss_latency_s=1e-4, landing_bytes_s=2e8, n_threads=2)
    paid = 4 * (1e-4 + granule / 1e8)
    bytes_alone, all_of_it = (
        forecast(replace(subject, machine=machine, is_prior=False), 0, "none").stall_s for machine in (MACHINE, dear)
    )
    assert all_of_it - bytes_alone == pytest.approx(paid)
    resident = forecast(replace(subject, machine=dear), subject.memory.experts, "paper")
    assert resident.stall_s == 0.0


def test_no_trace_means_a_wider_band(subject: Subject) -> None:
    room = subject.memory.experts // 2
    known = forecast(replace(subject, is_prior=False), room, "auto")
    assumed = forecast(subject, room, "auto")
    assert assumed.tpot.high_s >= known.tpot.high_s
    assert assumed.tpot.low_s <= known.tpot.low_s


def test_a_predictor_with_a_window_saves_time(subject: Subject) -> None:
    slow = costs_of(subject.report, subject.memory, replace(MACHINE, layer_s=0.01), n_context=32, recall=0.9)
    room = subject.memory.experts // 2
    guessing = replace(subject, trace=with_guesses(subject.trace, 0.9), costs=slow)
    silent = replace(subject, costs=replace(slow, window_s=[0.0] * 4))
    assert forecast(guessing, room, "auto").stall_s < 0.7 * forecast(silent, room, "auto").stall_s


def test_a_curve_runs_from_the_smallest_budget_to_all(subject: Subject) -> None:
    points = curve(subject, ["auto", "none"], points=5)["auto"]
    assert points[0][0] == subject.memory.overhead
    assert points[-1][0] == subject.memory.whole
    assert points[-1][1] == min(seconds for _, seconds in points)
    assert np.all(np.diff([budget for budget, _ in points]) > 0)
