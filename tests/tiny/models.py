"""Tiny random models: one function per family with odd sizes, and a table of named variants. Seeded, so every run
makes the same weights.

All parameters are redrawn after construction: transformers starts norms at one and biases at zero, which would hide a
swapped or forgotten tensor. Matrices are N(0, 1/fan_in), norms as they were + N(0, 0.1^2), biases N(0, 0.1^2), embeddings N(0,
0.25^2) (tied ones are the output too), routers three times wider so that routing is decisive and a float's last bit
does not change which expert is chosen.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 320
_DECISIVE = (
    "mlp.gate.weight",
    "gate.wg.weight",
    "router.weight",
    "router.proj.weight",
    "shared_expert_gate.weight",
    "feed_forward.gate.weight",
)


def _draw(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if ("norm" in name and not name.endswith("bias")) or name.endswith("scale"):
                parameter.copy_(parameter.round() + 0.1 * noise)  # around one, or zero where transformers adds the one
            elif name.endswith("A_log"):
                parameter.copy_(noise)  # heads that forget within a token, and heads that remember for tens
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(0.25 * noise)
            else:
                wide = 3.0 if name.endswith(_DECISIVE) else 1.0
                parameter.copy_(noise * (wide / parameter.shape[-1] ** 0.5))

        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("layer_scalar"):
                buffer.copy_(1 + 0.1 * torch.randn(buffer.shape, generator=generator, dtype=torch.float32))
            if name.endswith(("correction_bias", "expert_bias")):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator, dtype=torch.float32))


def _build(kind: str, seed: int, settings: dict[str, Any]) -> tuple[Any, Any]:
    config = AutoConfig.for_model(kind, **settings)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _draw(model, seed)
    return config, model.eval()


def _common(**settings: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        **settings,
    }


def llama(seed: int = 1, **changes: Any) -> tuple[Any, Any]:
    """Dense Llama: hidden 96, GQA 6/2 of width 16, FFN 160, untied. Returns (config, model)."""
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}
    return _build("llama", seed, _common(**sizes) | changes)


def mixtral(seed: int = 2, **changes: Any) -> tuple[Any, Any]:
    """Mixtral: 4 experts, top-2, width 512 (two granules of 256), GQA 6/2, untied. Returns (config, model)."""
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    }
    return _build("mixtral", seed, _common(**sizes) | changes)


def qwen2_moe(seed: int = 3, **changes: Any) -> tuple[Any, Any]:
    """Qwen2-MoE: 60 experts, top-6, width 96 (one granule), gated shared expert of 160, biases on q/k/v, routing not
    renormalised.
    """
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 60,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 160,
        "norm_topk_prob": False,
    }
    return _build("qwen2_moe", seed, _common(**sizes) | changes)


def qwen3_moe(seed: int = 4, **changes: Any) -> tuple[Any, Any]:
    """Qwen3-MoE: 16 experts, top-4, width 768 (three granules of 256), head width 32 unlike hidden/heads,
    renormalised. Returns (config, model).
    """
    sizes = {
        "hidden_size": 80,
        "intermediate_size": 224,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    }
    return _build("qwen3_moe", seed, _common(**sizes) | changes)


def olmoe(seed: int = 5, **changes: Any) -> tuple[Any, Any]:
    """OLMoE: 8 experts, top-3, width 512, q/k norm over the whole projection, routing not renormalised. Returns
    (config, model).
    """
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
    }
    return _build("olmoe", seed, _common(**sizes) | changes)


def qwen2(seed: int = 6, **changes: Any) -> tuple[Any, Any]:
    """Dense Qwen2: biases on q/k/v, tied output. Returns (config, model)."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return _build("qwen2", seed, _common(**sizes) | changes)


def qwen3(seed: int = 7, **changes: Any) -> tuple[Any, Any]:
    """Dense Qwen3: q/k norm per head, head width 32. Returns (config, model)."""
    sizes = {
        "hidden_size": 80,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    return _build("qwen3", seed, _common(**sizes) | changes)


def gpt_oss(seed: int = 13, **changes: Any) -> tuple[Any, Any]:
    """gpt-oss: 8 experts, top-3, width 512 (two granules of 256), heads 6/2 of width 32, three layers with a window of
    12, all, 12. Gates and ups are wide enough that the clamps at 7 act. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": 12,
        "rope_parameters": _YARN | {"rope_theta": 150000.0, "truncate": False},
    }
    config, model = _build("gpt_oss", seed, _common(**sizes) | changes)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj.mul_(8)
    return config, model


def glm4_moe(seed: int = 15, **changes: Any) -> tuple[Any, Any]:
    """GLM-4.5: a dense layer, then 12 experts, top-4, width 512; two shared experts as one of 192, half of 32 rotated,
    biases on q/k/v, routing scaled by 1.5. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "n_routed_experts": 12,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 96,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
        "attention_bias": True,
    }
    return _build("glm4_moe", seed, _common(**sizes) | changes)


