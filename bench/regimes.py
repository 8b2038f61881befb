"""Where a split pays: caches over synthetic routing from flat to skewed and windows from none to several expert loads. All modelled: counts are exact
for the routing drawn, seconds are bytes over stated rates, and nothing is timed.

python bench/regimes.py --out bench/results/<date>-regime-map
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import write_rows

from moepic_gguf.choosing import choose_cache
from moepic_gguf.planner import Costs, Machine, make_plan, prior_trace, recent, with_guesses
from moepic_gguf.replay import CacheOptions, Lanes, hit_curves, replay
from moepic_gguf.trace import Trace, read_trace

LINK = 1e9  # bytes/s; only its ratio to the device matters
DEVICE = 16 * LINK  # resident granules: RAM over a file, or video memory over PCIe
ASSUMED_EXPERT_BYTES = 1_769_472  # of the trace that does not say: 3 x 512 x 2048 at 4.5 bits per weight
RECALL = 0.85  # share of experts predicted rightly (next_layer: 0.8 to 0.9 in what is published)
TOKENS, SEEN = 1536, 768  # planned and chosen on the first SEEN tokens, judged on the others
SKEWS = (
    (0.0, 0.0),
    (0.3, 0.1),
    (0.6, 0.2),
    (0.9, 0.3),
    (1.2, 0.35),
    (1.6, 0.4),
)  # exponent of popularity, share that stays
WINDOWS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # expert loads of the link
BUDGETS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Shape:
    """n_expert experts, n_used per token, of n_granule granules; expert_bytes is a size at 4.5 bits per weight."""

    name: str
    n_expert: int
    n_used: int
    n_granule: int
    expert_bytes: int
    n_layer: int  # enough that chance does not decide a cell


SHAPES = (
    Shape("8 experts, top-2", 8, 2, 14, 99_090_432, 12),  # Mixtral's width 14336, granules of 1024
    Shape("64 experts, top-8", 64, 8, 4, 3_538_944, 4),  # width 1024
    Shape("128 experts, top-8", 128, 8, 3, 2_654_208, 4),  # width 768
)


@dataclass(frozen=True)
class Cell:
    shape: Shape
    skew: tuple[float, float]
    window: float
    budget: float
    seed: int


def others(trace: Trace, budget: int, machine: Machine, costs: Costs) -> dict[str, tuple[CacheOptions, bool]]:
    """Everything `auto` is held against, by the name of its column; with or without prefetch."""
    n = trace.n_layer
    whole = CacheOptions(eviction="whole")
    made = {
        "whole LRU": (replace(whole, policy="lru"), False),
        "whole LFU": (replace(whole, policy="lfu"), False),
        "theta 1 + prefetch": (replace(whole, policy="lcp"), True),
        "theta 1 LRU + prefetch": (replace(whole, policy="lru"), True),
    }
    for quarters in (1, 2, 3):
        top = max(1, round(quarters / 4 * int(trace.n_granule[0])))
        made[f"theta {quarters}/4"] = (replace(whole, policy="lcp", top=[top] * n), True)
    made["paper plan"] = (make_plan(recent(trace), budget, machine, costs, mode="paper").cache_options("lcp"), True)
    made["granules, default policy"] = (CacheOptions(), True)
    return made


def row_of(cell: Cell) -> dict[str, Any]:
    """One cell with one draw of its routing."""
    shape, (skew, stay) = cell.shape, cell.skew
    trace = prior_trace(
        shape.n_layer,
        shape.n_expert,
        shape.n_used,
        shape.expert_bytes,
        shape.n_granule,
        n_token=TOKENS,
        skew=skew,
        stay=stay,
        seed=cell.seed,
    )
    trace = with_guesses(trace, RECALL, seed=cell.seed)
    head = {"shape": shape.name, "skew": skew, "stay": stay, "seed": cell.seed}
    return head | compare(trace, SEEN, cell.window, cell.budget)


def row_of_trace(job: tuple[Path, int, float, float]) -> dict[str, Any]:
    """A recorded trace: its first half is seen, its second judges. Guesses are made up there too."""
    path, granules, window, budget = job
    trace = with_guesses(read_trace(path, expert_bytes=ASSUMED_EXPERT_BYTES).cut_into(granules), RECALL)
    return {"trace": path.stem} | compare(trace, trace.n_token // 2, window, budget)


def compare(trace: Trace, n_seen: int, window: float, share: float) -> dict[str, Any]:
    """Seconds per token of every mode on the tokens after the first `n_seen`."""
    seen = trace.tokens(slice(0, n_seen))
    load_s = float(trace.expert_bytes.mean()) / LINK
    costs = Costs.flat(trace.n_layer, compute_s=window * load_s, window_s=window * load_s, recall=RECALL)
    machine = Machine(LINK, DEVICE)
    budget = int(trace.total_bytes * share)
    none = Lanes(LINK, compute_bytes_s=DEVICE)
    windows = replace(none, prefetch_bytes_s=LINK, window_s=list(costs.window_s))
    # What a token pays whatever is cached: attention, which is the window, and its experts from fast memory.
    used_bytes = float((trace.n_used * trace.expert_bytes).sum())
    paid_s = trace.n_layer * window * load_s + used_bytes / DEVICE

    def tpot_s(options: CacheOptions, prefetch: bool) -> float:
        lanes, predictor = (windows, "recorded") if prefetch else (none, "none")
        return paid_s + replay(trace, budget, options, lanes, predictor=predictor, n_warm=n_seen).per_token("stall_s")

    times = {"on demand": paid_s + used_bytes / LINK}
    times |= {name: tpot_s(*how) for name, how in others(seen, budget, machine, costs).items()}
    chosen = choose_cache(seen, budget, machine, costs, lanes=windows, predictor="recorded", n_token=n_seen)
    auto = tpot_s(chosen.options, True)
    best = min(times, key=times.__getitem__)
    curve = hit_curves(trace, n_warm=n_seen, concave=False)[0]
    return {
        "window_loads": window,
        "budget": share,
        "lru_hit": round(float(curve[round(share * int(trace.n_expert[0]))]), 4),
        "best_other": best,
        "auto_choice": chosen.name,
        "auto_over_best": round(auto / times[best] - 1, 5),
        **{f"{name} ms": round(1e3 * s, 4) for name, s in times.items()},
        "auto ms": round(1e3 * auto, 4),
    }


COLOURS = {
    "on demand": "#bdbdbd",
    "whole experts": "#4c78a8",
    "theta 1 + prefetch": "#72b7b2",
    "fixed theta": "#f2a541",
    "paper plan": "#d1605e",
    "granules": "#8c6bb1",
}


def family(name: str) -> str:
    """The kind of cache a column is, for colours."""
    if name.startswith("whole"):
        return "whole experts"
    if name.startswith("theta 1 "):
        return "theta 1 + prefetch"
    if name.startswith("theta"):
        return "fixed theta"
    return "granules" if name.startswith("granules") else name


def cells_of(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows of all seeds of a cell as one: mean times, the best other by them, and what auto makes of it."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["shape"], row["budget"], row["skew"], row["window_loads"]), []).append(row)
    made = {}
    for key, group in groups.items():
        mean = {name[:-3]: float(np.mean([row[name] for row in group])) for name in group[0] if name.endswith(" ms")}
        auto = mean.pop("auto")
        best = min(mean, key=mean.__getitem__)
        made[key] = {
            "best": best,
            "loss": auto / mean[best] - 1,
            "lru_hit": np.mean([row["lru_hit"] for row in group]),
            "mean": mean,
            "auto": auto,
        }
    return made


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.patches import Patch

    from moepic_gguf.pictures import pyplot, save

    plot = pyplot()
    cells = cells_of(rows)
    figure, axes = plot.subplots(len(SHAPES), len(BUDGETS), figsize=(13.5, 12), sharex=True, layout="constrained")
    for (i, shape), (j, budget) in ((a, b) for a in enumerate(SHAPES) for b in enumerate(BUDGETS)):
        axis = axes[i, j]
        hits = []
        for y, (skew, _) in enumerate(SKEWS):
            for x, window in enumerate(WINDOWS):
                cell = cells[(shape.name, budget, skew, window)]
                axis.add_patch(
                    plot.Rectangle((x - 0.5, y - 0.5), 1, 1, color=COLOURS[family(cell["best"])], alpha=0.75, lw=0)
                )
                loses = cell["loss"] > 0.03
                axis.text(
                    x,
                    y,
                    f"{100 * cell['loss']:+.1f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    weight="bold" if loses else "normal",
                    color="#111111",
                )
                hits.append(cell["lru_hit"])
        hit = np.array(hits).reshape(len(SKEWS), -1)[:, 0]
        axis.set_xlim(-0.5, len(WINDOWS) - 0.5)
        axis.set_ylim(-0.5, len(SKEWS) - 0.5)
        axis.set_xticks(range(len(WINDOWS)), [f"{w:g}" for w in WINDOWS])
        axis.set_yticks(range(len(SKEWS)), [f"{h:.2f}" for h in hit])
        axis.grid(False)
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_title(f"{shape.name}, {100 * budget:.0f} % of experts", fontsize=10.5)
        if j == 0:
            axis.set_ylabel("hit rate of whole-expert LRU\nflat routing  →  skewed")
        if i == len(SHAPES) - 1:
            axis.set_xlabel("window before the router, in expert loads")
    figure.suptitle(
        "Which cache wins where, and what auto makes of it (modelled)\ncolour: the fastest of all other modes · number: auto's time per token against it, in %; below 0 auto is faster",
        fontsize=13,
    )
    seen = {family(cell["best"]) for cell in cells.values()}
    figure.legend(
        handles=[Patch(color=colour, alpha=0.75, label=name) for name, colour in COLOURS.items() if name in seen],
        loc="outside lower center", ncols=len(COLOURS), frameon=False,
    )  # fmt: skip
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--traces", type=Path, nargs="*", default=[], help="Recorded traces, judged beside the map.")
    parser.add_argument("--granules", type=int, nargs="*", default=[], help="Of an expert, one for each trace.")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    cells = [Cell(*of) for of in itertools.product(SHAPES, SKEWS, WINDOWS, BUDGETS, range(arguments.seeds))]
    recorded = zip(arguments.traces, arguments.granules, strict=True)
    jobs = [
        (path, g, window, budget) for path, g in recorded for window in WINDOWS[::2] for budget in (0.125, *BUDGETS)
    ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        rows = list(pool.map(row_of, cells, chunksize=4))
        judged = list(pool.map(row_of_trace, jobs))
    write_rows(arguments.out / "rows.csv", rows)
    if judged:
        write_rows(arguments.out / "traces.csv", judged)
    draw(rows, arguments.out / "map.png")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    env = {
        "commit": commit,
        "link_bytes_s": LINK,
        "device_bytes_s": DEVICE,
        "recall": RECALL,
        "tokens": TOKENS,
        "seen": SEEN,
    }
    (arguments.out / "env.json").write_text(json.dumps(env | {"seeds": arguments.seeds}, indent=1) + "\n")
    losses = [cell["loss"] for cell in cells_of(rows).values()]
    print(
        f"{len(losses)} cells; auto against the best other: worst {max(losses):+.3f}, median {np.median(losses):+.3f}, best {min(losses):+.3f}"
    )


if __name__ == "__main__":
    main()
