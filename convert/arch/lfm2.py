"""LFM2: short convolutions in most layers, q and k normed per head; the MoE has leading dense layers and sigmoid routing
with a selection bias.
"""

from __future__ import annotations

import dataclasses

from .family import Experts, Family, StateMixer

LFM2 = Family(
    model_type="lfm2",
    arch="lfm2",
    title="LFM2, dense",
    rope_base=1e6,
    qk_norm="head",
    qk_norm_names=("q_layernorm", "k_layernorm"),
    attention_output="out_proj",
    norms=("operator_norm", "ffn_norm"),
    last_norm=("token_embd_norm", "embedding_norm"),
    norm_eps="norm_eps",
    dense="feed_forward.{w}.weight",
    dense_names=("w1", "w3", "w2"),
    widths_adjusted=True,
    state_mixer=StateMixer("short_conv", "conv"),
    requires={"conv_bias": (False, None)},
)

LFM2_MOE = dataclasses.replace(
    LFM2,
    model_type="lfm2_moe",
    arch="lfm2moe",
    title="LFM2 MoE (8B-A1B, 24B-A2B)",
    widths_adjusted=False,
    experts=Experts(
        count=("num_experts",),
        used="num_experts_per_tok",
        width="moe_intermediate_size",
        norm="norm_topk_prob",
        gate="feed_forward.experts.{e}.w1.weight",
        up="feed_forward.experts.{e}.w3.weight",
        down="feed_forward.experts.{e}.w2.weight",
        routers=("feed_forward.gate.weight",),
        fused=(("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),),
        gating=2,
        selection_bias=("feed_forward.expert_bias",),
        selection_key="use_expert_bias",
        scale="routed_scaling_factor",
        first_layer="num_dense_layers",
    ),
)
