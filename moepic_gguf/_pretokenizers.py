"""How each byte-level BPE family cuts text into words before merging: `tokenizer.ggml.pre` -> split patterns, as data.

The patterns are facts of the formats (each is published in the model's own `tokenizer.json`), written so that the cuts
equal llama.cpp's, the reference for GGUF files. So these are no mistakes:
- Contractions list both cases instead of using `(?i:)`, which would also fold U+017F (long s) to `s`.
- `gpt-4o`, `tekken` and their kin tell upper from lower case only in ASCII; for other letters both halves match.
- `kimi-k2` does not tell them apart at all, and takes for Han the blocks of ideographs, not the script.
- Where a published pattern ends in `|\\s+` after `\\s+(?!\\S)`, gpt-2's ends before it: what no pattern matches is a
  word of its own anyway.
- The wide classes of the DeepSeek rows leave out the white space that lies in their ranges.

Patterns are applied one after another, each to the pieces left by the one before; a match is a piece, and so is the
text between matches. This module knows no library and no vocabulary.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from .errors import UnsupportedModelError


@dataclass(frozen=True)
class PreTokenizer:
    """One row of the table.

    splits         patterns (Oniguruma syntax), applied in order.
    whole_words    a word that is itself a token is that token, whatever the merges say.
    first_joins_left  a match of the first pattern stays with the unmatched text before it.
    add_bos        what the family does when the file has no `add_bos_token` key.
    """

    splits: tuple[str, ...]
    whole_words: bool = False
    first_joins_left: bool = False
    add_bos: bool = False


# Character classes, as code points: several of them look alike or do not print.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_STOPS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"
_AFMOE_SCRIPTS = (
    "\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_WIDE_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebef\U0002f800-\U0002fa1f"
_DEEPSEEK_CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"

_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_SHORT_ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_PUNCTUATION_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""

_GPT2 = _SHORT + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_AFTER_SHORT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = _SHORT_ANY_CASE + "|" + _AFTER_SHORT + _SPACES
_NO_SHORT_QWEN2 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN2 = _SHORT_ANY_CASE + "|" + _NO_SHORT_QWEN2
_QWEN35 = _SHORT_ANY_CASE + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
_DEEPSEEK_V3 = _ASCII_PUNCTUATION_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES
_KANA_AND_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

# Words of capitals then words of small letters; see the note on ASCII case above.
_NOT_LOWER = r"(?:(?=\p{L})[^a-z])"
_NOT_UPPER = r"(?:(?=\p{L})[^A-Z])"
_EDGE = r"[^\r\n\p{L}\p{N}]?"


def _cased(suffix: str, number: str) -> str:
    lower = f"{_EDGE}{_NOT_LOWER}*{_NOT_UPPER}+{suffix}"
    upper = f"{_EDGE}{_NOT_LOWER}+{_NOT_UPPER}*{suffix}"
    return lower + "|" + upper + "|" + number + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES


# Letters and marks in one run; the letter classes of the published pattern overlap so far that this is what they match.
_LETTERS_AND_MARKS = rf"{_EDGE}[\p{{L}}\p{{M}}]+{_SHORT_ANY_CASE}?"
_YOUTU = _LETTERS_AND_MARKS + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_TINY_AYA = _LETTERS_AND_MARKS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_KIMI_WORD = rf"{_EDGE}(?:(?![{_HAN}])\p{{L}})+{_SHORT_ANY_CASE}?"
_KIMI = rf"[{_HAN}]+|{_KIMI_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*" + _SPACES
# A run of digits is cut in threes from its right end, the first group staying with the text before the run: first text
# and run are taken together, then what is left of a run is divisible by three. Each step looks ahead once per run.
_THREES_FROM_THE_RIGHT = (r"\p{N}+", r"\A\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*\z)", r"\G\p{N}{3}")

_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"

_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_GPT2_ROW = PreTokenizer((_GPT2,))
_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_PLAIN = PreTokenizer((_LLAMA3,))
_LLAMA3_ROW = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_QWEN2_ROW = PreTokenizer((_QWEN2,))
_DEEPSEEK_V3_ROW = PreTokenizer((r"\p{N}{1,3}", _KANA_AND_HAN, _DEEPSEEK_V3))
_GPT4O_ROW = PreTokenizer((_cased(_SHORT_ANY_CASE + "?", r"\p{N}{1,3}"),))
_BLOOM = " ?[^(\\s|" + _STOPS + ")]+"
_BLOOM_ROW = PreTokenizer((_BLOOM,))
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING_ROW = PreTokenizer((_BAILING,))
_EXAONE_MOE_ROW = PreTokenizer(
    (
        _SHORT_ANY_CASE + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_CHAMELEON_ROW = PreTokenizer(
    (
        "<sentinel:[0-9]+>",
        "(?:IMGIMG)[A-I]{1,4}Z",
        "[\\t\\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
    add_bos=True,
)

_ROWS: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", _DEFAULT),
    ("gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4", _GPT2_ROW),
    ("jina-v1-en jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling", _GPT2_ROW),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _DIGITS_GPT2),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3_ROW),
    ("dbrx smaug-bpe chatglm-bpe", _LLAMA3_PLAIN),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), whole_words=True)),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), whole_words=True)),
    ("jais-2", PreTokenizer((_SHORT_ANY_CASE + "|" + _AFTER_SHORT + r"|\s*[\r\n]+|" + _JAIS2_SPACES,))),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _QWEN2_ROW),
    ("qwen35", PreTokenizer((_QWEN35,))),
    ("ufakzeka", PreTokenizer((_NO_SHORT_QWEN2,))),
    ("laguna", PreTokenizer((r"[^\n]+|[\n]+", _QWEN2))),
    ("seed-coder", PreTokenizer((_QWEN2.replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+"),))),
    ("bailingmoe bailingmoe2 llada-moe", _BAILING_ROW),
    ("exaone-moe", _EXAONE_MOE_ROW),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK_V3_ROW),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                rf"\s?(?:(?!\s)[{_WIDE_PUNCTUATION}])+",
                r"(?<!\s)\s+\z",
                rf"(?:(?!\s)[{_DEEPSEEK_CJK}])+",
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"(?:(?!\s)[{_DEEPSEEK_CJK}])+", r"\p{N}")),
    ),
    ("afmoe", PreTokenizer((*_THREES_FROM_THE_RIGHT, f"[{_AFMOE_SCRIPTS}]+", _DEEPSEEK_V3), first_joins_left=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O_ROW),
    ("tekken", PreTokenizer((_cased("", r"\p{N}"),), whole_words=True, add_bos=True)),
    ("tiny_aya cohere2moe", PreTokenizer((*_THREES_FROM_THE_RIGHT, _TINY_AYA), first_joins_left=True)),
    ("youtu", PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), whole_words=True)),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("poro-chat bloom gpt3-finnish", _BLOOM_ROW),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
    ("chameleon", _CHAMELEON_ROW),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: row for names, row in _ROWS for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The row for `tokenizer.ggml.pre` = `name`; UnsupportedModelError, naming the nearest known ids, where none is."""
    row = PRE_TOKENIZERS.get(name)
    if row is None:
        near = difflib.get_close_matches(name, PRE_TOKENIZERS, n=3, cutoff=0.4)
        hint = f"; nearest known: {', '.join(near)}" if near else ""
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre: '{name}' is not a known pre-tokenizer{hint} "
            "(another one would give other token ids, so none is guessed)"
        )
    return row
