"""moepic-plan: what a memory budget buys, before anything is loaded. Arguments and the tables; `moepic_gguf.forecast` does the work."""

from __future__ import annotations

import json
import os
from math import floor, log10
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..budgets import parse_budget, show_bytes
from ..errors import ArgumentError, UnsupportedModelError
from ..footprint import embedding_of, engine_footprint, footprint, granules_of
from ..forecast import Band, Forecast, Subject, costs_of, curve, forecast
from ..inspection import FileReport, inspect_file
from ..metadata import GgufFile
from ..planner import MODES, Machine, Plan, prior_trace, with_guesses
from ..trace import Trace, read_trace
from . import common


@click.command(context_settings=common.SETTINGS)
@click.argument("model")
@click.option(
    "--ram",
    default=None,
    metavar="SIZE",
    help="RAM for everything, experts beyond it in the file: 6GiB, 50% of the file.",
)
@click.option("--vram", default=None, metavar="SIZE", help="The same for video memory, experts beyond it in RAM.")
@click.option(
    "--machine", "machine_file", default=None, metavar="FILE", help="Measured rates of this machine (docs/planning.md)."
)
@click.option("--slow-rate", type=float, default=None, help="GB/s of the slow tier, instead of --machine.")
@click.option("--fast-rate", type=float, default=None, help="GB/s of the fast tier; measured now by default.")
@click.option(
    "--trace",
    "trace_file",
    default=None,
    metavar="FILE",
    help="Recorded routing of this model; a stated prior otherwise.",
)
@click.option(
    "-c",
    "--ctx-size",
    "--n-ctx",
    "n_ctx",
    type=click.IntRange(1),
    default=4096,
    help="Positions to reserve keys and values for.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(list(MODES)),
    default=("auto", "paper", "uniform", "none"),
    help="May be repeated.",
)
@click.option("--top", type=click.IntRange(0), default=0, help="Granules per cached expert, for --mode fixed.")
@click.option("-b", "--batch-size", "n_batch", type=click.IntRange(1), default=512, help="Prompt tokens together.")
@click.option("-t", "--threads", "n_threads", type=click.IntRange(0), default=0, help="0: all cores.")
@click.option(
    "--recall",
    type=click.FloatRange(0, 1),
    default=None,
    help="Share of experts predicted rightly, assumed; by default what the trace recorded, or no predictor.",
)
@click.option("--n-prompt", type=click.IntRange(1), default=512, help="Prompt tokens, for TTFT.")
@click.option("--plot", default=None, metavar="OUT.png", help="Draw predicted speed against budget.")
@click.option("--layers", is_flag=True, help="Print the first plan layer by layer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per plan.")
@click.version_option(__version__, prog_name="moepic-plan")
@common.one_line_errors
def main(
    model: str,
    ram: str | None,
    vram: str | None,
    trace_file: str | None,
    n_ctx: int,
    n_batch: int,
    n_threads: int,
    modes: tuple[str, ...],
    top: int,
    recall: float | None,
    n_prompt: int,
    plot: str | None,
    layers: bool,
    as_json: bool,
    **rates: Any,
) -> None:
    """Print what fits of MODEL in a budget, how experts are cut, and the predicted time of a prompt and of a token. Loads no weights.

    Predictions are modelled: each plan's cache is replayed over routing, and what it misses is divided by the rates given. The band of a time covers the
    spread over stretches of routing (over flat and skewed priors where none was recorded) and of the machine's measured rates.
    """
    if (ram is None) == (vram is None):
        raise ArgumentError("give either --ram or --vram: what experts beyond it are served from depends on which")
    if "fixed" in modes and top < 1:
        raise ArgumentError("--mode fixed needs --top: granules per cached expert")
    with GgufFile(common.model_argument(model)) as file:
        report = inspect_file(file)
        if not report.n_expert or not report.moe_layers or not report.expert_bytes:
            raise UnsupportedModelError(
                f"'{report.path}' has no experts: every weight is used by every token, so a budget is all of it or nothing, and there is nothing to plan"
            )
        n_granule, embedding = granules_of(file, report), embedding_of(file)
    name, text = ("--ram", ram) if ram is not None else ("--vram", vram)
    memory = footprint(
        report,
        n_granule,
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_threads=n_threads or len(os.sched_getaffinity(0)),
        embedding=embedding,
        on_device=vram is not None,
    )
    asked = parse_budget(text, name=name, whole_bytes=report.file_bytes) or 0
    if ram is not None:
        memory = engine_footprint(
            report.path, memory, ram_bytes=asked, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads
        )
    room = memory.room(asked, name=name)
    machine = _machine(**rates)
    trace, recall = _guesses(_trace(report, n_granule, trace_file), recall)
    subject = Subject(
        report=report,
        memory=memory,
        machine=machine,
        trace=trace,
        costs=costs_of(report, memory, machine, n_context=min(n_prompt, n_ctx), recall=recall),
        is_prior=trace_file is None,
        n_prompt=n_prompt,
        n_batch=n_batch,
    )
    rows = [forecast(subject, room, mode, top=top) for mode in modes]
    if plot is not None:
        from ..plan_picture import draw_plan

        shown = list(dict.fromkeys([*modes, "auto", "paper", "none"]))
        draw_plan(plot, subject, curve(subject, shown, top=top), asked, rows[0], tier="RAM" if vram is None else "VRAM")
    if as_json:
        more = {"asked_bytes": asked, "memory": memory.as_dict(), "assumed": trace.info.get("assumed", [])}
        for row in rows:
            click.echo(json.dumps(row.plan.as_dict() | {"predicted": row.as_dict()} | more))
        return
    click.echo(_text(subject, asked, room, rows), nl=False)
    if layers:
        click.echo(_layers(rows[0].plan), nl=False)


