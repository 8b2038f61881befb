"""Vocabularies trained here and given to us as GGUF keys must behave as the libraries that made them.

The oracles hold the split rules as the model makers publish them (`tokenizer.json`), independent of our table, and
SentencePiece itself. With `-m peer`, llama.cpp reads the same vocabularies from files.
"""

from __future__ import annotations

import functools
import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as _QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as _QWEN35

from convert.arch import FAMILIES
from convert.pretokenizer import pre_name
from moepic_gguf._pretokenizers import PRE_TOKENIZERS
from moepic_gguf.tokenizer import Tokenizer

from .corpus import FRAGMENTS, texts
from .sources import metadata, smollm2_path
from .test_ids import compare_with_llama_cpp

_CONTROL, _USER_DEFINED, _BYTE, _NORMAL, _UNKNOWN = 3, 4, 6, 1, 2

_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _SPACES,
)


def _words(but: str = "") -> str:
    """o200k's words: capitals, then small letters, at least one of either; `but` takes characters out of both classes."""
    either = r"\p{Lm}\p{Lo}\p{M}" + but
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}{either}]", rf"[\p{{Ll}}{either}]"
    edge, short = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    return f"{edge}{upper}*{lower}+{short}|{edge}{upper}+{lower}*{short}"


_O200K = _words() + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_KIMI = r"[\p{Han}]+|" + _words(r"&&[^\p{Han}]") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


# Where llama.cpp reads a format otherwise than it is published; the ids follow llama.cpp.


def _long_s(text: str) -> bool:
    return "\u017f" in text  # `(?i:'s)` folds the long s; llama.cpp's contraction does not


