"""All experts resident: our prefill and decode beside llama.cpp's own tool, llama-bench, on the same files.

    python bench/peer.py MODEL.gguf... --llama-bench PATH --out DIR [--rounds 5] [--prompt 512 | --depth 4096] [--threads 2] [--isa avx2] [--kv q8_0]

Ours runs once a round, llama-bench once with weights repacked for the processor and once without (`--repack`), each in a process of its own after a warm-up; every second round goes
backwards. Ratios compare a round's runs: ours with the better of llama.cpp's two settings, which is chosen by its median over all rounds, for prefill and decode apart. The memory
ceiling is probed in every round. --depth: decode behind so many tokens of context, and no prefill. For --isa avx2, PATH must be a llama-bench that was built without AVX-512.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import alternating, markdown, new_folder, spread, write_record

from moepic_gguf.cli.bench_record import memory_ceiling
from moepic_gguf.cli.bench_worker import Job

OURS, SETTINGS = "moepic", ("repack off", "repack on")


def run_ours(path: Path, a: argparse.Namespace) -> dict[str, Any]:
    """One process; tok/s."""
    job = Job(OURS, str(path), a.depth or a.prompt, a.tokens, 1, a.threads, 512, a.seed, a.kv, a.isa)
    command = [sys.executable, "-m", "moepic_gguf.cli.bench_worker", json.dumps(asdict(job))]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    if "error" in found:
        raise SystemExit(f"'{path.name}': {found['error']}")
    (run,) = found["runs"]
    return {
        "prefill": None if a.depth else a.prompt / run["ttft_s"],
        "decode": len(run["token_s"]) / sum(run["token_s"]),
        "active_bytes": found["info"]["active_bytes"],
    }


def run_llama(path: Path, setting: str, a: argparse.Namespace) -> dict[str, Any]:
    """One process of llama-bench, which warms up for itself; tok/s."""
    sizes = ["-p", "0" if a.depth else a.prompt, "-n", a.tokens, "-d", a.depth, "-r", 1, "-t", a.threads]
    options = ["--repack", SETTINGS.index(setting), "-ctk", a.kv, "-ctv", a.kv, "-o", "json", *a.llama_options.split()]
    command = [str(word) for word in (a.llama_bench, "-m", path, *sizes, *options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama-bench on '{path.name}' ended with code {done.returncode}: {done.stderr[-500:]}")
    rates = {"prefill" if test["n_prompt"] else "decode": test["avg_ts"] for test in json.loads(done.stdout)}
    return {"prefill": rates.get("prefill"), "decode": rates["decode"]}


def geometric(values: Iterable[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}"


def compare(rows: list[dict[str, Any]], phase: str) -> tuple[str, str, list[float]]:
    """Our rate, theirs with the better setting, and the ratio of each round."""
    rates = {
        name: [row[phase] for row in rows if row["engine"] == name] for name in (OURS, *SETTINGS)
    }  # rounds in order
    best = max(SETTINGS, key=lambda name: statistics.median(rates[name]))
    ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[best], strict=True)]
    return spread(rates[OURS]), f"{spread(rates[best])}, {best}", ratios


def table(rows: list[dict[str, Any]], phases: list[str]) -> str:
    """Per file and phase; below it the geometric mean over files of the median ratios."""
    lines, means = [], {phase: [] for phase in phases}
    for file in dict.fromkeys(row["file"] for row in rows):
        of_file = [row for row in rows if row["file"] == file]
        line = [file]
        for phase in phases:
            ours, theirs, ratios = compare(of_file, phase)
            means[phase].append(statistics.median(ratios))
            line += [ours, theirs, spread(ratios, 1, 2)]
        read = [(row["decode"] * row["active_bytes"], row["ceiling"]) for row in of_file if row["engine"] == OURS]
        share = statistics.median(rate / ceiling for rate, ceiling in read)
        line.append(
            f"{spread([rate for rate, _ in read], 1e-9)} of {spread([c for _, c in read], 1e-9)}: {100 * share:.0f} %"
        )
        lines.append(line)
    heads = ["file"]
    for phase in phases:
        heads += [f"{phase} tok/s", "llama.cpp, the better setting", "ratio"]
    text = markdown([*heads, "decode reads GB/s of the ceiling"], lines)
    of = ", ".join(f"{phase} {geometric(ratios)}" for phase, ratios in means.items())
    return f"{text}\nGeometric mean of the ratios: {of}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--out", type=new_folder, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--kv", choices=("f16", "q8_0"), default="f16")
    parser.add_argument("--llama-options", default="", help="more options for llama-bench")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for turn in range(arguments.rounds):
        for path in arguments.models:
            ceiling = memory_ceiling(arguments.threads)
            for name in alternating((OURS, *SETTINGS), turn):
                found = run_ours(path, arguments) if name == OURS else run_llama(path, name, arguments)
                rows.append({"round": turn, "file": path.name, "engine": name, "ceiling": ceiling} | found)
                print(rows[-1], flush=True)
    text = table(rows, ["decode"] if arguments.depth else ["prefill", "decode"])
    print(text)
    write_record(arguments.out, arguments.models[0], rows, text, options=vars(arguments))


if __name__ == "__main__":
    main()
