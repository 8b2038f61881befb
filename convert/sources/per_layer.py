"""What config.json says of each layer: which see a window, which have experts, how wide their heads are. Reads no
tensors.
"""

from __future__ import annotations

import json
from typing import Any

from moepic_gguf.errors import ConversionError

from ..arch import Family


def sliding_layers(family: Family, values: dict[str, Any], n_layer: int) -> list[bool]:
    """Whether each layer sees a window only: by `layer_types`, or all but every n-th."""
    period = family.window_period
    named = values.get("layer_types")
    slides = (
        [kind == family.window_kind for kind in named[:n_layer]]
        if named
        else [bool(period) and (il + 1) % _period(period, values) != 0 for il in range(n_layer)]
    )
    turning = values.get("no_rope_layers")
    if turning and [bool(one) for one in turning[:n_layer]] != slides:
        raise ConversionError(
            f"config.json: 'no_rope_layers' is {json.dumps(turning)}; in GGUF it is the layers with a window that rotate, "
            f"which here are {json.dumps([int(one) for one in slides])}"
        )
    return slides


def usual_layers(family: Family, n_layer: int) -> list[bool]:
    """What a reader takes for granted without a pattern in the file."""
    return [bool(family.window_period) and (il + 1) % family.window_period != 0 for il in range(n_layer)]


def _period(usual: int, values: dict[str, Any]) -> int:
    """Gemma 3's configurations name it; Llama 4's name the layers that do not rotate by it."""
    for key in ("sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval"):
        if isinstance(values.get(key), int) and values[key] > 0:
            return int(values[key])
    return usual


def head_sizes(
    family: Family, values: dict[str, Any], il: int, slides: bool, usual: tuple[int, int]
) -> tuple[int, int]:
    """Width of a head and number of key heads of layer `il`; `usual` are those of a layer with a window."""
    if not family.wide_heads or slides:
        return usual
    own = (values.get("per_layer_config") or {}).get(str(il), {})
    width = own.get("head_dim") or values.get("global_head_dim") or (usual[0] if own else 512)
    n_head_kv = own.get("num_key_value_heads") or (
        values.get("num_global_key_value_heads") if values.get("attention_k_eq_v") else None
    )
    return int(width), int(n_head_kv or usual[1])


def text_part(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the text model, where config.json describes one that sees and hears, too."""
    inner = values.get("text_config")
    if not isinstance(inner, dict):
        return values
    outer = ("model_type", "tie_word_embeddings", "eos_token_id", "bos_token_id", "pad_token_id", "quantization_config")
    return {key: values[key] for key in outer if key in values} | inner
