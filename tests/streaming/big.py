"""A GGUF whose experts are far larger than what a test lets them have: random Q8_0 blocks, written in a second, not quantized from anything."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_LAYER, N_EXPERT, N_USED, N_EMBD, N_FF, N_VOCAB = 4, 32, 4, 1024, 1024, 512
EXPERT_BYTES = N_LAYER * N_EXPERT * 3 * N_EMBD * N_FF * 34 // 32


def write(path: Path, *, pre_split: bool = False) -> Path:
    """`qwen3moe` of about 400 MiB of experts; pre_split: in two halves, down by granules of 256."""
    draw = np.random.default_rng(11)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(N_LAYER)
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_expert_feed_forward_length(N_FF)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(N_VOCAB)
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(N_USED)
    if pre_split:
        writer.add_custom_alignment(4096)

    def floats(name: str, *dims: int) -> None:
        data = (draw.standard_normal(dims) / np.sqrt(dims[-1])).astype(np.float32)
        writer.add_tensor(name, np.ones(dims, np.float32) if name.endswith("norm.weight") else data)

    def blocks(name: str, *dims: int) -> None:
        """Q8_0: a half scale and 32 int8 a block; a weight has a standard deviation of 1 / sqrt(columns)."""
        n = int(np.prod(dims)) // 32
        raw = np.empty((n, 34), np.uint8)
        raw[:, :2] = np.frombuffer(np.float16(1 / (74 * np.sqrt(dims[-1]))).tobytes(), np.uint8)
        raw[:, 2:] = draw.integers(0, 256, (n, 32), np.uint8)
        writer.add_tensor(name, raw.reshape(*dims[:-1], dims[-1] // 32 * 34), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    floats("token_embd.weight", N_VOCAB, N_EMBD)
    for il in range(N_LAYER):
        b = f"blk.{il}."
        for name, rows in (("attn_q", 512), ("attn_k", 128), ("attn_v", 128)):
            floats(b + name + ".weight", rows, N_EMBD)
        floats(b + "attn_output.weight", N_EMBD, 512)
        for name, width in (("attn_norm", N_EMBD), ("ffn_norm", N_EMBD), ("attn_q_norm", 64), ("attn_k_norm", 64)):
            floats(f"{b}{name}.weight", width)
        floats(b + "ffn_gate_inp.weight", N_EXPERT, N_EMBD)
        half = N_FF // 2
        for part, rows in (("_top", half), ("_bot", half)) if pre_split else (("", N_FF),):
            for name in ("gate", "up"):
                blocks(f"{b}ffn_{name}_exps{part}.weight", N_EXPERT, rows, N_EMBD)
            if pre_split:
                blocks(f"{b}ffn_down_exps{part}.weight", N_EXPERT, rows // 256, N_EMBD, 256)
            else:
                blocks(f"{b}ffn_down_exps{part}.weight", N_EXPERT, N_EMBD, rows)
    floats("output_norm.weight", N_EMBD)
    floats("output.weight", N_VOCAB, N_EMBD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
