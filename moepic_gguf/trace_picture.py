"""Pictures of a trace: what was found where, who brought the rest, and what each token waited for. Draws what was recorded and models nothing."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .pictures import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, pyplot, save
from .replay import hit_curves
from .trace import DECODE, Trace

FOUND = {"hit": GREEN, "partial hit": ORANGE, "miss": RED}
SOURCES = {"resident": GREEN, "prefetched": BLUE, "link": ORANGE, "cpu": VIOLET}


def draw_trace(trace: Trace, path: str | os.PathLike[str]) -> list[str]:
    """Draw `trace` into `path` (.png, .svg, .pdf) and return what could not be drawn, and why.

    With outcomes: what routed experts found per layer, bytes per lane and layer, stall per token. Without: the hit curve of each layer, which is all that
    routing alone says. Raises `ArgumentError` (no matplotlib, no such kind of picture), `IoError`.
    """
    plot = pyplot()
    if trace.outcome is None and trace.found is None:
        figure, axis = plot.subplots(figsize=(8.5, 5.2), layout="constrained")
        _curves(plot, figure, axis, trace)
        missing = [
            "the trace holds no outcomes (flag 2): what was found per layer, bytes per lane and stall per token are not in it; drawn is what routing alone says"
        ]
    else:
        missing = []
        figure, axes = plot.subplots(3, 1, figsize=(11, 11), layout="constrained")
        if trace.found is None:
            missing.append(
                "granules found per expert (flag 4) are not in the trace: drawn are shares of granules, not hits and partial hits"
            )
        _found(axes[0], trace)
        if trace.outcome is None:
            missing.append("the trace holds no outcomes (flag 2): bytes per lane and stall per token are not in it")
            for axis in axes[1:]:
                axis.set_axis_off()
        else:
            _bytes(axes[1], trace)
            _stall(axes[2], trace)
    model = trace.info.get("model") or trace.info.get("source") or "trace"
    figure.suptitle(
        f"{model}: {trace.n_token} tokens, {trace.n_layer} MoE layers, {trace.n_used} of {int(trace.n_expert.max())} experts",
        fontsize=13,
    )
    save(figure, path)
    return missing


def _layers(axis: Any, trace: Trace) -> np.ndarray[Any, Any]:
    axis.set_xlim(-0.6, trace.n_layer - 0.4)
    axis.set_xlabel("MoE layer")
    axis.grid(axis="x", visible=False)
    return np.arange(trace.n_layer)


def found_shares(trace: Trace) -> dict[str, np.ndarray[Any, Any]]:
    """[n_layer] shares of routed experts by what they found; without flag 4, of granules by who served them."""
    if trace.found is not None:
        routed = trace.ids >= 0
        whole, none = trace.found >= trace.n_granule[None, :, None], trace.found == 0
        kinds = {"hit": routed & whole, "partial hit": routed & ~whole & ~none, "miss": routed & none}
        sums = {name: kind.sum(axis=(0, 2)) for name, kind in kinds.items()}
    else:
        assert trace.outcome is not None
        sums = {name: trace.outcome[name].sum(axis=0, dtype=np.int64) for name in SOURCES}
    total = np.maximum(1, sum(sums.values()))
    return {name: count / total for name, count in sums.items()}


def _found(axis: Any, trace: Trace) -> None:
    at = _layers(axis, trace)
    colours = FOUND if trace.found is not None else SOURCES
    below = np.zeros(trace.n_layer)
    for name, share in found_shares(trace).items():
        axis.bar(at, 100 * share, bottom=100 * below, width=0.86, color=colours[name], label=_LABELS.get(name, name))
        below += share
    axis.set_ylim(0, 100)
    axis.set_ylabel("%")
    axis.set_title(
        "What routed experts found resident"
        if trace.found is not None
        else "Granules of routed experts, by where they came from"
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


_LABELS = {"link": "link, on demand", "cpu": "CPU, in place"}


def _bytes(axis: Any, trace: Trace) -> None:
    assert trace.outcome is not None
    at, below = _layers(axis, trace), np.zeros(trace.n_layer)
    for name in ("prefetched", "link", "cpu"):
        moved = trace.outcome[name].sum(axis=0, dtype=np.int64) * trace.granule_bytes / max(1, trace.n_token) / 1e6
        axis.bar(at, moved, bottom=below, width=0.86, color=SOURCES[name], label=_LABELS.get(name, name))
        below += moved
    axis.set_ylabel("MB per token")
    axis.set_title(f"Bytes that were not resident, by who served them: {below.sum():.1f} MB per token")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _stall(axis: Any, trace: Trace) -> None:
    assert trace.outcome is not None
    stall = 1e3 * trace.outcome["stall_s"].sum(axis=1, dtype=np.float64)
    decoded = trace.phase == DECODE
    for start, stop in _runs(~decoded):
        axis.axvspan(
            start - 0.5, stop - 0.5, color="#f0f0f0", lw=0, label="prefill" if start == _runs(~decoded)[0][0] else None
        )
    axis.bar(np.arange(trace.n_token), stall, width=1.0, color=BLUE, alpha=0.85)
    title = "Stall per token"
    if decoded.any():
        median, high = np.quantile(stall[decoded], [0.5, 0.95])
        title += f", decode: median {median:.2f} ms, p95 {high:.2f} ms"
        axis.axhline(median, color=GREY, lw=1.2)
        axis.axhline(high, color=GREY, lw=1.2, ls="--", label="median and p95")
        # One prompt can wait longer than all of decode; what people look for is decode.
        axis.set_ylim(0, max(1.25 * float(stall[decoded].max()), 1e-6))
    axis.set_xlim(-0.5, max(trace.n_token - 0.5, 0.5))
    axis.set_xlabel("token")
    axis.set_ylabel("ms")
    axis.set_title(title)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _runs(mask: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """[first, last + 1) of each stretch of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _curves(plot: Any, figure: Any, axis: Any, trace: Trace) -> None:
    colours = plot.get_cmap("viridis")
    scale = plot.matplotlib.colors.Normalize(0, max(1, trace.n_layer - 1))
    for layer, curve in enumerate(hit_curves(trace, concave=False)):
        axis.plot(
            100 * np.arange(len(curve)) / (len(curve) - 1), 100 * curve, color=colours(scale(layer)), lw=1.2, alpha=0.85
        )
    axis.plot([0, 100], [0, 100], color=GREY, ls=":", lw=1.2)
    axis.annotate("flat routing", (62, 60), color="#6b6b6b", rotation=31, ha="center", va="top", fontsize=9)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 100)
    axis.set_xlabel("experts of a layer that fit, %")
    axis.set_ylabel("routed experts found, %")
    axis.set_title("Hit rate of whole experts under LRU, a line per layer (first uses miss)")
    figure.colorbar(plot.cm.ScalarMappable(scale, colours), ax=axis, label="MoE layer")
