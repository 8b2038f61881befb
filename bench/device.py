"""Everything a GPU machine has to answer, in calls of a few minutes: tests, rates, kernels, decode and prefill, ablations, llama.cpp; and the record of it.

    ./dev gpu [--quick] [--part decode] [--minutes 9] [--llama PATH]              builds, then this
    python bench/device.py --device emulated --quick                              a smoke test where there is no GPU: tiny model, CPU

A call does what is not in the record yet and ends in time: no job is begun that would outlast --minutes, by what its like took. So call it again until it
says that all is done. Files of real shape are made once, in --files. The record (--out) has env.json of every call, rows.jsonl, machine.json and findings.md,
which is made anew from the rows at the end of every call. Everything is measured once before anything is measured twice.

Needs no network. Recordings are found in the folder MOEPIC_TRACES. PATH of --llama is a llama-bench, or the source of llama.cpp or llama-cpp-python, which
is built; without it the record says "not measured".
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Container
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import device_driver
import device_findings
import device_peer
from device_jobs import (
    EMULATED,
    EMULATED_MODELS,
    FULL,
    MODELS,
    QUICK,
    Bench,
    Job,
    Model,
    ablation_jobs,
    decode_jobs,
    kernel_jobs,
    machine_of,
    rates_job,
    shape_file,
)
from device_process import finish
from gguf import GGMLQuantizationType as Type
from make_shapes import write_shape
from measuring import Subject, subject_of

from moepic_gguf.cli.bench_record import environment
from moepic_gguf.errors import ArgumentError, DeviceError, MoepicError

PARTS = ("tests", "machine", "kernels", "decode", "ablation", "llama")
WORKER = [sys.executable, str(Path(__file__).with_name("device_worker.py"))]
ROOT = Path(__file__).resolve().parents[1]
LISTS = ("repeats", "shares", "ablation_shares")  # sizes that say which rows there are, and change none
FIRST_GUESS_S = 45.0  # of a job whose like was never run
TESTS_LIMIT_S = 240.0
PYTEST_CODES = range(6)  # all that come with a summary, failed tests among them
GPU_TESTS = ["tests/cuda", "tests/gates"]


Read = Callable[[str], dict[str, Any]]


class OutOfTime(Exception):
    """The next job would outlast the call."""


class Record:
    """A folder with the rows of all calls. A row is written as soon as it is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "rows.jsonl"
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def has(self, key: str) -> bool:
        return any(row["key"] == key for row in device_findings.latest(self.rows))

    def failures(self, key: str) -> int:
        return sum(row["key"] == key and "error" in row for row in self.rows)

    def took_s(self, part: str, shape: object) -> float:
        """What the like of a job took, the longest of late: of the same part and shape, or else of the part."""
        same = [row for row in self.rows if row["part"] == part]
        like = [row for row in same if row.get("shape") == shape] or same
        return max((row["job_s"] for row in like[-4:]), default=FIRST_GUESS_S)

    def write_env(self, env: dict[str, Any]) -> None:
        """One entry per call. Raises ArgumentError where another call measured something else: its rows would stand for these."""
        path = self.folder / "env.json"
        calls = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        for before in calls:
            other = [name for name, n_layer in env["layers"].items() if before["layers"].get(name, n_layer) != n_layer]
            other += [
                name for name, size in env["sizes"].items() if name not in LISTS and before["sizes"][name] != size
            ]
            other += ["device"] if before["device"]["name"] != env["device"]["name"] else []
            if other:
                raise ArgumentError(f"--out: '{self.folder}' was begun with another {other[0]}; begin a new record")
        text = json.dumps([*calls, env], indent=1, default=str)
        path.write_text(text + "\n", encoding="utf-8")


class Call:
    """One call: what is left of its time, and the running of jobs."""

    def __init__(self, record: Record, until: float) -> None:
        self.record, self._until = record, until
        self.n_done = 0

    @property
    def left_s(self) -> float:
        return self._until - time.monotonic()

    def need(self, seconds: float) -> None:
        if seconds > self.left_s:
            raise OutOfTime

    def run(
        self, job: Job, command: list[str], read: Read, limit_s: float = math.inf, codes: Container[int] = (0,)
    ) -> None:
        """Runs the job unless its row is there; raises OutOfTime. A failure is a row, too, and tried once more by a later call."""
        if self.record.has(job.key) or self.record.failures(job.key) > 1:
            return
        self.need(self.record.took_s(job.part, job.about.get("shape")))
        start = time.monotonic()
        with device_driver.smi_memory() as peak:
            found = output_of(command, min(limit_s, self.left_s), read, codes)
        row = {"key": job.key, "part": job.part, **job.about, "repeat": job.repeat, **found}
        row |= {"job_s": time.monotonic() - start, "smi_peak_bytes": peak.bytes}
        self.record.add(row)
        self.n_done += 1
        print(f"{job.key}: {found.get('error') or 'done'} ({row['job_s']:.1f} s, {self.left_s:.0f} s left)", flush=True)


