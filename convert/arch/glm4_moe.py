"""GLM-4.5, 4.6 and Air: half the head rotated, sigmoid routing with a selection bias, leading dense layers, a plain
shared expert, NextN blocks left out.
"""

from __future__ import annotations

from .family import Experts, Family, Shared

GLM4_MOE = Family(
    model_type="glm4_moe",
    arch="glm4moe",
    title="GLM-4.5, 4.6 and Air",
    rope_part=0.5,
    qk_norm="head",
    qk_norm_key="use_qk_norm",
    qkv_bias="attention_bias",
    ffn_norm="post_attention_norm",
    experts=Experts(
        count=("n_routed_experts", "num_local_experts"),
        used="num_experts_per_tok",
        width="moe_intermediate_size",
        norm="norm_topk_prob",
        gating=2,
        selection_bias=("mlp.gate.e_score_correction_bias",),
        scale="routed_scaling_factor",
        groups=("n_group", "topk_group"),
        first_layer="first_k_dense_replace",
    ),
    shared=Shared(stem="mlp.shared_experts", width="moe_intermediate_size", count="n_shared_experts"),
    nextn=("num_nextn_predict_layers", "num_mtp_layers"),
    requires={"hidden_act": ("silu",)},
)