def _case_beyond_ascii(text: str) -> bool:
    """llama.cpp knows capitals in ASCII only, and no marks inside words."""
    return any(c > "\x7f" and unicodedata.category(c) in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me") for c in text)


def _case_or_script(text: str) -> bool:
    """llama.cpp cuts no word at a capital, and its Han are blocks: without the iteration mark and zero."""
    return _case_beyond_ascii(text) or bool(re.search(r"[^\W\d_A-Z][A-Z]|[\u3005\u3007]", text))


@dataclass(frozen=True)
class Published:
    """Rules of a tokenizer.json, and the texts where llama.cpp is known to differ from them."""

    pre_tokenizer: pre_tokenizers.PreTokenizer
    ignore_merges: bool = False
    differs: Callable[[str], bool] = _long_s


PUBLISHED = {
    "qwen2": Published(_split(_QWEN2)),
    "hunyuan": Published(_split(_QWEN2)),
    "qwen35": Published(_split(_QWEN35)),
    "llama-bpe": Published(_split(_LLAMA3), ignore_merges=True),
    "lfm2": Published(_split(_LLAMA3), ignore_merges=True),
    "glm4": Published(_split(_LLAMA3), ignore_merges=True),
    "gpt-4o": Published(_split(_O200K), differs=_case_beyond_ascii),
    "llama4": Published(_split(_O200K), differs=_case_beyond_ascii),
    "minimax-m2": Published(_split(_O200K), differs=_case_beyond_ascii),
    "deepseek-v3": Published(_split(*_DEEPSEEK_V3)),
    "kimi-k2": Published(_split(_KIMI), differs=_case_or_script),
    "olmo": Published(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": Published(_digits()),
    "refact": Published(_digits()),
}
# No published rules at hand: compared with llama.cpp only (docs/limits.md).
ONLY_LLAMA_CPP = {"deepseek-llm": "llama-bpe"}  # -> whose vocabulary it is tried on

# What a family's files name. "llama" and "gemma4" have no pre-tokenizer; their ids are held below and in
# tests/convert/test_vocabulary.py.
VOCABULARIES = {
    "DeepSeek V2": "deepseek-llm",
    "DeepSeek V3, R1": "deepseek-v3 kimi-k2",
    "ERNIE 4.5 MoE": "llama",
    "GLM-4.5, 4.6 and Air": "glm4",
    "GLM-4.7-Flash": "glm4",
    "Gemma 3": "llama",
    "Gemma 4": "gemma4",
    "Granite 3 MoE": "refact",
    "Hunyuan-A13B": "hunyuan",
    "LFM2 MoE (8B-A1B, 24B-A2B)": "lfm2",
    "LFM2, dense": "lfm2",
    "Llama 4": "llama4",
    "Llama, SmolLM2": "llama llama-bpe smollm",
    "MiniMax-M2": "minimax-m2",
    "Mistral": "llama",
    "Mixtral": "llama",
    "OLMoE": "olmo",
    "Phi-3.5-MoE": "llama",
    "Qwen1.5-MoE, Qwen2-MoE": "qwen2",
    "Qwen2, Qwen2.5": "qwen2",
    "Qwen3": "qwen2",
    "Qwen3-MoE": "qwen2",
    "Qwen3-Next, Qwen3-Coder-Next": "qwen2",
    "Qwen3.5 and 3.6 MoE": "qwen35",
    "Qwen3.5 and 3.6, dense": "qwen35",
    "gpt-oss (20b, 120b)": "gpt-4o",
}


def test_the_pre_tokenizer_of_every_family_is_known_and_checked() -> None:
    assert VOCABULARIES.keys() == {family.title for family in FAMILIES.values()}
    named = {name for names in VOCABULARIES.values() for name in names.split()} - {"llama", "gemma4"}
    assert named <= PRE_TOKENIZERS.keys()
    assert named == PUBLISHED.keys() | ONLY_LLAMA_CPP.keys()


def _as_metadata(oracle: HfTokenizer, merges: list[tuple[str, str]], pre: str) -> dict[str, object]:
    vocabulary = oracle.get_vocab(with_added_tokens=True)
    added = oracle.get_added_tokens_decoder()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [_NORMAL] * len(tokens)
    for i, token in added.items():
        kinds[i] = _CONTROL if token.special else _USER_DEFINED
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": vocabulary["<|endoftext|>"],
    }


@functools.cache
def trained(pre: str) -> tuple[HfTokenizer, dict[str, object]]:
    """A tokenizer trained under the published rules of `pre`, and its keys."""
    published = PUBLISHED[pre]
    oracle = HfTokenizer(BPE(ignore_merges=published.ignore_merges))
    oracle.pre_tokenizer = published.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    oracle.train_from_iterator([Path(__file__).read_text("utf-8"), " ".join(FRAGMENTS)], trainer)
    merges = [tuple(pair) for pair in json.loads(oracle.model.__getstate__())["merges"]]
    assert len(merges) > 300
    oracle.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    oracle.add_tokens([AddedToken("    ", normalized=False), AddedToken("<think>", normalized=False)])
    return oracle, _as_metadata(oracle, merges, pre)


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_ids_equal_transformers_on_a_vocabulary_trained_here(pre: str) -> None:
    oracle, keys = trained(pre)
    ours = Tokenizer.from_metadata(keys)
    theirs = PreTrainedTokenizerFast(tokenizer_object=oracle)
    checked = 0
    for text in texts(300):
        if PUBLISHED[pre].differs(text):
            continue
        assert ours.encode(text, parse_special=True) == theirs(text).input_ids, repr(text)
        assert ours.decode(ours.encode(text)) == text
        checked += 1
    assert checked > 600


@pytest.mark.parametrize("pre", sorted(PUBLISHED.keys() - {"kimi-k2"}))  # Kimi K2 is published as a tiktoken file
def test_the_converter_names_the_published_rules(pre: str) -> None:
    """By a name of the same row; families share rows."""
    published = json.loads(trained(pre)[0].to_str())
    assert PRE_TOKENIZERS[pre_name(published)].splits == PRE_TOKENIZERS[pre].splits


def test_rules_from_a_tiktoken_file_get_the_same_name() -> None:
    """transformers writes such files with words that skip the merges."""
    published = json.loads(trained("gpt-4o")[0].to_str())
    published["model"]["ignore_merges"] = True
    assert pre_name(published) == "gpt-4o"


@pytest.mark.peer
@pytest.mark.parametrize("pre", [*PUBLISHED, *ONLY_LLAMA_CPP])
def test_byte_level_ids_equal_llama_cpp_on_a_vocabulary_trained_here(pre: str, tmp_path: Path) -> None:
    """On all texts, those included where the published rules differ."""
    keys = trained(ONLY_LLAMA_CPP.get(pre, pre))[1] | {"tokenizer.ggml.pre": pre}
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    compare_with_llama_cpp(Tokenizer.from_metadata(metadata(path)), path, n_mixed=300)


def test_smollm2_ids_equal_a_transformers_tokenizer_over_the_same_lists() -> None:
    meta = metadata(smollm2_path())
    tokens, merges = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.merges"]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    oracle = HfTokenizer(BPE(vocabulary, [tuple(line.split(" ")) for line in merges]))
    oracle.pre_tokenizer = PUBLISHED["smollm"].pre_tokenizer
    kinds = meta["tokenizer.ggml.token_type"]
    oracle.add_special_tokens([text for text, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    theirs = PreTrainedTokenizerFast(tokenizer_object=oracle)
    ours = Tokenizer.from_metadata(meta)
    missing = set(range(256)) - {ours.token_bytes(i)[0] for i in range(len(tokens)) if len(ours.token_bytes(i)) == 1}
    checked = 0
    for text in texts(300):
        # transformers drops a byte without a token before merging, llama.cpp after; the ids follow llama.cpp.
        if missing.isdisjoint(text.encode()):
            assert ours.encode(text, parse_special=True) == theirs(text).input_ids, repr(text)
            checked += 1
    assert checked > 1000


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    lines = [*Path(__file__).read_text("utf-8").splitlines(), *(f for f in FRAGMENTS if "\x00" not in f)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 2), model_writer=model, model_type="bpe", vocab_size=700,
        byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=["<think>", "    "],
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _spm_metadata(pieces: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    def kind(i: int) -> int:
        if pieces.is_byte(i):
            return _BYTE
        if pieces.is_unknown(i):
            return _UNKNOWN
        if pieces.is_control(i):
            return _CONTROL
        return _USER_DEFINED if pieces.id_to_piece(i) in ("<think>", "    ") else _NORMAL

    ids = range(pieces.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [pieces.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": pieces.bos_id(),
        "tokenizer.ggml.eos_token_id": pieces.eos_id(),
        "tokenizer.ggml.unknown_token_id": pieces.unk_id(),
    }


def test_sentencepiece_ids_equal_sentencepiece_on_a_vocabulary_trained_here(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    ours = Tokenizer.from_metadata(_spm_metadata(pieces))
    assert ours.add_bos
    checked = 0
    for text in texts(300):
        # GGUF runtimes put a space after each special and cut specials out first; SentencePiece does neither.
        if any(odd in text for odd in ("<think>", "    ", "\u2581", "<s>", "</s>", "<unk>", "<0x", "\x00")) or not text:
            continue
        assert ours.encode(text) == [pieces.bos_id(), *pieces.encode(text)], repr(text)
        assert ours.decode(ours.encode(text, add_special=False)) == text
        assert ours.decode(ours.encode(text), skip_special=True) == text
        checked += 1
    assert checked > 800


def test_a_space_follows_every_special_of_a_sentencepiece_vocabulary(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    # As llama.cpp does (its `is_prev_special`), whose ids decide.
    ours = Tokenizer.from_metadata(_spm_metadata(pieces))
    word = pieces.encode("the")
    think = pieces.piece_to_id("<think>")
    assert ours.encode("the<think>the", add_special=False) == [*word, think, *word]
    assert ours.encode("the</s>the", add_special=False, parse_special=True) == [*word, pieces.eos_id(), *word]


def test_a_vocabulary_without_the_space_prefix_adds_none(pieces: sentencepiece.SentencePieceProcessor) -> None:
    ours = Tokenizer.from_metadata({**_spm_metadata(pieces), "tokenizer.ggml.add_space_prefix": False})
    assert ours.decode(ours.encode(" the", add_special=False)) == " the"
    assert ours.token_bytes(ours.encode("x", add_special=False)[0]) == b"x"
