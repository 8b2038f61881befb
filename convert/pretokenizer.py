"""Which `tokenizer.ggml.pre` a tokenizer.json means: its pre-tokenizer is reduced to a tuple of split patterns, and
that is looked up.

Patterns are compared as text after bringing spellings of the same thing to one form; nothing is guessed from token
ids. An unknown pre-tokenizer is an error, because a wrong one gives slightly different tokens and no error anywhere.
The names are llama.cpp's; several families share a row there, and one name of each row is enough.
"""

from __future__ import annotations

import json
from typing import Any

from moepic_gguf.errors import ConversionError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLINGS = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL]{2}|'[dD])",
)
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    + _SPACES
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str, number: str) -> str:
    edge = r"[^\r\n\p{L}\p{N}]?"
    words = f"{edge}{_UPPER}*{_LOWER}+{suffix}|{edge}{_UPPER}+{_LOWER}*{suffix}"
    return words + "|" + number + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES


# (patterns, whole words that are tokens skip the merges) -> name
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((r"\p{N}", _GPT2), False): "smollm",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_V3), False): "deepseek-v3",
    # transformers turns tiktoken files (gpt-oss, Llama 4) into words that skip the merges; readers of GGUF merge them all the same.
    ((_cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"),), False): "gpt-4o",
    ((_cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"),), True): "gpt-4o",
    ((_cased("", r"\p{N}"),), True): "tekken",
}


def pre_name(tokenizer: dict[str, Any]) -> str:
    """The name for a byte-level BPE `tokenizer.json`. Raises ConversionError with the patterns where it is not
    known.
    """
    patterns = tuple(_patterns(tokenizer.get("pre_tokenizer")))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    name = _NAMES.get((patterns, whole_words))
    if name is None:
        raise ConversionError(
            f"tokenizer.json: the pre-tokenizer {json.dumps(patterns, ensure_ascii=False)} (ignore_merges "
            f"{json.dumps(whole_words)}) is not a "
            "known one; name it with --tokenizer-pre, or leave the tokenizer out with --no-vocab"
        )
    return name


def _patterns(node: dict[str, Any] | None) -> list[str]:
    """The split patterns of a byte-level pre-tokenizer, in order."""
    if node is None:
        return []
    kind = node.get("type")
    if kind == "Sequence":
        return [pattern for child in node.get("pretokenizers", []) for pattern in _patterns(child)]
    if kind == "Digits" and node.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "ByteLevel":
        if node.get("add_prefix_space"):
            raise ConversionError(
                "tokenizer.json: ByteLevel with add_prefix_space is not supported (GGUF's gpt2 tokenizer has no "
                "such step)"
            )
        return [_GPT2] if node.get("use_regex", True) else []
    if kind == "Split" and not (node.get("behavior") == "Removed" and not node.get("invert")):
        pattern = node.get("pattern", {}).get("Regex")
        if pattern is not None and node.get("behavior") in ("Isolated", "Removed"):
            for spelling in _SPELLINGS:
                pattern = pattern.replace(spelling, _CONTRACTIONS)
            return [pattern]
    raise ConversionError(
        f"tokenizer.json: pre-tokenizer step {json.dumps(node, ensure_ascii=False)[:200]} has no counterpart in GGUF; "
        "leave the tokenizer out with --no-vocab"
    )
