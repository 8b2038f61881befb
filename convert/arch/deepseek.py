"""DeepSeek V2 (Lite) and V3, GLM-4.7-Flash: latent attention, leading dense layers, plain shared experts; V3 chooses experts by groups
and with a selection bias.
"""

from __future__ import annotations

import dataclasses

from .family import Experts, Family, Shared

_SHARED = Shared(stem="mlp.shared_experts", width="moe_intermediate_size", count="n_shared_experts")
_REQUIRES = {"hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None)}

DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    arch="deepseek2",
    title="DeepSeek V2",
    latent=True,
    experts=Experts(
        count=("n_routed_experts",),
        used="num_experts_per_tok",
        width="moe_intermediate_size",
        norm=False,
        gating=1,
        scale="routed_scaling_factor",
        groups=("n_group", "topk_group"),
        grouped_by=("topk_method", "group_limited_greedy"),
        first_layer="first_k_dense_replace",
    ),
    shared=_SHARED,
    requires=_REQUIRES | {"norm_topk_prob": (False, None), "topk_method": ("greedy", "group_limited_greedy", None)},
)

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    arch="deepseek2",
    title="DeepSeek V3, R1",
    latent=True,
    experts=Experts(
        count=("n_routed_experts",),
        used="num_experts_per_tok",
        width="moe_intermediate_size",
        norm="norm_topk_prob",
        gating=2,
        selection_bias=("mlp.gate.e_score_correction_bias",),
        scale="routed_scaling_factor",
        groups=("n_group", "topk_group"),
        first_layer="first_k_dense_replace",
    ),
    shared=_SHARED,
    nextn=("num_nextn_predict_layers", "num_mtp_layers"),
    requires=_REQUIRES
    | {"rope_interleave": (True, None), "topk_method": ("noaux_tc", None), "scoring_func": ("sigmoid", None)},
)

GLM4_MOE_LITE = dataclasses.replace(DEEPSEEK_V3, model_type="glm4_moe_lite", title="GLM-4.7-Flash")
