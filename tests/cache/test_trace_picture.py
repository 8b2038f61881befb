"""Pictures of traces: the numbers drawn are those recorded, and what a trace cannot show is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moepic_gguf.cli.bench import main as bench
from moepic_gguf.trace import OUTCOME, Trace, write_trace
from moepic_gguf.trace_picture import found_shares

from .routings import make_trace, random_ids


def recorded(seed: int = 0) -> Trace:
    """A trace whose experts found 0 to 3 of 3 granules, the rest split between the lanes."""
    rng = np.random.default_rng(seed)
    trace = make_trace(random_ids(rng, 30, 4, 8, 2), 8, n_granule=3, n_prefill=10)
    trace.ids[rng.random(trace.ids.shape) < 0.1] = -1
    found = np.where(trace.ids >= 0, rng.integers(0, 4, trace.ids.shape), 0).astype(np.int32)
    outcome = np.zeros(trace.ids.shape[:2], OUTCOME)
    missing = (3 * (trace.ids >= 0) - found).sum(axis=2)
    outcome["resident"], outcome["link"], outcome["stall_s"] = found.sum(axis=2), missing, 1e-3 * missing
    return replace(trace, found=found, outcome=outcome)


def draw(tmp_path: Path, trace: Trace, name: str = "t.png") -> tuple[int, str]:
    write_trace(tmp_path / "t.moetrace", trace)
    shown = CliRunner().invoke(bench, ["plot", str(tmp_path / "t.moetrace"), "-o", str(tmp_path / name)])
    return shown.exit_code, shown.output


def test_hits_partial_hits_and_misses_are_counted_per_routed_expert() -> None:
    trace = recorded()
    shares = found_shares(trace)
    np.testing.assert_allclose(sum(shares.values()), 1.0)
    for layer in range(trace.n_layer):
        kinds = {"hit": 0, "partial hit": 0, "miss": 0}
        for token in range(trace.n_token):
            for slot in range(trace.n_used):
                if trace.ids[token, layer, slot] >= 0:
                    n = trace.found[token, layer, slot]
                    kinds["hit" if n == 3 else "partial hit" if n else "miss"] += 1
        for name, count in kinds.items():
            assert shares[name][layer] == pytest.approx(count / sum(kinds.values()))


def test_without_them_granules_are_drawn_and_that_is_said(tmp_path: Path) -> None:
    trace = recorded()
    shares = found_shares(replace(trace, found=None))
    assert shares["resident"][1] == pytest.approx(trace.found[:, 1].sum() / (3 * (trace.ids[:, 1] >= 0).sum()))
    code, output = draw(tmp_path, replace(trace, found=None))
    assert code == 0, output
    assert "flag 4" in output


@pytest.mark.parametrize("name", ["t.png", "t.svg"])
def test_a_recorded_trace_is_drawn_without_remarks(tmp_path: Path, name: str) -> None:
    code, output = draw(tmp_path, recorded(), name)
    assert (code, output) == (0, f"wrote {tmp_path / name}\n")
    assert (tmp_path / name).stat().st_size > 5000


def test_a_trace_of_routing_alone_says_what_it_cannot_show(tmp_path: Path) -> None:
    code, output = draw(tmp_path, replace(recorded(), found=None, outcome=None))
    assert code == 0, output
    assert "no outcomes" in output
    assert (tmp_path / "t.png").exists()


def test_wrong_endings_and_folders_are_one_line_errors(tmp_path: Path) -> None:
    code, output = draw(tmp_path, recorded(), "t.xyz")
    assert code == 2
    assert "t.xyz" in output
    code, output = draw(tmp_path, recorded(), "absent/t.png")
    assert code == 2
    assert "cannot write" in output


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output = draw(tmp_path, recorded())
    assert code == 2
    assert "pip install 'moepic-gguf[plot]'" in output
