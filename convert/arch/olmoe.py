"""OLMoE: q and k normed over the whole projection."""

from __future__ import annotations

from .family import Experts, Family

OLMOE = Family(
    model_type="olmoe",
    arch="olmoe",
    title="OLMoE",
    qk_norm=True,
    experts=Experts(
        gate="mlp.experts.{e}.gate_proj.weight",
        up="mlp.experts.{e}.up_proj.weight",
        down="mlp.experts.{e}.down_proj.weight",
        count=("num_experts", "num_local_experts"),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm="norm_topk_prob",
    ),
    requires={"hidden_act": ("silu",), "attention_bias": (False, None), "clip_qkv": (None,)},
)
