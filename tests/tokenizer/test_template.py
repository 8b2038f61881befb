"""Rendering must equal transformers'; a failing template must name its line; a hostile one must stop."""

from __future__ import annotations

import copy
import enum
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from moepic_gguf.errors import ArgumentError, TemplateError
from moepic_gguf.template import MAX_CHARS, ChatTemplate, template_names

from .sources import llama_cpp_source, metadata, smollm2_path

# Written here, in the manner of each family: what its template is known to use of jinja.
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.seen and message.role == "user" and message.content is string %}
        {%- set ns.seen = true %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content or '' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and reasoning %}
            {{- '<think>\\n' + reasoning.strip() + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}{{- content }}{%- endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "system" and tools %}
        {%- continue %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{% if messages[0]['role'] == 'system' -%}
    {% set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{% else %}
    {%- set system = "" %}
{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- (message['content'] or '') | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{%- macro instruction(text) -%}[INST] {{ text }} [/INST]{%- endmacro -%}
{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
{{ instruction(message['content']) }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
OLMOE = (
    "{{ bos_token }}{% for message in messages %}\n{% if message['role'] == 'system' %}\n{{ '<|system|>\n' + "
    "message['content'] }}\n{% elif message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
OURS = {"chatml": CHATML, "qwen3": QWEN3, "llama3": LLAMA3, "mistral": MISTRAL, "olmoe": OLMOE}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "What's it <like> \u00e0 Paris & elsewhere?",
     "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "where"}},
                    "required": ["place"]}}}
]  # fmt: skip
PLACE = {"place": "K\u00f6ln"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "Hello  \n"}],
    "system and turns": [
        {"role": "system", "content": " Be <b>kind</b> & 'brief' \u4e2d\u6587 \U0001f600 "},
        {"role": "user", "content": "{{ 1 + 1 }} {% if %}"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo."},
        {"role": "user", "content": "Sure?"},
    ],
    "alternating": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "because"},
        {"role": "user", "content": "c"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "call it", "tool_calls": [
            {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": PLACE}}]},
        {"role": "tool", "content": '{"t": 7}', "name": "weather", "tool_call_id": "abcdefghi"},
    ],
    "nothing": [],
}  # fmt: skip


def by_transformers(source: str, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    """What transformers renders, None where it fails."""
    try:
        (rendered,), _ = render_jinja_template([copy.deepcopy(messages)], chat_template=source, **variables)
    except Exception:
        return None
    return str(rendered)


def by_us(source: str, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    names = {name: variables.pop(name) for name in TOKENS if name in variables}
    try:
        return ChatTemplate(source, **names).render(messages, **variables)
    except TemplateError:
        return None


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", [*OURS, "SmolLM2"])
def test_rendering_equals_transformers(name: str, conversation: str) -> None:
    source = OURS[name] if name in OURS else metadata(smollm2_path())["tokenizer.chat_template"]
    messages = CONVERSATIONS[conversation]
    for tools in (None, TOOLS):
        for prompt in (True, False):
            for thinking in ({}, {"enable_thinking": False}):
                variables = {"tools": tools, "add_generation_prompt": prompt, **thinking, **TOKENS}
                expected = by_transformers(source, messages, **variables)
                assert by_us(source, messages, **variables) == expected
    if conversation == "one question":
        assert "Hello" in str(expected)


@pytest.mark.peer
def test_rendering_equals_transformers_on_the_templates_llama_cpp_keeps() -> None:
    compared = 0
    for path in sorted((llama_cpp_source() / "models" / "templates").glob("*.jinja")):
        source = path.read_text("utf-8")
        for messages in CONVERSATIONS.values():
            for tools in (None, TOOLS):
                variables = {"tools": tools, "add_generation_prompt": True, **TOKENS}
                expected = by_transformers(source, messages, **variables)
                assert by_us(source, messages, **variables) == expected, path.name
                compared += expected is not None
    assert compared > 200


def test_the_messages_given_are_left_as_they_are() -> None:
    messages = copy.deepcopy(CONVERSATIONS["tool call"])
    ChatTemplate(QWEN3).render(messages, tools=TOOLS)
    assert messages == CONVERSATIONS["tool call"]


def test_variants_are_chosen_by_name() -> None:
    meta = {
        "tokenizer.chat_template": "main {{ bos_token }}",
        "tokenizer.chat_template.tool_use": "tools {{ eos_token }}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.ggml.tokens": ["<a>", b"<b>"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert template_names(meta) == ["default", "tool_use"]
    assert ChatTemplate.from_metadata(meta).render([]) == "main <a>"
    assert ChatTemplate.from_metadata(meta, "default").render([]) == "main <a>"
    assert ChatTemplate.from_metadata(meta, "tool_use").render([]) == "tools <b>"
    with pytest.raises(TemplateError, match=r"chat_template\.rag.*default, tool_use"):
        ChatTemplate.from_metadata(meta, "rag")
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.from_metadata({})


def test_the_date_is_todays() -> None:
    before = datetime.now().strftime("%d %b %Y")
    rendered = ChatTemplate("{{ strftime_now('%d %b %Y') }}").render([])
    assert rendered in (before, datetime.now().strftime("%d %b %Y"))


def test_tojson_keeps_letters_and_brackets_as_they_are() -> None:
    template = ChatTemplate("{{ x | tojson }}|{{ x | tojson(indent=1, sort_keys=true) }}")
    assert (
        template.render([], x={"b": "<\u00e9'&>", "a": 1})
        == '{"b": "<\u00e9\'&>", "a": 1}|{\n "a": 1,\n "b": "<\u00e9\'&>"\n}'
    )


def test_only_plain_data_reaches_the_template() -> None:
    class Kind(str, enum.Enum):
        RED = "red"

    template = ChatTemplate("{{ a }} {{ b }} {{ c }}")
    assert template.render([], a=Path("x"), b=Kind.RED, c=(1, [2.5, None])) == "<PosixPath> red (1, [2.5, None])"


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("a\nb\n{% if %}", 3, "Expected an expression"),
        ("{% for m in messages %}\n{{ m.role }}", None, "endfor"),
        ("a\n\n{{ messages[0].x.y }}", 3, "has no attribute 'x'"),
        ("a\n{{ raise_exception('System role not supported') }}", 2, "System role not supported"),
        ("{{ no_such() }}", 1, "'no_such' is undefined"),
        ("\n\n\n{{ 1 / 0 }}", 4, "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", 1, "TypeError"),
        ("{{ messages[0].content | no_such_filter }}", 1, "no_such_filter"),
        ("{% macro f() %}\n{{ f() }}\n{% endmacro %}{{ f() }}", None, "nested too deeply"),
        ("{% include 'x' %}", 1, "include|loader"),
        # Ways out of the sandbox.
        ("x\n{{ ''.__class__.__mro__ }}", 2, "unsafe"),
        ("{{ messages.append(1) }}", 1, "unsafe"),
        ("{{ namespace.__init__.__globals__ }}", 1, "unsafe"),
        ("{% set n = namespace(__class__=1) %}", 1, "underscore"),
        ("{{ dict.__class__.__base__ }}", 1, "unsafe"),
    ],
)
def test_a_failing_template_names_its_line_and_the_reason(source: str, line: int | None, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as raised:
        ChatTemplate(source, name="odd").render([{"role": "user", "content": "hi"}])
    assert "chat template 'odd'" in str(raised.value)
    if line is not None:
        assert raised.value.line == line
        assert f"line {line}:" in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ ([1] * 10**9) | length }}",
        "{{ 2 ** 2 ** 40 }}{{ (2 ** 100) ** (2 ** 40) }}",
        "{{ '%1000000000d' % 3 }}",
        "{{ '%*d' % (1000000000, 3) }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(10 ** 30) | length }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m(s) %}{{ s }}{{ s }}{{ m(s ~ s) }}{% endmacro %}{{ m('abcdefgh') }}",
    ],
)
def test_a_template_that_builds_without_end_is_stopped_early(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(TemplateError, match=r"more than|not allowed"):
        ChatTemplate(source).render([])
    # Doubling copies at most MAX_CHARS twice and the range budget is a million turns of an empty loop.
    assert time.perf_counter() - start < 5.0


def test_an_output_as_long_as_the_bound_is_still_given() -> None:
    assert (
        len(ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": "x" * MAX_CHARS}]))
        == MAX_CHARS
    )


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, ["hi"], [None]])
def test_messages_of_the_wrong_kind_are_an_argument_error(messages: Any) -> None:
    with pytest.raises(ArgumentError, match="messages"):
        ChatTemplate(CHATML).render(messages)
    with pytest.raises(ArgumentError, match="tools"):
        ChatTemplate(CHATML).render([], tools=[print])  # type: ignore[list-item]
