"""Measure this machine: the rates a plan is made from (docs/planning.md, "Machine files"). Thin over native/src/measure/, which does the work.

Knows no model; how the rates become a machine file is in `machine_file`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from ._ffi import ffi, lib
from .errors import ArgumentError
from .metadata import checked
from .planner import Machine
from .progress import NativeProgress, Progress

_ISAS = {"auto": -1, "scalar": 0, "avx2": 1, "avx512": 2}
RATES = ("memory", "compute", "file_small", "file_large", "file_together", "compute_together", "landing")
TIMES = ("file_single_s", "job_s", "handoff_s")
PIECES = 3  # of a transfer: gate, up, down
JOBS = 6  # of a decoded layer: q k v, attention, its output, router, experts, their sum


@dataclass(frozen=True)
class Spread:
    """Bytes per second, or seconds, over the windows of one measurement."""

    median: float
    min: float
    max: float
    repeats: int


@dataclass(frozen=True)
class Measured:
    """What was measured; see `moepic_machine` in native/include/moepic.h.

    memory            read by all threads.
    compute           weights of Q4_K granules computed from memory, as in decode.
    file_small        random pieces of small_bytes (a projection of a granule) read past the page cache.
    file_large        the same with large_bytes.
    file_together     small pieces, while granules are computed ...
    compute_together  ... and granules, while small pieces are read.
    landing           granules re-tiled from a file's rows into the kernels' layout, by all threads.
    file_single_s     a transfer of three small pieces with nothing else under way.
    job_s             a job that every thread takes part in and that does nothing; threads spin between jobs.
    handoff_s         a round trip to a parked thread.
    file_lane         how the file was read.
    """

    n_threads: int
    isa: str
    memory: Spread
    compute: Spread
    file_small: Spread
    file_large: Spread
    file_together: Spread
    compute_together: Spread
    landing: Spread
    file_single_s: Spread
    job_s: Spread
    handoff_s: Spread
    small_bytes: int
    large_bytes: int
    file_lane: str


def measure_machine(
    path: str | os.PathLike[str],
    *,
    n_threads: int = 0,
    isa: str = "auto",
    memory_bytes: int = 0,
    seconds: float = 3.0,
    strict: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Measure this machine, and the file system `path` lies on; the file is only read.

    memory_bytes  read, and computed from: well above the last-level cache; 0: 1 GiB.
    seconds       of each of eight measurements.
    strict        a file that can't be read past the page cache is an error instead of a warning.
    progress      called with stage, windows done and windows in all; return False to stop.
    Raises        ArgumentError (the file is too small, too), IoError, UnsupportedModelError, OutOfMemory, CancelledError.
    """
    if isa not in _ISAS:
        raise ArgumentError(f"isa: {isa!r} is none of {', '.join(_ISAS)}")
    options = ffi.new("moepic_machine_options *")
    lib.moepic_machine_options_init(options)
    options.n_threads, options.isa, options.strict = n_threads, _ISAS[isa], strict
    options.memory_bytes, options.seconds = memory_bytes, seconds
    listener = NativeProgress(progress) if progress else None
    if listener:
        options.progress = listener.callback
    out = ffi.new("moepic_machine *")
    out.size = ffi.sizeof("moepic_machine")
    code = lib.moepic_machine_measure(out, os.fsencode(path), options)
    if listener:
        listener.reraise()
    checked(code)
    spreads = {name: _spread(getattr(out, name)) for name in (*RATES, *TIMES)}
    return Measured(
        n_threads=out.n_threads,
        isa=ffi.string(out.isa).decode("ascii"),
        small_bytes=out.small_bytes,
        large_bytes=out.large_bytes,
        file_lane=ffi.string(out.file_lane).decode("utf-8"),
        **spreads,
    )


def _spread(native: Any) -> Spread:
    return Spread(native.median, native.min, native.max, native.repeats)


def file_machine(measured: Measured) -> Machine:
    """Experts beyond the budget lie in the file: RAM is the fast tier, and nothing is computed where it lies, so there is no CPU lane.

    A miss is read while other granules are computed, so the file's rate is the one it has then. What a lone transfer takes beyond its bytes at the rate of
    many is paid whenever anything is missing.
    """
    # Windows too short for a transfer measure a rate of nothing; the latency is then unknown, and left out.
    many = measured.file_small.median
    alone_s = measured.file_single_s.median - PIECES * measured.small_bytes / many if many else 0.0
    return Machine(
        link_bytes_s=measured.file_together.median,
        device_bytes_s=measured.compute.median,
        layer_s=JOBS * measured.job_s.median,
        miss_latency_s=max(0.0, alone_s),
        landing_bytes_s=measured.landing.median,
        n_threads=measured.n_threads,
    )


def link_machine(measured: Measured, link_bytes_s: float, device_bytes_s: float) -> Machine:
    """Experts beyond the budget lie in RAM, behind a link whose rate, and the device's, are given and not measured here.

    The CPU is a lane, to be woken and waited for. What it and the link get between them is what memory gives: both read it. The rates do not add beyond
    that. Nothing is re-tiled on arrival; latencies of the link and fixed costs of the device are its own, and not known here.
    """
    return Machine(
        link_bytes_s=link_bytes_s,
        device_bytes_s=device_bytes_s,
        cpu_bytes_s=measured.compute.median,
        together_bytes_s=measured.memory.median,
        cpu_sync_s=measured.handoff_s.median,
        n_threads=measured.n_threads,
    )


def machine_file(machine: Machine, measured: Measured, **more: Any) -> dict[str, Any]:
    """What `Machine.read` reads, and beside it how the numbers came about."""
    rates = {name: asdict(getattr(measured, name)) for name in RATES}
    times = {name: asdict(getattr(measured, name)) for name in TIMES}
    how = {name: value for name, value in asdict(measured).items() if name not in rates | times}
    own = {
        name: value for name, value in asdict(machine).items() if name != "spread"
    }  # read off the measurements again
    return {**own, **more, "measured_bytes_s": rates, "measured_s": times, **how}
