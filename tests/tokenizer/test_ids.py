"""Token ids must equal llama.cpp's: by its recorded answers always, by itself and its test files where present."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from moepic_gguf._pretokenizers import PRE_TOKENIZERS
from moepic_gguf.tokenizer import Tokenizer

from .corpus import texts
from .sources import llama_cpp_source, metadata, smollm2_path

RECORDED = json.loads(Path(__file__).with_name("smollm2_ids.json").read_text("ascii"))

# Vocabulary files of the llama.cpp tree with a supported model; most have question-and-answer pairs beside them.
WITH_PAIRS = (
    *("command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt"),
    *("phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
VOCABULARIES = ("aquila", "baichuan", "gpt-neox", *WITH_PAIRS)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return Tokenizer.from_metadata(metadata(smollm2_path()))


def assert_all_equal(rows: Iterable[tuple[str, list[int], list[int]]], tokenizer: Tokenizer) -> None:
    """Compare (text, found, expected); show the shortest text that differs."""
    different = sorted((row for row in rows if row[1] != row[2]), key=lambda row: len(row[0]))
    if different:
        text, found, expected = different[0]
        shown = [[tokenizer.token_text(i) for i in ids] for ids in (found, expected)]
        pytest.fail(
            f"{len(different)} texts differ; the shortest is {text!r}\n  found    {shown[0]}\n  expected {shown[1]}"
        )


def test_smollm2_ids_equal_the_recorded_ones_with_specials_as_text(smollm2: Tokenizer) -> None:
    assert_all_equal(((row[0], smollm2.encode(row[0]), row[1]) for row in RECORDED["rows"]), smollm2)


def test_smollm2_ids_equal_the_recorded_ones_with_specials_parsed(smollm2: Tokenizer) -> None:
    rows = [(row[0], smollm2.encode(row[0], parse_special=True), row[-1]) for row in RECORDED["rows"]]
    assert_all_equal(rows, smollm2)
    assert sum(len(row) == 3 for row in RECORDED["rows"]) > 50, "the corpus must hold texts where parsing matters"


def test_smollm2_roles_equal_the_recorded_ones(smollm2: Tokenizer) -> None:
    assert sorted(smollm2.stop_ids) == RECORDED["stop_ids"]
    assert [i for i in range(smollm2.vocab_size) if smollm2.is_control(i)] == RECORDED["control_ids"]
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.add_bos, smollm2.add_eos) == (1, 2, False, False)
    assert smollm2.token_id("<|im_end|>") == smollm2.eot_id == 2


def test_smollm2_decoding_gives_back_what_its_vocabulary_can_spell(smollm2: Tokenizer) -> None:
    # SmolLM2 lacks tokens for some bytes, which both engines drop; every other text must come back whole.
    spelled = b"".join(smollm2.token_bytes(i) for i in range(smollm2.vocab_size) if len(smollm2.token_bytes(i)) == 1)
    checked = 0
    for text in texts(150):
        if set(text.encode()) <= set(spelled):
            assert smollm2.decode(smollm2.encode(text)) == text
            assert smollm2.decode(smollm2.encode(text, parse_special=True)) == text
            checked += 1
    assert checked > 1000


@pytest.mark.peer
@pytest.mark.parametrize("name", WITH_PAIRS)
def test_ids_equal_the_pairs_llama_cpp_ships(name: str) -> None:
    path = llama_cpp_source() / "models" / f"ggml-vocab-{name}.gguf"
    if not path.with_suffix(".gguf.inp").is_file():
        pytest.skip(f"{path.name} has no .inp beside it")
    questions = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    answers = path.with_suffix(".gguf.out").read_text("ascii").splitlines()
    tokenizer = Tokenizer.from_metadata(metadata(path))
    pairs = list(zip(questions, answers, strict=False))
    assert len(pairs) > 40
    assert_all_equal(
        ((text, tokenizer.encode(text, add_special=False), [int(i) for i in ids.split()]) for text, ids in pairs),
        tokenizer,
    )


def compare_with_llama_cpp(tokenizer: Tokenizer, path: Path, n_mixed: int) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for parse_special in (False, True):
        assert_all_equal(
            (
                (text, tokenizer.encode(text, parse_special=parse_special),
                 peer.tokenize(text.encode(), add_bos=True, special=parse_special))
                for text in texts(n_mixed)
            ),
            tokenizer,
        )  # fmt: skip
    vocab = peer._model.vocab
    ids = range(tokenizer.vocab_size)
    assert tokenizer.stop_ids == {i for i in ids if llama_cpp.llama_vocab_is_eog(vocab, i)}
    assert not [i for i in ids if tokenizer.is_control(i) != llama_cpp.llama_vocab_is_control(vocab, i)]


@pytest.mark.peer
@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_and_roles_equal_llama_cpp_on_its_vocabularies(name: str) -> None:
    path = llama_cpp_source() / "models" / f"ggml-vocab-{name}.gguf"
    compare_with_llama_cpp(Tokenizer.from_metadata(metadata(path)), path, n_mixed=300)


def _one_name_per_row() -> list[str]:
    return list({row: name for name, row in reversed(PRE_TOKENIZERS.items())}.values())


@pytest.mark.peer
@pytest.mark.parametrize("name", _one_name_per_row())
def test_ids_equal_llama_cpp_for_every_row_of_the_pre_tokenizer_table(name: str, tmp_path: Path) -> None:
    """Llama 3's vocabulary under another family's split: only the cuts are of interest, and it spells every byte."""
    source = llama_cpp_source() / "models" / "ggml-vocab-llama-bpe.gguf"
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(_with_pre(source.read_bytes(), name))
    compare_with_llama_cpp(Tokenizer.from_metadata({**metadata(source), "tokenizer.ggml.pre": name}), path, n_mixed=300)


def _with_pre(blob: bytes, name: str) -> bytes:
    """`blob`, a GGUF without tensors, with another `tokenizer.ggml.pre`: u64 length, key, u32 8, u64 length, text."""
    key = b"tokenizer.ggml.pre"
    at = blob.index(len(key).to_bytes(8, "little") + key) + 8 + len(key) + 4
    old = int.from_bytes(blob[at : at + 8], "little")
    return blob[:at] + len(name).to_bytes(8, "little") + name.encode() + blob[at + 8 + old :]