def _machine(machine_file: str | None, slow_rate: float | None, fast_rate: float | None) -> Machine:
    if machine_file is not None:
        return Machine.read(machine_file)
    if slow_rate is None:
        raise ArgumentError(
            "give --machine FILE (moepic-bench machine --out FILE measures one), or --slow-rate GB/s: how fast the slow tier delivers cannot be guessed"
        )
    if fast_rate is None:
        from .bench_record import memory_ceiling

        fast = memory_ceiling(0)
    else:
        fast = fast_rate * 1e9
    return Machine(link_bytes_s=slow_rate * 1e9, device_bytes_s=fast)


def _trace(report: FileReport, n_granule: int, trace_file: str | None) -> Trace:
    """Routing to plan for, with the sizes of this model."""
    if trace_file is None:
        return prior_trace(
            report.moe_layers, report.n_expert, report.n_expert_used, report.expert_bytes or 1, n_granule, n_token=320
        )
    trace = read_trace(trace_file, expert_bytes=report.expert_bytes)
    if trace.n_layer != report.moe_layers or int(trace.n_expert.max()) != report.n_expert:
        raise ArgumentError(
            f"--trace: recorded from {trace.n_layer} MoE layers of {int(trace.n_expert.max())} experts, the model has {report.moe_layers} of {report.n_expert}"
        )
    if trace.n_token < 2:
        raise ArgumentError(f"--trace: '{trace_file}' holds {trace.n_token} tokens; a plan needs some dozens")
    return trace.cut_into(n_granule)


def _guesses(trace: Trace, recall: float | None) -> tuple[Trace, float]:
    """The trace with the guesses to plan with, and their recall: those recorded, or made-up ones of the recall asked for."""
    if recall is not None:
        return (with_guesses(trace, recall), recall) if recall > 0 else (trace.without_guesses(), 0.0)
    return trace, trace.recall if trace.predicted is not None else 0.0


