"""The picture of moepic-plan: predicted speed against budget, a line per mode, the chosen budget marked. Draws; predicts nothing."""

from __future__ import annotations

import os
from typing import Any

from .budgets import show_bytes
from .forecast import Forecast, Subject
from .pictures import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, pyplot, save

_COLOURS = {"auto": BLUE, "paper": RED, "uniform": ORANGE, "fixed": VIOLET, "worth": GREEN, "none": GREY}
_NAMES = {
    "auto": "auto",
    "paper": "paper (MoEpic's plan)",
    "uniform": "uniform (one θ for all layers)",
    "fixed": "fixed θ",
    "worth": "worth (one sort)",
    "none": "none (everything streamed)",
}
_GIB = 2**30


def draw_plan(
    path: str | os.PathLike[str],
    subject: Subject,
    curves: dict[str, list[tuple[int, float]]],
    budget_bytes: int,
    chosen: Forecast,
    *,
    tier: str,
) -> None:
    """Draw `curves` (from `forecast.curve`) with `chosen`, the forecast of the first mode at `budget_bytes`. Raises `ArgumentError`, `IoError`."""
    plot = pyplot()
    figure, axis = plot.subplots(figsize=(10, 6), layout="constrained")
    for mode, points in reversed(curves.items()):
        budgets, seconds = zip(*points, strict=True)
        first = mode == chosen.plan.mode
        axis.plot(
            [b / _GIB for b in budgets], [1 / s for s in seconds], color=_COLOURS[mode], lw=2.6 if first else 1.8, zorder=3 if first else 2,
            label=_NAMES[mode], ls="-" if mode != "none" else (0, (4, 3)),
        )  # fmt: skip
    at = min(budget_bytes, subject.memory.whole) / _GIB
    tpot = chosen.tpot
    axis.errorbar(
        [at], [1 / tpot.mean_s], yerr=[[1 / tpot.mean_s - 1 / tpot.high_s], [1 / max(tpot.low_s, 1e-12) - 1 / tpot.mean_s]],
        fmt="o", color=_COLOURS[chosen.plan.mode], ms=8, capsize=4, lw=1.6, zorder=5, mec="white", mew=1.2,
    )  # fmt: skip
    left, right = subject.memory.overhead / _GIB, subject.memory.whole / _GIB
    width = max(right - left, 1e-9)
    near_right = at > left + 0.62 * width
    axis.annotate(
        _words(chosen, budget_bytes), (at, 1 / tpot.mean_s), xytext=(-14 if near_right else 14, -12), textcoords="offset points", zorder=6,
        ha="right" if near_right else "left", va="top", fontsize=10, bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": "#d0d0d0", "alpha": 0.92},
    )  # fmt: skip
    for place, text in ((left, "smallest that works"), (right, "everything resident")):
        axis.axvline(place, color="#b5b5b5", lw=1, ls=":")
        axis.annotate(
            f"{text}\n{show_bytes(round(place * _GIB))}", (place, 1.0), xycoords=("data", "axes fraction"), xytext=(4 if place == left else -4, 4),
            textcoords="offset points", ha="left" if place == left else "right", va="bottom", fontsize=9, color="#6b6b6b",
        )  # fmt: skip
    axis.set_xlim(left - 0.03 * width, right + 0.03 * width)
    axis.set_ylim(0, None)
    axis.set_xlabel(f"{tier} budget, GiB")
    axis.set_ylabel("tokens per second, decode")
    _title(figure, axis, subject)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(0.01, 0.99))
    save(figure, path)


def _words(chosen: Forecast, budget_bytes: int) -> str:
    tpot = chosen.tpot
    where = (
        "everything resident" if chosen.is_resident else f"{show_bytes(round(chosen.missed_bytes))} missed per token"
    )
    return f"{show_bytes(budget_bytes)}: {1 / tpot.mean_s:.1f} tok/s ({1 / tpot.high_s:.1f} to {1 / max(tpot.low_s, 1e-12):.1f})\n{where}"


def _title(figure: Any, axis: Any, subject: Subject) -> None:
    report, machine = subject.report, subject.machine
    axis.set_title(f"{report.name or report.path}: predicted speed against budget", pad=34, fontsize=12.5)
    routing = "assumed routing" if subject.is_prior else "recorded routing"
    rates = f"slow tier {machine.link_bytes_s / 1e9:.2f} GB/s, fast tier {machine.device_bytes_s / 1e9:.1f} GB/s"
    figure.supxlabel(f"modelled: {routing}; {rates}", x=0.99, ha="right", fontsize=9, color="#6b6b6b")
