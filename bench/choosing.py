"""Does `auto` choose well from few tokens? Caches over the four recordings, mapped onto five model shapes. All modelled: no weights, no clock.

    MOEPIC_TRACES=FOLDER python bench/choosing.py --out bench/results/<date>-choosing

A cell is a shape, a link, a budget, a number of tokens seen, and a seed of the mapping. Plans are made and caches chosen on the tokens seen; the 64 behind them judge: time per token with what
`choose_cache` takes over the time with the best of six simple caches, picked after the fact. Seconds are bytes over stated rates; only their ratios matter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import time
from typing import Any

import numpy as np
from measuring import markdown, new_folder, write_rows
from traces import Target, find_trace, map_trace

from moepic_gguf.choosing import choose_cache
from moepic_gguf.planner import Costs, Machine, lanes_of, make_plan
from moepic_gguf.replay import CacheOptions, replay
from moepic_gguf.trace import Trace

DEVICE = 64e9
RECALL = 0.8
JUDGED = 64  # tokens
SEEN = (24, 40, 56, 72, 88)
BUDGETS = (0.25, 0.5, 0.75)
# Experts of real width in Q4_K, fewer layers. With each its recording, and what a layer reads besides experts.
SHAPES = {
    "Mixtral": (Target(8, 2, 56, (1_769_472,) * 3), "gpt-oss-120b-top2.csv", 79e6),
    "OLMoE": (Target(64, 8, 4, (952_320,) * 8), "qwen3-30b-a3b-top6.csv", 21e6),
    "Qwen3-30B": (Target(128, 8, 3, (884_736,) * 8), "qwen3-30b-a3b-top6.csv", 22e6),
    "Qwen3.6": (Target(256, 8, 2, (884_736,) * 8), "qwen3.6-35b-a3b-128steps.json", 22e6),
    "Gemma 4": (Target(128, 6, 3, (884_736,) * 8), "gemma-4-26b-a4b-top6.csv", 22e6),
}


def row_of(trace: Trace, dense_bytes: float, slower: float, share: float, n_seen: int, recall: float) -> dict[str, Any]:
    """One cell: milliseconds per token with what is chosen, and with each simple cache."""
    machine = Machine(DEVICE / slower, DEVICE)
    layer_s = dense_bytes / DEVICE
    costs = Costs.flat(trace.n_layer, compute_s=layer_s, window_s=layer_s if recall else 0.0, recall=recall)
    predictor, budget = "recorded" if recall else "none", int(share * trace.total_bytes)
    lanes = lanes_of(trace, machine, costs, predictor=predictor, with_cpu=False)
    seen, all_ = trace.tokens(slice(0, n_seen)), trace.tokens(slice(0, n_seen + JUDGED))
    paid_s = trace.n_layer * layer_s + float((trace.n_used * trace.expert_bytes).sum()) / DEVICE

    def tpot_ms(options: CacheOptions) -> float:
        found = replay(all_, budget, options, lanes, predictor=predictor, n_warm=n_seen)
        return 1e3 * (paid_s + found.per_token("stall_s"))

    simple = {f"whole {policy}": CacheOptions(policy, eviction="whole") for policy in ("lru", "lfu", "lcp")}
    simple["granules"] = CacheOptions()
    for mode, policy in (("auto", "lrfu"), ("paper", "lcp")):
        simple[f"plan {mode}"] = make_plan(seen, budget, machine, costs, mode=mode).cache_options(policy)
    times = {name: tpot_ms(options) for name, options in simple.items()}
    start = time.perf_counter()
    chosen = choose_cache(seen, budget, machine, costs, predictor=predictor)
    took_s = time.perf_counter() - start
    best, auto = min(times, key=times.__getitem__), tpot_ms(chosen.options)
    return {
        "best": best,
        "chosen": chosen.name,
        "auto_over_best": auto / times[best],
        "auto ms": auto,
        "choosing_s": took_s,
    } | {f"{name} ms": ms for name, ms in times.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Per link, all shapes and each: mean, 90th percentile and worst of the ratio, and the share of cells beyond 3 %."""
    lines = []
    for slower in dict.fromkeys(row["slower"] for row in rows):
        of = [row for row in rows if row["slower"] == slower]
        for shape in ("all", *dict.fromkeys(row["shape"] for row in of)):
            ratios = np.array([row["auto_over_best"] for row in of if shape in ("all", row["shape"])])
            line = [f"1/{slower:g}", shape, str(len(ratios)), f"{ratios.mean():.4f}", f"{np.quantile(ratios, 0.9):.3f}"]
            lines.append([*line, f"{ratios.max():.3f}", f"{100 * np.mean(ratios > 1.03):.0f} %"])
    heads = ["link / memory", "shape", "cells", "mean of auto / best", "90th percentile", "worst", "over 3 % behind"]
    return markdown(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=new_folder, required=True)
    parser.add_argument("--slower", default="65,33,18,8", help="memory's rate over the link's")
    parser.add_argument("--recall", type=float, default=RECALL, help="of the guesses; 0: no prefetch")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for name, (target, recording, dense_bytes) in SHAPES.items():
        for seed in range(arguments.seeds):
            trace = map_trace(find_trace(recording), target, recall=RECALL, seed=seed)
            for slower, share, n_seen in itertools.product(map(float, arguments.slower.split(",")), BUDGETS, SEEN):
                if n_seen + JUDGED > trace.n_token:
                    continue
                head = {"shape": name, "seed": seed, "slower": slower, "budget": share, "seen": n_seen}
                rows.append(head | row_of(trace, dense_bytes, slower, share, n_seen, arguments.recall))
        print(f"{name}: done", flush=True)
    text = table(rows)
    arguments.out.mkdir(parents=True)
    write_rows(arguments.out / "rows.csv", rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    env = {"commit": commit, "device_bytes_s": DEVICE, "recall": arguments.recall, "judged": JUDGED}
    (arguments.out / "env.json").write_text(json.dumps(env, indent=1) + "\n")
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
