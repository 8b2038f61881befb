"""Policies x budgets x traces by replay: the study of bench/results/*-replay. No model, no weights; every byte is counted, every second modelled.

python bench/replay.py TRACE... --out bench/results/<date>-replay
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from moepic_gguf.planner import Costs, Machine, make_plan, predict
from moepic_gguf.replay import CacheOptions, Lanes, profile_of, replay
from moepic_gguf.trace import Trace, read_trace

BUDGETS = (0.0625, 0.125, 0.25, 0.5, 0.75)
LINK = 25e9  # bytes/s, PCIe 4 x16; stall is bytes over this, so its ratios do not depend on it where there is no window
ASSUMED_EXPERT_BYTES = 1_769_472  # Qwen3.6-35B-A3B at 4.5 bits per weight: 3 x 512 x 2048
GRANULES = 4


def policies(trace: Trace) -> dict[str, CacheOptions]:
    """What is compared, by the name of its rows."""
    made = {
        "lru": CacheOptions("lru"),
        "lfu": CacheOptions("lfu"),
        "lcp omega 128 (MoEpic)": CacheOptions("lcp"),
        "lcp omega 8": CacheOptions("lcp", omega=8.0),
        "lrfu 4": CacheOptions("lrfu", half_life=4.0),
        "lrfu 8": CacheOptions("lrfu", half_life=8.0),
        "lrfu 24": CacheOptions("lrfu"),
        "lrfu 96": CacheOptions("lrfu", half_life=96.0),
        "belady": CacheOptions("belady"),
    }
    if trace.n_prefill:
        made["static (prefill)"] = CacheOptions("static", profile=profile_of(trace, trace.n_prefill))
    return made


def variants(options: CacheOptions, trace: Trace) -> dict[str, CacheOptions]:
    return {
        "whole": replace(options, eviction="whole"),
        "granules": replace(options, eviction="granules"),
        "whole, bypass": replace(options, eviction="whole", bypass=True),
        "granules, bypass": replace(options, eviction="granules", bypass=True),
        "whole, theta 0.5": replace(options, eviction="whole", top=[GRANULES // 2] * trace.n_layer),
        "whole, global": replace(options, eviction="whole", scope="global"),
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    trace = read_trace(path, expert_bytes=ASSUMED_EXPERT_BYTES).cut_into(GRANULES)
    # A trace without a prefill has its first 16 tokens as one: an empty cache says nothing about policies.
    n_warm = trace.n_prefill or 16
    rows = []

    def add(policy: str, variant: str, budget: float, found: Any, window_us: float = 0.0) -> None:
        counted = max(1, len(found.token_stall_s))
        row: dict[str, Any] = {
            "trace": path.stem,
            "budget": budget,
            "policy": policy,
            "variant": variant,
            "window_us": window_us,
        }
        row |= {"tokens": counted, "demand_bytes_per_token": round(found.per_token("demand_bytes"))}
        row |= {
            "stall_ms_per_token": round(1e3 * found.per_token("stall_s"), 4),
            "stall_ms_p95": round(1e3 * found.stall_quantile(0.95), 4),
        }
        row |= {
            f"{name}_bytes_per_token": round(found.per_token(f"{name}_bytes")) for name in ("useful", "wasted", "late")
        }
        row |= {name: round(found.share(f"n_{name}"), 4) for name in ("hit", "partial", "miss")}
        rows.append(row | {"loads": found.loads, "evictions": found.evictions, "note": found.note})

    lanes = Lanes(LINK)
    for budget in BUDGETS:
        n_bytes = int(trace.total_bytes * budget)
        for name, options in policies(trace).items():
            for variant, one in variants(options, trace).items():
                add(name, variant, budget, replay(trace, n_bytes, one, lanes, n_warm=n_warm))
        # The window of a quantised model: a tenth of the bytes a layer uses.
        window = 0.1 * trace.n_used * float(trace.expert_bytes.mean()) / LINK
        windows = Lanes(LINK, LINK, [window] * trace.n_layer)
        for predictor in ("none", "previous_token"):
            found = replay(trace, n_bytes, CacheOptions(), windows, predictor=predictor, n_warm=n_warm)
            add("lrfu 24", f"granules, {predictor}", budget, found, window * 1e6)
        costs = Costs.flat(trace.n_layer)
        machine = Machine(LINK, 1e12)
        for mode in ("auto", "paper", "uniform"):
            # Planned on the whole trace: in sample, an upper bound for what a plan can know.
            found = predict(
                make_plan(trace, n_bytes, machine, costs, mode=mode), trace, machine, costs, n_warm=n_warm
            ).found
            add("lrfu 24", f"plan {mode}", budget, found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    rows = [row for path in arguments.traces for row in rows_of(path)]
    with (arguments.out / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    env = {"commit": commit, "machine": platform.machine(), "python": platform.python_version(), "link_bytes_s": LINK}
    env |= {
        "granules": GRANULES,
        "assumed_expert_bytes_of_json": ASSUMED_EXPERT_BYTES,
        "traces": [path.name for path in arguments.traces],
    }
    (arguments.out / "env.json").write_text(json.dumps(env, indent=1) + "\n")


if __name__ == "__main__":
    main()
