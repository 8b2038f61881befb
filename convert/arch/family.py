"""What a row about a Hugging Face family says. To add one: a module with a row, a line in `__init__.py`, a variant
in tests/tiny.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Experts:
    """Where the routed experts are. Names follow `model.layers.N.`; `{e}` is the expert.

    count, used, width     config keys: experts (several spellings of one number), experts per token, width of one.
    norm                   config key that says whether the selected weights sum to one; or the family's fixed answer.
    gate, up, down         one tensor per expert, as on the hub.
    fused                  names of pairs of tensors with all experts, as transformers 5 keeps them: [E, 2I, H] (gate
                           first) and [E, H, I].
    alternating            the fused tensors are [E, H, 2I] (gate, up, gate, ...) and [E, I, H], or MXFP4 blocks with
                           the same order of outputs; with biases under their names + "_bias".
    routers, router_bias   names the router goes by, and its bias.
    selection_bias         names of what is added to the scores for the choice of experts only.
    selection_key          config key that may switch it off.
    scale, groups          config keys: factor of the weights; groups of experts, and how many of them a token may use.
    first_layer, last_layer, step   config keys: layers with experts; -1 is the last. Others are dense.
    gating                 GGUF's expert_gating_func; 0 leaves the key out, readers know it from the architecture.
    states_width           the key expert_feed_forward_length is written; where the width is the model's only one,
                           feed_forward_length says it, and llama.cpp knows no other key for some.
    """

    count: tuple[str, ...]
    used: str
    width: str
    norm: str | bool
    gate: str = "mlp.experts.{e}.gate_proj.weight"
    up: str = "mlp.experts.{e}.up_proj.weight"
    down: str = "mlp.experts.{e}.down_proj.weight"
    routers: tuple[str, ...] = ("mlp.gate.weight",)
    router_bias: str | None = None
    alternating: bool = False
    gating: int = 0
    states_width: bool = True
    selection_bias: tuple[str, ...] = ()
    selection_key: str | None = None
    scale: str | None = None
    groups: tuple[str, str] | None = None
    first_layer: str | None = None
    last_layer: str | None = None
    step: str = "decoder_sparse_step"
    fused: tuple[tuple[str, str], ...] = (
        ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        ("mlp.experts.gate_up_proj.weight", "mlp.experts.down_proj.weight"),
    )


@dataclass(frozen=True)
class Shared:
    """Shared experts, which GGUF has as one: the stem of its tensors, the name of its gate, the config keys of its width
    and of how many such widths it has (0: no shared expert).
    """

    stem: str
    width: str
    gate: str | None = None
    count: str | None = None


@dataclass(frozen=True)
class StateMixer:
    """Layers that keep a state of fixed size instead of keys and values; `sources/state_mixers.py` reads them.

    kind               "delta_net" or "short_conv".
    layer_type         what `layer_types` calls such a layer.
    tiled_value_heads  GGUF wants value heads in the order that h goes with key head h mod n, and beta and alpha apart;
                       otherwise as they are stored, in groups.
    """

    kind: str
    layer_type: str
    tiled_value_heads: bool = False


@dataclass(frozen=True)
class Family:
    """One row.

    arch           GGUF general.architecture.
    rows_paired    q and k rows of a head are reordered from halves to pairs: rope in GGUF's `llama` turns neighbours.
    rope_base      what the family's configuration means when it names none.
    rope_part      share of a head that is rotated where the configuration names none; None: always the whole head.
    qk_norm        q_norm and k_norm exist: "head" norms each head, "whole" the projection.
    qk_norm_key, qk_norm_names   config key that switches these norms on, and what they are called.
    qkv_bias       config key that switches biases of q, k, v on; or the family's fixed answer.
    output_bias    that key switches a bias of the output projection on, too.
    ffn_norm       GGUF name of the norm before the feed-forward.
    sinks          name of the attention sinks.
    window_period  all but every n-th layer see a window, unless layer_types says otherwise; 0: no windows.
    yarn_truncate  what the setting `truncate` of YaRN must be: GGUF has no key for it, readers know it.
    latent         attention is DeepSeek's: one compressed key and value for all heads.
    multipliers    GGUF keys of scales -> config keys.
    nextn          config keys with the number of blocks for multi-token prediction, which follow the layers and are
                   left out.
    left_out       pattern of other names of such blocks.
    vision         pattern of names of the part that sees, which is left out.
    state_mixer    of the layers that are not attention.
    gated_attention   q_proj makes query and gate of each head.
    norms_around_one  stored norms, but that of a delta net, lack the 1 that GGUF's have.
    norms, last_norm, norm_eps   what the norms before mixer and feed-forward are called; GGUF's and the stored name of
                   the last one; the config key of their epsilon.
    attention_output  what the output projection is called.
    gated, gated_names   name of a dense feed-forward's tensors, and what gate, up and down are called in it.
    widths_adjusted   intermediate_size is not the width of the feed-forward: the tensors tell.
    rope_sections  written as rope.dimension_sections, unless the configuration has others.
    experts        None: dense only. Layers may still be dense, see hf.py.
    requires       config key -> values that the engine can run; an absent key is fine.
    """

    model_type: str
    arch: str
    title: str
    rows_paired: bool = False
    rope_base: float = 10000.0
    rope_part: float | None = None
    qk_norm: str = ""
    qk_norm_key: str | bool = True
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm")
    qkv_bias: str | bool = False
    output_bias: bool = False
    ffn_norm: str = "ffn_norm"
    sinks: str | None = None
    window_period: int = 0
    yarn_truncate: bool = True
    latent: bool = False
    multipliers: dict[str, str] = field(default_factory=dict)
    nextn: tuple[str, ...] = ()
    left_out: str | None = None
    vision: str | None = None
    state_mixer: StateMixer | None = None
    gated_attention: bool = False
    norms_around_one: bool = False
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    last_norm: tuple[str, str] = ("output_norm", "norm")
    norm_eps: str = "rms_norm_eps"
    attention_output: str = "o_proj"
    gated: str = "mlp.{w}_proj.weight"
    gated_names: tuple[str, str, str] = ("gate", "up", "down")
    widths_adjusted: bool = False
    rope_sections: tuple[int, ...] = ()
    experts: Experts | None = None
    shared: Shared | None = None
    requires: dict[str, tuple[Any, ...]] = field(default_factory=dict)
