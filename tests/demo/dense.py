"""SmolLM2 in transformers, from the GGUF's own weights: dequantized by the gguf package, nothing of ours in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_dense(path: Path) -> Any:
    """A float32 LlamaForCausalLM with the file's weights."""
    reader = GGUFReader(str(path))

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    tensors = {
        t.name: torch.from_numpy(np.array(dequantize(t.data, t.tensor_type), np.float32)) for t in reader.tensors
    }
    n_head, n_head_kv = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=n_head,
        num_key_value_heads=n_head_kv,
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )

    def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
        # GGUF's llama pairs neighbouring rows for rope, transformers pairs the halves of a head.
        return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for il in range(config.num_hidden_layers):
        for ours, theirs in _NAMES.items():
            weight = tensors[f"blk.{il}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = halves(weight, n_head if ours == "attn_q" else n_head_kv)
            state[f"model.layers.{il}.{theirs}.weight"] = weight
    model = LlamaForCausalLM(config).to(torch.float32)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()
