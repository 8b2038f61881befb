"""Qwen3 and Qwen3-MoE: q and k normed per head, no biases."""

from __future__ import annotations

from .family import Experts, Family

_REQUIRES = {"hidden_act": ("silu",), "use_sliding_window": (False, None), "attention_bias": (False, None)}

QWEN3 = Family(model_type="qwen3", arch="qwen3", title="Qwen3", qk_norm="head", requires=_REQUIRES)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    arch="qwen3moe",
    title="Qwen3-MoE",
    qk_norm="head",
    experts=Experts(
        count=("num_experts", "num_local_experts"),
        used="num_experts_per_tok",
        width="moe_intermediate_size",
        norm="norm_topk_prob",
    ),
    requires=_REQUIRES,
)
