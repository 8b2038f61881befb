"""What a row about a Hugging Face family says. To add one: a module with a row, a line in `__init__.py`, a variant
in tests/tiny.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What most left out tensors belong to, as messages say it.
NEXTN = "blocks for multi-token prediction"


@dataclass(frozen=True)
class Experts:
    """Where the routed experts are. Names follow `model.layers.N.`; `{e}` is the expert.

    count, used, width     config keys: experts (several spellings of one number), experts per token, width of one.
    norm                   config key that says whether the selected weights sum to one; or the family's fixed answer.
    gate, up, down         one tensor per expert, as on the hub.
    fused                  names of pairs of tensors with all experts, as transformers 5 keeps them: [E, 2I, H] (gate
                           first) and [E, H, I].
    turned                 the fused tensors are [E, H, 2I] (gates, then ups) and [E, I, H].
    alternating            the fused tensors are [E, H, 2I] (gate, up, gate, ...) and [E, I, H], or MXFP4 blocks with
                           the same order of outputs; with biases under their names + "_bias".
    routers, router_bias   names the router goes by, and its bias.
    selection_bias         names of what is added to the scores for the choice of experts only.
    selection_key          config key that may switch it off.
    scale, groups          config keys: factor of the weights; groups of experts, and how many of them a token may use.
    grouped_by             config key and the value with which groups are used; None: always.
    first_layer, last_layer, step   config keys: layers with experts; -1 is the last. Others are dense.
    switch                 config key that says whether there are experts at all.
    layers                 config key that lists the layers with experts; where it is there, it decides.
    states_step            interleave_moe_layer_step is written.
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
    turned: bool = False
    alternating: bool = False
    gating: int = 0
    states_width: bool = True
    selection_bias: tuple[str, ...] = ()
    selection_key: str | None = None
    scale: str | None = None
    groups: tuple[str, str] | None = None
    grouped_by: tuple[str, str] | None = None
    first_layer: str | None = None
    last_layer: str | None = None
    step: str = "decoder_sparse_step"
    switch: str | None = None
    layers: str | None = None
    states_step: bool = False
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
    norms, extra_norms   what the norms before mixer and feed-forward are called in the checkpoint; more norms of a
                   layer: GGUF name -> name.
    last_norm, norm_eps   GGUF's and the stored name of the norm after all layers; the config key of every norm's epsilon.
    norm_shift     what is added to every norm's weight, but that of a delta net: GGUF holds weights that multiply.
    norm_bias      norms of the model's width are LayerNorms, with biases.
    head_bias      config key that switches a bias of the output matrix on.
    dense, dense_names   name of a dense feed-forward's tensors, and what gate, up and down are called in it.
    dense_width, widths_adjusted   config key of its width; that is not the width: the tensors tell.
    beside         a layer with experts has the dense feed-forward, and the names under `branches`, beside them.
    branches       GGUF name -> (name, config keys of its length) of what only such layers have.
    sinks          name of the attention sinks.
    window_period  all but every n-th layer see a window, unless layer_types says otherwise; 0: no windows.
    window_kind, window_key   what layer_types calls such a layer, and the config key of the window's length.
    window_rope_base   rope of layers with a window has a base of its own; what it is where none is named. 0: it hasn't.
    states_pattern the pattern of windows is always written.
    wide_heads     layers without a window have heads and numbers of key heads of their own: global_head_dim,
                   num_global_key_value_heads or per_layer_config.
    scaled_by      config key of the number whose root divides q . k, where it is not the width of a head.
    yarn_truncate  what the setting `truncate` of YaRN must be: GGUF has no key for it, readers know it.
    latent         attention is DeepSeek's: one compressed key and value for all heads.
    multipliers    GGUF keys of scales -> config keys.
    optional_floats   the same for numbers that may be absent or null, which is 0.
    constants      GGUF keys -> integers that are always written.
    nextn          config keys with the number of blocks for multi-token prediction, which follow the layers and are
                   left out.
    left_out       other tensors that are left out: what they belong to -> pattern of their names.
    state_mixer    of the layers that are not attention.
    gated_attention   q_proj makes query and gate of each head.
    attention_output  what the output projection is called.
    rope_sections  written as rope.dimension_sections, unless the configuration has others.
    no_qk_norm_experts   q and k are normed without a weight, but in models of so many experts; 0: not known by that.
    experts        None: dense only. Layers may still be dense, see hf.py.
    defaults       what absent config keys mean.
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
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    last_norm: tuple[str, str] = ("output_norm", "norm")
    norm_eps: str = "rms_norm_eps"
    extra_norms: dict[str, str] = field(default_factory=dict)
    norm_shift: float = 0.0
    norm_bias: bool = False
    head_bias: str | None = None
    dense: str = "mlp.{w}_proj.weight"
    dense_names: tuple[str, str, str] = ("gate", "up", "down")
    dense_width: str = "intermediate_size"
    widths_adjusted: bool = False
    beside: bool = False
    branches: dict[str, tuple[str, str]] = field(default_factory=dict)
    sinks: str | None = None
    window_period: int = 0
    window_kind: str = "sliding_attention"
    window_key: str = "sliding_window"
    window_rope_base: float = 0.0
    states_pattern: bool = False
    wide_heads: bool = False
    scaled_by: str | None = None
    yarn_truncate: bool = True
    latent: bool = False
    multipliers: dict[str, str] = field(default_factory=dict)
    optional_floats: dict[str, str] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    nextn: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    state_mixer: StateMixer | None = None
    gated_attention: bool = False
    attention_output: str = "o_proj"
    rope_sections: tuple[int, ...] = ()
    no_qk_norm_experts: int = 0
    experts: Experts | None = None
    shared: Shared | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    requires: dict[str, tuple[Any, ...]] = field(default_factory=dict)
