"""Qwen3-Next and Qwen3.5: gated delta nets in three of four layers, gated attention with a quarter of the head rotated,
a gated shared expert, norms stored around zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .family import NEXTN, Experts, Family, Shared, StateMixer

_REQUIRES = {"hidden_act": ("silu",), "attention_bias": (False, None), "attn_output_gate": (True, None)}
_EXPERTS = Experts(
    count=("num_experts",), used="num_experts_per_tok", width="moe_intermediate_size", norm="norm_topk_prob"
)
_SHARED = Shared(
    stem="mlp.shared_expert", gate="mlp.shared_expert_gate.weight", width="shared_expert_intermediate_size"
)
# Of rotated dimensions per head, for time, height and width of images; readers want the key, text turns all alike.
_SECTIONS = (11, 11, 10, 0)

QWEN3_NEXT = Family(
    model_type="qwen3_next",
    arch="qwen3next",
    title="Qwen3-Next, Qwen3-Coder-Next",
    rope_part=0.25,
    qk_norm="head",
    norm_shift=1.0,
    gated_attention=True,
    ffn_norm="post_attention_norm",
    state_mixer=StateMixer("delta_net", "linear_attention"),
    experts=_EXPERTS,
    shared=_SHARED,
    left_out={NEXTN: r"mtp\."},
    requires=_REQUIRES,
)


def _qwen3_5(model_type: str, arch: str, title: str, **moe: Any) -> Family:
    return Family(
        model_type=model_type,
        arch=arch,
        title=title,
        rope_part=0.25,
        rope_sections=_SECTIONS,
        qk_norm="head",
        norm_shift=1.0,
        gated_attention=True,
        ffn_norm="post_attention_norm",
        state_mixer=StateMixer("delta_net", "linear_attention", tiled_value_heads=True),
        left_out={NEXTN: r"mtp\.", "images": r"visual\."},
        requires=_REQUIRES,
        **moe,
    )


QWEN3_5_MOE, QWEN3_5_MOE_TEXT = (
    _qwen3_5(kind, "qwen35moe", "Qwen3.5 and 3.6 MoE", experts=dataclasses.replace(_EXPERTS, norm=True), shared=_SHARED)
    for kind in ("qwen3_5_moe", "qwen3_5_moe_text")
)
QWEN3_5, QWEN3_5_TEXT = (_qwen3_5(kind, "qwen35", "Qwen3.5 and 3.6, dense") for kind in ("qwen3_5", "qwen3_5_text"))
