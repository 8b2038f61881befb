"""Chat templates: messages to the text a model was trained on, rendered as transformers renders them.

A template is a program that came with a model file, so it runs in jinja2's immutable sandbox, sees plain data only, and
has bounds on what it may build. A template that fails is a TemplateError naming line and reason; it is never replaced
by another. This module knows no tokenizer and no model.

The bounds (`MAX_CHARS`, `MAX_RANGE`) stop accidents and simple bombs: repeated doubling, huge products, nested ranges.
They are no limit on time; whoever renders templates of strangers as a service puts the process under limits as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .errors import ArgumentError, ModelFormatError, TemplateError

MAX_CHARS = 8 * 1024 * 1024  # of the output, and of any string or list a template builds on the way
MAX_RANGE = 1_000_000  # numbers from range() in one rendering, all calls together
_FILE = "<chat template>"  # how frames of the template are told apart in a traceback

# Names under which clients pass a model's reasoning; templates read the first, gpt-oss's reads the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One compiled template. Immutable; rendering from several threads at once is fine.

    source      the jinja text.
    bos_token, eos_token   texts the template may refer to; None leaves the name undefined, as transformers does.
    special_tokens   further such texts (`pad_token`, `unk_token`, ...).
    name        for error texts.
    Raises TemplateError where `source` does not parse.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        name: str = "default",
    ) -> None:
        self.source = source
        self.name = name
        given = {"bos_token": bos_token, "eos_token": eos_token, **(special_tokens or {})}
        self._tokens = {key: text for key, text in given.items() if text is not None}
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
        )
        try:
            code = environment.compile(source, filename=_FILE)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(error.message or "syntax error", error.lineno) from None
        except RecursionError:
            raise self._error("nested too deeply", None) from None
        self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))

    @classmethod
    def from_metadata(cls, meta: Mapping[str, object], choice: str | None = None) -> ChatTemplate:
        """The template of a GGUF: `tokenizer.chat_template`, or what `choice` says.

        choice   the name of a variant (`tokenizer.chat_template.<name>`; 'default' is `tokenizer.chat_template`), or
                 jinja source, told from a name by a brace: used in place of the file's.
        Texts of special tokens come from the file's keys. Raises TemplateError where the file has no such template,
        with the names it has.
        """
        if choice is not None and not isinstance(choice, str):
            raise ArgumentError(f"chat_template: expected a name or jinja source, found {choice!r}")
        if choice is not None and "{" in choice:
            source, name = choice, "given"
        else:
            name = "default" if choice is None else choice
            source = _named_source(meta, name)
        texts = {role: _token_text(meta, key) for role, key in _TOKEN_KEYS.items()}
        return cls(source, special_tokens={role: text for role, text in texts.items() if text is not None}, name=name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of `messages`.

        messages       mappings with `role` and `content` (and whatever else the template reads); left as they are.
                       What is None in one (`content` beside `tool_calls`) is absent for the template, as in
                       transformers.
        add_generation_prompt   end with the opening of the assistant's turn.
        tools          JSON schemas, as mappings.
        variables      further names for the template (`enable_thinking=False`, `documents=...`).
        Raises         ArgumentError for messages or tools of the wrong kind; TemplateError, with line and reason, where
                       the template fails or refuses the messages.
        """
        if isinstance(messages, (str, Mapping)) or not all(isinstance(message, Mapping) for message in messages):
            raise ArgumentError("messages must be a list of mappings such as {'role': 'user', 'content': 'Hello'}")
        if tools is not None and not all(isinstance(tool, Mapping) for tool in tools):
            raise ArgumentError("tools must be JSON schemas given as mappings")
        names: dict[str, Any] = {"documents": None, **self._tokens, **_plain(variables)}
        names["messages"] = [_as_templates_read(_plain(message)) for message in messages]
        names["tools"] = None if tools is None else [_plain(tool) for tool in tools]
        names["add_generation_prompt"] = add_generation_prompt
        names["range"] = _counted_range()
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(names):
                size += len(part)
                _check_size(size)
                parts.append(part)
        except Exception as error:
            raise self._error(_reason(error), _line_of(error)) from error
        return "".join(parts)

    def _error(self, reason: str, line: int | None) -> TemplateError:
        where = f"chat template '{self.name}'"
        if line is not None:
            lines = self.source.splitlines()
            shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
            where += f", line {line}"
            reason += f" (in: {shown[:100]}{'...' if len(shown) > 100 else ''})" if shown else ""
        return TemplateError(f"{where}: {reason}", line=line)


