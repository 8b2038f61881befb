"""What the published chat templates of the families do, in templates of our own (`templates/`): rendered through the keys of a file, the
text equals what a transformers tokenizer with the same special tokens renders by `apply_chat_template`.

Each template is small and uses what its family's uses: roles and turn tokens, refusals, macros, filters, names it asks for. `OPENINGS`
spells one prompt out by hand, so that both sides cannot be wrong together.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from moepic_gguf.errors import TemplateError
from moepic_gguf.template import ChatTemplate

from .test_template import CONVERSATIONS as SIMPLE

FOLDER = Path(__file__).with_name("templates")
SPECIALS = {"bos_token": "<bos>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
KEYS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "What's it <like> & how \u00e0 Paris?",
     "parameters": {"type": "object", "required": ["place"], "properties": {
         "place": {"type": "string", "description": "where", "enum": ["K\u00f6ln", "Paris"]},
         "days": {"type": "integer", "default": 3}, "units": {"type": ["string", "null"]},
         "near": {"type": "object", "properties": {"km": {"type": "number"}, "sea": {"type": "boolean"}}},
         "tags": {"type": "array", "items": {"type": "string"}},
         "how": {"oneOf": [{"type": "string", "description": "a name"}, {"type": "integer"}]}}}}},
    {"type": "function", "function": {"name": "now", "description": "The time",
     "parameters": {"type": "object", "required": [], "properties": {}}, "response": {"type": "STRING"}}},
]  # fmt: skip
ARGUMENTS = {"place": "K\u00f6ln", "days": 2, "near": {"km": 1.5, "sea": False}, "tags": ["a", "b"], "units": None}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "id": "abcdefghi", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {name: messages for name, messages in SIMPLE.items() if messages} | {
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Look."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]},
    ],
    # As clients of OpenAI's interface send a call: no content is None, not an absent key.
    "calls": [
        {"role": "user", "content": "Weather, and when?"},
        {"role": "assistant", "content": None, "tool_calls": [call("weather", ARGUMENTS), call("now", {})]},
        {"role": "tool", "name": "weather", "content": "7 \u00b0C"},
        {"role": "tool", "name": "now", "content": '{"h": 12}'},
    ],
    "calls answered": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "thinking": "look", "tool_calls": [call("weather", ARGUMENTS)]},
        {"role": "tool", "name": "weather", "content": "7"},
        {"role": "assistant", "content": "Seven.", "reasoning_content": "easy", "tool_calls": None},
        {"role": "user", "content": "Thanks"},
    ],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "answer first": [{"role": "assistant", "content": "a"}],
    "late system": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    "answered": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>b <|channel>thought\nno<channel|> c", "thinking": "hm"},
    ],
    "channels": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<|channel|>final<|message|>b"},
        {"role": "user", "content": "c"},
    ],
    "lone result": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
}  # fmt: skip

# What else the template asks for, beside tools and the prompt: each is rendered.
VARIABLES: dict[str, list[dict[str, Any]]] = {
    "gemma3": [{}],
    "gemma4": [{}, {"enable_thinking": True}, {"enable_thinking": False}],
    "llama4": [{}, {"custom_tools": TOOLS[:1]}],
    "phi_moe": [{}],
    "qwen3_5": [{}, {"enable_thinking": True}, {"enable_thinking": False}],
    "lfm2": [{}, {"keep_thinking": True}],
    "glm4_7": [{}, {"enable_thinking": False}, {"clear_thinking": False}],
    "gpt_oss": [{}, {"reasoning_effort": "high", "builtin_tools": ["python"], "model_identity": "You are it."}],
    "deepseek_v3": [{}, {"thinking": True}],
    "granite": [{}, {"controls": {"length": "long"}, "documents": [{"doc_id": 1, "text": "T"}]}],
}
# The system message "Be kind." and the user's "Hello", opened for an answer.
OPENINGS = {
    "gemma3": "<bos><start_of_turn>user\nBe kind.\n\nHello<end_of_turn>\n<start_of_turn>model\n",
    "gemma4": "<bos><|turn>system\nBe kind.<turn|>\n<|turn>user\nHello<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
    "llama4": "<bos><|header_start|>system<|header_end|>\n\nBe kind.<|eot|><|header_start|>user<|header_end|>\n\nHello<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n",
    "phi_moe": "<|system|>\nBe kind.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n",
    "qwen3_5": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "lfm2": "<bos><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "glm4_7": "[gMASK]<sop><|system|>Be kind.<|user|>Hello<|assistant|><think>",
    "deepseek_v3": "<bos>Be kind.<\uff5cUser\uff5c>Hello<\uff5cAssistant\uff5c></think>",
    "granite": "<|start_of_role|>system<|end_of_role|>Be kind.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hello<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
}
KIND = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
# Conversations that a family's template refuses, and the words of its refusal.
REFUSED = {
    ("gemma3", "two users"): "turns must go user, model",
    ("gemma3", "answer first"): "turns must go user, model",
    ("gemma3", "calls"): "turns must go user, model",
    ("qwen3_5", "answer first"): "no question of the user",
    ("qwen3_5", "late system"): "the system message comes first",
    ("gpt_oss", "channels"): "content holds channels",
    ("gpt_oss", "lone result"): "a result without a call",
}


def source(family: str) -> str:
    return (FOLDER / f"{family}.jinja").read_text("utf-8")


def ours(text: str) -> ChatTemplate:
    """The template as a file carries it: special tokens by id."""
    ids = {f"tokenizer.ggml.{KEYS[name]}_token_id": i for i, name in enumerate(SPECIALS)}
    return ChatTemplate.from_metadata(
        {"tokenizer.chat_template": text, "tokenizer.ggml.tokens": list(SPECIALS.values()), **ids}
    )


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=HfTokenizer(BPE()), **SPECIALS)


def by_transformers(tokenizer: Any, text: str, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    """What `apply_chat_template` gives, None where the template fails or refuses."""
    given = copy.deepcopy(messages)
    try:
        return str(tokenizer.apply_chat_template(given, chat_template=text, tokenize=False, **variables))
    except (jinja2.TemplateError, TypeError, AttributeError):
        return None


def by_us(template: ChatTemplate, messages: list[dict[str, Any]], **variables: Any) -> str | None:
    try:
        return template.render(messages, **variables)
    except TemplateError:
        return None


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", VARIABLES)
def test_templates_in_the_style_of_a_family_render_as_in_transformers(
    theirs: Any, family: str, conversation: str
) -> None:
    template, messages = ours(source(family)), CONVERSATIONS[conversation]
    for tools in (None, TOOLS):
        for prompt in (True, False):
            for variables in VARIABLES[family]:
                given = {"tools": tools, "add_generation_prompt": prompt, **variables}
                expected = by_transformers(theirs, source(family), messages, **given)
                assert by_us(template, messages, **given) == expected, given
                if (family, conversation) in REFUSED:
                    assert expected is None


@pytest.mark.parametrize("family", VARIABLES)
def test_a_template_renders_most_conversations(theirs: Any, family: str) -> None:
    """So that two failures do not pass for agreement; what is text for all is no reason to fail."""
    texts = [by_transformers(theirs, source(family), messages, tools=TOOLS) for messages in CONVERSATIONS.values()]
    assert sum(text is not None for text in texts) >= 6
    assert by_transformers(theirs, source(family), CONVERSATIONS["one question"]) is not None


@pytest.mark.parametrize("family", OPENINGS)
def test_a_prompt_is_what_the_family_was_trained_on(family: str) -> None:
    assert ours(source(family)).render(KIND) == OPENINGS[family]


def test_every_template_is_rendered() -> None:
    assert {path.stem for path in FOLDER.glob("*.jinja")} == VARIABLES.keys()
    # gpt-oss's prompt has the date in it.
    assert VARIABLES.keys() - OPENINGS.keys() == {"gpt_oss"}


@pytest.mark.parametrize(("family", "conversation"), REFUSED)
def test_a_refusal_reaches_the_caller_in_its_own_words(family: str, conversation: str) -> None:
    with pytest.raises(TemplateError, match=REFUSED[family, conversation]) as raised:
        ours(source(family)).render(CONVERSATIONS[conversation])
    assert raised.value.line is not None


def test_what_is_none_in_a_message_is_absent_for_the_template(theirs: Any) -> None:
    """As in transformers since 5: templates write `None` as text where a client sends no content."""
    text = "{{ messages[0].content is defined }} {{ messages[0].calls }}{{ messages[0].name }} {{ messages[0].parts }}"
    message = {"role": "assistant", "content": None, "calls": None, "name": "n", "parts": [None, {"x": None}]}
    assert ours(text).render([message]) == by_transformers(theirs, text, [message]) == "False n [None, {'x': None}]"


def test_texts_of_special_tokens_come_from_the_file(theirs: Any) -> None:
    text = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token is defined }}"
    expected = by_transformers(theirs, text, KIND)
    assert ours(text).render(KIND) == expected == "<bos></s><unk><pad>False"
