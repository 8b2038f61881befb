"""A tiny random GGUF with a byte-level tokenizer and a chat template, written with the gguf package in milliseconds.

Random weights speak in random bytes, broken UTF-8 among them, which is what the tests of streaming want.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType, TokenType
from gguf.quants import quantize

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<s>")


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; n_expert 0 is dense."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 64
    n_expert: int = 4
    n_expert_used: int = 2
    n_ctx: int = 512
    seed: int = 1
    tokenizer: bool = True
    template: bool = True
    tool_template: str | None = None  # source of a second chat template, 'tool_use'
    eos: bool = True  # the file names an end token
    kind: GGMLQuantizationType = GGMLQuantizationType.F32  # of matrices


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes, in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, spare = [], 0
    for byte in range(256):
        if byte in printable:
            table.append(chr(byte))
        else:
            table.append(chr(0x100 + spare))
            spare += 1
    return table


def vocabulary() -> tuple[list[str], list[str], list[int]]:
    """Token strings, merges and types: bytes, a few merges, five control tokens. Ids 0-255 are the bytes themselves."""
    tokens = byte_tokens()
    merges = []
    for left, right in (
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("i", "n"),
        ("e", "r"),
        ("a", "n"),
        ("an", "d"),
        ("Ġ", "and"),
    ):
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL] * len(_SPECIALS)
    return [*tokens, *_SPECIALS], merges, [int(kind) for kind in types]


def write(path: Path, shape: Shape = Shape()) -> Path:
    """Write the file and return its path."""
    tokens, merges, types = vocabulary()
    n_vocab = len(tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_vocab_size(n_vocab)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
    if shape.tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_merges(merges)
        writer.add_token_types(types)
        writer.add_bos_token_id(tokens.index("<s>"))
        if shape.eos:
            writer.add_eos_token_id(tokens.index("<|end|>"))
        writer.add_add_bos_token(True)
        if shape.template:
            variants = [{"name": "tool_use", "template": shape.tool_template}] if shape.tool_template else []
            writer.add_chat_template([{"name": "default", "template": TEMPLATE}, *variants])
    draw = np.random.default_rng(shape.seed)

    def add(name: str, *dims: int) -> None:
        data = draw.standard_normal(dims).astype(np.float32)
        if name.endswith("norm.weight"):
            data = 1 + 0.1 * data
        elif name == "token_embd.weight":
            data *= 0.5
        elif name == "output.weight":
            data *= 4 / np.sqrt(dims[-1])  # peaked, so that greedy text has a clear winner
        else:
            data /= np.sqrt(dims[-1])
        kind = shape.kind if len(dims) > 1 and "gate_inp" not in name else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(data.astype(np.float32), kind), raw_dtype=kind)

    head = shape.n_embd // shape.n_head
    add("token_embd.weight", n_vocab, shape.n_embd)
    for il in range(shape.n_layer):
        block = f"blk.{il}."
        add(block + "attn_norm.weight", shape.n_embd)
        add(block + "attn_q.weight", shape.n_embd, shape.n_embd)
        add(block + "attn_k.weight", shape.n_head_kv * head, shape.n_embd)
        add(block + "attn_v.weight", shape.n_head_kv * head, shape.n_embd)
        add(block + "attn_output.weight", shape.n_embd, shape.n_embd)
        add(block + "ffn_norm.weight", shape.n_embd)
        if shape.n_expert:
            add(block + "ffn_gate_inp.weight", shape.n_expert, shape.n_embd)
            add(block + "ffn_gate_exps.weight", shape.n_expert, shape.n_ff, shape.n_embd)
            add(block + "ffn_up_exps.weight", shape.n_expert, shape.n_ff, shape.n_embd)
            add(block + "ffn_down_exps.weight", shape.n_expert, shape.n_embd, shape.n_ff)
        else:
            add(block + "ffn_gate.weight", shape.n_ff, shape.n_embd)
            add(block + "ffn_up.weight", shape.n_ff, shape.n_embd)
            add(block + "ffn_down.weight", shape.n_embd, shape.n_ff)
    add("output_norm.weight", shape.n_embd)
    add("output.weight", n_vocab, shape.n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    import sys

    print(write(Path(sys.argv[1])))
