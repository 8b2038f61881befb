"""Entry of the converter: arguments and order of work. `python convert/to_gguf.py INPUT OUTPUT`, installed as
`moepic-convert`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file from a source tree: put the tree on the path and take the package's place (PEP 366).
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "convert"
    __import__(__package__)

import click

from moepic_gguf.errors import ConversionError, MoepicError

from . import importance
from .plan import Cut, Orders, Plan, describe, human, make_plan, parse_ratios, parse_size
from .quantize import OUTTYPES
from .sources import Content
from .sources.gguf_source import open_gguf
from .sources.hf import open_folder
from .writer import check_target, write


def open_source(path: Path, outtype: str | None, *, with_vocabulary: bool = True, pre: str | None = None) -> Content:
    """A Hugging Face folder or a GGUF file, whichever `path` is. Raises ConversionError."""
    if path.is_dir():
        return open_folder(path, outtype, with_vocabulary=with_vocabulary, pre=pre)
    if not path.exists():
        raise ConversionError(f"input '{path}' does not exist")
    if path.suffix == ".safetensors":
        raise ConversionError(f"input '{path}' is one file of a checkpoint; give the folder, which holds config.json")
    if outtype is not None:
        raise ConversionError("--outtype does not go with a GGUF input: its tensors are moved, never requantized")
    return open_gguf(path)


def convert(
    source: Path,
    target: Path,
    *,
    outtype: str | None = None,
    how: Cut | None = None,
    force: bool = False,
    with_vocabulary: bool = True,
    pre: str | None = None,
    calibration: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Convert `source` to `target` and return what was written.

    calibration   a text; the neurons of each expert are then ordered by importance on it. None: the natural order.
    progress      called with bytes done and in all.
    Raises        ConversionError, OSError; the target is then as it was before.
    """
    content, how = open_source(source, outtype, with_vocabulary=with_vocabulary, pre=pre), how or Cut()
    plan = make_plan(content, target, how)
    check_target(plan.shards, content.inputs, force=force)
    if calibration:
        orders = neuron_orders(source, target, content, calibration, with_vocabulary=with_vocabulary, pre=pre)
        plan = make_plan(content, target, replace(how, orders=orders))
    total, done = plan.n_bytes, 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    write(plan.shards, step)
    return plan


def neuron_orders(
    source: Path,
    target: Path,
    content: Content,
    calibration: Path,
    *,
    with_vocabulary: bool = True,
    pre: str | None = None,
) -> Orders:
    """Orders of the neurons by importance, from running the model over `calibration`.

    A folder is first converted to an uncut file of its own floats beside the target, which is removed afterwards.
    """
    if source.is_file():
        return importance.orders(content, importance.measure(source, content, calibration, content.warnings))
    plain = target.with_name(target.name + ".calibration.gguf")
    try:
        convert(source, plain, how=Cut(split=False), force=True, with_vocabulary=with_vocabulary, pre=pre)
        scores = importance.measure(plain, open_gguf(plain), calibration, content.warnings)
    finally:
        plain.unlink(missing_ok=True)
    return importance.orders(content, scores)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option(
    "--outtype",
    type=click.Choice(list(OUTTYPES)),
    help="Type of the weights (folders only). Default: the floats the checkpoint has.",
)
@click.option(
    "--split-ratio",
    default="0.5",
    show_default=True,
    help="Top share of each expert: a number, one per layer (a,b,...), or a file of them.",
)
@click.option(
    "--granule",
    type=click.IntRange(min=1),
    help="Neurons per granule. Default: the smallest legal one of at least 256.",
)
@click.option("--no-split", is_flag=True, help="Write ordinary ffn_*_exps tensors, as llama.cpp does.")
@click.option("--max-shard-size", help="Write shards of at most this size, for example 4GiB.")
@click.option("--separate-segments", is_flag=True, help="Put the bottoms into shards of their own.")
@click.option("--no-vocab", is_flag=True, help="Leave the tokenizer out; the file then serves token ids.")
@click.option("--tokenizer-pre", help="tokenizer.ggml.pre, instead of finding it out.")
@click.option(
    "--neuron-order",
    type=click.Choice(["natural", "importance"]),
    default="natural",
    show_default=True,
    help="Order of an expert's neurons; importance needs --calibration.",
)
@click.option(
    "--calibration", type=click.Path(path_type=Path, dir_okay=False), help="A text for --neuron-order importance."
)
@click.option("--dry-run", is_flag=True, help="Print sizes, types and peak memory; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def main(
    source: Path,
    target: Path,
    outtype: str | None,
    split_ratio: str,
    granule: int | None,
    no_split: bool,
    max_shard_size: str | None,
    separate_segments: bool,
    no_vocab: bool,
    tokenizer_pre: str | None,
    neuron_order: str,
    calibration: Path | None,
    dry_run: bool,
    force: bool,
) -> None:
    """Write INPUT (a Hugging Face folder, or a GGUF file) to OUTPUT as a pre-split GGUF.

    A GGUF input is cut anew without requantizing, bit for bit.
    """
    try:
        _stop_cleanly_on_sigterm()
        if (neuron_order == "importance") != (calibration is not None):
            raise ConversionError("--neuron-order importance and --calibration FILE go together")
        how = Cut(
            ratios=parse_ratios(split_ratio),
            granule=granule,
            split=not no_split,
            separate_segments=separate_segments,
            max_shard_bytes=parse_size(max_shard_size) if max_shard_size else None,
        )
        if dry_run:
            plan = make_plan(open_source(source, outtype, with_vocabulary=not no_vocab, pre=tokenizer_pre), target, how)
            click.echo(describe(plan))
            _warn(plan)
            return
        with _Bar() as bar:
            plan = convert(
                source,
                target,
                outtype=outtype,
                how=how,
                force=force,
                with_vocabulary=not no_vocab,
                pre=tokenizer_pre,
                calibration=calibration,
                progress=bar.update,
            )
        _warn(plan)
        click.echo(describe(plan), err=True)
        click.echo(plan.shards[0].path)
    except MoepicError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: {error.filename or target}: {error.strerror or error} (nothing was written)", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(130)


def _stop_cleanly_on_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, so that partial files are removed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _warn(plan: Plan) -> None:
    for warning in plan.content.warnings:
        click.echo(f"warning: {warning}", err=True)


class _Bar:
    """A progress bar on stderr, only where that is a terminal."""

    def __init__(self) -> None:
        self._rich = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = (
                "converting",
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._rich = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._rich.add_task("convert", total=None)

    def __enter__(self) -> _Bar:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._rich:
            self._rich.stop()

    def update(self, done: int, total: int) -> None:
        if self._rich:
            self._rich.update(self._task, completed=done, total=total)


__all__ = ["convert", "human", "main", "open_source"]

if __name__ == "__main__":
    main(prog_name="to_gguf.py")
