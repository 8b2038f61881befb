"""The loop of moepic-chat: read a message, stream the answer. Knows terminals and pipes; what commands mean is
`session`'s matter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import click

from ..errors import MoepicError
from .common import explain, harmless
from .session import ChatSession, command_names

_QUOTES = '"""'


class Interrupted(Exception):
    """Ctrl-C while reading a message."""


def gather(first: str, more: Callable[[], str | None]) -> str:
    '''A message of several lines: `first` begins with """, and lines are read until one ends with it (or input
    ends).'''
    text = first.lstrip()[len(_QUOTES) :]
    if text.rstrip().endswith(_QUOTES):
        return text.rstrip()[: -len(_QUOTES)]
    lines = [text] if text.strip() else []
    while (line := more()) is not None:
        if line.rstrip().endswith(_QUOTES):
            last = line.rstrip()[: -len(_QUOTES)]
            if last:
                lines.append(last)
            break
        lines.append(line)
    return "\n".join(lines)


class PipedInput:
    """One message per line of a pipe or file; no prompts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, _prompt: str) -> str | None:
        line = self._stream.readline()
        return line.rstrip("\n") if line else None


class TerminalInput:
    """Editable lines with history and completion of commands."""

    def __init__(self, history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory

        kept: History = InMemoryHistory()
        if history is not None:
            try:
                history.parent.mkdir(parents=True, exist_ok=True)
                history.touch(mode=0o600)
                kept = FileHistory(str(history))
            except OSError:  # a read-only home is no reason not to chat
                pass
        words = WordCompleter(["/" + name for name in command_names()], sentence=True)
        self._session: PromptSession[str] = PromptSession(history=kept, completer=words, complete_while_typing=False)

    def line(self, prompt: str) -> str | None:
        try:
            return self._session.prompt(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            # With text on the line, Ctrl-C only drops that text.
            if self._session.default_buffer.text:
                return ""
            raise Interrupted from None


def default_history() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "moepic" / "chat_history"


def stream_answer(session: ChatSession, text: str, out: TextIO, safe: bool) -> bool:
    """Write the answer to `text` as it comes. False when Ctrl-C stopped it. Errors are told and leave the conversation
    as it was.
    """
    answer = session.ask(text)
    try:
        for piece in answer:
            out.write(harmless(piece) if safe else piece)
            out.flush()
        out.write("\n")
        out.flush()
        return True
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]
        out.write("\n")
        out.flush()
        click.echo("(stopped; Ctrl-C again leaves)", err=True)
        return False
    except MoepicError as error:
        click.echo(f"error: {explain(error)}", err=True)
        if "context" in str(error):
            click.echo("(/undo or /clear makes room; -c sets a longer context)", err=True)
        return True


def read_messages(source: PipedInput | TerminalInput, interrupted: Callable[[], bool]) -> Iterator[str]:
    """Messages and commands until input ends or a second Ctrl-C."""
    while True:
        try:
            line = source.line(">>> ")
            if line is None:
                return
            if line.lstrip().startswith(_QUOTES):
                line = gather(line, lambda: source.line("... "))
        except Interrupted:
            if interrupted():
                return
            continue
        if line.strip():
            yield line


def run(session: ChatSession, *, terminal: bool, history: Path | None) -> int:
    """Talk until the end; returns the exit code."""
    source = TerminalInput(history) if terminal else PipedInput(sys.stdin)
    armed = False  # one Ctrl-C was pressed and nothing was said since

    def interrupted() -> bool:
        nonlocal armed
        if armed:
            return True
        armed = True
        click.echo("(Ctrl-C again leaves; /help lists the commands)", err=True)
        return False

    for line in read_messages(source, interrupted):
        armed = False
        text: str | None = line
        if line.startswith("/"):
            text = session.command(line.strip())
            if session.leaving:
                break
        if text is not None and text.strip():
            finished = stream_answer(session, text, sys.stdout, safe=sys.stdout.isatty())
            if not finished and not terminal:
                return 130
            armed = not finished
    return 0
