"""Qwen2 and Qwen2-MoE (Qwen1.5-MoE): biases on q, k, v; the MoE has a shared expert behind a gate."""

from __future__ import annotations

from .family import Experts, Family, Shared

_REQUIRES = {"hidden_act": ("silu",), "use_sliding_window": (False, None)}

QWEN2 = Family(model_type="qwen2", arch="qwen2", title="Qwen2, Qwen2.5", qkv_bias=True, requires=_REQUIRES)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    arch="qwen2moe",
    title="Qwen1.5-MoE, Qwen2-MoE",
    qkv_bias=True,
    experts=Experts(
        count=("num_experts", "num_local_experts"),
        used="num_experts_per_tok",
        width="moe_intermediate_size",
        norm="norm_topk_prob",
    ),
    shared=Shared(
        stem="mlp.shared_expert", gate="mlp.shared_expert_gate.weight", width="shared_expert_intermediate_size"
    ),
    requires=_REQUIRES | {"qkv_bias": (True, None)},
)
