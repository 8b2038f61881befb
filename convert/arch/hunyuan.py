"""Hunyuan-A13B: q and k normed after rope, a plain shared expert in every layer."""

from __future__ import annotations

from .family import Experts, Family, Shared

HUNYUAN_V1_MOE = Family(
    model_type="hunyuan_v1_moe",
    arch="hunyuan-moe",
    title="Hunyuan-A13B",
    qk_norm="head",
    qk_norm_names=("query_layernorm", "key_layernorm"),
    experts=Experts(
        routers=("mlp.gate.wg.weight",),
        count=("num_experts",),
        used="moe_topk",
        width="intermediate_size",
        norm=True,
    ),
    shared=Shared(stem="mlp.shared_mlp", width="intermediate_size"),
    requires={"hidden_act": ("silu",), "attention_bias": (False, None), "use_qk_norm": (True,), "use_cla": (False,)},
)
