"""A recorded timeline as Chrome-trace JSON, for Perfetto (ui.perfetto.dev) and chrome://tracing. Writes; decides and measures nothing.

Events come from the engine as a structured array (`EVENT`), spans in steady-clock nanoseconds. Compute threads and lanes are two processes of the picture with
a named row each. Transfers of one lane may be under way together, and rows of that format must nest, so a lane gets as many rows as it had at once.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, IoError

EVENT = np.dtype(
    [
        ("start_ns", "<i8"),
        ("end_ns", "<i8"),
        ("bytes", "<u8"),
        ("position", "<i8"),  # of the first token of the batch
        ("kind", "<i4"),
        ("lane", "<i4"),  # the thread; of a transfer, the lane's index
        ("layer", "<i4"),  # this and the next two: -1 where they say nothing
        ("expert", "<i4"),
        ("granule", "<i4"),
        ("reserved", "<i4"),
    ]
)
KINDS = ("attention", "router", "experts", "wait", "granule", "demand", "prefetch", "landing")
DEMAND, PREFETCH = KINDS.index("demand"), KINDS.index("prefetch")
# Reserved colour names of chrome://tracing; Perfetto colours by name.
_COLOURS = {
    "wait": "terrible",
    "demand": "bad",
    "prefetch": "good",
    "landing": "grey",
    "granule": "thread_state_running",
}
_THREADS, _LANES = 1, 2  # process ids


def write_timeline(
    path: str | os.PathLike[str],
    events: NDArray[Any],
    *,
    lane_names: tuple[str, ...] = (),
    info: dict[str, Any] | None = None,
) -> None:
    """Write `events` [n] of EVENT, one line each, so that a long recording never exists as text in memory.

    lane_names   names of lanes 0, 1, ...; "lane <index>" beyond them.
    info         anything worth keeping beside them (model, budget, commit).
    Raises       `ArgumentError` for another dtype, an unknown kind, or an event that ends before it starts; `IoError`.
    """
    events = _checked(events)
    try:
        with open(path, "w", encoding="utf-8") as file:
            _write(file, events, lane_names, info or {})
    except OSError as error:
        raise IoError(f"timeline: cannot write '{os.fspath(path)}': {error.strerror or error}") from error


def _checked(events: NDArray[Any]) -> NDArray[Any]:
    if events.dtype != EVENT or events.ndim != 1:
        raise ArgumentError(
            f"timeline: expected a one-dimensional array of {EVENT.names}, found {events.dtype} of shape {events.shape}"
        )
    wrong = np.flatnonzero(
        (events["kind"] < 0) | (events["kind"] >= len(KINDS)) | (events["end_ns"] < events["start_ns"])
    )
    if len(wrong):
        raise ArgumentError(
            f"timeline: event {wrong[0]} is of kind {events['kind'][wrong[0]]} or ends before it starts: {events[wrong[0]]}"
        )
    # Of two that start together the longer one is the outer one.
    return events[np.lexsort((-events["end_ns"], events["start_ns"]))]


def _write(file: TextIO, events: NDArray[Any], lane_names: tuple[str, ...], info: dict[str, Any]) -> None:
    file.write('{"displayTimeUnit":"ns","otherData":' + json.dumps(info) + ',"traceEvents":[\n')
    names: dict[tuple[int, int], str] = {}  # (process, row) -> name, as rows come up
    for event, process, row, name in _rows(events, lane_names):
        names.setdefault((process, row), name)
        file.write(json.dumps(event, separators=(",", ":")) + ",\n")
    heads = [
        _meta("process_name", process, 0, name) for process, name in ((_THREADS, "compute threads"), (_LANES, "lanes"))
    ]
    heads += [_meta("thread_name", process, row, name) for (process, row), name in sorted(names.items())]
    heads += [_meta("thread_sort_index", process, row, row, "sort_index") for process, row in sorted(names)]
    file.write(",\n".join(json.dumps(head, separators=(",", ":")) for head in heads) + "\n]}\n")


def _rows(events: NDArray[Any], lane_names: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], int, int, str]]:
    """Each event as the format has it, with its process, row and the row's name."""
    start = int(events["start_ns"].min()) if len(events) else 0
    under_way: dict[int, list[tuple[int, int]]] = {}  # lane -> heap of (end, place)
    idle: dict[int, list[int]] = {}  # lane -> places that were used and are free
    for event in events:
        kind, lane, begin, end = int(event["kind"]), int(event["lane"]), int(event["start_ns"]), int(event["end_ns"])
        if kind in (DEMAND, PREFETCH):
            busy, free = under_way.setdefault(lane, []), idle.setdefault(lane, [])
            while busy and busy[0][0] <= begin:
                heapq.heappush(free, heapq.heappop(busy)[1])
            place = heapq.heappop(free) if free else len(busy)
            heapq.heappush(busy, (end, place))
            called = lane_names[lane] if 0 <= lane < len(lane_names) else f"lane {lane}"
            process, row, name = _LANES, lane * 1000 + place, called if place == 0 else f"{called}, {place + 1} at once"
        else:
            process, row, name = _THREADS, lane, f"thread {lane}"
        arguments = {key: int(event[key]) for key in ("position", "layer", "expert", "granule") if event[key] >= 0}
        if event["bytes"]:
            arguments["bytes"] = int(event["bytes"])
        made = {"name": KINDS[kind], "cat": KINDS[kind], "ph": "X", "pid": process, "tid": row}
        made |= {"ts": (begin - start) / 1000, "dur": (end - begin) / 1000, "args": arguments}
        if KINDS[kind] in _COLOURS:
            made["cname"] = _COLOURS[KINDS[kind]]
        yield made, process, row, name


def _meta(what: str, process: int, row: int, value: object, key: str = "name") -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": row, "args": {key: value}}
