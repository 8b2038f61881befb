"""A model larger than its memory: ours under `ram=` against llama.cpp with mmap, both inside the same cgroup limit.

    python bench/memory_limit.py MODEL.gguf --split MODEL.split.gguf --out bench/results/<date>-<machine>-memory-limit [--shares 0.25,0.5,0.75]

The limit is what all weights but experts, keys and values, and `--process` for interpreter and scratch take, and a share of the experts' bytes beside them;
the kernel enforces it on each process and on the file pages it reads (cgroup v1, memory controller; needs the right to make one). Ours is given
ram = limit - process, llama.cpp its defaults without repacking. Every run is a process of its own over a file evicted from the page cache;
repeats alternate the order. A run is ended after `--seconds`, load and prefill included, and what it had decoded by then is reported.

Prompt and decoded tokens are the same random ids for all, and every engine routes for itself: llama.cpp can't follow a recording. How often ours found an
expert, over all decoded tokens, is in rows.csv; what it says about routing holds for both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import Subject, alternating, evict, markdown, new_folder, spread, subject_of, token_ids, write_record

from moepic_gguf.budgets import parse_budget, show_bytes
from moepic_gguf.errors import ArgumentError, IoError

WORKER = Path(__file__).with_name("memory_worker.py")


@contextlib.contextmanager
def cgroup(controller: Path, limit_bytes: int) -> Iterator[Path]:
    """A fresh memory cgroup with that limit; its counters start at zero."""
    if not (controller / "memory.limit_in_bytes").exists():
        raise ArgumentError(
            f"--cgroup: '{controller}' is no cgroup v1 memory controller (mount -t cgroup -o memory ...)"
        )
    group = controller / f"moepic-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        raise IoError(
            f"--cgroup: cannot make '{group}': {error.strerror} (root, or a delegated group, is needed)"
        ) from error
    try:
        yield group
    finally:
        group.rmdir()


def measure(job: dict[str, Any], controller: Path, limit_bytes: int, seconds: float) -> dict[str, Any]:
    """One process; a row."""
    evict(Path(job["path"]))
    with cgroup(controller, limit_bytes) as group, tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, str(WORKER), json.dumps(job | {"cgroup": str(group)})], stdout=out)
        try:
            code = process.wait(seconds)
            ended = {0: "complete", -signal.SIGKILL: "killed"}.get(code, f"failed with code {code}")
        except subprocess.TimeoutExpired:
            ended = f"in {seconds:g} s"
            process.kill()
            process.wait()
        counters = {name: int((group / f"memory.{name}").read_text()) for name in ("max_usage_in_bytes", "failcnt")}
        out.seek(0)
        said = [json.loads(line) for line in out if line.endswith("\n")]
    return summary(job, said) | {"ended": ended} | counters


def summary(job: dict[str, Any], said: list[dict[str, Any]]) -> dict[str, Any]:
    """What a worker's lines come to. Times and bytes read are of the counted tokens alone."""
    by = {what: [line for line in said if line["what"] == what] for what in ("load", "prefill", "token", "end")}
    counted, before = by["token"][job["warm"] :], by["token"][: job["warm"]] or by["prefill"]
    row: dict[str, Any] = {"n_tokens": len(counted), "of": len(job["ids"]) - job["prefill"] - job["warm"]}
    for what in ("load", "prefill"):
        row[f"{what}_s"] = by[what][0]["s"] if by[what] else None
    if counted:
        took = [line["s"] for line in counted]
        row |= {
            "decode_tok_s": len(took) / sum(took),
            "tpot_s": statistics.fmean(took),
            "token_median_s": statistics.median(took),
        }
        for name in ("read_bytes", "disk_bytes"):
            if before and name in before[-1]:
                row[f"{name}_per_token"] = (counted[-1][name] - before[-1][name]) / len(counted)
    if said:
        row["peak_rss_bytes"] = max(line.get("peak_rss_bytes", 0) for line in said)
    return row | {name: value for end in by["end"] for name, value in end.items() if name != "what"}


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for share, engine in dict.fromkeys((row["share"], row["engine"]) for row in rows):
        these = [row for row in rows if (row["share"], row["engine"]) == (share, engine)]
        speeds = [row["decode_tok_s"] for row in these if row["n_tokens"]]
        read = [
            max(row.get(f"{name}_bytes_per_token", 0.0) for name in ("read", "disk"))
            for row in these
            if row["n_tokens"]
        ]
        tokens = ", ".join(
            f"{row['n_tokens']} of {row['of']}" + ("" if row["ended"] == "complete" else f" ({row['ended']})")
            for row in these
        )
        lines.append(
            [
                f"{100 * share:.0f} %",
                show_bytes(these[0]["limit_bytes"]),
                engine,
                spread(speeds, 1, 2) if speeds else "none",
                tokens,
                spread(read, 1e-6) if read else "-",
                show_bytes(max(row["max_usage_in_bytes"] for row in these)),
                show_bytes(max(row.get("peak_rss_bytes", 0) for row in these)),
            ]
        )
    heads = [
        "experts beside the rest",
        "limit",
        "engine",
        "decode tok/s",
        "tokens",
        "MB read / token",
        "cgroup's peak",
        "peak RSS",
    ]
    return markdown(heads, lines)


