"""How the engine with all experts resident behaves between the benchmarks' points: few tokens at once, threads, loading.

    python bench/curves.py MODEL.gguf --out DIR [--parts batch,threads,load] [--llama-bench PATH] [--beside LIBRARY_DIR] [--repeats 5]

batch    tokens computed together, from 1 to 64, behind the same 64 tokens of context: what 2 to 32 draft tokens cost. With --llama-bench beside llama.cpp (-p n, its better
         setting of --repack).
threads  decode with 1 thread to twice as many as there are cores, and one core alone with 1 thread and with as many as the machine has.
load     the file read into fresh memory by as many threads, huge pages asked for, and loaded (read, re-tiled); from the page cache, and with its pages dropped before each.
         With --beside, loaded by that folder's build, too. Peak memory is the system's figure for the process that loads. The memory was had by the process right before
         (a virtual machine's host takes back what was free for seconds, and to find it again takes longer than to read the file).

Repeats alternate; the table gives medians with the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import alternating, evict, markdown, new_folder, spread, token_ids, write_record

from moepic_gguf import Model

Rows = list[dict[str, Any]]
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
N_BEFORE = 64
READ_BYTES = 4 << 20
N_CORES = len(os.sched_getaffinity(0))


def in_process(
    part: str, path: Path, *arguments: int, cores: set[int] | None = None, library: Path | None = None
) -> Any:
    """Runs one of WORKERS in a process of its own, which may be given only some cores, or another build."""
    command = [sys.executable, __file__, str(path), "--worker", part, *map(str, arguments)]
    pinned = None if cores is None else (lambda: os.sched_setaffinity(0, cores))
    env = os.environ | ({"MOEPIC_LIBRARY_DIR": str(library)} if library else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=pinned, env=env)
    return json.loads(done.stdout)


def eval_batches(path: Path, n_repeats: int) -> Rows:
    rows = []
    with Model.load(path, device="cpu", n_ctx=N_BEFORE + max(BATCHES)) as model:
        for repeat in range(-1, n_repeats):  # the first warms up
            for n in alternating(BATCHES, repeat):
                model.context.clear()
                model.context.native.eval(token_ids(N_BEFORE, model.info.n_vocab))
                ids = token_ids(n, model.info.n_vocab, seed=100 * n + repeat)
                start = time.perf_counter()
                model.context.native.eval(ids)
                seconds = time.perf_counter() - start
                if repeat >= 0:
                    rows.append({"engine": "moepic", "n": n, "seconds": seconds})
    return rows


def decode_tokens(path: Path, n_threads: int, n_tokens: int) -> float:
    """tok/s"""
    with Model.load(path, device="cpu", n_ctx=2 * n_tokens, n_threads=n_threads) as model:
        ids = token_ids(8, model.info.n_vocab)
        model.generate(ids, max_tokens=8, ignore_eos=True)
        model.context.clear()
        times = model.generate(ids, max_tokens=n_tokens, ignore_eos=True).times_s
        return (len(times) - 1) / (times[-1] - times[0])


def prepare(path: Path, drops: int) -> None:
    """Drops the file's pages where asked, and has the kernel find the memory that a run will want, so that it is among what is free."""
    if drops:
        evict(path)
    wanted = (2 if drops else 1) * path.stat().st_size
    with mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, wanted, 2 << 20):
            memory[page] = 1
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of the process counts from here


def load_once(path: Path, drops: int) -> dict[str, float]:
    prepare(path, drops)
    start = time.perf_counter()
    model = Model.load(path, device="cpu", n_ctx=64)
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    peak, final = (1024 * int(status[name].split()[0]) for name in ("VmHWM", "VmRSS"))
    layer = model.info.weight_bytes / model.info.n_layer
    model.close()
    return {"seconds": seconds, "peak_bytes": peak, "final_bytes": final, "layer_bytes": layer}


