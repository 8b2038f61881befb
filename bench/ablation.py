"""What each part of MoEpic's idea, and of ours, is worth: one engine, one budget, one routing, one thing changed at a time.

    MOEPIC_TRACES=FOLDER python bench/ablation.py MODEL.split.gguf --trace qwen3-30b-a3b-top6.csv --machine machine.json \
        --out bench/results/<date>-<machine>-ablation [--tiers file,12,25,50] [--shares 0.25] [--repeats 3] [--only lfu,lcp,granules,auto]

Tiers: `file` reads what misses from MODEL, past the page cache. A number is PCIe's GB/s over an EMULATED link: experts lie in RAM, the cache plays a GPU's
memory and this CPU the GPU. So that link and device keep their ratio, the link is slowed down as much as this CPU decodes slower (machine file) than a GPU
would (--gpu-rate, assumed): scale = device_bytes_s / gpu-rate. What is not imitated: a GPU's round trips, and attention that costs more than its bytes.

Routing follows a recording (traces.py) with guesses of a stated recall. Its first `--warm` tokens fill the cache, are what plans are made of, and are not
counted; the next `--tokens` are. Every token is fed alone. All runs must end in the same logits. Repeats go through the modes in alternating order.

`auto` is what a user of plan="auto" gets: the chosen cache, a policy that goes on learning, and trials that leave off what does not pay (an engine decides
those after 40 tokens at the earliest, the CPU lane's before prefetch's). The other modes are what they are called, without trials.
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
    alternating,
    decode,
    follow,
    markdown,
    new_folder,
    quantile,
    spread,
    subject_of,
    token_ids,
    write_record,
)
from traces import find_trace, map_trace

from moepic_gguf import Model
from moepic_gguf.choosing import choose_cache
from moepic_gguf.planner import Costs, Machine, make_plan
from moepic_gguf.streaming import StreamingOptions
from moepic_gguf.trace import Trace

COUNTS = ("n_hit", "n_partial", "n_miss", "n_link", "n_in_place", "n_prefetched")
AMOUNTS = ("demand_bytes", "useful_bytes", "wasted_bytes", "late_bytes", "stall_s")


@dataclass(frozen=True)
class Tier:
    """Where missing experts come from: 'file', GB/s of an emulated link, or 'device' for a real one. scale: by how much a link is slowed down."""

    name: str
    machine: Machine
    scale: float = 1.0
    cpu_bytes_s: float = 0.0

    @property
    def is_link(self) -> bool:
        return self.name not in ("file", "device")

    def options(self) -> StreamingOptions:
        return StreamingOptions(always=True, link_bytes_s=self.machine.link_bytes_s if self.is_link else 0.0)


def tier_of(name: str, machine: Machine, gpu_bytes_s: float, cpu_bytes_s: float) -> Tier:
    """cpu_bytes_s: what the GPU machine's CPU computes in place; slowed down like everything else."""
    if name == "file":
        return Tier(name, machine)
    scale = machine.device_bytes_s / gpu_bytes_s
    # What the machine file says of reads and of re-tiling is the file's.
    link = replace(
        machine, link_bytes_s=float(name) * 1e9 * scale, cpu_bytes_s=0.0, miss_latency_s=0.0, landing_bytes_s=0.0
    )
    return Tier(name, link, scale, cpu_bytes_s * scale)


def costs_of(subject: Subject, machine: Machine, recall: float) -> Costs:
    """What a layer pays whatever is cached, which is also the window of a prefetch: the weights besides experts, at the device's rate."""
    layer_s = subject.dense_bytes_per_token / subject.target.n_layer / machine.device_bytes_s + machine.layer_s
    return Costs.flat(subject.target.n_layer, compute_s=layer_s, window_s=layer_s, recall=recall)


def modes_of(subject: Subject, seen: Trace, budget: int, tier: Tier, recall: float) -> dict[str, StreamingOptions]:
    """The rows of the table, by name. seen: the tokens that plans may know."""
    machine, costs = tier.machine, costs_of(subject, tier.machine, recall)
    still = replace(tier.options(), cache=budget, eviction="whole", predictor="none", adapt=False)
    ahead = replace(still, predictor="next_layer")
    modes = {
        "on demand": replace(still, cache=0),
        "whole, lru": replace(still, policy="lru"),
        "whole, lfu": replace(still, policy="lfu"),
        "whole, lru, prefetch": replace(ahead, policy="lru"),
        "whole, lcp, prefetch": replace(ahead, policy="lcp"),
    }
    n_granule = subject.target.n_granule
    for wanted in (0.25, 0.5, 0.75):
        # Experts of few granules can't be cut everywhere; the name says the share that was taken.
        if (top := max(1, round(wanted * n_granule))) < n_granule:
            name = f"theta {top / n_granule:.2f}, lcp, prefetch"
            modes[name] = replace(ahead, policy="lcp", top=[top] * subject.target.n_layer)
    paper, auto = (make_plan(seen, budget, machine, costs, mode=mode) for mode in ("paper", "auto"))
    modes["paper plan, lcp, prefetch"] = ahead.with_cache(paper.cache_options("lcp"))
    ours = replace(ahead, eviction="granules")
    modes["granules, lrfu, prefetch"] = ours
    modes["auto plan, lrfu, prefetch"] = ours.with_cache(auto.cache_options("lrfu"))
    modes["auto plan, policy auto, prefetch"] = replace(ours.with_cache(auto.cache_options("lrfu")), policy="auto")
    chosen = choose_cache(seen, budget, machine, costs, predictor="recorded")
    modes["auto"] = replace(ahead.with_cache(chosen.options, learns=True), adapt=True)
    if tier.cpu_bytes_s:
        modes["auto, CPU lane"] = replace(modes["auto"], cpu_bytes_s=tier.cpu_bytes_s)
    return modes


