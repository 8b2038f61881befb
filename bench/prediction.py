"""Is the TPOT that is planned the one that is measured? The planner predicts from a machine file and routing; then the engine runs that plan.

    MOEPIC_TRACES=FOLDER python bench/prediction.py MODEL.split.gguf --trace qwen3-30b-a3b-top6.csv --machine machine.json \
        --out bench/results/<date>-<machine>-prediction [--shares 0.25,0.5,0.75] [--modes auto,paper]

A recording is mapped onto the model (traces.py). The plan knows its first `--warm` tokens; measured are the `--tokens` behind them, from a cache that starts
full with what those used most, as predictions assume. Two predictions stand beside the measurement:

  forecast  what moepic-plan says, which has seen the warm tokens alone: wrong rates, mechanics or routing all show.
  replayed  the same model over the tokens that are measured: what is wrong now is not the routing.

Make the machine file from the model's own file, just before: a prediction is as good as its rates.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measuring import (
    Subject,
    decode,
    follow,
    markdown,
    new_folder,
    spread,
    subject_of,
    token_ids,
    write_record,
)
from traces import find_trace, map_trace

from moepic_gguf import Model, forecast
from moepic_gguf.choosing import choose_cache
from moepic_gguf.footprint import embedding_of, footprint
from moepic_gguf.forecast import Band
from moepic_gguf.inspection import inspect_file
from moepic_gguf.metadata import GgufFile
from moepic_gguf.planner import Machine, make_plan, predict, recent
from moepic_gguf.replay import CacheOptions, profile_of
from moepic_gguf.streaming import StreamingOptions
from moepic_gguf.trace import Trace


@dataclass(frozen=True)
class Predicted:
    """Seconds per token by both predictions, and the cache they are of, which is what runs."""

    forecast: Band
    replayed_s: float
    cache: CacheOptions
    name: str


def planning_for(subject: Subject, seen: Trace, machine: Machine) -> forecast.Subject:
    """What moepic-plan makes of the file and of --trace."""
    with GgufFile(subject.path) as file:
        report, embedding = inspect_file(file), embedding_of(file)
    n_threads = len(os.sched_getaffinity(0))
    memory = footprint(report, subject.target.n_granule, n_ctx=seen.n_token, n_threads=n_threads, embedding=embedding)
    costs = forecast.costs_of(report, memory, machine, n_context=seen.n_token, recall=seen.recall)
    return forecast.Subject(report, memory, machine, seen, costs, is_prior=False)


def predicted(planning: forecast.Subject, trace: Trace, budget: int, mode: str) -> Predicted:
    """planning knows the first tokens of `trace`, and nothing of the others."""
    machine, costs, seen = planning.machine, planning.costs, planning.trace
    plan = make_plan(recent(seen), budget, machine, costs, mode=mode)
    policy = "lcp" if mode == "paper" else "lrfu"
    name, cache = f"plan, {policy}", plan.cache_options(policy)
    if mode == "auto":
        chosen = choose_cache(seen, budget, machine, costs, predictor=planning.predictor, plan=plan)
        name, cache = chosen.name, chosen.options
    cache = replace(cache, profile=profile_of(trace, seen.n_token) + 1e-6)
    options = {"predictor": planning.predictor, "cache": cache, "n_warm": seen.n_token}
    replayed = predict(plan, trace, machine, costs, **options)
    return Predicted(forecast.forecast(planning, budget, mode).tpot, replayed.tpot_s, cache, name)


def measure(subject: Subject, trace: Trace, n_warm: int, budget: int, cache: CacheOptions) -> dict[str, Any]:
    """One load, the warm tokens, and the others counted."""
    predictor = "none" if trace.predicted is None else "next_layer"
    # Without trials, which would take prefetch away from a prediction that has it.
    options = StreamingOptions(always=True, cache=budget, predictor=predictor, adapt=False).with_cache(cache)
    with Model.load(subject.path, device="cpu", n_ctx=trace.n_token, n_batch=1, streaming=options) as model:
        follow(model, trace)
        ids = token_ids(trace.n_token, subject.info.n_vocab)
        decode(model, ids[:n_warm])
        model.reset_stats()
        found = decode(model, ids[n_warm:])
        stats = model.stream_stats
    assert stats is not None
    per_token = {name: stats.total(name) / (trace.n_token - n_warm) for name in ("stall_s", "demand_bytes")}
    rate = stats.lane_bytes / stats.lane_busy_s if stats.lane_busy_s else 0.0
    return {"tpot_s": found.tpot_s, "lane_bytes_s": rate} | {
        f"{name}_per_token": value for name, value in per_token.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for model, share, mode in dict.fromkeys((row["model"], row["share"], row["mode"]) for row in rows):
        these = [row for row in rows if (row["model"], row["share"], row["mode"]) == (model, share, mode)]
        first, time = these[0], statistics.median(row["tpot_s"] for row in these)
        band = f"{1e3 * first['forecast_s']:.1f} ({1e3 * first['forecast_low_s']:.1f}-{1e3 * first['forecast_high_s']:.1f})"
        lines.append(
            [
                model,
                f"{100 * share:g} %",
                f"{mode}: {first['cache']}",
                band,
                f"{1e3 * first['replayed_s']:.1f}",
                spread([row["tpot_s"] for row in these], 1e3),
                f"{first['forecast_s'] / time:.2f}",
                f"{first['replayed_s'] / time:.2f}",
                f"{statistics.fmean(row['lane_bytes_s'] for row in these) / 1e9:.2f}",
            ]
        )
    heads = [
        "file",
        "budget",
        "plan",
        "forecast ms (band)",
        "replayed ms",
        "measured ms",
        "forecast / measured",
        "replayed / measured",
        "lane GB/s",
    ]
    return markdown(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trace", required=True, help="a recording, or its name in the folder MOEPIC_TRACES")
    parser.add_argument("--machine", type=Path, required=True, help="made by moepic-bench machine --file MODEL")
    parser.add_argument("--out", type=new_folder, required=True)
    parser.add_argument("--shares", default="0.25,0.5,0.75", help="budgets as shares of the experts' bytes")
    parser.add_argument("--modes", default="auto,paper")
    parser.add_argument("--recall", type=float, default=0.0, help="of the guesses; 0: no predictor")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm", type=int, default=56)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    subject, machine = subject_of(arguments.model), Machine.read(arguments.machine)
    recorded = map_trace(find_trace(arguments.trace), subject.target, recall=arguments.recall or None)
    if recorded.n_token < arguments.warm + arguments.tokens:
        parser.error(f"the trace has {recorded.n_token} tokens, {arguments.warm} + {arguments.tokens} are wanted")
    trace = recorded.tokens(slice(0, arguments.warm + arguments.tokens))
    planning = planning_for(subject, trace.tokens(slice(0, arguments.warm)), machine)
    cells = [(float(share), mode) for share in arguments.shares.split(",") for mode in arguments.modes.split(",")]
    budgets = {share: int(share * subject.expert_bytes) for share, _ in cells}
    found = {cell: predicted(planning, trace, budgets[cell[0]], cell[1]) for cell in cells}
    rows = []
    for repeat in range(arguments.repeats):
        for share, mode in cells if repeat % 2 == 0 else cells[::-1]:
            of = found[share, mode]
            row: dict[str, Any] = {
                "model": subject.path.name,
                "share": share,
                "mode": mode,
                "cache": of.name,
                "repeat": repeat,
            }
            row |= {
                "forecast_s": of.forecast.mean_s,
                "forecast_low_s": of.forecast.low_s,
                "forecast_high_s": of.forecast.high_s,
            }
            row |= {"replayed_s": of.replayed_s} | measure(subject, trace, arguments.warm, budgets[share], of.cache)
            rows.append(row)
            print(
                f"{share} {mode}: forecast {1e3 * of.forecast.mean_s:.1f} ms, measured {1e3 * row['tpot_s']:.1f} ms",
                flush=True,
            )
    text = table(sorted(rows, key=lambda row: row["share"]))
    write_record(
        arguments.out,
        arguments.model,
        rows,
        text,
        options=vars(arguments),
        machine=vars(machine),
        routing=recorded.info,
    )
    print(text)


if __name__ == "__main__":
    main()
