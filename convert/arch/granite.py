"""Granite 3 MoE: Mixtral with four multipliers."""

from __future__ import annotations

from .family import Experts, Family

GRANITE_MOE = Family(
    model_type="granitemoe",
    arch="granitemoe",
    title="Granite 3 MoE",
    rows_paired=True,
    qkv_bias="attention_bias",
    output_bias=True,
    multipliers={
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
        "logit_scale": "logits_scaling",
    },
    experts=Experts(
        routers=("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
        fused=(
            ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
            ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
        ),
        count=("num_local_experts",),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm=True,
        states_width=False,
    ),
    requires={"hidden_act": ("silu",)},
)
