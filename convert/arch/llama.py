"""Llama, Mistral and Mixtral: all three are GGUF `llama`."""

from __future__ import annotations

from .family import Experts, Family

_SILU = {"hidden_act": ("silu",)}

LLAMA = Family(
    model_type="llama",
    arch="llama",
    title="Llama, SmolLM2",
    rows_paired=True,
    qkv_bias="attention_bias",
    output_bias=True,
    requires=_SILU | {"mlp_bias": (False, None)},
)

MISTRAL = Family(model_type="mistral", arch="llama", title="Mistral", rows_paired=True, requires=_SILU)

MIXTRAL = Family(
    model_type="mixtral",
    arch="llama",
    title="Mixtral",
    rows_paired=True,
    rope_base=1e6,
    experts=Experts(
        gate="block_sparse_moe.experts.{e}.w1.weight",
        up="block_sparse_moe.experts.{e}.w3.weight",
        down="block_sparse_moe.experts.{e}.w2.weight",
        routers=("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        count=("num_local_experts",),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm=True,
        states_width=False,
    ),
    requires=_SILU,
)
