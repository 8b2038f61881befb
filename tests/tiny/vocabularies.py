"""Tiny tokenizers: a byte-level BPE with a chosen pre-tokenizer, and a Llama-style BPE with byte fallback. Trained on
a few fixed lines.

They exist so that a tiny model can be a whole folder. What they are checked against is transformers itself.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog isn't amused.",
    "A mixture of experts touches a few experts per token; nobody knows which until the router has spoken.",
    "def add(a, b):\n    return a + b  # numbers: 1 22 333 4444\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "我能吞下玻璃而不伤身体。 Я могу есть стекло. \U0001f600\U0001f680",
] * 4

# Text to check a carried-over tokenizer with: case, digits, runs of spaces, scripts, emoji, code, control characters,
# special tokens spelled out.
TEXTS = [
    "Hello world",
    " leading and  double   spaces ",
    "It's THEY'LL we've I'M",
    "1234567890 3.14159 1,000",
    "line\nbreaks\r\n\r\n\ttabs\t\n",
    "Zwölf Boxkämpfer, naïve café",
    "日本語テキスト 我能吞下玻璃",
    "\U0001f469‍\U0001f4bb \U0001f680\U0001f680",
    "def f(x): return x**2  # ok?!",
    "a\u0000b\u0007c",
    "",
]

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(kind: str = "qwen2", vocab_size: int = 320) -> Any:
    """A byte-level BPE tokenizer (a transformers one) whose pre-tokenizer is that of `kind`: qwen2, llama3, gpt2 or
    smollm.
    """
    core = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "smollm"))
    if kind == "gpt2":
        core.pre_tokenizer = level
    elif kind == "smollm":
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    else:
        pattern = {"qwen2": _QWEN2, "llama3": _LLAMA3}[kind]
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), level])
    if kind == "qwen2":
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    core.train_from_iterator(_LINES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    return tokenizer


def sentencepiece_like(vocab_size: int = 320) -> Any:
    """A Llama-2-style tokenizer.json: BPE over characters with byte fallback, U+2581 for spaces."""
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    # Trained apart, so that the vocabulary keeps Llama's order: unknown, bos, eos, bytes, then the pieces.
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    n_pieces = vocab_size - 3 - len(byte_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces, limit_alphabet=n_pieces // 2, special_tokens=[], show_progress=False
    )
    learner.train_from_iterator(_LINES, trainer)
    learned: dict[str, int] = learner.get_vocab()
    import json

    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    merged = {a + b: rank for rank, (a, b) in enumerate(merges)}
    pieces = sorted(learned, key=lambda text: (text not in merged, merged.get(text, 0), learned[text]))
    texts = ["<unk>", "<s>", "</s>", *byte_tokens, *pieces]
    core = Tokenizer(
        models.BPE(
            vocab={text: i for i, text in enumerate(texts)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
