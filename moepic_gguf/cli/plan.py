"""moepic-plan: what a memory budget buys, before anything is loaded. Arguments and the table; `moepic_gguf.planner` does the work."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..budgets import parse_budget, show_bytes
from ..errors import ArgumentError, BudgetError, UnsupportedModelError
from ..inspection import FileReport, inspect_file
from ..metadata import GgufFile
from ..planner import MODES, Costs, Machine, Plan, Prediction, make_plan, predict, prior_trace, recent
from ..trace import Trace, read_trace
from . import common


@click.command(context_settings=common.SETTINGS)
@click.argument("model")
@click.option(
    "--ram",
    default=None,
    metavar="SIZE",
    help="RAM for weights and keys and values, experts beyond it in the file: 6GiB, 50% of the file.",
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
    "-c", "--ctx-size", "n_ctx", type=click.IntRange(1), default=4096, help="Positions to reserve keys and values for."
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
@click.option("--recall", type=click.FloatRange(0, 1), default=0.0, help="Share of experts predicted rightly.")
@click.option("--n-prompt", type=click.IntRange(1), default=512, help="Prompt tokens, for TTFT.")
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
    modes: tuple[str, ...],
    top: int,
    recall: float,
    n_prompt: int,
    layers: bool,
    as_json: bool,
    **rates: Any,
) -> None:
    """Print what fits of MODEL in a budget, how experts are cut, and the predicted time of a token. Loads no weights.

    Predictions are modelled: each plan's cache is replayed over routing, and what it misses is divided by the rates given. Times of a token are the
    mean and, in brackets, the 10th and 90th percentile over replayed tokens.
    """
    with GgufFile(common.model_argument(model)) as file:
        report = inspect_file(file)
    if not report.n_expert or not report.moe_layers or not report.expert_bytes:
        raise UnsupportedModelError(f"'{report.path}' has no experts: there is nothing to plan")
    if (ram is None) == (vram is None):
        raise ArgumentError("give either --ram or --vram: what experts beyond it are served from depends on which")
    expert_bytes = report.expert_bytes * report.n_expert * report.moe_layers
    others = report.file_bytes - expert_bytes
    kv = (report.kv_bytes_per_token or 0) * n_ctx + report.kv_window_bytes
    name, text = ("--ram", ram) if ram is not None else ("--vram", vram)
    asked = parse_budget(text, name=name, whole_bytes=report.file_bytes) or 0
    budget = min(asked - others - kv, expert_bytes)
    if budget < 0:
        raise BudgetError(
            f"{name}: {show_bytes(asked)} do not hold what every token uses: {show_bytes(others)} of weights besides experts and {show_bytes(kv)} of "
            f"keys and values for {n_ctx} positions; at least {show_bytes(others + kv)} are needed"
        )
    machine = _machine(**rates)
    trace = _trace(report, trace_file)
    dense_s = others / report.moe_layers / machine.device_bytes_s + machine.layer_s
    costs = Costs.flat(report.moe_layers, compute_s=dense_s, window_s=dense_s if recall else 0.0, recall=recall)
    found = [(mode, make_plan(recent(trace), budget, machine, costs, mode=mode, top=top)) for mode in modes]
    rows = [
        (plan, predict(plan, trace, machine, costs), _ttft(plan, report, expert_bytes, machine, costs))
        for _, plan in found
    ]
    if as_json:
        for plan, prediction, ttft in rows:
            times = {
                "tpot_s": prediction.tpot_s,
                "tpot_low_s": prediction.low_s,
                "tpot_high_s": prediction.high_s,
                "ttft_stream_s": ttft,
            }
            click.echo(json.dumps(plan.as_dict() | {"predicted": times, "assumed": trace.info.get("assumed", [])}))
        return
    click.echo(_text(report, trace, machine, asked, budget, expert_bytes, rows, n_prompt), nl=False)
    if layers:
        click.echo(_layers(rows[0][0]), nl=False)


def _machine(machine_file: str | None, slow_rate: float | None, fast_rate: float | None) -> Machine:
    if machine_file is not None:
        return Machine.read(machine_file)
    if slow_rate is None:
        raise ArgumentError(
            "give --machine FILE, or --slow-rate GB/s: how fast the slow tier delivers cannot be guessed"
        )
    if fast_rate is None:
        from .bench_record import memory_ceiling

        fast = memory_ceiling(0)
    else:
        fast = fast_rate * 1e9
    return Machine(link_bytes_s=slow_rate * 1e9, device_bytes_s=fast)


def _trace(report: FileReport, trace_file: str | None) -> Trace:
    """Routing to plan for, with the sizes of this model."""
    width, granule = report.n_ff_exp or 1, report.granule
    n_granule = max(1, width // granule) if granule else max(1, width // 256) if width % 256 == 0 else 1
    if trace_file is None:
        return prior_trace(
            report.moe_layers, report.n_expert, report.n_expert_used, report.expert_bytes or 1, n_granule
        )
    trace = read_trace(trace_file, expert_bytes=report.expert_bytes)
    if trace.n_layer != report.moe_layers or int(trace.n_expert.max()) != report.n_expert:
        raise ArgumentError(
            f"--trace: recorded from {trace.n_layer} MoE layers of {int(trace.n_expert.max())} experts, the model has {report.moe_layers} of {report.n_expert}"
        )
    return replace(trace.cut_into(n_granule), info=trace.info)


def _ttft(plan: Plan, report: FileReport, expert_bytes: int, machine: Machine, costs: Costs) -> float:
    """A long prompt touches every expert: what is not resident is streamed once, beside the reading of what is. Compute of the prompt is not modelled."""
    missing = expert_bytes - plan.bytes
    return max(missing / machine.link_bytes_s, plan.bytes / machine.device_bytes_s) + float(sum(costs.compute_s))


def _text(
    report: FileReport,
    trace: Trace,
    machine: Machine,
    asked: int,
    budget: int,
    expert_bytes: int,
    rows: list[tuple[Plan, Prediction, float]],
    n_prompt: int,
) -> str:
    console = Console(highlight=False, soft_wrap=True, width=140)
    table = Table(box=None, pad_edge=False)
    for head in (
        "mode",
        "experts in budget",
        "slots/layer",
        "theta",
        "link share",
        "MB missed/token",
        "TPOT ms (p10-p90)",
        "tok/s",
        "TTFT s, at least",
    ):
        table.add_column(head, justify="left" if head == "mode" else "right", no_wrap=True)
    for plan, prediction, ttft in rows:
        slots = [layer.slots for layer in plan.layers]
        thetas = [layer.theta for layer in plan.layers if layer.slots]
        table.add_row(
            plan.mode,
            show_bytes(plan.bytes),
            f"{min(slots)}-{max(slots)}" if min(slots) != max(slots) else str(slots[0]),
            f"{min(thetas):.2f}-{max(thetas):.2f}"
            if thetas and min(thetas) != max(thetas)
            else f"{thetas[0]:.2f}"
            if thetas
            else "-",
            f"{100 * plan.link_share:.0f}%",
            f"{prediction.found.per_token('demand_bytes') / 1e6:.1f}",
            f"{1e3 * prediction.tpot_s:.2f} ({1e3 * prediction.low_s:.2f}-{1e3 * prediction.high_s:.2f})",
            f"{1 / prediction.tpot_s:.1f}",
            f"{ttft:.2f}",
        )
    with console.capture() as capture:
        console.print(
            f"{report.name or report.path}: {show_bytes(asked)} asked, {show_bytes(budget)} of it for experts, which are {show_bytes(expert_bytes)} "
            f"({100 * budget / expert_bytes:.0f}%)",
            markup=False,
        )
        console.print(
            f"slow tier {machine.link_bytes_s / 1e9:.2f} GB/s, fast tier {machine.device_bytes_s / 1e9:.2f} GB/s; predictions are modelled"
        )
        if "routing" in trace.info.get("assumed", []):
            console.print(
                f"no trace given: routing is a {trace.info['source']}; with --trace the prediction is about this model's own routing",
                markup=False,
            )
        console.print(table)
        console.print(
            f"TTFT counts the streaming of all experts that a prompt of {n_prompt} tokens is taken to touch, not its arithmetic"
        )
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _layers(plan: Plan) -> str:
    lines = [f"{plan.mode}: layer, bytes, slots, top granules, theta, MB missed per token"]
    for at, row in enumerate(plan.layers):
        lines.append(f"{at:5} {row.bytes:14} {row.slots:6} {row.top:5} {row.theta:6.2f} {row.miss_bytes / 1e6:9.3f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
