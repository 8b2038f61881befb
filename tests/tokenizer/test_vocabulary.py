"""Keys to roles, and what broken or unknown keys are answered with."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from moepic_gguf.errors import ArgumentError, ModelFormatError, UnsupportedModelError
from moepic_gguf.tokenizer import Tokenizer

from .sources import metadata, smollm2_path

_PREFIX = "tokenizer.ggml."


def small(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary of letters, two merges and four specials; `changes` replace keys, None removes them."""
    tokens: list[str | bytes] = [*"abcd", "ab", "abc", "<|im_start|>", "<|im_end|>", "<tool>", "<tool>ab", "unused"]
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [1] * 6 + [3, 3, 4, 4, 5],
        "merges": ["a b", "ab c"],
        "bos_token_id": 6,
        "eos_token_id": 7,
        **changes,
    }
    return {_PREFIX + key: value for key, value in keys.items() if value is not None}


def test_merges_and_specials_of_a_small_vocabulary() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    assert tokenizer.encode("abcdab") == [5, 3, 4]
    assert tokenizer.encode("ab<|im_end|>cd") == [4, 3, 2, 3]  # of "<|im_end|>" only "d" has a token here
    assert tokenizer.encode("ab<|im_end|>cd", parse_special=True) == [4, 7, 2, 3]
    assert tokenizer.encode("") == []
    assert tokenizer.vocab_size == 11


def test_a_byte_without_a_token_has_no_id_but_keeps_its_neighbours_apart() -> None:
    assert Tokenizer.from_metadata(small()).encode("a\u00e9b") == [0, 1]
    assert Tokenizer.from_metadata(small(pre="poro-chat")).encode("a\u00e9b") == [0, 1], "one word for this family"


def test_the_longest_special_is_cut_out_first_even_where_a_shorter_one_begins_earlier() -> None:
    tokens = [*"abcd", "aXb", "XbcY"]
    tokenizer = Tokenizer.from_metadata(
        small(tokens=tokens, token_type=[1, 1, 1, 1, 4, 4], merges=[], bos_token_id=None, eos_token_id=None)
    )
    assert tokenizer.encode("aXbcY") == [0, 5]


def test_user_defined_tokens_are_found_with_and_without_parse_special() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    for parse_special in (False, True):
        assert tokenizer.encode("c<tool>abc", parse_special=parse_special) == [2, 9, 2]
        assert tokenizer.encode("c<tool>c", parse_special=parse_special) == [2, 8, 2]


def test_bos_and_eos_are_added_only_where_the_file_asks() -> None:
    tokenizer = Tokenizer.from_metadata(small(add_bos_token=True, add_eos_token=True))
    assert tokenizer.encode("ab") == [6, 4, 7]
    assert tokenizer.encode("") == [6, 7]
    assert tokenizer.encode("ab", add_special=False) == [4]
    assert Tokenizer.from_metadata(small(pre="llama-bpe")).encode("ab") == [6, 4], "the family's habit"
    assert Tokenizer.from_metadata(small(pre="llama-bpe", add_bos_token=False)).encode("ab") == [4]


def test_end_of_turn_tokens_are_found_by_their_text_and_become_control() -> None:
    tokens = [*"ab", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "</s>", "<|file_sep|>", "x"]
    meta = small(tokens=tokens, token_type=None, merges=[], bos_token_id=None, eos_token_id=8)
    tokenizer = Tokenizer.from_metadata(meta)
    assert tokenizer.stop_ids == {2, 3, 4, 5, 6, 7, 8}
    assert (tokenizer.eot_id, tokenizer.eom_id, tokenizer.eos_id, tokenizer.bos_id) == (3, 4, 8, None)
    assert [tokenizer.is_control(i) for i in range(9)] == [False, False, True, True, True, True, True, True, False]
    assert Tokenizer.from_metadata({**meta, _PREFIX + "eot_token_id": 2}).eot_id == 2