_KEY = "tokenizer.chat_template"
# Special tokens a template may write: its name -> key of the id.
_TOKEN_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def template_names(meta: Mapping[str, object]) -> list[str]:
    """Names of the templates a GGUF carries; 'default' is `tokenizer.chat_template` itself."""
    names = ["default"] if isinstance(meta.get(_KEY), str) else []
    # By key, because a mapping over a file reads a value, such as the list of all tokens, when it is asked for.
    variants = [key for key in meta if key.startswith(_KEY + ".") and isinstance(meta[key], str)]
    return names + sorted(key[len(_KEY) + 1 :] for key in variants)


def _named_source(meta: Mapping[str, object], name: str) -> str:
    key = _KEY if name == "default" else f"{_KEY}.{name}"
    source = meta.get(key)
    if not isinstance(source, str):
        known = ", ".join(template_names(meta))
        raise TemplateError(
            f"the file has no chat template under '{key}'"
            + (f" (it has: {known})" if known else " and no other")
            + "; choose one with chat_template=NAME, give jinja source there, or continue plain text instead"
        )
    return source


def _token_text(meta: Mapping[str, object], key: str) -> str | None:
    token = meta.get(f"tokenizer.ggml.{key}")
    tokens = None if token is None else meta.get("tokenizer.ggml.tokens")
    if not isinstance(token, int) or not isinstance(tokens, Sequence) or not 0 <= token < len(tokens):
        return None
    text = tokens[token]
    try:
        return text.decode("utf-8") if isinstance(text, bytes) else str(text)
    except UnicodeDecodeError:
        raise ModelFormatError(f"tokenizer.ggml.{key}: token {token} is not UTF-8") from None


# What a template sees.


def _plain(value: Any) -> Any:
    """A copy made of exact JSON types, so that no object with methods of its own reaches the template.

    Anything else becomes a placeholder that names its type: templates ask whether an image is there, not what it is.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # of a subclass, such as an enumeration: the bare value
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return f"<{type(value).__name__}>"


def _as_templates_read(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is None, which many templates would write as text; the reasoning under the names they know."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class _Dict:
    """`dict` as templates may use it: a maker of dictionaries, without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """jinja2's namespace, without names that begin with an underscore: those are how sandboxes are left."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        namespace, *rest = args  # no named parameter, so that a template may use any name, `self` included
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(namespace, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names with a leading underscore are reserved")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's tokens for training; here it is a scope."""

    tags = {"generation"}  # noqa: RUF012 - the type jinja2 declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# Bounds on what it builds.


class _TooLarge(jinja2.TemplateError):
    pass


def _check_size(size: int) -> None:
    if size > MAX_CHARS:
        raise _TooLarge(f"it builds more than {MAX_CHARS} characters or items")


def _counted_range() -> Callable[..., range]:
    left = MAX_RANGE

    def counted(*args: int) -> range:
        nonlocal left
        numbers = range(*args)
        # A bound far beyond the machine's word has no len(); it is too long either way.
        length = len(numbers) if abs(numbers.stop - numbers.start) < 2**62 else 2**62
        left -= length
        if left < 0:
            raise _TooLarge(f"range() gives more than {MAX_RANGE} numbers in one rendering")
        return numbers

    return counted


class _CodeGenerator(CodeGenerator):
    """Compiles `a ~ b` to a checked join; the built-in one would double a string per turn of a loop, unseen."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.checked_join((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _checked_concat(parts: Iterable[str]) -> str:
    kept = list(parts)
    _check_size(sum(map(len, kept)))
    return "".join(kept)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = _CodeGenerator
    concat = staticmethod(_checked_concat)

    def checked_join(self, parts: tuple[Any, ...]) -> str:
        return _checked_concat(str(part) for part in parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sized = (str, list, tuple)
        if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for many, count in ((left, right), (right, left)):
                if isinstance(many, sized) and isinstance(count, int):
                    _check_size(len(many) * count)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str) and re.search(r"\d{6}|\*", left):
            raise _TooLarge("a format with such a width is not allowed")
        return super().call_binop(context, operator, left, right)


# What went wrong, and where.


def _reason(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateError):
        return error.message or type(error).__name__
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{type(error).__name__}: {error}"


def _line_of(error: Exception) -> int | None:
    """The template line that was running; jinja2 rewrites tracebacks so that the template's frames carry its lines."""
    line = None
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == _FILE:
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


__all__ = ["ChatTemplate", "template_names"]
