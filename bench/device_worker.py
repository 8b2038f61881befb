"""One measurement of device.py in a process of its own: `python bench/device_worker.py '{"what": "run", ...}'` prints one JSON object.

A process each, so that memory is the driver's again after every one, and a hang or a crash costs one row.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from ablation import AMOUNTS, COUNTS
from device_driver import FreeMemory
from measuring import decode, follow, quantile, token_ids
from traces import Target, find_trace, map_trace

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.config import find_device
from moepic_gguf.errors import MoepicError
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions, StreamStats

KINDS = {"emulated": 0, "cuda": 1}  # of the test exports
MOST_BATCH = 512


def prefill(model: Model, ids: list[int]) -> float:
    """Seconds from the call to the last token's logits, on an empty sequence. The cache stays as it is."""
    logits = np.empty((1, model.info.n_vocab), np.float32)
    model.context.clear()
    start = time.perf_counter()
    model.context.native.eval(ids)
    model.context.native.copy_logits(logits)
    return time.perf_counter() - start


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One load: prompts, then decoded tokens of which the first `warm` are not counted."""
    target = Target(**job["target"])
    recorded = map_trace(find_trace(job["trace"]), target, recall=job["recall"])
    n_warm, n_tokens, n_prefill = job["warm"], job["tokens"], job["prefill"]
    trace = recorded.tokens(slice(0, n_warm + n_tokens))
    # The warm tokens again and again: a prompt that had the counted ones in it would tell the cache what comes.
    prompt = recorded.tokens(np.arange(n_prefill) % n_warm)
    if trace.n_token < n_warm + n_tokens:
        raise MoepicError(f"trace: '{job['trace']}' has {trace.n_token} tokens, {n_warm + n_tokens} are wanted")
    start = time.perf_counter()
    sizes = {"n_ctx": max(n_prefill, n_warm + n_tokens), "n_batch": min(n_prefill, MOST_BATCH)}
    lanes = {"device": job["device"], "cpu_lane": job["cpu_lane"], "n_threads": job["threads"]}
    options = StreamingOptions(**job["options"])
    with (
        FreeMemory(job["device"]) as memory,
        Model.load(job["path"], **sizes, **lanes, streaming=options) as model,
    ):
        load_s = time.perf_counter() - start
        wait_for_pinning(model)
        pin_s = time.perf_counter() - start - load_s
        n_vocab = model.info.n_vocab
        follow(model, prompt)
        # The first one finds a cold cache and kernels that were never launched.
        first_s = prefill(model, token_ids(n_prefill, n_vocab))
        memory.stop()
        prefill_s = [prefill(model, token_ids(n_prefill, n_vocab)) for _ in range(job["prefills"])]
        model.context.clear()
        follow(model, trace)
        ids = token_ids(trace.n_token, n_vocab)
        decode(model, ids[:n_warm])
        memory.look()
        model.reset_stats()
        found = decode(model, ids[n_warm:])
        stats = model.stream_stats
    assert stats is not None
    row: dict[str, Any] = {"load_s": load_s, "pin_s": pin_s, "prefill_first_s": first_s, "prefill_s": prefill_s}
    row |= {"n_prefill": n_prefill, "tpot_s": found.tpot_s, "token_p95_s": quantile(found.token_s, 0.95)}
    row |= {"token_s": found.token_s, "digest": found.digest, "peak_vram_bytes": memory.peak.bytes}
    return row | served(stats, target, n_tokens)


def wait_for_pinning(model: Model) -> None:
    """Experts are pinned while the model already serves; what is measured here is what comes after."""
    while model.stream_stats is not None and model.stream_stats.to_pin_bytes:
        time.sleep(0.02)


def served(stats: StreamStats, target: Target, n_tokens: int) -> dict[str, Any]:
    """How decode's granules were served; per token where the name says so."""
    in_place = sum(row.n_in_place * size for row, size in zip(stats.decode, target.granule_bytes, strict=True))
    row: dict[str, Any] = {name: int(stats.total(name)) for name in COUNTS}
    row |= {f"{name}_per_token": stats.total(name) / n_tokens for name in AMOUNTS}
    row |= {"link_bytes_per_token": stats.lane_bytes / n_tokens, "in_place_bytes_per_token": in_place / n_tokens}
    names = (
        "cache_bytes",
        "n_device_routed",
        "n_round_trips",
        "waited_s",
        "planned_s",
        "prefetch_on",
        "cpu_lane_on",
        "graphs_on",
    )
    names += ("prefetch_cost", "cpu_lane_cost", "graphs_cost", "n_graph_tokens", "lane", "policy", "note")
    return row | {name: getattr(stats, name) for name in names}


def describe(job: dict[str, Any]) -> dict[str, Any]:
    """The device; here, so that the process that starts workers holds nothing of it."""
    return asdict(find_device(job["device"]))


def rates(job: dict[str, Any]) -> dict[str, Any]:
    """Copies inside the device, over the link, and the CPU beside it."""
    out = ffi.new("moepic_test_device_rates_result *")
    sizes = job["bytes"], job["piece_bytes"], job["threads"], job["seconds"]
    checked(lib.moepic_test_device_rates(out, KINDS[job["device"]], *sizes))
    return {name: getattr(out, name) for name, _ in ffi.typeof(out[0]).fields}


def matmul(job: dict[str, Any]) -> dict[str, Any]:
    """A matrix of the model for n_tokens."""
    launch_s, weight_bytes = ffi.new("double *"), ffi.new("int64_t *")
    sizes = job["type"], job["rows"], job["cols"], job["n_tokens"]
    call = lib.moepic_test_device_time_matmul
    one = KINDS[job["device"]], *sizes
    checked(call(launch_s, weight_bytes, *one, 1, 1e-3))  # says how many bytes a copy has
    n_copies = max(1, job["cold_bytes"] // weight_bytes[0])
    checked(call(launch_s, weight_bytes, *one, n_copies, job["seconds"]))
    bytes_s = weight_bytes[0] / launch_s[0]
    return {"launch_s": launch_s[0], "weight_bytes": weight_bytes[0], "bytes_s": bytes_s, "n_copies": n_copies}


def experts(job: dict[str, Any]) -> dict[str, Any]:
    """The granules of a token's experts, all resident."""
    out = ffi.new("moepic_test_device_expert_times *")
    sizes = job["gate_up_type"], job["down_type"], job["n_embd"], job["granule"], job["n_tasks"]
    call, device = lib.moepic_test_device_time_experts, KINDS[job["device"]]
    checked(call(out, device, *sizes, 1, 1e-3))
    n_groups = max(1, job["cold_bytes"] // (out.intermediate_bytes + out.down_bytes))
    checked(call(out, device, *sizes, n_groups, job["seconds"]))
    row = {name: getattr(out, name) for name, _ in ffi.typeof(out[0]).fields}
    row |= {f"{name}_bytes_s": row[f"{name}_bytes"] / row[f"{name}_s"] for name in ("intermediate", "down")}
    both = (row["intermediate_bytes"] + row["down_bytes"]) / (row["intermediate_s"] + row["down_s"])
    return row | {"bytes_s": both, "n_groups": n_groups}


WORK = {"run": run, "describe": describe, "rates": rates, "matmul": matmul, "experts": experts}


def main() -> None:
    job = json.loads(sys.argv[1])
    try:
        row = WORK[job["what"]](job)
    except MoepicError as error:
        row = {"error": " ".join(str(error).split())}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
