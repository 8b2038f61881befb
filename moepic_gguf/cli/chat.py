"""moepic-chat: talk to a model. Arguments and order of work; the loop is in `repl`, the conversation in `session`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import ArgumentError, IoError, TemplateError
from ..model import Model
from . import common, repl
from .session import ChatSession, check_setting


@click.command(context_settings=common.SETTINGS)
@click.argument("model", required=False)
@click.option("-m", "--model", "model_option", metavar="FILE", help="The same as MODEL, as in llama.cpp.")
@click.option("-p", "--prompt", default=None, help="Answer this and leave ('-' reads it from stdin).")
@click.option(
    "-f", "--file", "prompt_file", default=None, metavar="FILE", help="Answer the text of this file and leave."
)
@click.option("-sys", "--system-prompt", "system", default=None, help="System message.")
@click.option(
    "-n", "--predict", "max_tokens", type=int, default=-1, help="Tokens per answer; -1: until the model stops."
)
@click.option("--temp", "temperature", type=float, default=0.8, help="0 is greedy.")
@click.option("--top-k", type=int, default=40, help="0: off.")
@click.option("--top-p", type=float, default=0.95, help="1: off.")
@click.option("--min-p", type=float, default=0.05, help="0: off.")
@click.option("--typical", "typical_p", type=float, default=1.0, help="1: off.")
@click.option("--repeat-penalty", type=float, default=1.0, help="1: off.")
@click.option("--presence-penalty", type=float, default=0.0, help="0: off.")
@click.option("--frequency-penalty", type=float, default=0.0, help="0: off.")
@click.option(
    "--repeat-last-n", "penalty_last_n", type=int, default=64, help="Tokens the penalties look back; -1: all."
)
@click.option("-s", "--seed", type=int, default=-1, help="-1: a fresh one for each answer.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end tokens.")
@click.option(
    "--chat-template-file", type=click.Path(), default=None, help="Jinja template used instead of the model's."
)
@click.option(
    "--chat-template", default=None, metavar="NAME", help="One of the model's named templates, or jinja source."
)
@click.option("-no-cnv", "--no-conversation", "plain", is_flag=True, help="Continue plain text; no chat template.")
@click.option("--trace-out", default=None, metavar="FILE", help="Record routing (docs/trace-format.md).")
@click.option("--timeline", default=None, metavar="FILE", help="Record what ran when, for ui.perfetto.dev.")
@click.option("--save-profile", default=None, metavar="FILE", help="At the end, write which experts were used.")
@click.option("--no-history", is_flag=True, help="Do not keep typed lines between sessions.")
@common.load_options
@click.version_option(__version__, prog_name="moepic-chat")
@common.one_line_errors
def main(
    model: str | None,
    model_option: str | None,
    prompt: str | None,
    prompt_file: str | None,
    system: str | None,
    chat_template: str | None,
    chat_template_file: str | None,
    plain: bool,
    trace_out: str | None,
    timeline: str | None,
    save_profile: str | None,
    no_history: bool,
    **options: Any,
) -> None:
    """Chat with MODEL (a GGUF file). Without MODEL: a small demonstration model, built once.

    Piped input is read line by line, each line (or \"\"\" block) a message, and answers go to stdout. /help lists the
    commands.
    """
    common.set_up_logging(options["verbose"])
    if model and model_option:
        raise click.UsageError("give the model once: as MODEL or with -m")
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give -p or -f, not both")
    loading = {name: options.pop(name) for name in common.LOADING}
    verbose = loading.pop("verbose")
    settings = {name: value for name, value in options.items() if value is not None}
    settings["stop"] = []
    for name, value in settings.items():
        check_setting(name, value)
    path = common.model_argument(model or model_option or "") if model or model_option else _demo_model()
    if chat_template is not None and chat_template_file is not None:
        raise click.UsageError("give --chat-template or --chat-template-file, not both")
    if chat_template_file is not None:
        chat_template = _read(chat_template_file, "chat template")
        if "{" not in chat_template:
            raise ArgumentError(
                f"the chat template file '{chat_template_file}' holds no jinja template: no brace in it"
            )
    one_shot = prompt if prompt is not None else None
    if prompt == "-":
        one_shot = sys.stdin.read()
    elif prompt_file is not None:
        one_shot = _read(prompt_file, "prompt")
    with common.load_model(path, loading, chat_template=chat_template) as loaded:
        session = ChatSession(loaded, common.say, settings, system=system, plain=plain)
        if sys.stderr.isatty():
            session.show_progress = common.PromptProgress
        _check(session, loaded)
        if verbose:
            click.echo(str(loaded.config), err=True)
        with loaded.record(trace=trace_out, timeline=timeline) if trace_out or timeline else contextlib.nullcontext():
            code = _talk(session, loaded, one_shot, not no_history)
        if save_profile:
            loaded.save_profile(save_profile)
        sys.exit(code)


def _check(session: ChatSession, model: Model) -> None:
    """Fail before the first message, not after it: no tokenizer, no template."""
    _ = model.tokenizer
    if not session.plain:
        if model.chat_template is None:
            raise TemplateError(
                "this model has no chat template: give one with --chat-template-file, or use --no-conversation to "
                "continue plain text"
            )
        model.render_chat([{"role": "user", "content": "Hello"}])


def _talk(session: ChatSession, model: Model, one_shot: str | None, keep_history: bool) -> int:
    if one_shot is not None:
        if not one_shot.strip():
            raise ArgumentError("prompt: it is empty")
        try:
            for piece in session.ask(one_shot):
                sys.stdout.write(common.harmless(piece) if sys.stdout.isatty() else piece)
                sys.stdout.flush()
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return 0
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        info = model.info
        experts = f"{info.n_expert} experts, {info.n_expert_used} per token" if info.n_expert else "dense"
        common.say(
            f"{info.name or Path(info.path).name}: {info.architecture}, {experts}, context {model.n_ctx}. /help lists "
            f"the commands."
        )
    return repl.run(session, terminal=terminal, history=repl.default_history() if keep_history else None)


def _read(path: str, what: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IoError(f"the {what} file '{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _demo_model() -> Path:
    """The demonstration model, built on first use with a bar on the terminal."""
    from ..demo import demo_path, ensure_demo_model

    if demo_path().is_file():
        return demo_path()
    console = common.stderr()
    with common.progress_bar(console) as bar:
        task = bar.add_task("building the demo model (once)", total=None)

        def report(_stage: str, done: int, total: int) -> bool:
            bar.update(task, completed=done, total=total or None)
            return True

        return Path(ensure_demo_model(progress=report))


if __name__ == "__main__":
    main()