def read_once(path: Path, drops: int) -> dict[str, float]:
    """The whole file into anonymous memory, pieces shared among threads: what a load without any work would take."""
    prepare(path, drops)
    size = path.stat().st_size
    start = time.perf_counter()
    memory = mmap.mmap(
        -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # as ours is; shared memory is cleared page by page
    memory.madvise(mmap.MADV_HUGEPAGE)
    view, file = memoryview(memory), os.open(path, os.O_RDONLY)
    with ThreadPoolExecutor(N_CORES) as pool:
        read = pool.map(lambda at: os.preadv(file, [view[at : at + READ_BYTES]], at), range(0, size, READ_BYTES))
        total = sum(read)
    seconds = time.perf_counter() - start
    if total != size:
        raise SystemExit(f"'{path.name}': {total} of {size} bytes read")
    return {"seconds": seconds}


WORKERS = {"batch": eval_batches, "threads": decode_tokens, "load": load_once, "read": read_once}


def measure_batches(a: argparse.Namespace) -> tuple[Rows, str]:
    rows: Rows = in_process("batch", a.model, a.repeats)
    if a.llama_bench:
        sizes = ["-p", ",".join(map(str, BATCHES)), "-n", "0", "-r", str(a.repeats), "-t", str(N_CORES), "-o", "json"]
        for repack in ("0", "1"):
            command = [str(a.llama_bench), "-m", str(a.model), *sizes, "--repack", repack]
            tests = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            rows += [
                {"engine": f"llama.cpp repack {repack}", "n": test["n_prompt"], "seconds": 1e-9 * ns}
                for test in tests
                for ns in test["samples_ns"]
            ]
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    lines = []
    for n in BATCHES:
        of = {e: [row["seconds"] / n for row in rows if (row["engine"], row["n"]) == (e, n)] for e in engines}
        line = [str(n), *(spread(of[e], 1e3, 2) for e in engines)]
        others = [statistics.median(of[e]) for e in engines[1:]]
        lines.append([*line, f"{min(others) / statistics.median(of['moepic']):.2f}" if others else "-"])
    heads = ["tokens at once", *(f"{e}, ms per token" for e in engines), "the better one / ours"]
    return rows, markdown(heads, lines)


def measure_threads(a: argparse.Namespace) -> tuple[Rows, str]:
    one = {min(os.sched_getaffinity(0))}
    cases = [(n, None) for n in sorted({1, N_CORES, N_CORES + 1, 2 * N_CORES})] + [(n, one) for n in (1, N_CORES)]
    rows: Rows = []
    for repeat in range(a.repeats):
        for n_threads, cores in alternating(cases, repeat):
            rate = in_process("threads", a.model, n_threads, 48, cores=cores)
            rows.append({"threads": n_threads, "cores": len(cores) if cores else N_CORES, "decode_tok_s": rate})
    keys = list(dict.fromkeys((row["threads"], row["cores"]) for row in rows))
    of = {k: [row["decode_tok_s"] for row in rows if (row["threads"], row["cores"]) == k] for k in keys}
    base = statistics.median(of[1, N_CORES])
    lines = [[str(t), str(c), spread(of[t, c]), f"{statistics.median(of[t, c]) / base:.2f}"] for t, c in sorted(keys)]
    return rows, markdown(["threads", "cores", "decode tok/s", "of one thread's"], lines)


def measure_load(a: argparse.Namespace) -> tuple[Rows, str]:
    rows: Rows = []
    parts = {"read": None, "load": None} | ({"load beside": a.beside} if a.beside else {})
    cases = [(part, drops) for drops in (0, 1) for part in parts]
    for repeat in range(a.repeats):
        in_process("read", a.model, 0)  # cached, as a read leaves it
        for part, drops in alternating(cases, repeat):
            row = in_process(part.split()[0], a.model, drops, library=parts[part])
            rows.append({"what": part, "cold": drops, "gigabytes": a.model.stat().st_size / 1e9} | row)
    return rows, load_table(rows)


def load_table(rows: Rows) -> str:
    lines = list[list[str]]()
    for drops, name in ((0, "page cache"), (1, "disk")):
        of = {p: [r for r in rows if (r["what"], r["cold"]) == (p, drops)] for p in {r["what"]: 0 for r in rows}}
        seconds = {p: [row["seconds"] for row in of[p]] for p in of}
        for part in (p for p in of if p != "read"):
            ratios = [f"{pick(seconds[part]) / pick(seconds['read']):.2f}" for pick in (statistics.median, min)]
            above = max((row["peak_bytes"] - row["final_bytes"]) / row["layer_bytes"] for row in of[part])
            times = [spread(seconds["read"], 1, 2), spread(seconds[part], 1, 2)]
            lines.append([name, part, *times, *ratios, f"{above:.2f}"])
    heads = [
        "from",
        "what",
        "reading s",
        "loading s",
        "ratio of medians",
        "of the shortest",
        "most memory, above the final: layers",
    ]
    return f"{rows[0]['gigabytes']:.2f} GB\n\n{markdown(heads, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=new_folder)
    parser.add_argument("--parts", default="batch,threads,load")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        part, *values = arguments.worker
        print(json.dumps(WORKERS[part](arguments.model, *map(int, values))))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    measures = {"batch": measure_batches, "threads": measure_threads, "load": measure_load}
    rows, text = [], ""
    for part in arguments.parts.split(","):
        found, table = measures[part](arguments)
        rows += [{"part": part} | row for row in found]
        text += f"{part}\n\n{table}\n"
        print(f"{part}\n\n{table}", flush=True)
    write_record(arguments.out, arguments.model, rows, text, cores_used=N_CORES)


if __name__ == "__main__":
    main()