def jobs_of(
    subject: Subject, split: Path | None, limit_bytes: int, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    n_tokens = arguments.prefill + arguments.warm + arguments.tokens
    sizes = {"prefill": arguments.prefill, "warm": arguments.warm, "n_ctx": n_tokens + 8, "threads": arguments.threads}
    ids = token_ids(n_tokens, subject.info.n_vocab, arguments.seed)
    common = sizes | {"ids": ids, "ram_bytes": limit_bytes - arguments.process}
    jobs = {
        "moepic": common | {"engine": "moepic", "path": str(subject.path)},
        "llama.cpp": common | {"engine": "llama.cpp", "path": str(subject.path)},
    }
    return jobs | ({"moepic, pre-split": common | {"engine": "moepic", "path": str(split)}} if split else {})


def size(text: str) -> int:
    return parse_budget(text, name="--process") or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", type=Path, help="the same weights, pre-split: a third engine")
    parser.add_argument("--out", type=new_folder, required=True)
    parser.add_argument("--shares", default="0.25,0.5,0.75", help="of the experts' bytes")
    parser.add_argument("--process", type=size, default=256 * 2**20, help="for interpreter, libraries and scratch")
    parser.add_argument("--prefill", type=int, default=16)
    parser.add_argument("--warm", type=int, default=16, help="decoded tokens that are not counted")
    parser.add_argument("--tokens", type=int, default=64, help="decoded tokens that are")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="a run may take")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cgroup", type=Path, default=Path("/sys/fs/cgroup/memory"))
    arguments = parser.parse_args()
    subject = subject_of(arguments.model)
    kv_bytes = subject.info.kv_bytes_per_token_f16 * (arguments.prefill + arguments.warm + arguments.tokens)
    # Loaded with a cache of nothing, so its weights are all but the experts.
    rest_bytes = subject.info.weight_bytes + kv_bytes + arguments.process
    rows = []
    for share in map(float, arguments.shares.split(",")):
        limit_bytes = int(rest_bytes + share * subject.expert_bytes)
        jobs = jobs_of(subject, arguments.split, limit_bytes, arguments)
        for repeat in range(arguments.repeats):
            for name in alternating(list(jobs), repeat):
                row = measure(jobs[name], arguments.cgroup, limit_bytes, arguments.seconds)
                rows.append({"share": share, "limit_bytes": limit_bytes, "engine": name, "repeat": repeat} | row)
                print(
                    f"{share} {name}: {row['n_tokens']} tokens, {row.get('decode_tok_s', 0):.2f} tok/s, {row['ended']}",
                    flush=True,
                )
    text = table(rows)
    write_record(arguments.out, subject.path, rows, text, options=vars(arguments))
    print(text)


if __name__ == "__main__":
    main()
