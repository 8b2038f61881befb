"""moepic-plan on a tiny file: refusals before anything is loaded, numbers that add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moepic_gguf.cli.plan import main
from moepic_gguf.errors import ModelFormatError
from moepic_gguf.planner import Machine
from moepic_gguf.trace import write_trace

from ..cache.routings import make_trace, random_ids
from ..python.tiny_gguf import Shape, write

RATES = ["--slow-rate", "1", "--fast-rate", "20"]


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plan") / "tiny.gguf")


def run(*args: str) -> tuple[int, str]:
    shown = CliRunner().invoke(main, list(args))
    return shown.exit_code, shown.output


def memory_of(path: Path) -> dict[str, int]:
    code, output = run(str(path), "--ram", "1GiB", "-c", "64", "--json", "--mode", "none", *RATES)
    assert code == 0, output
    return json.loads(output)["memory"]


def test_every_mode_fits_the_budget_and_more_budget_is_not_slower(moe_file: Path) -> None:
    memory = memory_of(moe_file)
    times: dict[str, list[float]] = {}
    for share in (0.25, 0.5, 1.0):
        budget = memory["overhead"] + int(share * memory["experts"])
        code, output = run(str(moe_file), "--ram", str(budget), "-c", "64", "--json", *RATES)
        assert code == 0, output
        for line in output.splitlines():
            plan = json.loads(line)
            assert plan["bytes"] <= plan["budget_bytes"] <= share * memory["experts"]
            predicted = plan["predicted"]
            assert predicted["tpot_low_s"] <= predicted["tpot_s"] <= predicted["tpot_high_s"]
            assert predicted["is_resident"] == (share == 1.0 and plan["mode"] != "none")
            times.setdefault(plan["mode"], []).append(plan["objective_s"])
    assert set(times) == {"auto", "paper", "uniform", "none"}
    for mode, seconds in times.items():
        assert seconds == sorted(seconds, reverse=True), mode
        assert seconds[-1] <= times["none"][-1] or mode == "none"


def test_what_fits_is_printed_part_by_part_and_all_of_it_is_called_resident(moe_file: Path) -> None:
    memory = memory_of(moe_file)
    code, output = run(str(moe_file), "--ram", str(memory["overhead"] + memory["experts"] // 2), "-c", "64", *RATES)
    assert code == 0, output
    for part in (
        "weights besides experts",
        "keys and values",
        "scratch",
        "staging",
        "experts, ",
        "auto runs:",
    ):
        assert part in output
    assert "process" not in output  # beside a budget of RAM, not in it
    code, output = run(str(moe_file), "--ram", "1GiB", "-c", "64", *RATES)
    assert code == 0, output
    assert "everything is resident" in output


def test_a_budget_below_what_every_token_uses_is_refused_with_what_is_needed(moe_file: Path) -> None:
    code, output = run(str(moe_file), "--ram", "1KiB", "-c", "64", *RATES)
    assert code == 2
    smallest = str(memory_of(moe_file)["overhead"])
    assert f"the smallest that works is {smallest} bytes" in output
    assert run(str(moe_file), "--ram", smallest, "-c", "64", *RATES)[0] == 0


def test_a_dense_model_has_nothing_to_plan(tmp_path: Path) -> None:
    code, output = run(str(write(tmp_path / "dense.gguf", Shape(n_expert=0))), "--ram", "1GiB", *RATES)
    assert code == 2
    assert "has no experts" in output


def test_the_picture_is_drawn_and_without_matplotlib_the_extra_is_named(
    moe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plan.png"
    args = (str(moe_file), "--ram", "289MiB", "-c", "64", "--mode", "auto", "--plot", str(out), *RATES)
    code, output = run(*args)
    assert code == 0, output
    assert out.stat().st_size > 5000
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output = run(*args)
    assert code == 2
    assert "moepic-gguf[plot]" in output


def test_video_memory_is_planned_too_and_a_recorded_trace_is_used(moe_file: Path, tmp_path: Path) -> None:
    trace = make_trace(random_ids(np.random.default_rng(0), 60, 2, 4, 2), 4, n_prefill=20)
    write_trace(tmp_path / "t.moetrace", trace)
    budget = str(memory_of(moe_file)["overhead"] + 2**29)
    code, output = run(str(moe_file), "--vram", budget, "-c", "64", "--trace", str(tmp_path / "t.moetrace"), *RATES)
    assert code == 0, output
    assert "stretches of 16 tokens" in output
    assert "prior" not in output
    wrong = make_trace(np.zeros((4, 3, 1), int), 4)
    write_trace(tmp_path / "wrong.moetrace", wrong)
    code, output = run(str(moe_file), "--ram", "1GiB", "-c", "64", "--trace", str(tmp_path / "wrong.moetrace"), *RATES)
    assert code == 2
    assert "recorded from 3 MoE layers" in output


def test_rates_are_never_guessed_and_a_prior_is_named(moe_file: Path) -> None:
    code, output = run(str(moe_file), "--ram", "1GiB")
    assert code == 2
    assert "--slow-rate" in output
    code, output = run(str(moe_file), "--ram", "1GiB", "-c", "64", *RATES)
    assert code == 0, output
    assert "prior" in output
    assert "modelled" in output


def test_a_machine_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"link_bytes_s": 1e9, "device_bytes_s": 5e10, "name": "x"}))
    assert Machine.read(path) == Machine(1e9, 5e10)
    measured = {
        "file_together": {"median": 1e9, "min": 8e8, "max": 1.1e9},
        "compute": {"median": 4e10, "min": 3.6e10, "max": 5e10},
    }
    record = {"link_bytes_s": 1e9, "device_bytes_s": 4e10, "measured_bytes_s": measured}
    path.write_text(json.dumps(record))
    assert Machine.read(path).spread == (0.8, 1.25)
    path.write_text(json.dumps(record | {"given": ["link_bytes_s"]}))
    assert Machine.read(path).spread == (0.9, 1.25)
    path.write_text(json.dumps(record | {"measured_bytes_s": {"compute": {"median": 0}}}))
    with pytest.raises(ModelFormatError):
        Machine.read(path)
    path.write_text("{")
    with pytest.raises(ModelFormatError):
        Machine.read(path)
    path.write_text('{"link_bytes_s": 1e9}')
    with pytest.raises(ModelFormatError):
        Machine.read(path)