def _text(subject: Subject, asked: int, room: int, rows: list[Forecast]) -> str:
    memory, machine, report = subject.memory, subject.machine, subject.report
    console = Console(highlight=False, soft_wrap=True, width=160)
    with console.capture() as capture:
        console.print(f"{report.name or report.path}: {show_bytes(asked)} asked", markup=False)
        fits = Table(box=None, pad_edge=False, show_header=False)
        fits.add_column(justify="right", no_wrap=True)
        fits.add_column(no_wrap=True)
        for what, size in memory.parts().items():
            if size:
                fits.add_row(show_bytes(size), what)
        share = f"{100 * room / memory.experts:.0f}%"
        fits.add_row(
            show_bytes(room), f"experts, {share} of {show_bytes(memory.experts)}; {show_bytes(memory.unit)} a transfer"
        )
        console.print(fits)
        if room >= memory.experts:
            spare = asked - memory.whole
            console.print(f"everything is resident, nothing is streamed; {show_bytes(spare)} to spare")
        console.print(_table(rows))
        console.print(
            f"modelled: slow tier {machine.link_bytes_s / 1e9:.2f} GB/s, fast tier {machine.device_bytes_s / 1e9:.2f} GB/s; a prompt of {subject.n_prompt} tokens; "
            f"bands from {_band_source(subject)}",
            markup=False,
        )
        if subject.is_prior:
            console.print(
                f"no trace given: routing is a {subject.trace.info['source']}; with --trace the prediction is about this model's own routing",
                markup=False,
            )
        if "guesses" in subject.trace.info:
            console.print(f"prefetch: {subject.trace.info['guesses']}", markup=False)
        for row in rows:
            if row.plan.mode == "auto" and row.cache:
                console.print(f"auto runs: {row.cache}", markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _band_source(subject: Subject) -> str:
    routing = "flat to skewed priors" if subject.is_prior else "the 10th to 90th percentile over stretches of 16 tokens"
    low, high = subject.machine.spread
    rates = (
        f"rates of {100 * (low - 1):+.0f} to {100 * (high - 1):+.0f} %, measured"
        if (low, high) != (1.0, 1.0)
        else "rates of +-20 %, assumed"
    )
    return f"{routing} and {rates}"


def _table(rows: list[Forecast]) -> Table:
    table = Table(box=None, pad_edge=False)
    heads = (
        "mode",
        "experts held",
        "slots/layer",
        "theta",
        "link share",
        "MB missed/token",
        "TPOT ms (band)",
        "tok/s",
        "TTFT s (band)",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "mode" else "right", no_wrap=True)
    for row in rows:
        slots = [layer.slots for layer in row.plan.layers]
        thetas = [round(layer.theta, 2) for layer in row.plan.layers if layer.slots]
        table.add_row(
            row.plan.mode,
            show_bytes(row.plan.bytes),
            "all" if row.is_resident else _range(slots),
            "1.00" if row.is_resident else _range(thetas, ".2f") if thetas else "-",
            f"{100 * row.plan.link_share:.0f}%",
            f"{row.missed_bytes / 1e6:.1f}",
            _band(row.tpot, 1e3),
            f"{1 / row.tpot.mean_s:.1f}",
            _band(row.ttft, 1),
        )
    return table


def _range(values: list[Any], shown: str = "") -> str:
    low, high = format(min(values), shown), format(max(values), shown)
    return low if low == high else f"{low}-{high}"


def _band(band: Band, scale: float) -> str:
    mean, low, high = (
        f"{scale * seconds:.{max(0, 2 - floor(log10(max(scale * band.mean_s, 1e-9))))}f}"
        for seconds in (band.mean_s, band.low_s, band.high_s)
    )
    return f"{mean} ({low}-{high})"


def _layers(plan: Plan) -> str:
    lines = [f"{plan.mode}: layer, bytes, slots, top granules, theta, MB missed per token"]
    for at, row in enumerate(plan.layers):
        lines.append(f"{at:5} {row.bytes:14} {row.slots:6} {row.top:5} {row.theta:6.2f} {row.miss_bytes / 1e6:9.3f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
