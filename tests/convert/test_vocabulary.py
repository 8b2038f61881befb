"""Tokenizer and template: ids from the GGUF equal those of transformers from the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from convert.pretokenizer import pre_name
from convert.to_gguf import convert
from moepic_gguf import Model
from moepic_gguf.errors import ConversionError
from moepic_gguf.tokenizer import Tokenizer
from tests.convert.reading import File
from tests.making import built, saved
from tests.tiny import TEXTS, byte_level, save, sentencepiece_like

KINDS = {"qwen2": "qwen2", "llama3": "llama-bpe", "gpt2": "gpt-2", "smollm": "smollm", "sentencepiece": "default"}


def make(kind: str) -> Any:
    return sentencepiece_like() if kind == "sentencepiece" else byte_level(kind)


def converted(tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    save(built("llama")[1], tmp_path / "hf", tokenizer=tokenizer)
    convert(tmp_path / "hf", tmp_path / "m.gguf", force=True)
    return File(tmp_path / "m.gguf").keys


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    source = make(kind)
    keys = converted(source, tmp_path)
    assert keys["tokenizer.ggml.pre"] == KINDS[kind]
    ours = Tokenizer.from_metadata(keys)
    for text in TEXTS:
        assert ours.encode(text) == source.encode(text), text
        assert ours.decode(ours.encode(text)) == text


def test_special_tokens_are_tokens_only_where_asked(tmp_path: Path) -> None:
    source = byte_level("qwen2")
    ours = Tokenizer.from_metadata(converted(source, tmp_path))
    text = "<|im_start|>user\nhi<|im_end|>"
    assert ours.encode(text, parse_special=True) == source.encode(text)
    assert source.convert_tokens_to_ids("<|im_end|>") not in ours.encode(text)


def test_bos_and_eos_are_added_where_the_template_says(tmp_path: Path) -> None:
    source = sentencepiece_like()
    source.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    keys = converted(source, tmp_path)
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert Tokenizer.from_metadata(keys).encode("hello") == source.encode("hello")


def test_types_of_tokens_are_carried_over(tmp_path: Path) -> None:
    keys = converted(sentencepiece_like(), tmp_path)
    kinds = keys["tokenizer.ggml.token_type"]
    assert kinds[:3] == [2, 3, 3], "unknown, control, control"
    assert kinds[3:259] == [6] * 256, "bytes"
    assert set(kinds[259:]) == {1}
    keys = converted(byte_level(), tmp_path)
    roles = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True))
    assert roles["<|im_start|>"] == roles["<|im_end|>"] == 3
    assert keys["tokenizer.ggml.tokens"][keys["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"


def test_a_smaller_vocabulary_is_padded_to_the_embedding(tmp_path: Path) -> None:
    keys = converted(byte_level(vocab_size=300), tmp_path)
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 320
    assert keys["tokenizer.ggml.tokens"][-1] == "[PAD319]"
    assert keys["tokenizer.ggml.token_type"][-1] == 5


def test_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"tokens, the embedding 320 rows: token 320"):
        converted(byte_level(vocab_size=340), tmp_path)


def test_templates_come_from_files_and_from_the_configuration(tmp_path: Path) -> None:
    source = byte_level()
    keys = converted(source, tmp_path)
    assert keys["tokenizer.chat_template"] == source.chat_template
    folder = tmp_path / "hf"
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "m.gguf", force=True)
    keys = File(tmp_path / "m.gguf").keys
    assert keys["tokenizer.chat_template"] == "A"
    assert keys["tokenizer.chat_template.tool_use"] == "B"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]


def test_a_folder_without_tokenizer_converts_with_a_warning(tmp_path: Path) -> None:
    plan = convert(saved("mixtral"), tmp_path / "m.gguf")
    assert any("serves token ids only" in warning for warning in plan.content.warnings)
    keys = File(tmp_path / "m.gguf").keys
    assert keys["tokenizer.ggml.model"] == "none"
    assert keys["llama.vocab_size"] == 320


def test_an_unknown_pretokenizer_is_an_error_unless_named(tmp_path: Path) -> None:
    converted(byte_level("qwen2"), tmp_path)
    path = tmp_path / "hf" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|zzz"
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConversionError, match=r"zzz.*--tokenizer-pre"):
        convert(tmp_path / "hf", tmp_path / "n.gguf")
    convert(tmp_path / "hf", tmp_path / "n.gguf", pre="qwen2")
    convert(tmp_path / "hf", tmp_path / "n.gguf", with_vocabulary=False, force=True)
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConversionError, match="Lowercase"):
        convert(tmp_path / "hf", tmp_path / "o.gguf", pre="qwen2")


def test_every_name_we_give_is_one_the_runtime_knows() -> None:
    from convert.pretokenizer import _NAMES
    from moepic_gguf._pretokenizers import pre_tokenizer

    for (_, whole_words), name in _NAMES.items():
        row = pre_tokenizer(name)
        # Where both sides decide it; llama.cpp's gpt-4o never skips merges, whatever the tokenizer.json says.
        assert row.whole_words == whole_words or name == "gpt-4o", name


def test_spellings_of_contractions_are_one() -> None:
    spelled = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": spelled}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert pre_name({"model": {}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}) == "qwen2"


def test_a_bare_sentencepiece_model_is_read(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the 'test' extra has it")
    lines = tmp_path / "lines.txt"
    lines.write_text(
        "\n".join(["a mixture of experts touches a few experts per token", "Zwölf Boxkämpfer jagen Viktor"] * 20)
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(tmp_path / "t"),
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    shutil.copytree(saved("llama"), tmp_path / "hf")
    shutil.copy(tmp_path / "t.model", tmp_path / "hf" / "tokenizer.model")
    convert(tmp_path / "hf", tmp_path / "m.gguf")
    keys = File(tmp_path / "m.gguf").keys
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    ours = Tokenizer.from_metadata(keys)
    for text in TEXTS:
        if "\u0000" not in text and "\t" not in text and "  " not in text:  # SentencePiece normalizes those away
            assert ours.encode(text, add_special=False) == model.encode(text), text


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_tokenizers_of_the_gemmas_add_no_space(family: str, tmp_path: Path) -> None:
    """Gemma 3's becomes scores, Gemma 4's keeps its merges; what must not be chosen is in the file, and never is."""
    from tokenizers import decoders, normalizers

    source = sentencepiece_like()
    source.backend_tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    source.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    source.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    save(built(family)[1], tmp_path / "hf", tokenizer=source)
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps({"suppress_tokens": [7, 300]}))
    convert(tmp_path / "hf", tmp_path / "m.gguf")
    keys = File(tmp_path / "m.gguf").keys
    assert keys["tokenizer.ggml.model"] == {"gemma3": "llama", "gemma4": "gemma4"}[family]
    assert keys["tokenizer.ggml.suppress_tokens"] == [7, 300]
    ours = Tokenizer.from_metadata(keys)
    for text in TEXTS:
        assert ours.encode(text) == source.encode(text), text
        assert ours.decode(ours.encode(text)[1:]) == text
    with Model.load(tmp_path / "m.gguf", n_ctx=32) as model:
        logits = model.logits([3, 4, 5])
    assert np.array_equal(np.flatnonzero(np.isinf(logits[1])), [7, 300])