def measure(subject: Subject, trace: Trace, options: StreamingOptions, n_warm: int, n_threads: int) -> dict[str, Any]:
    """One load, the whole trace, and what its counted tokens cost."""
    n_tokens = trace.n_token - n_warm
    sizes = {"n_ctx": trace.n_token, "n_batch": 1, "n_threads": n_threads}
    with Model.load(subject.path, device="cpu", **sizes, streaming=options) as model:
        follow(model, trace)
        ids = token_ids(trace.n_token, subject.info.n_vocab)
        decode(model, ids[:n_warm])
        model.reset_stats()
        found = decode(model, ids[n_warm:])
        stats = model.stream_stats
    assert stats is not None
    row: dict[str, Any] = {"tpot_s": found.tpot_s, "token_median_s": statistics.median(found.token_s)}
    row |= {"token_p95_s": quantile(found.token_s, 0.95), "n_tokens": n_tokens, "digest": found.digest}
    row |= {name: int(stats.total(name)) for name in COUNTS}
    row |= {f"{name}_per_token": stats.total(name) / n_tokens for name in AMOUNTS}
    lane_bytes, busy_s = stats.lane_bytes, stats.lane_busy_s
    row |= {"lane_bytes": lane_bytes, "lane_raw_bytes": stats.lane_raw_bytes, "lane_busy_s": busy_s}
    row |= {"lane_bytes_s": lane_bytes / busy_s if busy_s else 0.0, "cpu_lane_bytes_s": stats.cpu_bytes_s}
    kept = f"{options.eviction}, {'cut' if options.top else 'uncut'}, {options.policy}{', bypass' if options.bypass else ''}"
    row |= {"cache": kept, "lane": stats.lane, "policy_at_end": stats.policy, "note": stats.note}
    row |= {"layers_without_prefetch": stats.n_layers_switched_off, "cache_bytes": stats.cache_bytes}
    tried = ("prefetch_on", "prefetch_cost", "cpu_lane_on", "cpu_lane_cost")
    return row | {name: getattr(stats, name) for name in tried}


def table(subject: Subject, rows: list[dict[str, Any]], tiers: list[Tier], recall: float) -> str:
    text = []
    for (tier, share), by_mode in by_cell(rows).items():
        times = {mode: statistics.median(row["tpot_s"] for row in of) for mode, of in by_mode.items()}
        text.append(f"\n{heading(subject, next(t for t in tiers if t.name == tier), share, recall)}\n\n")
        heads = [
            "mode",
            "TPOT ms",
            "p95",
            "against the best",
            "stall",
            "MB asked / useful / wasted / late",
            "hit / partial / miss %",
            "lane GB/s",
        ]
        text.append(markdown(heads, (line(mode, of, times) for mode, of in by_mode.items())))
    return "".join(text).lstrip() + "\n" + verdicts(rows)


Cells = dict[tuple[str, float], dict[str, list[dict[str, Any]]]]


def by_cell(rows: list[dict[str, Any]]) -> Cells:
    """Rows by (tier, share) and mode, in the order of repeats."""
    cells: Cells = {}
    for row in sorted(rows, key=lambda row: row["repeat"]):
        cells.setdefault((row["tier"], row["share"]), {}).setdefault(row["mode"], []).append(row)
    return cells


def verdicts(rows: list[dict[str, Any]]) -> str:
    """Each cell's `auto` modes against the best of the others. The best is picked after the fact: with few repeats it is the luckiest one, so look at how far
    the ratios of single repeats and the best mode's own times lie apart before believing a few percent.
    """
    lines = []
    for (tier, share), by_mode in by_cell(rows).items():
        times = {mode: [row["tpot_s"] for row in of] for mode, of in by_mode.items()}
        others = [mode for mode in times if not mode.startswith("auto")]
        if not others:
            continue
        best = min(others, key=lambda mode: statistics.median(times[mode]))
        for mode in (mode for mode in times if mode.startswith("auto")):
            paired = [mine / other for mine, other in zip(times[mode], times[best], strict=True)]
            last = by_mode[mode][-1]
            tried = [
                f"{name} {100 * last[f'{name}_cost']:+.1f} %"
                for name in ("prefetch", "cpu_lane")
                if last[f"{name}_cost"]
            ]
            lines.append(
                [
                    tier,
                    f"{100 * share:g} %",
                    mode,
                    best,
                    f"{statistics.median(times[mode]) / statistics.median(times[best]):.3f}",
                    f"{min(paired):.3f}-{max(paired):.3f}",
                    f"{max(times[best]) / min(times[best]):.3f}",
                    ", ".join(tried) or "-",
                ]
            )
    heads = [
        "tier",
        "budget",
        "mode",
        "best other",
        "ratio of medians",
        "of single repeats",
        "best other, largest / smallest",
        "found it costs",
    ]
    return markdown(heads, lines)