def output_of(command: list[str], timeout_s: float, read: Read, codes: Container[int] = (0,)) -> dict[str, Any]:
    """What `read` makes of a command's output, or why there is none."""
    try:
        done = finish(command, timeout_s, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode not in codes:
            return {"error": f"code {done.returncode}: {without_folders(' '.join(done.stderr.split())[-600:])}"}
        return dict(read(done.stdout))
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {timeout_s:.0f} s"}
    except (ValueError, KeyError, StopIteration) as error:
        return {"error": f"its output can't be read: {error!r}"}


def without_folders(text: str) -> str:
    """Records travel; where this tree lies stays private."""
    return text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")


# ---- parts ---------------------------------------------------------------------------------------------------------


def run_tests(call: Call) -> None:
    """A test that fails is a result."""
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(str(ROOT / folder) for folder in GPU_TESTS)]
    job = Job("tests", {"command": shlex.join(["pytest", *options, *GPU_TESTS])}, {})
    log = call.record.folder / "tests.log"

    def summary(text: str) -> dict[str, Any]:
        log.write_text(without_folders(text), encoding="utf-8")
        last = text.strip().splitlines()[-1]
        if not re.search(r"\d+ (passed|failed|error|skipped|deselected)", last):
            raise ValueError(f"pytest said no result, but {last}")
        return {"summary": last}

    call.run(job, command, summary, TESTS_LIMIT_S, PYTEST_CODES)


def run_work(call: Call, job: Job) -> None:
    call.run(job, [*WORKER, json.dumps(job.work)], json.loads)


def measured(record: Record, part: str, **about: Any) -> list[dict[str, Any]]:
    return device_findings.of(device_findings.latest(record.rows), part, **about)


class Shapes:
    """Files of the models asked for, made where they are missing, and looked into once a call."""

    def __init__(self, call: Call, folder: Path, models: dict[str, Model], n_layers: dict[str, int]) -> None:
        self._call, self._folder, self.models, self.n_layers = call, folder, models, n_layers
        self._subjects: dict[str, Subject] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        model, n_layer = self.models[name], self.n_layers[name]
        path = shape_file(self._folder, name, model, n_layer)
        if not path.exists():
            self._call.need(FIRST_GUESS_S)
            print(f"making {path.name}", flush=True)
            shape = replace(model.shape, n_layer=n_layer)
            write_shape(path, name, shape, None, Type[shape.expert_type], seed=0)
        return path

    def subject(self, name: str) -> Subject:
        if name not in self._subjects:
            self._subjects[name] = subject_of(self.path(name))
        return self._subjects[name]


def decodes(shapes: Shapes, bench: Bench) -> list[Job]:
    return [
        job
        for name, model in shapes.models.items()
        for job in decode_jobs(bench, name, shapes.subject(name), bench.recording(model))
    ]


def ablations(record: Record, shapes: Shapes, bench: Bench) -> list[Job]:
    """Of the shapes whose plans can be made."""
    jobs: list[Job] = []
    rates = measured(record, "machine")
    for name, model in shapes.models.items():
        kernels = measured(record, "kernels", shape=name, kernel="experts, decode")
        if not rates or not kernels:
            print(f"ablation of {name}: left out, its plans need the parts machine and kernels", flush=True)
            continue
        machine = machine_of(rates[0], min(row["bytes_s"] for row in kernels))
        text = json.dumps(asdict(machine), indent=1)
        (record.folder / f"machine-{name}.json").write_text(text + "\n", encoding="utf-8")
        jobs += ablation_jobs(bench, name, shapes.subject(name), bench.recording(model), machine)
    return jobs


def run_peer(call: Call, shapes: Shapes, bench: Bench, arguments: argparse.Namespace) -> None:
    call.need(FIRST_GUESS_S)
    try:
        binary = device_peer.find_bench(arguments.llama, arguments.files / "build-llama", call.left_s)
    except subprocess.TimeoutExpired as error:
        raise OutOfTime from error
    sizes = {"prefill": bench.sizes.prefill, "tokens": bench.sizes.tokens, "threads": bench.threads}
    for name in shapes.models:
        path = str(shapes.path(name))
        for options in arguments.llama_options or [""]:
            for n_cpu_moe in device_peer.sweep(shapes.n_layers[name]):
                work = {"path": path, "n_cpu_moe": n_cpu_moe, "options": shlex.split(options), **sizes}
                job = Job("llama", {"shape": name, "n_cpu_moe": n_cpu_moe, "options": options}, work)
                call.run(job, device_peer.command(str(binary), work), device_peer.read)


