"""ERNIE 4.5 MoE: rope turns neighbours, leading dense layers, softmax routing with a selection bias, shared experts."""

from __future__ import annotations

from .family import NEXTN, Experts, Family, Shared

ERNIE4_5_MOE = Family(
    model_type="ernie4_5_moe",
    arch="ernie4_5-moe",
    title="ERNIE 4.5 MoE",
    rope_base=500000.0,
    experts=Experts(
        count=("moe_num_experts",),
        used="moe_k",
        width="moe_intermediate_size",
        norm=True,
        selection_bias=("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias"),
        first_layer="moe_layer_start_index",
        last_layer="moe_layer_end_index",
        step="moe_layer_interval",
    ),
    shared=Shared(stem="mlp.shared_experts", width="moe_intermediate_size", count="moe_num_shared_experts"),
    left_out={NEXTN: r"mtp_"},
    requires={"hidden_act": ("silu",), "use_bias": (False, None)},
)