def heading(subject: Subject, tier: Tier, share: float, recall: float) -> str:
    window_s = costs_of(subject, tier.machine, recall).window_s[0]
    expert_s = subject.expert_bytes / subject.target.n_layer / subject.target.n_expert / tier.machine.link_bytes_s
    ceiling = tier.machine.link_bytes_s
    what = (
        f"{tier.name} GB/s link, emulated at {ceiling / 1e9:.2f} GB/s (scale {tier.scale:.4f})"
        if tier.is_link
        else f"file, {ceiling / 1e9:.2f} GB/s measured"
    )
    return (
        f"**{subject.path.name}, {what}, budget {100 * share:g} % of the experts, recall {recall:g}.** "
        f"Window of a layer {1e3 * window_s:.2f} ms = {window_s / expert_s:.2f} expert loads (modelled). Per token, median (smallest-largest)."
    )


def line(mode: str, rows: list[dict[str, Any]], times: dict[str, float]) -> list[str]:
    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in rows)

    routed = sum(mean(name) for name in ("n_hit", "n_partial", "n_miss"))
    return [
        mode,
        spread([row["tpot_s"] for row in rows], 1e3, 2),
        f"{1e3 * mean('token_p95_s'):.1f}",
        f"{times[mode] / min(times.values()):.3f}",
        f"{1e3 * mean('stall_s_per_token'):.1f}",
        " / ".join(f"{mean(f'{name}_bytes_per_token') / 1e6:.1f}" for name in ("demand", "useful", "wasted", "late")),
        " / ".join(f"{100 * mean(name) / routed:.0f}" for name in ("n_hit", "n_partial", "n_miss")),
        f"{mean('lane_bytes_s') / 1e9:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="pre-split: an ordinary file can be read by whole experts only")
    parser.add_argument("--trace", required=True, help="a recording, or its name in the folder MOEPIC_TRACES")
    parser.add_argument("--machine", type=Path, required=True, help="made by moepic-bench machine --file MODEL")
    parser.add_argument("--out", type=new_folder, required=True)
    parser.add_argument("--tiers", default="file,12,25,50", help="file, or GB/s of a link")
    parser.add_argument("--shares", default="0.25", help="budgets as shares of the experts' bytes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--recall", type=float, default=0.8, help="of the guesses")
    parser.add_argument("--gpu-rate", type=float, default=800.0, help="GB/s at which the imitated GPU decodes, assumed")
    parser.add_argument(
        "--cpu-rate", type=float, default=0.0, help="GB/s its CPU computes in place: adds a mode to links"
    )
    parser.add_argument("--only", default="", help="modes whose names contain one of these words, with commas between")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    subject, machine = subject_of(arguments.model), Machine.read(arguments.machine)
    n_threads = arguments.threads or len(os.sched_getaffinity(0))
    if machine.n_threads != n_threads:
        parser.error(
            f"{arguments.machine} has the rates of {machine.n_threads:g} threads, and {n_threads} are to run: moepic-bench machine --threads {n_threads}"
        )
    recorded = map_trace(find_trace(arguments.trace), subject.target, recall=arguments.recall, seed=arguments.seed)
    if recorded.n_token < arguments.warm + arguments.tokens:
        parser.error(f"the trace has {recorded.n_token} tokens, {arguments.warm} + {arguments.tokens} are wanted")
    trace = recorded.tokens(slice(0, arguments.warm + arguments.tokens))
    seen = recorded.tokens(slice(0, arguments.warm))
    tiers = [
        tier_of(name, machine, arguments.gpu_rate * 1e9, arguments.cpu_rate * 1e9)
        for name in arguments.tiers.split(",")
    ]
    rows: list[dict[str, Any]] = []
    for tier in tiers:
        for share in map(float, arguments.shares.split(",")):
            modes = modes_of(subject, seen, int(share * subject.expert_bytes), tier, arguments.recall)
            words = arguments.only.split(",")
            modes = {name: options for name, options in modes.items() if any(word in name for word in words)}
            for repeat in range(arguments.repeats):
                for mode in alternating(list(modes), repeat):
                    row = measure(subject, trace, modes[mode], arguments.warm, arguments.threads)
                    rows.append({"tier": tier.name, "share": share, "mode": mode, "repeat": repeat} | row)
                    print(f"{tier.name} {share} {mode}: {1e3 * row['tpot_s']:.2f} ms", flush=True)
                    if row["digest"] != rows[0]["digest"]:
                        raise SystemExit(
                            f"{mode}: other logits than {rows[0]['mode']}; nothing else here can be believed"
                        )
            print(verdicts([row for row in rows if (row["tier"], row["share"]) == (tier.name, share)]), flush=True)
    text = table(subject, rows, tiers, arguments.recall)
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
