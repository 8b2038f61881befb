"""A conversation: messages, settings, and what the slash commands do to them. Prints through a given function; knows no
terminal.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import SamplingOptions, need_int
from ..errors import ArgumentError, IoError, MoepicError
from ..generation import Generation
from ..model import Model
from ..stopping import checked_stops

_FILE_VERSION = 1

# name -> (parse, help). They are passed to generate() under these names.
SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "max_tokens": (int, "tokens per answer; -1: until the model stops"),
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "0: off"),
    "top_p": (float, "1: off"),
    "min_p": (float, "0: off"),
    "typical_p": (float, "1: off"),
    "repeat_penalty": (float, "1: off"),
    "presence_penalty": (float, "0: off"),
    "frequency_penalty": (float, "0: off"),
    "penalty_last_n": (int, "tokens looked back; -1: all"),
    "seed": (int, "-1: a fresh one for each answer"),
    "stop": (str, "a string that ends the answer; 'none' clears it"),
}


@dataclass
class ChatSession:
    """Messages (OpenAI style dicts) and settings over one model."""

    model: Model
    say: Callable[[str], None]
    settings: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    plain: bool = False  # no template: each message is continued as it stands
    template_variables: dict[str, Any] = field(default_factory=dict)
    leaving: bool = False
    _before: list[dict[str, str]] | None = None  # messages as they were before /regen dropped some
    show_progress: Callable[[], Callable[[int, int], object]] | None = None  # makes a listener for one long prompt

    # ---- answering ---------------------------------------------------------------------------------------------------

    def ask(self, text: str) -> Iterator[str]:
        """Send a message and stream the answer. What was answered is kept, also when the caller stops early; after an
        error, or with no answer at all, it is as if the message (or /regen) had not been.
        """
        before = list(self.messages) if self._before is None else self._before
        self._before = None
        self.messages.append({"role": "user", "content": text})
        answer: Generation | None = None
        try:
            with self._start() as answer:
                yield from answer
        except MoepicError:
            answer = None
            raise
        finally:
            if answer is not None and (answer.tokens or answer.finish_reason == "stop"):
                self.messages.append({"role": "assistant", "content": answer.text})
            else:
                self.messages[:] = before

    def _start(self) -> Generation:
        options = dict(self.settings)
        limit = options.pop("max_tokens", -1)
        if options.get("seed", -1) == -1:
            options["seed"] = None
        if self.plain:
            prompt = self.model.tokenize(self.messages[-1]["content"], parse_special=True)
        else:
            text = self.model.render_chat(self.conversation(), **self.template_variables)
            prompt = self.model.tokenize(text, add_special=False, parse_special=True)
        # An answer limit is a wish here: near the end of the context the answer may be shorter.
        room = self.model.n_ctx - len(prompt)
        most = None if limit < 0 else max(0, min(limit, room)) if room >= 0 else limit
        # One batch is over before a person would read of it.
        if self.show_progress is not None and len(prompt) > self.model.context.native.n_batch:
            options["on_progress"] = self.show_progress()
        return self.model.generate(prompt, max_tokens=most, stream=True, **options)

    def conversation(self) -> list[dict[str, str]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.messages

    # ---- commands ----------------------------------------------------------------------------------------------------

    def command(self, line: str) -> str | None:
        """Run '/name argument'. Returns text to send as a message, if the command asks for that; problems are told, not
        raised.
        """
        name, _, argument = line[1:].partition(" ")
        name = {"quit": "exit", "bye": "exit", "?": "help", "reset": "clear"}.get(name, name)
        method = getattr(self, f"do_{name}", None)
        self._before = None
        if method is None:
            import difflib

            close = difflib.get_close_matches(name, command_names(), n=1)
            self.say(
                f"there is no /{name}"
                + (f"; did you mean /{close[0]}?" if close else "")
                + " (/help lists the commands)"
            )
            return None
        try:
            result: str | None = method(argument.strip())
            return result
        except (MoepicError, UnicodeError) as error:
            self.say(f"error: {error}")
        except OSError as error:
            self.say(f"error: {error.strerror or error}: '{error.filename}'" if error.filename else f"error: {error}")
        return None

    def do_help(self, _argument: str) -> None:
        """list the commands"""
        usage = {
            "system": "[TEXT]",
            "set": "[NAME VALUE]",
            "show": "[system|settings|model|config|template|history]",
            "save": "FILE",
            "load": "FILE",
            "read": "FILE [WORDS]",
        }
        for name in command_names():
            text = inspect.getdoc(getattr(self, f"do_{name}")) or ""
            self.say(f"  /{name + ' ' + usage.get(name, ''):52} {text}".rstrip())
        self.say('  """                                                   begins and ends a message of several lines')
        self.say("  Ctrl-C stops the answer, a second one leaves; Ctrl-D leaves")

    def do_exit(self, _argument: str) -> None:
        """leave"""
        self.leaving = True

    def do_clear(self, _argument: str) -> None:
        """forget the conversation (the system message stays)"""
        self.messages.clear()
        self.say("(cleared)")

    def do_undo(self, _argument: str) -> None:
        """take back the last message and its answer"""
        if not self._drop_turn():
            self.say("there is nothing to take back")
            return
        self.say(f"(taken back; {len(self.messages)} messages remain)")

    def do_regen(self, _argument: str) -> str | None:
        """answer the last message again"""
        self._before = list(self.messages)
        text = self._drop_turn()
        if text is None:
            self.say("there is no message to answer again")
        return text

    def _drop_turn(self) -> str | None:
        """Remove the last user message and all after it; returns its text."""
        for i in reversed(range(len(self.messages))):
            if self.messages[i]["role"] == "user":
                text = self.messages[i]["content"]
                del self.messages[i:]
                return text
        return None

    def do_system(self, argument: str) -> None:
        """set the system message; without TEXT, show it; 'none' removes it"""
        if not argument:
            self.say(self.system or "(no system message)")
            return
        self.system = None if argument == "none" else argument
        self.say(
            "(system message removed)"
            if self.system is None
            else "(system message set; it holds from the next message on)"
        )

    def do_set(self, argument: str) -> None:
        """change a setting; without arguments, list them"""
        name, _, value = argument.partition(" ")
        name = {"temp": "temperature", "n": "max_tokens", "n_predict": "max_tokens"}.get(
            name.replace("-", "_"), name.replace("-", "_")
        )
        value = value.strip()
        if not name:
            self.do_show("settings")
            return
        if name not in SETTINGS or not value:
            self.say(f"usage: /set NAME VALUE, with NAME one of {', '.join(SETTINGS)}")
            return
        self.set(name, value)
        self.say(f"{name} = {self.settings[name]}")

    def set(self, name: str, text: str) -> None:
        """Set one setting from text, checked by the same rules as the API's; `ArgumentError` leaves the old value."""
        parse, _ = SETTINGS[name]
        try:
            value: Any = parse(text)
        except ValueError:
            raise ArgumentError(f"{name}: {text!r} is not a {'whole number' if parse is int else 'number'}") from None
        if name == "stop":
            value = [] if value == "none" else [value]
        check_setting(name, value)
        self.settings[name] = value

    def do_show(self, argument: str) -> None:
        """what is in force"""
        what = argument or "all"
        parts: dict[str, Callable[[], str]] = {
            "model": lambda: str(self.model.info),
            "config": lambda: str(self.model.config),
            "settings": lambda: "\n".join(
                f"{name:18} {self.settings.get(name)!s:10} ({text})" for name, (_, text) in SETTINGS.items()
            ),
            "system": lambda: self.system or "(no system message)",
            "template": lambda: self.model.chat_template or "(no chat template)",
            "history": lambda: (
                "\n".join(f"[{m['role']}] {m['content']}" for m in self.conversation()) or "(no messages)"
            ),
        }
        if what == "all":
            for name in ("model", "config", "settings", "system"):
                self.say(parts[name]())
        elif what in parts:
            self.say(parts[what]())
        else:
            self.say(f"usage: /show [{'|'.join(parts)}]")

    def do_stats(self, _argument: str) -> None:
        """speeds of the last answer and counters"""
        self.say(str(self.model.stats))

    def do_save(self, argument: str) -> None:
        """write the conversation and settings to FILE (JSON)"""
        if not argument:
            self.say("usage: /save FILE")
            return
        path = Path(os.path.expanduser(argument))
        record = {
            "moepic_chat": _FILE_VERSION,
            "system": self.system,
            "messages": self.messages,
            "settings": self.settings,
        }
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
        self.say(f"(saved {len(self.messages)} messages to {path})")

    def do_load(self, argument: str) -> None:
        """continue a conversation saved in FILE"""
        if not argument:
            self.say("usage: /load FILE")
            return
        path = Path(os.path.expanduser(argument))
        try:
            loaded = _read_record(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise IoError(f"'{path}' is not a conversation saved by /save ({why})") from None
        self.messages, self.system, settings = loaded
        self.settings.update(settings)
        self.say(f"(loaded {len(self.messages)} messages from {path})")

    def do_read(self, argument: str) -> str | None:
        """send the text of FILE as a message, after WORDS if given"""
        name, _, words = argument.partition(" ")
        if not name:
            self.say("usage: /read FILE [WORDS]")
            return None
        try:
            text = Path(os.path.expanduser(name)).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise IoError(f"'{name}' is not UTF-8 text") from None
        return f"{words.strip()}\n\n{text}" if words.strip() else text


def _read_record(record: Any) -> tuple[list[dict[str, str]], str | None, dict[str, Any]]:
    """Messages, system message and settings of what /save wrote. Raises what is wrong with anything else."""
    if record["moepic_chat"] != _FILE_VERSION:
        raise ValueError(f"version {record['moepic_chat']}, expected {_FILE_VERSION}")
    messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in record["messages"]]
    system = record["system"]
    if not (system is None or isinstance(system, str)):
        raise ValueError(f"system: expected text, found {system!r}")
    settings = {name: value for name, value in record["settings"].items() if name in SETTINGS}
    for name, value in settings.items():
        check_setting(name, value)
    return messages, system, settings


def check_setting(name: str, value: Any) -> None:
    """Raise `ArgumentError` for a value that cannot be meant; -1 is no limit for max_tokens and a fresh seed."""
    if name == "stop":
        checked_stops(value)
    elif name == "max_tokens":
        need_int(name, value, -1)
    elif name == "seed":
        need_int(name, value, -1, 2**64 - 1)
    elif name != "ignore_eos":
        SamplingOptions(**{name: value}).validate()


def command_names() -> list[str]:
    return [name[3:] for name in vars(ChatSession) if name.startswith("do_")]
