"""Trace files: what is written is read, other formats are read as they are documented, damaged ones are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from moepic_gguf.cli.bench import main as bench
from moepic_gguf.errors import ArgumentError, IoError, ModelFormatError
from moepic_gguf.planner import with_guesses
from moepic_gguf.trace import DECODE, OUTCOME, PREFILL, read_trace, write_trace

from .routings import RECORDED, make_trace, random_ids, recorded_file

CSV = """# route_trace v1
# model=some.gguf arch=x n_layer=4 n_expert=8 n_expert_used=2
# layer=1 expert_bytes=600 dense_bytes=5
# layer=3 expert_bytes=900 dense_bytes=5
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,1,0,7,0.75,0,600
0,0,0,1,1,2,0.25,0,600
0,1,1,1,0,3,0.5,1,0
0,1,1,1,1,4,0.5,1,0
0,1,1,3,0,5,0.6,0,900
0,1,1,3,1,6,0.4,0,900
"""


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, predicted: bool, outcome: bool, found: bool
) -> None:
    rng = np.random.default_rng(seed)
    trace = make_trace(
        random_ids(rng, int(rng.integers(0, 9)), int(rng.integers(1, 4)), 9, 2), 9, n_granule=3, n_prefill=2
    )
    trace = replace(trace, info={"model": "Ünï", "model_hash": "ab"})
    trace.ids[rng.random(trace.ids.shape) < 0.2] = -1
    if predicted:
        trace = replace(trace, predicted=rng.integers(-1, 9, (*trace.ids.shape[:2], 3)).astype(np.int32))
    if outcome:
        made = np.zeros(trace.ids.shape[:2], OUTCOME)
        made["stall_s"], made["link"] = rng.random(made.shape), rng.integers(0, 9, made.shape)
        trace = replace(trace, outcome=made)
    if found:
        trace = replace(trace, found=rng.integers(0, 4, trace.ids.shape).astype(np.int32))
    path = tmp_path_factory.mktemp("trace") / "t.moetrace"
    write_trace(path, trace)
    again = read_trace(path)
    for name in ("ids", "sequence", "phase", "n_expert", "n_granule", "granule_bytes", "predicted", "outcome", "found"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name), err_msg=name)
    # Weights are stored as float16: half an ulp of 11 bits.
    np.testing.assert_allclose(again.weights, trace.weights, rtol=2**-11)
    assert again.info == trace.info


def test_a_record_cut_short_loses_only_itself(tmp_path: Path) -> None:
    trace = make_trace(random_ids(np.random.default_rng(0), 5, 2, 8, 2), 8)
    path = tmp_path / "t.moetrace"
    write_trace(path, trace)
    path.write_bytes(path.read_bytes()[:-3])
    np.testing.assert_array_equal(read_trace(path).ids, trace.ids[:4])


def test_a_route_trace_is_read_with_its_sizes_layers_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    trace = read_trace(path)
    np.testing.assert_array_equal(trace.ids, [[[7, 2], [-1, -1]], [[3, 4], [5, 6]]])
    np.testing.assert_allclose(trace.weights[1, 1], [0.6, 0.4])
    assert trace.phase.tolist() == [PREFILL, DECODE]
    assert trace.n_prefill == 1
    assert trace.expert_bytes.tolist() == [600, 900]
    assert trace.total_bytes == 8 * 1500
    assert trace.cut_into(7).expert_bytes.tolist() == [602, 903], "rounded up to whole granules"


def test_json_steps_are_read_and_what_they_lack_is_asked_for(tmp_path: Path) -> None:
    steps = [
        {"decode_step": t, "layers": [{"layer": 0, "expert_ids": [t, 9], "weights": [0.5, 0.5]}]} for t in range(3)
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"steps": steps}))
    trace = read_trace(path, expert_bytes=4096)
    assert trace.ids[:, 0].tolist() == [[0, 9], [1, 9], [2, 9]]
    assert trace.n_expert.tolist() == [16]
    assert "n_expert" in trace.info["assumed"]
    with pytest.raises(ArgumentError, match="expert_bytes"):
        read_trace(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "neither"),
        (b"MOEPICTR", "ends inside its header"),
        (b"MOEPICTR" + b"\x09" + b"\0" * 40, "version 9"),
        (b"MOEPICTR" + b"\x01" + b"\0" * 40, "disagree"),
        (b"{}", "not a list"),
        (b"# route_trace v1\n# n_expert=4\n1,2\n", "no rows"),
        (CSV.replace("3,0,5,0.6", "9,0,5,0.6").encode(), "layer or a slot"),
        (CSV.replace("0.75", "x").encode(), "line 6"),
        (CSV.replace("1,0,7,0.75", "1,0,8,0.75").encode(), "token 0, MoE layer 0"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=text):
        read_trace(path, expert_bytes=1)


def test_a_missing_file_is_an_io_error(tmp_path: Path) -> None:
    with pytest.raises(IoError):
        read_trace(tmp_path / "none")


def test_the_tool_prints_bytes_and_stall_before_hits(tmp_path: Path) -> None:
    trace = make_trace(random_ids(np.random.default_rng(1), 40, 2, 16, 2), 16, n_granule=2, n_prefill=10)
    write_trace(tmp_path / "t.moetrace", trace)
    shown = CliRunner().invoke(bench, ["replay", str(tmp_path / "t.moetrace"), "--budget", "25%", "--budget", "50%"])
    assert shown.exit_code == 0, shown.output
    head = next(line for line in shown.output.splitlines() if line.startswith("budget"))
    assert head.index("MB/token") < head.index("stall") < head.index("hit") < head.index("partial") < head.index("miss")
    assert shown.output.count("belady") == 2
    assert shown.output.count("auto: ") == 2
    as_json = CliRunner().invoke(
        bench, ["replay", str(tmp_path / "t.moetrace"), "--budget", "50%", "--policy", "lru", "--json"]
    )
    row = json.loads(as_json.output)
    assert row["tokens"] == 30
    assert row["hit"] + row["partial_hit"] + row["miss"] == pytest.approx(1.0)


def test_the_tool_refuses_a_trace_that_leaves_nothing_to_count(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.moetrace", make_trace(np.zeros((3, 1, 1), int), 2))
    shown = CliRunner().invoke(bench, ["replay", str(tmp_path / "t.moetrace"), "--warm", "3"])
    assert shown.exit_code == 2


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_traces_are_read_whole(name: str) -> None:
    trace = read_trace(recorded_file(name), expert_bytes=1_769_472)
    assert trace.n_token - trace.n_prefill == (64 if name.startswith("gpt-oss") else 128)
    decoded = trace.ids[trace.phase == DECODE]
    assert (decoded >= 0).all()


def test_the_replay_command_runs_planner_modes_beside_policies(tmp_path: Path) -> None:
    trace = make_trace(random_ids(np.random.default_rng(0), 80, 2, 16, 2), 16, n_granule=4, n_prefill=40)
    write_trace(tmp_path / "t.moetrace", trace)
    args = ["replay", str(tmp_path / "t.moetrace"), "--budget", "25%", "--plan", "all", "--policy", "lru"]
    shown = CliRunner().invoke(bench, [*args, "--json"])
    assert shown.exit_code == 0, shown.output
    rows = {row["policy"]: row for row in map(json.loads, shown.output.splitlines())}
    names = [name.split(":")[0] for name in rows]
    assert names == ["lru", "plan auto", "plan paper", "plan uniform", "plan worth"]
    for row in rows.values():
        assert row["tokens"] == 40
        assert row["capacity_bytes"] <= trace.total_bytes // 4
    shown = CliRunner().invoke(bench, [*args, "--warm", "0"])
    assert shown.exit_code == 2
    assert "--warm" in shown.output


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_made_up_guesses_name_nobody_twice_and_have_the_recall_asked_for(seed: int, recall: float, n_used: int) -> None:
    trace = make_trace(random_ids(np.random.default_rng(seed), 60, 3, 6, n_used), 6)
    guessed = with_guesses(trace, recall, seed=seed)
    for row in guessed.predicted.reshape(-1, n_used):
        named = row[row >= 0].tolist()
        assert len(named) == len(set(named))
    # Binomial over 180 n_used draws: five standard deviations of at most 1/2.
    assert abs(guessed.recall - recall) <= 5 * 0.5 / np.sqrt(180 * n_used)


def test_recall_and_stay_are_shares_of_routed_experts() -> None:
    trace = make_trace(np.array([[[0, 1]], [[1, 2]], [[2, -1]]]), 4)
    assert trace.stays == pytest.approx(2 / 3)
    assert replace(trace, predicted=np.array([[[0]], [[3]], [[2]]], np.int32)).recall == pytest.approx(2 / 5)
    assert trace.recall == 0.0