def minimax_m2(seed: int = 16, **changes: Any) -> tuple[Any, Any]:
    """MiniMax-M2: 10 experts, top-3, width 512 (two granules), q/k norm over the whole projection, 16 of 32 dimensions
    rotated. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 10,
        "num_experts_per_tok": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
    }
    return _build("minimax_m2", seed, _common(**sizes) | changes)


def ernie4_5_moe(seed: int = 17, **changes: Any) -> tuple[Any, Any]:
    """ERNIE 4.5: a dense layer, then 12 experts, top-3, width 160, two shared ones, tied. Returns (config, model)."""
    sizes = {
        "hidden_size": 80,
        "intermediate_size": 224,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "moe_num_experts": 12,
        "moe_k": 3,
        "moe_intermediate_size": 160,
        "moe_num_shared_experts": 2,
        "tie_word_embeddings": True,
    }
    return _build("ernie4_5_moe", seed, _common(**sizes) | changes)


def granitemoe(seed: int = 18, **changes: Any) -> tuple[Any, Any]:
    """Granite: 10 experts, top-4, width 512, all four multipliers, tied. Returns (config, model)."""
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_local_experts": 10,
        "num_experts_per_tok": 4,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
        "logits_scaling": 6.0,
        "tie_word_embeddings": True,
    }
    return _build("granitemoe", seed, _common(**sizes) | changes)


def hunyuan(seed: int = 24, **changes: Any) -> tuple[Any, Any]:
    """Hunyuan: 8 experts, top-3, width 512 as the shared one, q/k norm after rope. Returns (config, model)."""
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "moe_topk": 3,
    }
    return _build("hunyuan_v1_moe", seed, _common(**sizes) | changes)


def deepseek_v2(seed: int = 33, **changes: Any) -> tuple[Any, Any]:
    """DeepSeek V2-Lite: latent of 48, 5 heads of 24 plain and 16 rotated dimensions, values of 32; a dense layer, then 12
    experts, top-3, two shared ones. Returns (config, model).
    """
    return _build("deepseek_v2", seed, _common(**_LATENT, q_lora_rank=None, n_group=1, topk_group=1) | changes)


def deepseek_v3(seed: int = 26, **changes: Any) -> tuple[Any, Any]:
    """DeepSeek V3: as V2, queries compressed to 40, experts chosen from 2 of 4 groups. Returns (config, model)."""
    return _build("deepseek_v3", seed, _common(**_LATENT, q_lora_rank=40, n_group=4, topk_group=2) | changes)


def glm4_moe_lite(seed: int = 35, **changes: Any) -> tuple[Any, Any]:
    """GLM-4.7-Flash: as DeepSeek V3 without groups, a dense layer by `mlp_layer_types`. Returns (config, model)."""
    sizes = {key: value for key, value in _LATENT.items() if key != "first_k_dense_replace"}
    return _build("glm4_moe_lite", seed, _common(**sizes, q_lora_rank=40) | changes)


def phimoe(seed: int = 40, **changes: Any) -> tuple[Any, Any]:
    """Phi-3.5-MoE: 8 experts, 2 of them one after the other, width 512, LayerNorms, biases on all of attention and the
    output, short factors up to 128 positions. Its router jumps where a logit enters the reach of the best one; the seed is
    one where greedy text stays away from that. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "attention_bias": True,
        "lm_head_bias": True,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8],
            "long_factor": PHI_LONG,
            "short_mscale": 1.25,
            "long_mscale": 1.25,
            "original_max_position_embeddings": 128,
        },
    }
    return _build("phimoe", seed, _common(**sizes) | changes)


PHI_LONG = [1.0, 1.1, 1.4, 2.0, 4.0, 9.0, 16.0, 20.0]


def gemma3(seed: int = 37, **changes: Any) -> tuple[Any, Any]:
    """Gemma 3: heads 6/2 of width 32 scaled as if they were 24 wide, two layers with a window of 12 and one without,
    tied. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    }
    return _build("gemma3_text", seed, _common(**sizes) | changes)


def gemma4(seed: int = 38, **changes: Any) -> tuple[Any, Any]:
    """Gemma 4 26B: 8 experts, top-3, width 512, beside a dense feed-forward; heads 6/2 of 32 with a window of 12, in the
    last layer 6/3 of 64 whose values are the keys; logits capped at 30. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "global_head_dim": 64,
        "num_global_key_value_heads": 3,
        "attention_k_eq_v": True,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 3,
        "moe_intermediate_size": 512,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    }
    config, model = _build("gemma4_text", seed, _common(**sizes) | changes)
    with torch.no_grad():
        for layer in model.model.layers:
            if layer.enable_moe_block:  # its input has length one, not the width's root
                layer.router.proj.weight.mul_(config.hidden_size**0.5)
    return config, model


