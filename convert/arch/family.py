"""What a row about a Hugging Face family says. To add one: a module with a row, a line in `__init__.py`, a variant
in tests/tiny.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Experts:
    """Where the routed experts are. Names follow `model.layers.N.`; `{e}` is the expert.

    gate, up, down         one tensor per expert, as on the hub.
    fused_gate_up, fused_down   all experts in one tensor, as transformers 5 keeps them: [E, 2I, H] (gate first) and
                                [E, H, I].
    routers                names the router goes by.
    count, used, width     config keys: experts (several spellings of one number), experts per token, width of one.
    norm                   config key that says whether the selected weights sum to one; or the family's fixed answer.
    """

    gate: str
    up: str
    down: str
    count: tuple[str, ...]
    used: str
    width: str
    norm: str | bool
    routers: tuple[str, ...] = ("mlp.gate.weight",)
    fused_gate_up: str = "mlp.experts.gate_up_proj"
    fused_down: str = "mlp.experts.down_proj"


@dataclass(frozen=True)
class Shared:
    """A shared expert: the stem of its tensors, of its gate's, and the config key of its width."""

    stem: str
    gate: str
    width: str


@dataclass(frozen=True)
class Family:
    """One row.

    arch           GGUF general.architecture.
    rows_paired    q and k rows of a head are reordered from halves to pairs: rope in GGUF's `llama` turns neighbours.
    rope_base      what the family's configuration means when it names none.
    qk_norm        q_norm and k_norm exist.
    qkv_bias       config key that switches biases of q, k, v on; or the family's fixed answer.
    output_bias    that key switches a bias of the output projection on, too.
    experts        None: dense only. Layers may still be dense, see hf.py.
    requires       config key -> values that the engine can run; an absent key is fine.
    """

    model_type: str
    arch: str
    title: str
    rows_paired: bool = False
    rope_base: float = 10000.0
    qk_norm: bool = False
    qkv_bias: str | bool = False
    output_bias: bool = False
    experts: Experts | None = None
    shared: Shared | None = None
    requires: dict[str, tuple[Any, ...]] = field(default_factory=dict)