def run_parts(call: Call, parts: list[str], shapes: Shapes, bench: Bench, arguments: argparse.Namespace) -> None:
    """Everything once, what decides about the targets first; then everything again, `repeats` times in all."""
    if "tests" in parts and bench.device == "cuda":
        run_tests(call)
    if "machine" in parts:
        run_work(call, rates_job(bench))
    if "kernels" in parts:
        for name, model in shapes.models.items():
            for job in kernel_jobs(bench, name, shapes.subject(name), model.shape):
                run_work(call, job)
    jobs = decodes(shapes, bench) if "decode" in parts else []
    for job in (job for job in jobs if job.repeat == 0):
        run_work(call, job)
    if "llama" in parts and arguments.llama:
        run_peer(call, shapes, bench, arguments)
    if "ablation" in parts:
        jobs += ablations(call.record, shapes, bench)
    for job in sorted(jobs, key=lambda job: job.repeat):
        run_work(call, job)


# ---- the command ---------------------------------------------------------------------------------------------------


def default_folder(arguments: argparse.Namespace, name: str) -> Path:
    """Of a GPU a dated record; of the emulation a folder that is not kept."""
    if arguments.device == "emulated":
        return Path("build", "device-emulated")
    machine = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    what = "device-quick" if arguments.quick else "device"
    return Path("bench", "results", f"{datetime.date.today()}-{machine}-{what}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer layers, tokens and repeats")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--shapes", help=f"of {', '.join(MODELS)}; the emulation has {', '.join(EMULATED_MODELS)}")
    parser.add_argument("--layers", type=int, help="of every file, instead of a number that a call has time for")
    parser.add_argument("--shares", help="of the experts' bytes that may be in VRAM, with commas between")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all usable cores")
    parser.add_argument("--trace", help="a recording for every shape, instead of its own")
    parser.add_argument("--files", type=Path, default=Path("build", "device-files"), help="models lie or are made here")
    parser.add_argument("--out", type=Path, help="the record, begun or gone on with")
    parser.add_argument("--llama", type=Path, help="llama-bench, or the source of llama.cpp or llama-cpp-python")
    parser.add_argument(
        "--llama-options", action="append", help="such as '-fa 1 -mmp 0'; repeated: each is tried, the best counts"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of them that are gone (./dev gpu: building)")
    return parser.parse_args()


def sizes_of(arguments: argparse.Namespace) -> Any:
    sizes = EMULATED if arguments.device == "emulated" else QUICK if arguments.quick else FULL
    if arguments.shares:
        sizes = replace(sizes, shares=tuple(map(float, arguments.shares.split(","))))
    return replace(sizes, repeats=arguments.repeats) if arguments.repeats else sizes


def choose_models(arguments: argparse.Namespace) -> tuple[dict[str, Model], dict[str, int]]:
    known = EMULATED_MODELS if arguments.device == "emulated" else MODELS
    names = arguments.shapes.split(",") if arguments.shapes else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ArgumentError(f"--shapes: {', '.join(unknown)} is none of {', '.join(known)}")
    models = {name: known[name] for name in names}
    layers = {
        name: arguments.layers or (model.n_layer_quick if arguments.quick else model.n_layer)
        for name, model in models.items()
    }
    return models, layers


def main() -> None:
    arguments = parse()
    started = time.monotonic()
    until = started + 60.0 * arguments.minutes - arguments.spent
    try:
        parts = arguments.part or list(PARTS)
        models, n_layers = choose_models(arguments)
        bench = Bench(arguments.device, sizes_of(arguments), arguments.threads, arguments.trace)
        # Found now rather than after minutes.
        follows = {"decode", "ablation"} & set(parts)
        recordings = {name: Path(bench.recording(model)).name for name, model in models.items()} if follows else {}
        asked = {"what": "describe", "device": arguments.device}
        device = output_of([*WORKER, json.dumps(asked)], FIRST_GUESS_S, json.loads)
        if "error" in device:
            raise DeviceError(device["error"])
        record = Record(arguments.out or default_folder(arguments, device["name"]))
        call = Call(record, until)
        shapes = Shapes(call, arguments.files, models, n_layers)
        env = {name: value for name, value in environment(ROOT / "dev", with_hash=False).items() if name != "file"}
        env |= {"device": {"kind": arguments.device, **device}, "driver": device_driver.describe()}
        env |= {
            "layers": n_layers,
            "sizes": asdict(bench.sizes),
            "recordings": recordings,
        }
        record.write_env(env)
        is_done = False
        try:
            run_parts(call, parts, shapes, bench, arguments)
            is_done = True
        except OutOfTime:
            pass
        finally:
            (record.folder / "findings.md").write_text(device_findings.findings(record.rows, env), encoding="utf-8")
    except (MoepicError, subprocess.SubprocessError) as error:
        raise SystemExit(f"gpu: {error}") from error
    state = "all done" if is_done else "out of time, call it again to go on"
    print(f"{call.n_done} new rows in {time.monotonic() - started:.0f} s; {state}: {record.folder / 'findings.md'}")


if __name__ == "__main__":
    main()
