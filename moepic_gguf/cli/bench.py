"""moepic-bench: prefill and decode speed of a file, beside the machine's memory ceiling and, if asked, beside
llama.cpp.

Arguments, order of work and the table; an engine is measured by `bench_worker` in a process of its own. The method is
in bench/README.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..errors import ArgumentError, MoepicError
from ..inspection import inspect_file
from ..metadata import GgufFile
from . import bench_record, common, machine, plot, replay
from .bench_worker import Job


class DefaultGroup(click.Group):
    """A group whose first command may be left out: `moepic-bench FILE` is `moepic-bench run FILE`."""

    default = "run"

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        first = next((arg for arg in args if not arg.startswith("-")), None)
        if args and first not in self.commands and not {"-h", "--help", "--version"} & set(args):
            args = [self.default, *args]
        return super().parse_args(context, args)


@click.group(cls=DefaultGroup, context_settings=common.SETTINGS)
@click.version_option(__version__, prog_name="moepic-bench")
def main() -> None:
    """Measure speed. `moepic-bench FILE` measures a file; `moepic-bench run --help` lists its options."""


main.add_command(machine.main)
main.add_command(replay.main)
main.add_command(plot.main)


@dataclass(frozen=True)
class Summary:
    """One engine over all its repeats: medians, and the smallest and largest. tok/s come from the medians."""

    engine: str
    ttft_s: tuple[float, float, float]  # median, smallest, largest over repeats
    tpot_s: tuple[float, float, float]  # mean per token of a repeat: median, smallest, largest over repeats
    token_p95_s: float  # over all tokens of all repeats
    prefill_tok_s: float
    decode_tok_s: float


def summarise(engine: str, runs: Sequence[dict[str, Any]], n_prompt: int) -> Summary:
    """`runs` as `bench_worker` prints them. TTFT covers the prefill of `n_prompt` tokens and one draw."""
    ttft = [run["ttft_s"] for run in runs]
    tpot = [statistics.fmean(run["token_s"]) for run in runs]
    tokens = sorted(seconds for run in runs for seconds in run["token_s"])
    return Summary(
        engine,
        (statistics.median(ttft), min(ttft), max(ttft)),
        (statistics.median(tpot), min(tpot), max(tpot)),
        tokens[min(len(tokens) - 1, int(0.95 * len(tokens)))],
        n_prompt / statistics.median(ttft),
        1 / statistics.median(tpot),
    )


@main.command()
@click.argument("file")
@click.option("-p", "--n-prompt", type=click.IntRange(1), default=512, help="Tokens of prefill.")
@click.option("-n", "--n-gen", type=click.IntRange(2), default=64, help="Tokens of decode.")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, help="Repeats, shared among the rounds.")
@click.option("--rounds", type=click.IntRange(1), default=1, help="Processes per engine; with --peer they alternate.")
@click.option("-t", "--threads", "n_threads", type=click.IntRange(0), default=0, help="0: all cores.")
@click.option("-b", "--batch-size", "n_batch", type=click.IntRange(0), default=512, help="Tokens computed together.")
@click.option(
    "-ctk", "--cache-type", "kv_type", type=click.Choice(["f16", "q8_0"]), default="f16", help="Keys, values."
)
@click.option("--isa", type=click.Choice(["auto", "scalar", "avx2", "avx512"]), default="auto", help="Instruction set.")
@click.option("--seed", type=int, default=1, help="Of the prompt's token ids.")
@click.option("--peer", is_flag=True, help="Measure llama-cpp-python in alternation and print the ratio.")
@click.option("--peer-file", default=None, metavar="FILE", help="What llama.cpp runs, when FILE is pre-split.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--record", type=click.Path(), default=None, metavar="DIR", help="Keep env.json, rows and table there.")
@common.one_line_errors
def run(
    file: str,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    rounds: int,
    n_threads: int,
    peer: bool,
    peer_file: str | None,
    as_json: bool,
    record: str | None,
    **options: Any,
) -> None:
    """Measure FILE: prefill and decode speed, TTFT, TPOT, bytes read per token against the memory ceiling."""
    path = common.model_argument(file)
    peer_path = _peer_path(path, peer_file) if peer or peer_file else None
    if record is not None and Path(record).exists():
        raise ArgumentError(f"--record: '{record}' exists; records are not overwritten")
    threads = n_threads or _cores()
    rounds = max(rounds, min(3, repetitions)) if peer_path else rounds
    per_round = max(1, repetitions // rounds)
    load_average = os.getloadavg()[0]
    ceilings = [bench_record.memory_ceiling(threads)]
    rows: list[dict[str, Any]] = []
    for turn in range(rounds):
        order = ["moepic", "llama.cpp"] if peer_path else ["moepic"]
        for engine in order if turn % 2 == 0 else order[::-1]:
            of = str(peer_path if engine == "llama.cpp" else path)
            job = Job(engine, of, n_prompt, n_gen, per_round, threads, **options)
            if not as_json:
                click.echo(f"round {turn + 1} of {rounds}: {engine} ...", err=True)
            rows.append(measure_job(job))
        ceilings.append(bench_record.memory_ceiling(threads))
    result = _result(rows, n_prompt, threads, max(ceilings))
    result["load_average"] = load_average
    text = _table(result, path, n_prompt, n_gen)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo(text, nl=False)
    if record is not None:
        env = bench_record.environment(path, with_hash=True)
        env["threads"], env["memory_ceilings"] = threads, ceilings
        bench_record.write_record(Path(record), env, rows, text)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _peer_path(path: Path, peer_file: str | None) -> Path:
    """The file llama.cpp runs; it cannot read the pre-split layout."""
    import importlib.util

    if importlib.util.find_spec("llama_cpp") is None:
        raise ArgumentError("--peer: llama-cpp-python is not installed (pip install 'moepic-gguf[peer]')")
    if peer_file is not None:
        return common.model_argument(peer_file)
    with GgufFile(path) as file:
        if inspect_file(file).granule is not None:
            raise ArgumentError(
                f"--peer: '{path.name}' is pre-split, which llama.cpp cannot run; name the ordinary file with "
                f"--peer-file"
            )
    return path


def measure_job(job: Job) -> dict[str, Any]:
    """One engine process; its error becomes ours."""
    command = [sys.executable, "-m", "moepic_gguf.cli.bench_worker", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MoepicError(f"{job.engine}: the measuring process ended with code {done.returncode}: {last}")
    row: dict[str, Any] = json.loads(lines[-1])
    if "error" in row:
        raise MoepicError(f"{job.engine}: {row['error']}")
    return row


def _result(rows: list[dict[str, Any]], n_prompt: int, threads: int, ceiling: float) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["engine"], []).extend(row["runs"])
    summaries = [summarise(engine, of, n_prompt) for engine, of in runs.items()]
    info = next(row["info"] for row in rows if row["engine"] == "moepic")
    ours = next(s for s in summaries if s.engine == "moepic")
    result: dict[str, Any] = {
        "engines": [asdict(s) for s in summaries],
        "threads": threads,
        "isa": info["isa"],
        "active_bytes_per_token": info["active_bytes"],
        "weight_bytes": info["weight_bytes"],
        "decode_bytes_per_s": info["active_bytes"] / ours.tpot_s[0],
        "memory_bytes_per_s": ceiling,
        "load_s": [row["load_s"] for row in rows if row["engine"] == "moepic"],
    }
    for other in summaries:
        if other is not ours:
            result["ratio"] = {
                "prefill": ours.prefill_tok_s / other.prefill_tok_s,
                "decode": ours.decode_tok_s / other.decode_tok_s,
            }
    return result


def _table(result: dict[str, Any], path: Path, n_prompt: int, n_gen: int) -> str:
    console = Console(highlight=False, soft_wrap=True, width=120)
    table = Table(box=None, pad_edge=False)
    heads = ("engine", f"prefill {n_prompt}", "TTFT median (range)", f"decode {n_gen}", "TPOT median (range)", "p95")
    for head in heads:
        table.add_column(head, justify="left" if head == "engine" else "right", no_wrap=True)
    for row in result["engines"]:
        table.add_row(
            row["engine"],
            f"{row['prefill_tok_s']:.1f} tok/s",
            _range(row["ttft_s"]),
            f"{row['decode_tok_s']:.1f} tok/s",
            _range(row["tpot_s"]),
            f"{1000 * row['token_p95_s']:.2f} ms",
        )
    rate, ceiling = result["decode_bytes_per_s"] / 1e9, result["memory_bytes_per_s"] / 1e9
    with console.capture() as capture:
        console.print(f"{path.name}: {result['threads']} threads, {result['isa']}", markup=False)
        console.print(table)
        console.print(
            f"decode reads {result['active_bytes_per_token'] / 1e6:.1f} MB of weights per token: {rate:.2f} GB/s of "
            f"{ceiling:.1f} GB/s measured ({100 * rate / ceiling:.0f}%)"
        )
        if result["memory_bytes_per_s"] and result["weight_bytes"] < 128 * 2**20:
            console.print(
                "(weights this small may stay in the processor's cache, so the share of memory speed says little)"
            )
        if result["load_average"] > 0.25 * _cores():
            console.print(
                f"(other work was running: load {result['load_average']:.1f} on {_cores()} cores before the first run; the more "
                f"a program spins while it waits, the more it loses by that)"
            )
        if "ratio" in result:
            ratio = result["ratio"]
            console.print(f"moepic / llama.cpp: prefill {ratio['prefill']:.2f}, decode {ratio['decode']:.2f}")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _range(values: Sequence[float]) -> str:
    median, low, high = (1000 * value for value in values)
    return f"{median:.2f} ms ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
