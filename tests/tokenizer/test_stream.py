"""A stream never tears a character, and its pieces joined are what decoding everything at once gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepic_gguf.tokenizer import Tokenizer

from .sources import metadata, smollm2_path

_BYTES = [f"<0x{b:02X}>" for b in range(256)]


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """A SentencePiece vocabulary of every byte, a few words and a control token: any byte sequence has ids."""
    tokens = ["<unk>", "<s>", "</s>", *_BYTES, "\u2581", "\u2581the", "\u4e2d"]
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * len(tokens),
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1],
        }
    )


@pytest.mark.parametrize("skip_special", [False, True])
def test_the_pieces_of_a_stream_joined_equal_one_decode(bytewise: Tokenizer, skip_special: bool) -> None:
    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(0, bytewise.vocab_size - 1), max_size=40))
    def holds(ids: list[int]) -> None:
        stream = bytewise.stream(skip_special=skip_special, at_start=True)
        joined = "".join(stream.push(i) for i in ids) + stream.flush()
        assert joined == bytewise.decode(ids, skip_special=skip_special)

    holds()


def test_a_character_appears_with_its_last_byte_and_not_before(bytewise: Tokenizer) -> None:
    text = "a\u00e9\u4e2d\U0001f469\u200d\U0001f467"
    stream = bytewise.stream()
    pushed = [stream.push(3 + b) for b in text.encode()]
    assert [piece for piece in pushed if piece] == list(text)
    assert stream.flush() == ""


def test_broken_bytes_become_replacement_characters_exactly_as_python_decodes_them(bytewise: Tokenizer) -> None:
    broken = [
        b"\xff",
        b"\xc3",
        b"\xe4\xb8",
        b"\xf0\x9f\x91a",
        b"\xe4\xb8\xe4\xb8\xad",
        b"\x80\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80",
    ]
    for data in broken:
        stream = bytewise.stream()
        joined = "".join(stream.push(3 + b) for b in data) + stream.flush()
        assert joined == data.decode("utf-8", "replace") == bytewise.decode([3 + b for b in data])
        assert "\ufffd" in joined


def test_flush_gives_the_incomplete_rest_once_and_the_stream_goes_on(bytewise: Tokenizer) -> None:
    stream = bytewise.stream()
    assert (stream.push(3 + 0xE4), stream.flush(), stream.flush()) == ("", "\ufffd", "")
    assert stream.push(3 + ord("x")) == "x"


def test_a_continuation_keeps_its_leading_space_and_a_beginning_does_not(bytewise: Tokenizer) -> None:
    the = bytewise.token_id("\u2581the")
    assert the is not None
    assert bytewise.stream().push(the) == " the"
    at_start = bytewise.stream(at_start=True)
    assert at_start.push(the) + at_start.push(the) == "the the"
    assert bytewise.decode([the, the]) == "the the"


def test_smollm2_streams_emoji_whole() -> None:
    tokenizer = Tokenizer.from_metadata(metadata(smollm2_path()))
    text = "Hi \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 caf\u00e9 \u4e2d\u6587"
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)
