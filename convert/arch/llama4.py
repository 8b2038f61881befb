"""Llama 4 (Scout, Maverick): attention in chunks, every fourth layer sees everything and does not rotate, routing weights
on the experts' input, experts in some layers only.
"""

from __future__ import annotations

from .family import Experts, Family, Shared

LLAMA4 = Family(
    model_type="llama4_text",
    arch="llama4",
    title="Llama 4",
    rope_base=500000.0,
    qkv_bias="attention_bias",
    output_bias=True,
    window_period=4,
    window_kind="chunked_attention",
    window_key="attention_chunk_size",
    dense="feed_forward.{w}_proj.weight",
    dense_width="intermediate_size_mlp",
    experts=Experts(
        routers=("feed_forward.router.weight",),
        fused=(("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),),
        turned=True,
        count=("num_local_experts",),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm=False,
        gating=2,
        step="interleave_moe_layer_step",
        layers="moe_layers",
        states_step=True,
    ),
    shared=Shared(stem="feed_forward.shared_expert", width="intermediate_size"),
    optional_floats={"attention.temperature_scale": "attn_scale"},
    defaults={"attn_scale": 0.1, "attention_chunk_size": 8192, "use_qk_norm": True},
    no_qk_norm_experts=128,
    left_out={"images": r"(model\.)?(vision_model|multi_modal_projector)\."},
    requires={"hidden_act": ("silu",), "attn_temperature_tuning": (True, 4)},
)
