"""Timelines as Chrome-trace JSON: valid, nothing lost, rows that nest."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moepic_gguf.errors import ArgumentError, IoError
from moepic_gguf.timeline import DEMAND, EVENT, KINDS, PREFETCH, write_timeline


def events_of(rows: list[tuple[int, int, int, int]]) -> np.ndarray:
    """(kind, lane, start, end) of each."""
    made = np.zeros(len(rows), EVENT)
    for at, (kind, lane, start, end) in enumerate(rows):
        made[at] = (
            start,
            end,
            4096 if kind in (DEMAND, PREFETCH) else 0,
            7,
            kind,
            lane,
            1,
            -1 if kind < 3 else 5,
            -1,
            0,
        )
    return made


def read(path: Path) -> tuple[list[dict], dict[tuple[int, int], str]]:
    record = json.loads(path.read_text())
    spans = [event for event in record["traceEvents"] if event["ph"] == "X"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in record["traceEvents"] if e["name"] == "thread_name"}
    return spans, names


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 2), st.integers(0, 10**12), st.integers(0, 10**9)), max_size=60
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_event_is_in_valid_json_and_transfers_of_one_row_never_overlap(tmp_path: Path, rows: list) -> None:
    events = events_of([(kind, lane, start, start + length) for kind, lane, start, length in rows])
    write_timeline(tmp_path / "t.json", events, lane_names=("file",), info={"model": "tiny"})
    spans, names = read(tmp_path / "t.json")
    assert sorted(span["name"] for span in spans) == sorted(KINDS[kind] for kind in events["kind"])
    base = events["start_ns"].min() if len(events) else 0
    # Microseconds hold nanoseconds of a run of an hour: 3.6e12 ns is below 2^53.
    found = sorted((round(span["ts"] * 1000), round(span["dur"] * 1000)) for span in spans)
    assert found == sorted(
        zip((events["start_ns"] - base).tolist(), (events["end_ns"] - events["start_ns"]).tolist(), strict=True)
    )
    lanes: dict[tuple[int, int], list] = {}
    for span in spans:
        assert (span["pid"], span["tid"]) in names
        if span["name"] in ("demand", "prefetch"):
            lanes.setdefault((span["pid"], span["tid"]), []).append(
                (round(1000 * span["ts"]), round(1000 * (span["ts"] + span["dur"])))
            )
    for spans_of in lanes.values():
        spans_of.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans_of))


def test_threads_and_lanes_are_named_rows_of_two_processes(tmp_path: Path) -> None:
    events = events_of(
        [(4, 1, 0, 10), (3, 0, 0, 5), (DEMAND, 0, 0, 10), (PREFETCH, 0, 5, 15), (DEMAND, 1, 0, 10), (DEMAND, 0, 10, 12)]
    )
    write_timeline(tmp_path / "t.json", events, lane_names=("file",))
    spans, names = read(tmp_path / "t.json")
    assert set(names.values()) == {"thread 0", "thread 1", "file", "file, 2 at once", "lane 1"}
    assert len({pid for pid, _ in names}) == 2
    last = max((span for span in spans if span["name"] == "demand"), key=lambda span: span["ts"])
    assert names[(last["pid"], last["tid"])] == "file"  # a row that is free again is used again
    assert last["args"] == {"position": 7, "layer": 1, "expert": 5, "bytes": 4096}


def test_an_empty_recording_is_valid_too(tmp_path: Path) -> None:
    write_timeline(tmp_path / "t.json", np.zeros(0, EVENT))
    assert read(tmp_path / "t.json") == ([], {})


def test_what_is_no_timeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="expected a one-dimensional array"):
        write_timeline(tmp_path / "t.json", np.zeros(3))
    with pytest.raises(ArgumentError, match="event 0 is of kind 9"):
        write_timeline(tmp_path / "t.json", events_of([(9, 0, 0, 1)]))
    with pytest.raises(ArgumentError, match="ends before"):
        write_timeline(tmp_path / "t.json", events_of([(1, 0, 5, 1)]))
    with pytest.raises(IoError):
        write_timeline(tmp_path / "no" / "t.json", np.zeros(0, EVENT))
