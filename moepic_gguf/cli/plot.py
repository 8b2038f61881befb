"""moepic-bench plot: a picture of a trace. Arguments; `moepic_gguf.trace_picture` draws."""

from __future__ import annotations

import click

from ..budgets import parse_budget
from ..trace import read_trace
from . import common


@click.command("plot", context_settings=common.SETTINGS)
@click.argument("trace", type=click.Path())
@click.option("-o", "--out", required=True, type=click.Path(), help="The picture: .png, .svg or .pdf.")
@click.option("--expert-bytes", default=None, metavar="SIZE", help="Of one expert, where the trace does not say.")
@common.one_line_errors
def main(trace: str, out: str, expert_bytes: str | None) -> None:
    """Draw TRACE: what routed experts found per layer, bytes per lane, stall per token.

    A trace of routing alone (no outcomes) is drawn as hit curves, and what it cannot show is said.
    """
    from ..trace_picture import draw_trace

    recorded = read_trace(trace, expert_bytes=parse_budget(expert_bytes, name="--expert-bytes"))
    for missing in draw_trace(recorded, out):
        click.echo(f"note: {missing}", err=True)
    click.echo(f"wrote {out}")
