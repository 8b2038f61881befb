"""moepic-plan on a tiny file: refusals before anything is loaded, numbers that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moepic_gguf.cli.plan import main
from moepic_gguf.errors import ModelFormatError
from moepic_gguf.inspection import inspect_file
from moepic_gguf.metadata import GgufFile
from moepic_gguf.planner import Machine

from ..python.tiny_gguf import write

RATES = ["--slow-rate", "1", "--fast-rate", "20"]


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plan") / "tiny.gguf")


def run(*args: str) -> tuple[int, str]:
    shown = CliRunner().invoke(main, list(args))
    return shown.exit_code, shown.output


def test_every_mode_fits_the_budget_and_more_budget_is_not_slower(moe_file: Path) -> None:
    with GgufFile(moe_file) as file:
        report = inspect_file(file)
    experts = (report.expert_bytes or 0) * report.n_expert * report.moe_layers
    base = report.file_bytes - experts + (report.kv_bytes_per_token or 0) * 64
    times: dict[str, list[float]] = {}
    for share in (0.25, 0.5, 1.0):
        code, output = run(str(moe_file), "--ram", str(base + int(share * experts)), "-c", "64", "--json", *RATES)
        assert code == 0, output
        for line in output.splitlines():
            plan = json.loads(line)
            assert plan["bytes"] <= plan["budget_bytes"] <= share * experts
            times.setdefault(plan["mode"], []).append(plan["objective_s"])
    assert set(times) == {"auto", "paper", "uniform", "none"}
    for mode, seconds in times.items():
        assert seconds == sorted(seconds, reverse=True), mode
        assert seconds[-1] <= times["none"][-1] or mode == "none"


def test_a_budget_below_what_every_token_uses_is_refused_with_what_is_needed(moe_file: Path) -> None:
    code, output = run(str(moe_file), "--ram", "1KiB", *RATES)
    assert code == 2
    assert "at least" in output


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
    path.write_text("{")
    with pytest.raises(ModelFormatError):
        Machine.read(path)
    path.write_text('{"link_bytes_s": 1e9}')
    with pytest.raises(ModelFormatError):
        Machine.read(path)
