"""moepic-bench machine: the rates of this machine that a plan is made from. Arguments, the file that is read, the table and the machine file;
`moepic_gguf.machine` does the measuring.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from ..budgets import parse_budget, physical_ram_bytes, show_bytes
from ..errors import ArgumentError, IoError
from ..machine import RATES, TIMES, Measured, file_machine, link_machine, machine_file, measure_machine
from . import bench_record, common

_WHAT = {
    "memory": "memory, read by all threads",
    "compute": "granules computed from memory, as in decode",
    "file_small": "file, random pieces of {small}",
    "file_large": "file, random pieces of {large}",
    "file_together": "file, pieces of {small}, while granules are computed",
    "compute_together": "granules, while the file is read",
    "landing": "granules re-tiled from a file's rows",
    "file_single_s": "file, three pieces of {small}, one transfer at a time",
    "job_s": "a job of all threads that does nothing",
    "handoff_s": "a round trip to a parked thread",
}


@click.command("machine", context_settings=common.SETTINGS)
@click.option("--file", default=None, metavar="MODEL", help="Read this file (of a split one: this shard). By default a temporary one.")  # fmt: skip
@click.option("--out", default=None, metavar="FILE", help="Write a machine file for moepic-plan --machine.")
@click.option("--seconds", type=click.FloatRange(0, 3600, min_open=True), default=3.0, help="Of each of eight measurements.")  # fmt: skip
@click.option("-t", "--threads", "n_threads", type=click.IntRange(0), default=0, help="0: all cores.")
@click.option("--isa", type=click.Choice(["auto", "scalar", "avx2", "avx512"]), default="auto", help="Instruction set.")
@click.option(
    "--memory",
    default=None,
    metavar="SIZE",
    help="To read and compute from; well above the last-level cache.  [default: 1GiB, or an eighth of RAM]",
)
@click.option("--temporary", default="1GiB", metavar="SIZE", help="Of the file made where --file names none.")
@click.option(
    "--link-rate", type=click.FloatRange(0, min_open=True), default=None,
    help="GB/s, given and not measured: experts lie in RAM behind this link to a device. Needs --device-rate.",
)  # fmt: skip
@click.option("--device-rate", type=click.FloatRange(0, min_open=True), default=None, help="GB/s of that device, given.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail where the file can't be read past the page cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the machine file instead of the table.")
@common.one_line_errors
def main(
    file: str | None,
    out: str | None,
    seconds: float,
    n_threads: int,
    isa: str,
    memory: str | None,
    temporary: str,
    link_rate: float | None,
    device_rate: float | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Measure the rates a plan is made from: memory, granules computed from it, random reads of a file past the page cache, the last
    two at the same time, and what it costs to land, to begin a transfer, and to hand work to threads.

    Without --file, a temporary file is made beside --out (or in the current folder) and removed afterwards: put it on the disk your models lie on, and
    make it larger than what the disk or a host may cache. Takes eight times --seconds. Ctrl-C leaves nothing behind.
    """
    common.set_up_logging(0)
    if (link_rate is None) != (device_rate is None):
        raise ArgumentError("--link-rate and --device-rate are given together, or not at all")
    if out is not None and Path(out).is_dir():
        raise ArgumentError(f"--out: '{out}' is a folder; name a file")
    folder = Path(out).parent if out is not None else Path()
    if not folder.is_dir():
        raise IoError(f"--out: the folder '{folder}' does not exist")
    memory_bytes = parse_budget(memory, name="--memory") or min(2**30, physical_ram_bytes() // 8)
    if file is not None:
        reading: contextlib.AbstractContextManager[Path] = contextlib.nullcontext(common.model_argument(file))
    else:
        reading = _temporary_file(folder, parse_budget(temporary, name="--temporary") or 0)
    with reading as path:
        environment = bench_record.environment(path, with_hash=False)
        environment["file"]["file_system"] = _file_system(path)
        if file is None:
            environment["file"]["name"] = "temporary"
        measured = _measure(
            path, n_threads=n_threads, isa=isa, memory_bytes=memory_bytes, seconds=seconds, strict=strict
        )
    more: dict[str, Any] = {"slow_tier": "file"}
    if link_rate is not None and device_rate is not None:
        machine = link_machine(measured, link_rate * 1e9, device_rate * 1e9)
        more = {"slow_tier": "link", "given": ["link_bytes_s", "device_bytes_s"]}
    else:
        machine = file_machine(measured)
    result = machine_file(
        machine, measured, **more, memory_bytes=memory_bytes, seconds=seconds, environment=environment
    )
    text = json.dumps(result, indent=1) + "\n"
    if out is not None:
        _write(Path(out), text)
    click.echo(text if as_json else _table(result, measured, out), nl=False)


def _measure(path: Path, **options: Any) -> Measured:
    console = common.stderr()
    if not console.is_terminal:
        return measure_machine(path, **options, progress=lambda *_: True)  # a listener, so that Ctrl-C is heard
    with common.progress_bar(console) as bar:
        task = bar.add_task("measuring", total=None)

        def report(stage: str, done: int, total: int) -> bool:
            bar.update(task, description=f"measuring: {stage}", completed=done, total=total)
            return True

        return measure_machine(path, **options, progress=report)


@contextlib.contextmanager
def _temporary_file(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A file of random bytes, on the disk and out of the page cache, that has no name: however this ends, nothing is left."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise IoError(f"--temporary: {show_bytes(n_bytes)} do not fit '{folder}', which has {show_bytes(free)} free")
    click.echo(f"making a temporary file of {show_bytes(n_bytes)} in '{folder}' ...", err=True)
    part = np.random.default_rng(0).bytes(min(n_bytes, 2**24))
    with tempfile.TemporaryFile(dir=folder) as file:
        for begin in range(0, n_bytes, 2**24):
            file.write(part[: n_bytes - begin])
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _file_system(path: Path) -> str:
    """The type of the file system a file lies on, as the kernel calls it."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == wanted:
                return source.split()[0]
    return "unknown"


def _write(target: Path, text: str) -> None:
    """Written aside, then renamed."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _table(result: dict[str, Any], measured: Measured, out: str | None) -> str:
    console = Console(highlight=False, soft_wrap=True, width=120)
    table = Table(box=None, pad_edge=False)
    table.add_column("measured", no_wrap=True)
    for head in ("median GB/s", "smallest", "largest"):
        table.add_column(head, justify="right", no_wrap=True)
    sizes = {"small": show_bytes(measured.small_bytes), "large": show_bytes(measured.large_bytes)}
    for name in RATES:
        spread = getattr(measured, name)
        table.add_row(_WHAT[name].format(**sizes), *(f"{x / 1e9:.2f}" for x in (spread.median, spread.min, spread.max)))
    times = Table(box=None, pad_edge=False)
    times.add_column("measured", no_wrap=True)
    for head in ("median us", "smallest", "largest"):
        times.add_column(head, justify="right", no_wrap=True)
    for name in TIMES:
        spread = getattr(measured, name)
        times.add_row(_WHAT[name].format(**sizes), *(f"{x * 1e6:.1f}" for x in (spread.median, spread.min, spread.max)))
    where = result["environment"]["file"]
    given = " (given)" if result["slow_tier"] == "link" else ""
    with console.capture() as capture:
        console.print(
            f"{measured.n_threads} threads, {measured.isa}; {measured.file_lane}; {where['file_system']}", markup=False
        )
        console.print(table)
        console.print(times)
        console.print(
            f"slow tier: {result['slow_tier']} at {result['link_bytes_s'] / 1e9:.2f} GB/s{given}; fast tier: "
            f"{result['device_bytes_s'] / 1e9:.2f} GB/s{given}"
        )
        if result["environment"]["load_average"][0] > 0.25 * result["environment"]["cores"]:
            console.print(
                f"(other work was running: load {result['environment']['load_average'][0]:.1f} before the start)"
            )
        if out is None:
            console.print("(--out FILE keeps this for moepic-plan --machine FILE)")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
