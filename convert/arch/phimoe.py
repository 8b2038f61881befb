"""Phi-3.5-MoE: LayerNorms and biases everywhere, two experts chosen one after the other, long and short rope factors."""

from __future__ import annotations

from .family import Experts, Family

PHIMOE = Family(
    model_type="phimoe",
    arch="phimoe",
    title="Phi-3.5-MoE",
    rope_base=1e6,
    qkv_bias="attention_bias",
    output_bias=True,
    norm_bias=True,
    head_bias="lm_head_bias",
    experts=Experts(
        gate="block_sparse_moe.experts.{e}.w1.weight",
        up="block_sparse_moe.experts.{e}.w3.weight",
        down="block_sparse_moe.experts.{e}.w2.weight",
        routers=("block_sparse_moe.gate.weight", "mlp.router.weight"),
        count=("num_local_experts",),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm=False,
        states_width=False,
    ),
    requires={"hidden_act": ("silu",), "num_experts_per_tok": (2,), "router_jitter_noise": (0.01,)},
)
