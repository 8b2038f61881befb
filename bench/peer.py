"""All experts resident: our prefill and decode beside llama.cpp's own tool, llama-bench, on the same files.

    python bench/peer.py MODEL.gguf... --llama-bench PATH --out DIR [--rounds 5] [--prompt 512 | --depth 4096] [--threads 2] [--isa avx2] [--kv q8_0]

Ours runs once a round, llama-bench once with weights repacked for the processor and once without (`--repack`), each in a process of its own after a warm-up; every second round goes
backwards. Ratios compare a round's runs: ours with the better of llama.cpp's two settings, which is chosen by its median over all rounds, for prefill and decode apart. The memory
ceiling is probed before and after each process, because a virtual machine's moves: 46 GB/s for minutes, 75 for others, by where its host runs it. So decode is also compared as a share
of the ceiling around it, ours / theirs; prefill's products of weights, ours, as a share of the most that the instruction set multiplies (registers only), probed with it. --depth: decode behind so many tokens of context, and no prefill. For --isa avx2, PATH must be a llama-bench that was built without AVX-512.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from measuring import alternating, markdown, new_folder, spread, write_record

from moepic_gguf.cli.bench import measure_job
from moepic_gguf.cli.bench_record import code_products, memory_ceiling
from moepic_gguf.cli.bench_worker import Job
from moepic_gguf.metadata import GgufFile

Rows = list[dict[str, Any]]
OURS, SETTINGS = "moepic", ("repack off", "repack on")


def run_ours(path: Path, a: argparse.Namespace) -> dict[str, Any]:
    """One process; tok/s."""
    job = Job(OURS, str(path), a.depth or a.prompt, a.tokens, 1, a.threads, 512, a.seed, a.kv, a.isa)
    found = measure_job(job)
    (run,) = found["runs"]
    return {
        "prefill": None if a.depth else a.prompt / run["ttft_s"],
        "decode": len(run["token_s"]) / sum(run["token_s"]),
        "active_bytes": found["info"]["active_bytes"],
        "products": products_per_token(path, found["info"]["n_expert"], found["info"]["n_expert_used"]),
        "peak": code_products(found["info"]["isa"], a.threads),
    }


def products_per_token(path: Path, n_expert: int, n_expert_used: int) -> float:
    """Multiplications and additions that a prompt's token costs in weight matrices; the output head, which only the last token needs, and attention's own are not in it."""
    total = 0.0
    with GgufFile(path) as file:
        for tensor in file.tensors:
            if tensor.name.startswith("blk.") and tensor.name.endswith(".weight") and len(tensor.shape) > 1:
                used = n_expert_used / n_expert if "_exps." in tensor.name else 1.0
                total += 2 * tensor.n_weights * used
    return total


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


def compare(rows: Rows, phase: str) -> tuple[str, Rows, Rows]:
    """Their better setting; our rows and theirs with it, rounds in order."""
    of = {name: [row for row in rows if row["engine"] == name] for name in (OURS, *SETTINGS)}
    best = max(SETTINGS, key=lambda name: statistics.median(row[phase] for row in of[name]))
    return best, of[OURS], of[best]


def table(rows: Rows, phases: list[str]) -> str:
    """Per file and phase; below it the geometric mean over files of the median ratios."""
    lines: list[list[str]] = []
    means: dict[str, list[float]] = {}
    for file in dict.fromkeys(row["file"] for row in rows):
        line = [file]
        for phase in phases:
            best, ours, theirs = compare([row for row in rows if row["file"] == file], phase)
            ratios = [a[phase] / b[phase] for a, b in zip(ours, theirs, strict=True)]
            rates = [spread([row[phase] for row in of]) for of in (ours, theirs)]
            line += [rates[0], f"{rates[1]}, {best}", spread(ratios, 1, 2)]
            if phase == "prefill":
                line.append(spread([row[phase] * row["products"] / row["peak"] for row in ours], 100, 0))
            means.setdefault(phase, []).append(statistics.median(ratios))
        n_bytes = ours[0]["active_bytes"]
        shares = [[row["decode"] * n_bytes / row["ceiling"] for row in of] for of in (ours, theirs)]
        ratios = [a / b for a, b in zip(*shares, strict=True)]
        means.setdefault("decode over the ceiling around it", []).append(statistics.median(ratios))
        ceilings = [row["ceiling"] for row in (*ours, *theirs)]
        line += [*(spread(of, 100, 0) for of in shares), spread(ratios, 1, 2), spread(ceilings, 1e-9)]
        lines.append(line)
    heads = ["file"]
    for phase in phases:
        heads += [f"{phase} tok/s", "llama.cpp, the better setting", "ratio"]
        heads += ["% of the int8 peak"] if phase == "prefill" else []
    heads += ["decode reads % of the ceiling", "llama.cpp", "ratio of these", "ceiling GB/s"]
    of = ", ".join(f"{name} {statistics.geometric_mean(ratios):.2f}" for name, ratios in means.items())
    return f"{markdown(heads, lines)}\nGeometric mean of the ratios: {of}.\n"


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
    rows: Rows = []
    for turn in range(arguments.rounds):
        for path in arguments.models:
            for name in alternating((OURS, *SETTINGS), turn):
                before = memory_ceiling(arguments.threads)
                found = run_ours(path, arguments) if name == OURS else run_llama(path, name, arguments)
                ceiling = (before + memory_ceiling(arguments.threads)) / 2
                rows.append({"round": turn, "file": path.name, "engine": name, "ceiling": ceiling} | found)
                print(rows[-1], flush=True)
    text = table(rows, ["decode"] if arguments.depth else ["prefill", "decode"])
    print(text)
    write_record(arguments.out, arguments.models[0], rows, text, options=vars(arguments))


if __name__ == "__main__":
    main()
