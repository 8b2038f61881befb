"""Vocabularies trained here and given to us as GGUF keys must behave as the libraries that made them.

The oracles hold the split rules as the model makers publish them (`tokenizer.json`), independent of our table, and
SentencePiece itself.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from moepic_gguf.tokenizer import Tokenizer

from .corpus import FRAGMENTS, texts
from .sources import metadata, smollm2_path

_CONTROL, _USER_DEFINED, _BYTE, _NORMAL, _UNKNOWN = 3, 4, 6, 1, 2

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PUBLISHED = {
    "qwen2": (_split(_QWEN2), False),
    "llama-bpe": (_split(_LLAMA3), True),
    "olmo": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        False,
    ),
}

# Known differences between llama.cpp's reading of a format and the published rules; the ids follow llama.cpp.
_DIFFERS = ("\u017f",)  # `(?i:'s)` folds the long s; llama.cpp's contraction does not


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
    }


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_ids_equal_transformers_on_a_vocabulary_trained_here(pre: str) -> None:
    pre_tokenizer, ignore_merges = PUBLISHED[pre]
    oracle = HfTokenizer(BPE(ignore_merges=ignore_merges))
    oracle.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    oracle.train_from_iterator([Path(__file__).read_text("utf-8"), " ".join(FRAGMENTS)], trainer)
    state = oracle.model.__getstate__()
    merges = [tuple(pair) for pair in json.loads(state)["merges"]]
    oracle.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    oracle.add_tokens([AddedToken("    ", normalized=False), AddedToken("<think>", normalized=False)])
    ours = Tokenizer.from_metadata(_as_metadata(oracle, merges, pre))
    theirs = PreTrainedTokenizerFast(tokenizer_object=oracle)
    assert len(merges) > 300
    for text in texts(300):
        if any(odd in text for odd in _DIFFERS):
            continue
        assert ours.encode(text, parse_special=True) == theirs(text).input_ids, repr(text)
        assert ours.decode(ours.encode(text)) == text


def test_smollm2_ids_equal_a_transformers_tokenizer_over_the_same_lists() -> None:
    meta = metadata(smollm2_path())
    tokens, merges = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.merges"]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    oracle = HfTokenizer(BPE(vocabulary, [tuple(line.split(" ")) for line in merges]))
    oracle.pre_tokenizer = PUBLISHED["smollm"][0]
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
