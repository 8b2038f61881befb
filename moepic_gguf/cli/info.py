"""moepic-info: print what a GGUF file holds and whether this build runs it. Loads no weights."""

from __future__ import annotations

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..budgets import show_bytes
from ..inspection import FileReport, inspect_file
from ..metadata import GgufFile
from . import common


@click.command(context_settings=common.SETTINGS)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--keys", is_flag=True, help="Print the metadata keys as well.")
@click.option("--tensors", is_flag=True, help="Print the tensor table as well.")
@click.version_option(__version__, prog_name="moepic-info")
@common.one_line_errors
def main(file: str, as_json: bool, keys: bool, tensors: bool) -> None:
    """Print what FILE (GGUF; any shard of a split one) holds. Exit code 0: supported, 1: not supported, 2: not
    readable.
    """
    with GgufFile(common.model_argument(file)) as opened:
        report = inspect_file(opened)
        record = report.as_dict()
        if keys:
            record["keys"] = {name: _short(opened, name) for name in opened.metadata}
        if tensors:
            record["tensors"] = [vars(tensor) for tensor in opened.tensors]
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False, indent=1, default=str))
    else:
        _print(report, record)
    sys.exit(0 if report.is_supported else 1)


def _short(file: GgufFile, name: str) -> object:
    """A key's value; of a long array, its length only."""
    count = file.metadata.count(name)
    if count > 64:
        return f"[{count} elements]"
    try:
        return file.metadata[name]
    except ValueError as error:
        return f"({error})"


def _print(report: FileReport, record: dict[str, object]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    shards = f" in {report.shards} shards" if report.shards > 1 else ""
    console.print(f"[bold]{_plain(report.name or report.path)}[/bold]  {_plain(report.architecture)}", soft_wrap=True)
    console.print(f"size        {show_bytes(report.file_bytes)}{shards}, {report.n_weights / 1e6:,.1f} M weights")
    console.print(
        f"shape       {_or(report.n_layer)} layers, width {_or(report.n_embd)}, {_or(report.n_head)} heads "
        f"({_or(report.n_head_kv)} for keys) of {_or(report.head_dim)}, vocabulary {_or(report.n_vocab)}, trained for "
        f"{_or(report.n_ctx_train)} positions"
    )
    if report.n_expert:
        shared = f", a shared expert of width {report.n_ff_shared}" if report.n_ff_shared else ""
        console.print(
            f"experts     {report.n_expert} in each of {report.moe_layers} layers, {report.n_expert_used} used per "
            f"token, width "
            f"{report.n_ff_exp}, {show_bytes(report.expert_bytes or 0)} each{shared}"
        )
        if report.granule:
            console.print(
                f"cut         granules of {report.granule} neurons, tops hold {100 * (report.top_share or 0):.0f}% of "
                f"the experts' "
                f"bytes, neuron order {report.neuron_order or 'natural'}"
            )
        else:
            console.print("cut         an ordinary file: experts are cut into granules when it is loaded")
    else:
        console.print("experts     none (dense)")
    if report.kv_bytes_per_token:
        tokens = max(0, 2**30 - report.kv_window_bytes) // report.kv_bytes_per_token
        windows = f" and {show_bytes(report.kv_window_bytes)} in windows" if report.kv_window_bytes else ""
        console.print(
            f"keys/values {show_bytes(report.kv_bytes_per_token)} per token{windows} in F16: {tokens:,} tokens per GiB"
        )
    if report.state_bytes:
        console.print(
            f"state       {show_bytes(report.state_bytes)} per sequence, whatever its length: {report.kv_layers} of "
            f"{_or(report.n_layer)} layers have keys and values; checkpoints take as much each"
        )
    console.print(
        f"tokenizer   {_plain(report.tokenizer)}, {'with' if report.has_chat_template else 'without'} a chat template"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, right in (
        ("tensors", False),
        ("count", True),
        ("weights", True),
        ("bytes", True),
        ("bits/w", True),
        ("types", False),
    ):
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for row in report.classes:
        types = ", ".join(f"{name} x{n}" for name, n in sorted(row.types.items(), key=lambda item: -item[1]))
        weights = f"{row.n_weights / 1e6:,.2f} M"
        table.add_row(
            row.name, str(row.n_tensors), weights, show_bytes(row.n_bytes), f"{row.bits_per_weight:.2f}", types
        )
    console.print(table)
    for remark in report.remarks:
        console.print(f"note: {_plain(remark)}")
    for problem in report.problems:
        console.print(f"not supported: {_plain(problem)}")
    if report.is_supported:
        console.print("supported: this build loads every key and tensor of it")
    for title in ("keys", "tensors"):
        rows = record.get(title)
        for item in rows.items() if isinstance(rows, dict) else rows if isinstance(rows, list) else ():
            console.print(_plain(_row(item)))


def _or(number: int | None) -> str:
    return "?" if number is None else str(number)


def _row(item: object) -> str:
    if isinstance(item, tuple):
        return f"{item[0]} = {item[1]!r}"
    if isinstance(item, dict):
        place = f"{item['n_bytes']} bytes at {item['offset']} of shard {item['shard']}"
        return f"{item['name']:44} {item['type']:8} {item['shape']!s:24} {place}"
    return str(item)


def _plain(text: str) -> str:
    """Text from a file, made harmless for a terminal and for rich's markup."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("[", "\\[")


if __name__ == "__main__":
    main()
