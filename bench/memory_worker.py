"""One engine decoding under a memory limit: `python bench/memory_worker.py '{"engine": "moepic", ...}'`, started by memory_limit.py.

Joins the cgroup before anything is imported, so that libraries, file pages and weights are all charged to it. Prints a line of JSON after load, prefill and
every token, because it may be killed at any moment: by the time limit, or by the kernel when memory runs out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(sys.argv[1])
    Path(job["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    start = time.perf_counter()
    step, stats = {"moepic": open_moepic, "llama.cpp": open_llama_cpp}[job["engine"]](job)
    device = os.stat(job["path"]).st_dev
    tell("load", start, device)
    ids = job["ids"]
    start = time.perf_counter()
    step(ids[: job["prefill"]])
    tell("prefill", start, device)
    for token in ids[job["prefill"] :]:
        start = time.perf_counter()
        step([token])
        tell("token", start, device)
    print(json.dumps({"what": "end"} | stats()), flush=True)


def tell(what: str, start: float, device: int) -> None:
    """What took how long, what had been read from disk by then, and the most memory held so far.

    read_bytes is the process's own figure (proc(5), io), disk_bytes the whole device's, whoever asked: on a quiet machine the larger one is right.
    """
    took = time.perf_counter() - start
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    line = {
        "what": what,
        "s": took,
        "read_bytes": int(io["read_bytes"]),
        "peak_rss_bytes": 1024 * int(status["VmHWM"].split()[0]),
    }
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if counters.exists():  # not every file system has a device
        line["disk_bytes"] = 512 * int(counters.read_text().split()[2])
    print(json.dumps(line), flush=True)


Step = Callable[[list[int]], Any]
Stats = Callable[[], dict[str, Any]]


def open_moepic(job: dict[str, Any]) -> tuple[Step, Stats]:
    from moepic_gguf import Model

    sizes = {"n_ctx": job["n_ctx"], "n_batch": job["prefill"], "n_threads": job["threads"]}
    model = Model.load(job["path"], device="cpu", ram=job["ram_bytes"], **sizes)

    def stats() -> dict[str, Any]:
        found = model.stream_stats
        if found is None:
            return {"note": "all resident"}
        shares = {name: found.total(f"n_{name}") for name in ("hit", "partial", "miss")}
        return shares | {
            "cache_bytes": found.cache_bytes,
            "stall_s": found.total("stall_s"),
            "lane": found.lane,
            "note": found.note,
        }

    return lambda ids: model.context.native.eval(ids), stats


def open_llama_cpp(job: dict[str, Any]) -> tuple[Step, Stats]:
    import llama_cpp
    from llama_cpp import llama_cpp as api

    defaults = api.llama_model_default_params

    def without_repacking() -> Any:
        # Repacked weights are a copy in anonymous memory, which no pressure can page out: the process would be killed instead.
        options = defaults()
        options.use_extra_bufts = False
        return options

    api.llama_model_default_params = without_repacking
    sizes = {"n_ctx": job["n_ctx"], "n_batch": job["prefill"], "n_ubatch": job["prefill"]}
    threads = {"n_threads": job["threads"], "n_threads_batch": job["threads"]}
    model = llama_cpp.Llama(job["path"], **sizes, **threads, verbose=False)
    return model.eval, lambda: {"note": f"llama-cpp-python {llama_cpp.__version__}, mmap, not repacked"}


if __name__ == "__main__":
    main()
