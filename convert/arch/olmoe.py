"""OLMoE: q and k normed over the whole projection."""

from __future__ import annotations

from .family import Experts, Family

OLMOE = Family(
    model_type="olmoe",
    arch="olmoe",
    title="OLMoE",
    qk_norm="whole",
    experts=Experts(
        count=("num_experts", "num_local_experts"),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm="norm_topk_prob",
        states_width=False,
    ),
    requires={"hidden_act": ("silu",), "attention_bias": (False, None), "clip_qkv": (None,)},
)