def test_gpt_oss_message_ends_do_not_end_the_answer() -> None:
    tokens = [*"ab", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"]
    tokenizer = Tokenizer.from_metadata(
        small(tokens=tokens, token_type=[1, 1] + [3] * 6, merges=[], bos_token_id=None, eos_token_id=6)
    )
    assert tokenizer.stop_ids == {6, 7}
    assert tokenizer.decode([2, 5], skip_special=True) == "<|start|><|end|>"


def test_spelling_of_each_kind_of_token() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    assert tokenizer.token_bytes(5) == b"abc"
    assert tokenizer.token_bytes(6) == b"<|im_start|>"
    assert tokenizer.token_bytes(10) == b"", "unused"
    assert tokenizer.decode([6, 5, 8, 7]) == "<|im_start|>abc<tool><|im_end|>"
    assert tokenizer.decode([6, 5, 8, 7], skip_special=True) == "abc<tool>"
    assert (tokenizer.token_text(7), tokenizer.token_id("<|im_end|>"), tokenizer.token_id("nope")) == (
        "<|im_end|>",
        7,
        None,
    )


def test_tokens_may_be_bytes_and_need_not_be_utf8() -> None:
    tokens = [b"a", b"b", b"\xff\xfe", b"ab", b""]
    tokenizer = Tokenizer.from_metadata(
        small(tokens=tokens, token_type=[1, 1, 4, 1, 1], merges=[b"a b"], bos_token_id=None, eos_token_id=None)
    )
    assert tokenizer.encode("aab") == [0, 3]
    assert tokenizer.token_bytes(2) == b"\xff\xfe"
    assert tokenizer.decode([0, 2, 1]) == "a\ufffd\ufffdb"
    assert tokenizer.token_text(4) == "[EMPTY_4]"


def test_a_lone_surrogate_is_refused_with_its_position() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    with pytest.raises(ArgumentError, match=r"U\+D83D at position 2"):
        tokenizer.encode("ab\ud83d")
    with pytest.raises(ArgumentError, match="bytes"):
        tokenizer.encode(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [-1, 11, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    tokenizer = Tokenizer.from_metadata(small())
    for call in (tokenizer.token_bytes, tokenizer.token_text, tokenizer.is_control, tokenizer.stream().push):
        with pytest.raises(ArgumentError, match="11 tokens"):
            call(token)
    with pytest.raises(ArgumentError):
        tokenizer.decode([0, token])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": None}, "tokenizer.ggml.model"),
        ({"model": 7}, "tokenizer.ggml.model"),
        ({"tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens"),
        ({"tokens": ["a", 7]}, r"tokens\[1\]"),
        ({"tokens": ["a", "b", "a"]}, "'a' appears twice, as 0 and 2"),
        ({"token_type": [1, 1]}, "2 entries for 11 tokens"),
        ({"token_type": ["x"] * 11}, "token_type"),
        ({"scores": [0.0]}, "1 entries for 11 tokens"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"merges": ["a b", "abc"]}, r"merges\[1\]"),
        ({"merges": ["a b", "a "]}, r"merges\[1\]"),
        ({"merges": [""]}, r"merges\[0\]"),
        ({"bos_token_id": "x"}, "bos_token_id"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id"),
        ({"add_eos_token": True, "eos_token_id": None}, "eos_token_id"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
        ({"model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_a_broken_key_is_a_format_error_that_names_it(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ModelFormatError, match=names):
        Tokenizer.from_metadata(small(**changes))


def test_a_byte_token_must_name_its_byte() -> None:
    tokenizer = Tokenizer.from_metadata(
        small(model="llama", tokens=["<unk>", "a", "<0xZZ>"], token_type=[2, 1, 6], scores=[0.0, 0.0, 0.0],
              merges=None, bos_token_id=None, eos_token_id=None)
    )  # fmt: skip
    with pytest.raises(ModelFormatError, match="<0xZZ>"):
        tokenizer.token_bytes(2)


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2", "no-such"])
def test_an_unsupported_tokenizer_model_is_named(model: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{model}'"):
        Tokenizer.from_metadata(small(model=model))


def test_an_unknown_pre_tokenizer_is_named_with_its_neighbours() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'qwen3'.*qwen2"):
        Tokenizer.from_metadata(small(pre="qwen3"))


def test_merges_that_lead_out_of_the_vocabulary_are_left_out() -> None:
    assert Tokenizer.from_metadata(small(merges=["a b", "c d", "x y", "ab c", "a b"])).encode("cdabc") == [2, 3, 5]


def test_building_the_smollm2_tokenizer_takes_well_under_a_second() -> None:
    # 49152 tokens and 48900 merges; measured 0.2 s on a shared machine, and the bound leaves ten times that.
    meta = metadata(smollm2_path())
    start = time.perf_counter()
    Tokenizer.from_metadata(meta)
    assert time.perf_counter() - start < 2.0


def test_a_long_text_is_encoded_in_about_linear_time() -> None:
    tokenizer = Tokenizer.from_metadata(metadata(smollm2_path()))
    start = time.perf_counter()
    ids = tokenizer.encode("The quick brown fox. " * 20_000 + "x" * 100_000 + " " * 100_000)
    assert time.perf_counter() - start < 20.0, "some pattern or merge is quadratic"
    assert len(ids) > 100_000


def test_one_tokenizer_may_be_shared_between_threads() -> None:
    tokenizer = Tokenizer.from_metadata(metadata(smollm2_path()))
    text = "Hello <|im_start|>user 123\n" * 50
    expected = tokenizer.encode(text, parse_special=True)
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(tokenizer.encode(text, parse_special=True))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8
