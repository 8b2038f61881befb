"""MiniMax-M2: q and k normed over the whole projection, part of the head rotated, sigmoid routing with a selection bias."""

from __future__ import annotations

from .family import Experts, Family

MINIMAX_M2 = Family(
    model_type="minimax_m2",
    arch="minimax-m2",
    title="MiniMax-M2",
    rope_base=5e6,
    rope_part=1.0,
    qk_norm="whole",
    experts=Experts(
        gate="block_sparse_moe.experts.{e}.w1.weight",
        up="block_sparse_moe.experts.{e}.w3.weight",
        down="block_sparse_moe.experts.{e}.w2.weight",
        routers=("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        count=("num_local_experts", "num_experts"),
        used="num_experts_per_tok",
        width="intermediate_size",
        norm=True,
        gating=2,
        selection_bias=("block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias"),
    ),
    requires={"hidden_act": ("silu",), "scoring_func": ("sigmoid",), "use_qk_norm": (True,), "use_mtp": (False,)},
)
