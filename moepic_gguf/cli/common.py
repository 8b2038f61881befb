"""What the console scripts share: options, one-line errors, the loading bar. Knows no chat and no benchmark."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..config import GRAPHS
from ..errors import InternalError, IoError, MoepicError
from ..metadata import resolve_path
from ..model import Model
from ..streaming import POLICIES, PREDICTORS, StreamingOptions

F = TypeVar("F", bound=Callable[..., Any])

# `-sys` is a long option with one dash, as in llama.cpp. MOEPIC_ and the name of a parameter below (MOEPIC_N_CTX,
# MOEPIC_TEMPERATURE) set defaults.
SETTINGS = {"auto_envvar_prefix": "MOEPIC", "help_option_names": ["-h", "--help"], "show_default": True}


# Text of models and files must not steer the terminal: control characters but newline and tab are shown as pictures.
_SAFE = (
    {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(128, 160), 0xFFFD)
)


def harmless(text: str) -> str:
    """`text` for a terminal; what is written to a pipe or a file stays as it is."""
    return text.translate(_SAFE)


def say(text: str) -> None:
    """Print a line, harmless where a person reads it."""
    click.echo(harmless(text) if sys.stdout.isatty() else text)


def stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def one_line_errors(command: F) -> F:
    """Errors we raise on purpose, and those of the system, become one line and exit code 2; a defect of ours keeps its
    traceback.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        _mend_streams()
        try:
            return command(*args, **kwargs)
        except InternalError:
            raise
        except MoepicError as error:
            click.echo(f"error: {explain(error)}", err=True)
            sys.exit(2)
        except BrokenPipeError:  # the reader of our output left
            _drop_output()
            sys.exit(141)
        except OSError as error:  # a full disk behind stdout, say
            _drop_output()
            what = f": '{error.filename}'" if error.filename else ""
            click.echo(f"error: {error.strerror or error}{what}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("", err=True)
            sys.exit(130)

    return run  # type: ignore[return-value]


def _mend_streams() -> None:
    """Make what a program was started without (`<&-`) an empty stream, and show what a terminal's encoding cannot as
    '?'.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - lives as long as we do
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Nothing can be written any more; without this the interpreter would try once more when it ends, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: MoepicError) -> str:
    """The error's text on one line, with a tip for a name that is no file but looks like a model's name elsewhere."""
    text = harmless(" ".join(str(error).split()))
    if isinstance(error, IoError) and "does not exist" in text and "README" not in text:
        text += " (models/README.md says how to get and place models)"
    return text


def set_up_logging(verbose: int) -> None:
    """Warnings by default; -v for information, -vv for everything."""
    from rich.logging import RichHandler

    handler = RichHandler(console=stderr(), show_time=False, show_path=False, markup=False)
    logger = logging.getLogger("moepic_gguf")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


def load_options(command: F) -> F:
    """The options of `Model.load`, named as in llama.cpp where it has them."""
    for option in reversed(
        [
            click.option(
                "-c",
                "--ctx-size",
                "n_ctx",
                type=click.IntRange(0),
                default=0,
                help="Positions; 0: the model's, at most 4096.",
            ),
            click.option(
                "-b",
                "--batch-size",
                "n_batch",
                type=click.IntRange(0),
                default=0,
                help="Tokens computed together in prefill.",
            ),
            click.option(
                "-t",
                "--threads",
                "n_threads",
                type=click.IntRange(0),
                default=0,
                help="0: all cores this process may use.",
            ),
            click.option(
                "-ctk",
                "--cache-type",
                "kv_type",
                type=click.Choice(["f16", "q8_0"]),
                default="f16",
                help="Keys and values.",
            ),
            click.option("--ram", default=None, metavar="SIZE", help="Most RAM to use: bytes, 8GiB, 50%."),
            click.option(
                "--policy",
                default=None,
                type=click.Choice(list(POLICIES)),
                help="Who stays in the expert cache.  [default: lrfu]",
            ),
            click.option(
                "--predictor",
                default=None,
                type=click.Choice(list(PREDICTORS)),
                help="Which experts are fetched ahead.  [default: next_layer]",
            ),
            click.option(
                "--plan",
                default=None,
                metavar="MODE",
                help="Budgets and cuts per layer: auto, paper, uniform, or a split ratio; with --machine.",
            ),
            click.option(
                "--machine", default=None, metavar="FILE", help="Measured rates (moepic-bench machine --out FILE)."
            ),
            click.option("--profile", default=None, metavar="FILE", help="Start with these experts in the cache."),
            click.option("--cache", default=None, metavar="SIZE", help="Expert cache, where --ram shall not decide."),
            click.option(
                "--emulate-link",
                default=None,
                type=float,
                metavar="GB/S",
                help="Study a device: experts in RAM behind an emulated link, --cache as its memory.",
            ),
            click.option(
                "--vram", default=None, metavar="SIZE", help="Most of a GPU's memory to use.  [default: what is free]"
            ),
            click.option("--device", default="auto", metavar="auto|cpu|cuda", help="Where to compute."),
            click.option(
                "--cpu-lane/--no-cpu-lane", default=True, help="On a GPU: the CPU computes granules beside it."
            ),
            click.option(
                "--graphs",
                type=click.Choice(list(GRAPHS)),
                default="auto",
                help="On a GPU: a token's launches as one graph; auto: where that is faster.",
            ),
            click.option(
                "--isa",
                type=click.Choice(["auto", "scalar", "avx2", "avx512"]),
                default="auto",
                help="Instruction set.",
            ),
            click.option(
                "--granule", type=click.IntRange(0), default=0, help="Neurons per granule; 0: the engine's rule."
            ),
            click.option("--strict", is_flag=True, help="A downgrade is an error instead of a warning."),
            click.option("-v", "--verbose", count=True, help="Say more; -vv says everything."),
        ]
    ):
        command = option(command)
    return command


def load_model(
    path: str | Path, options: dict[str, Any], *, chat_template: str | None = None, quiet: bool = False
) -> Model:
    """`Model.load` with a bar on a terminal. Size options that are plain digits are bytes."""
    options = {name: value for name, value in options.items() if name != "verbose"}
    cache, link = options.pop("cache", None), options.pop("emulate_link", None)
    if cache is not None or link is not None:
        options["streaming"] = StreamingOptions(always=True, cache=cache, link_bytes_s=1e9 * (link or 0.0))
    if options.get("plan") is not None:
        options["plan"] = ratio_or_mode(options["plan"])
    console = stderr()
    if quiet or not console.is_terminal:
        return Model.load(path, chat_template=chat_template, **options)
    with progress_bar(console) as bar:
        task = bar.add_task(f"loading {Path(path).name}", total=None)

        def report(stage: str, done: int, total: int) -> bool:
            bar.update(task, completed=done, total=total or None)
            return True

        return Model.load(path, chat_template=chat_template, progress=report, **options)


def ratio_or_mode(text: str) -> str | float:
    """A plan's mode, or the number it is."""
    try:
        return float(text)
    except ValueError:
        return text


LOADING = (
    "n_ctx",
    "n_batch",
    "n_threads",
    "kv_type",
    "ram",
    "policy",
    "predictor",
    "plan",
    "machine",
    "profile",
    "cache",
    "emulate_link",
    "vram",
    "device",
    "cpu_lane",
    "graphs",
    "isa",
    "granule",
    "strict",
    "verbose",
)  # what `load_options` adds


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class PromptProgress:
    """One line on the terminal's stderr while a prompt is computed; it goes away when that ends, and stays where
    that is stopped.
    """

    def __init__(self) -> None:
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        text = f"prompt: {done} of {total} tokens"
        if done >= total or len(text) >= shutil.get_terminal_size().columns:  # a line that wraps cannot be taken back
            self.clear()
            return
        self._write(text.ljust(self._shown))
        self._shown = len(text)

    def clear(self) -> None:
        if self._shown:
            self._write(" " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        sys.stderr.write("\r" + text)
        sys.stderr.flush()


def model_argument(path: str) -> Path:
    """The path of a MODEL argument; a name of another program's kind gets a hint."""
    try:
        return resolve_path(path)
    except IoError:
        if (
            not path.endswith(".gguf")
            and not Path(path).exists()
            and ("/" in path or ":" in path)
            and not path.startswith((".", "/", "~"))
        ):
            raise IoError(
                f"'{path}' does not exist: MODEL is a GGUF file on this machine, and nothing is downloaded; "
                f"models/README.md says how to "
                f"get and place models"
            ) from None
        raise
