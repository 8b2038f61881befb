"""gpt-oss: biases everywhere, attention sinks, every other layer with a window, clamped SwiGLU, experts in MXFP4."""

from __future__ import annotations

from .family import Experts, Family

GPT_OSS = Family(
    model_type="gpt_oss",
    arch="gpt-oss",
    title="gpt-oss (20b, 120b)",
    rope_base=150000.0,
    qkv_bias=True,
    output_bias=True,
    ffn_norm="post_attention_norm",
    sinks="self_attn.sinks",
    window_period=2,
    yarn_truncate=False,
    experts=Experts(
        routers=("mlp.router.weight",),
        router_bias="mlp.router.bias",
        alternating=True,
        count=("num_local_experts", "num_experts"),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm=False,
        gating=3,
    ),
    requires={
        "hidden_act": ("silu",),
        "attention_bias": (True, None),
        "swiglu_alpha": (1.702, None),
        "swiglu_limit": (7.0, None),
    },
)