def llama4(seed: int = 39, **changes: Any) -> tuple[Any, Any]:
    """Llama 4: every second layer has 6 experts, top-1, width 512, and a shared one; heads 6/2 of 16; the fourth layer
    sees everything and does not rotate. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 512,
        "intermediate_size_mlp": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 6,
        "interleave_moe_layer_step": 2,
    }
    config, model = _build("llama4_text", seed, _common(**sizes) | changes)
    with torch.no_grad():
        for layer in model.model.layers:
            if layer.is_moe_layer:  # their inputs are rows, so the draw took the wrong fan-in
                layer.feed_forward.experts.gate_up_proj.mul_(3)
    return config, model


def qwen3_next(seed: int = 41, **changes: Any) -> tuple[Any, Any]:
    """Qwen3-Next: a full layer after two delta nets of 2 key heads and 6 value heads of 16; gated heads 6/2 of
    width 32, 8 rotated; 12 experts, top-3, width 512, gated shared expert of 96. Returns (config, model).
    """
    return _build("qwen3_next", seed, _common(**_DELTA, intermediate_size=160) | changes)


def qwen3_5_moe(seed: int = 42, **changes: Any) -> tuple[Any, Any]:
    """Qwen3.5 MoE: as Qwen3-Next, with separate projections. Returns (config, model)."""
    return _build("qwen3_5_moe_text", seed, _common(**_DELTA) | changes)


def qwen3_5(seed: int = 43, **changes: Any) -> tuple[Any, Any]:
    """Qwen3.5, dense: feed-forward of 160. Returns (config, model)."""
    sizes = {key: value for key, value in _DELTA.items() if "expert" not in key and "moe" not in key}
    return _build("qwen3_5_text", seed, _common(**sizes, intermediate_size=160) | changes)


def lfm2_moe(seed: int = 44, **changes: Any) -> tuple[Any, Any]:
    """LFM2 MoE: short convolutions of 3 in layers 0, 1 and 3, attention 6/2 in layers 2 and 4; a dense layer, then 8
    experts, top-3, width 512, tied. Returns (config, model).
    """
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 512,
        "num_dense_layers": 1,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
        "tie_word_embeddings": True,
    }
    return _build("lfm2_moe", seed, _common(**sizes) | changes)


def lfm2(seed: int = 45, **changes: Any) -> tuple[Any, Any]:
    """LFM2, dense: feed-forward of 160 that becomes 128. Returns (config, model)."""
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "block_multiple_of": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv"],
        "tie_word_embeddings": True,
    }
    return _build("lfm2", seed, _common(**sizes) | changes)


_DELTA = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 96,
}


_LATENT = {
    "hidden_size": 80,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 96,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Every variant that tests run through. `make(name)` builds one; the first of each family is the plain one.
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llama": llama,
    "llama_tied": functools.partial(llama, tie_word_embeddings=True),
    "llama_linear": functools.partial(llama, rope_parameters=_LINEAR),
    "llama_llama3": functools.partial(llama, rope_parameters=_LLAMA3),
    "mixtral": mixtral,
    "mixtral_tied": functools.partial(mixtral, tie_word_embeddings=True),
    "qwen2_moe": qwen2_moe,
    "qwen2_moe_norm": functools.partial(qwen2_moe, norm_topk_prob=True),
    "qwen2_moe_1408": functools.partial(qwen2_moe, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=1408),
    "qwen2_moe_mixed": functools.partial(
        qwen2_moe, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3], num_experts=8, num_experts_per_tok=2
    ),
    "qwen3_moe": qwen3_moe,
    "qwen3_moe_plain_topk": functools.partial(qwen3_moe, norm_topk_prob=False),
    "qwen3_moe_yarn": functools.partial(qwen3_moe, rope_parameters=_YARN),
    "qwen3_moe_linear": functools.partial(qwen3_moe, rope_parameters=_LINEAR),
    # Widths of whole 256-blocks, for the k-quants.
    "qwen3_moe_256": functools.partial(
        qwen3_moe, hidden_size=256, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=512
    ),
    "olmoe": olmoe,
    "olmoe_norm": functools.partial(olmoe, norm_topk_prob=True),
    "olmoe_gqa": functools.partial(olmoe, num_key_value_heads=2),
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt_oss": gpt_oss,
    "gpt_oss_default_rope": functools.partial(
        gpt_oss, rope_parameters={"rope_type": "default", "rope_theta": 150000.0}, num_key_value_heads=3
    ),
    "gpt_oss_other_windows": functools.partial(
        gpt_oss,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
        layer_types=["full_attention", "full_attention", "sliding_attention"],
    ),
    "glm4_moe": glm4_moe,
    "glm4_moe_norms": functools.partial(glm4_moe, use_qk_norm=True, attention_bias=False, norm_topk_prob=False),
    "glm4_moe_groups": functools.partial(glm4_moe, n_group=4, topk_group=2, n_shared_experts=1),
    "minimax_m2": minimax_m2,
    "ernie4_5_moe": ernie4_5_moe,
    "ernie4_5_moe_mixed": functools.partial(
        ernie4_5_moe, num_hidden_layers=4, moe_layer_interval=2, moe_num_shared_experts=0
    ),
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "deepseek_v3_yarn": functools.partial(deepseek_v3, rope_parameters=_YARN | {"mscale": 0.8, "mscale_all_dim": 0.8}),
    # A latent of whole 32-blocks.
    "deepseek_v3_64": functools.partial(deepseek_v3, kv_lora_rank=64),
    "deepseek_v2_groups": functools.partial(
        deepseek_v2, q_lora_rank=40, n_group=4, topk_group=2, topk_method="group_limited_greedy"
    ),
    "glm4_moe_lite": glm4_moe_lite,
    "phimoe": phimoe,
    "phimoe_plain": functools.partial(
        phimoe,
        attention_bias=False,
        lm_head_bias=False,
        num_local_experts=3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "gemma3": gemma3,
    "gemma3_usual": functools.partial(gemma3, num_hidden_layers=7, layer_types=None, query_pre_attn_scalar=32),
    "gemma3_linear": functools.partial(
        gemma3,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "gemma4": gemma4,
    "gemma4_dense": functools.partial(
        gemma4, enable_moe_block=False, attention_k_eq_v=False, final_logit_softcapping=None
    ),
    "llama4": llama4,
    "llama4_chunks": functools.partial(
        llama4, attention_chunk_size=16, floor_scale=8, attn_scale=0.3, num_experts_per_tok=2
    ),
    "granitemoe": granitemoe,
    "hunyuan": hunyuan,
    "qwen3_next": qwen3_next,
    "qwen3_next_mixed": functools.partial(
        qwen3_next,
        mlp_only_layers=[1],
        norm_topk_prob=False,
        linear_num_key_heads=3,
        linear_num_value_heads=3,
        linear_key_head_dim=20,
        linear_value_head_dim=40,
        linear_conv_kernel_dim=3,
    ),
    "qwen3_next_period": functools.partial(qwen3_next, layer_types=None),  # as published: every fourth layer is full
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_5_moe_heads": functools.partial(
        qwen3_5_moe,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        linear_num_key_heads=3,
        linear_num_value_heads=3,
    ),
    # Widths of whole 256-blocks, for the k-quants.
    "qwen3_5_moe_256": functools.partial(
        qwen3_5_moe,
        hidden_size=256,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        num_attention_heads=8,
        num_experts=4,
        num_experts_per_tok=2,
        shared_expert_intermediate_size=256,
    ),
    "qwen3_5": qwen3_5,
    "lfm2_moe": lfm2_moe,
    "lfm2_moe_free": functools.partial(
        lfm2_moe, use_expert_bias=False, norm_topk_prob=False, routed_scaling_factor=1.5, conv_L_cache=4
    ),
    "lfm2_moe_256": functools.partial(
        lfm2_moe, hidden_size=256, intermediate_size=256, num_attention_heads=4, num_experts=4, num_experts_per_tok=2
    ),
    "lfm2": lfm2,
    "hunyuan_alpha": functools.partial(
        hunyuan, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}
    ),
}


def make(name: str) -> tuple[Any, Any]:
    """(config, model) of a variant of `MODELS`; the model is float32, in eval mode."""
    return MODELS[name]()


def save(
    model: Any,
    folder: Path,
    *,
    layout: str = "hub",
    dtype: Any = torch.float32,
    max_shard_size: str = "50GB",
    tokenizer: Any = None,
) -> Path:
    """Write `model` to `folder` as a Hugging Face checkpoint; returns `folder`.

    layout      "hub": the names of the published files, experts one by one; "fused": what transformers 5 keeps in
                memory.
    dtype       of the stored weights; the model itself keeps its own.
    tokenizer   a transformers tokenizer saved alongside, or None.
    """
    if layout not in ("hub", "fused"):
        raise ValueError(f"layout {layout!r}: expected 'hub' or 'fused'")
    stored = model if dtype == model.dtype else copy.deepcopy(model).to(dtype)
    stored.save_pretrained(folder, save_original_format=layout == "hub", max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
