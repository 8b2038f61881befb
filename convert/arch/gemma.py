"""Gemma 3 (dense) and Gemma 4: norms before and after each block, windows with a rope of their own, GELU. Gemma 4 has two
feed-forwards side by side, wider heads in the layers that see everything, and may take values from keys.
"""

from __future__ import annotations

import dataclasses

from .family import Experts, Family

_OTHER_THAN_TEXT = r"(model\.)?(vision_tower|multi_modal_projector|audio_tower|embed_vision|embed_audio)\."
_REQUIRES = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None, "vision"),  # of images, which are left out
}

GEMMA3 = Family(
    model_type="gemma3_text",
    arch="gemma3",
    title="Gemma 3",
    rope_base=1e6,
    qk_norm="head",
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    extra_norms={
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    norm_shift=1.0,
    window_period=6,
    window_rope_base=10000.0,
    scaled_by="query_pre_attn_scalar",
    optional_floats={"final_logit_softcapping": "final_logit_softcapping"},
    left_out={"images and sound": _OTHER_THAN_TEXT},
    defaults={
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "vocab_size": 262208,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    requires=_REQUIRES,
)

GEMMA4 = dataclasses.replace(
    GEMMA3,
    model_type="gemma4_text",
    arch="gemma4",
    title="Gemma 4",
    norm_shift=0.0,
    states_pattern=True,
    defaults={"rms_norm_eps": 1e-6},
    wide_heads=True,
    scaled_by=None,
    beside=True,
    branches={
        "pre_ffw_norm_2.weight": ("pre_feedforward_layernorm_2.weight", "hidden_size"),
        "post_ffw_norm_1.weight": ("post_feedforward_layernorm_1.weight", "hidden_size"),
        "post_ffw_norm_2.weight": ("post_feedforward_layernorm_2.weight", "hidden_size"),
        "ffn_gate_inp.scale": ("router.scale", "hidden_size"),
        "ffn_down_exps.scale": ("router.per_expert_scale", "num_experts"),
    },
    constants={"embedding_length_per_layer_input": 0, "attention.shared_kv_layers": 0},
    experts=Experts(
        switch="enable_moe_block",
        routers=("router.proj.weight",),
        fused=(("experts.gate_up_proj", "experts.down_proj"),),
        count=("num_experts",),
        used="top_k_experts",
        width="moe_intermediate_size",
        norm=True,
    ),
    requires=_REQUIRES | {"hidden_size_per_layer_input": (0, None), "num_kv_shared_layers": (0, None)},
)
