"""Rotary position settings of a Hugging Face configuration to GGUF keys, in the old spelling (rope_theta,
rope_scaling) and the new (rope_parameters).

Sources: transformers' modeling_rope_utils.py for the meaning of each field; YaRN is Peng et al. 2023, sections 3.2 to
3.4.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moepic_gguf.errors import ConversionError

from . import keys as k
from .arch import Family


def rope_keys_and_factors(
    family: Family, config: dict[str, Any], head_dim: int, window_head_dim: int
) -> tuple[k.Keys, dict[str, npt.NDArray[np.float32]]]:
    """Keys without the architecture prefix, and by tensor name the divisors of each frequency `[head_dim / 2]` where the
    scaling needs them.

    Raises ConversionError for a scaling, or a setting of one, that GGUF readers cannot express.
    """
    parameters: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if not family.window_rope_base:
        return _of_full_layers(family, parameters, config, head_dim)
    window: dict[str, Any] = {}
    if "full_attention" in parameters or "sliding_attention" in parameters:
        window, parameters = parameters.get("sliding_attention") or {}, parameters.get("full_attention") or {}
    if window.get("rope_type", "default") != "default" or window.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConversionError(f"config.json: rope of layers with a window is {json.dumps(window)}; supported: default")
    keys, factors = _of_full_layers(family, parameters, config, head_dim)
    base = window.get("rope_theta") or config.get("rope_local_base_freq") or family.window_rope_base
    keys["rope.freq_base_swa"] = k.f32(float(base))
    if family.wide_heads:
        keys["rope.dimension_count_swa"] = k.u32(window_head_dim)
    return keys, factors


def _of_full_layers(
    family: Family, parameters: dict[str, Any], config: dict[str, Any], head_dim: int
) -> tuple[k.Keys, dict[str, npt.NDArray[np.float32]]]:
    """The same for layers that see everything."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    base = float(parameters.get("rope_theta") or config.get("rope_theta") or family.rope_base)
    n_rot = head_dim if kind == "proportional" else _rotated(family, parameters, config, head_dim)
    if kind == "dynamic" and parameters.get("alpha"):  # Hunyuan: a fixed stretch, in spite of its name
        base, kind = base * _number(parameters, "alpha") ** (n_rot / (n_rot - 2)), "default"
    keys: k.Keys = {"rope.dimension_count": k.u32(n_rot), "rope.freq_base": k.f32(base)}
    if family.rope_sections:
        stated = parameters.get("mrope_section") or family.rope_sections
        keys["rope.dimension_sections"] = k.i32s([*stated, 0, 0, 0, 0][:4])
    if kind in (None, "default"):
        return keys, {}
    if kind == "proportional":
        return keys, {"rope_freqs": _proportional(parameters, head_dim)}
    if kind in ("longrope", "su"):
        scaled, long, short = _long_and_short(parameters, config, n_rot)
        return keys | scaled, {"rope_factors_long": long, "rope_factors_short": short}
    if kind == "linear":
        return keys | {
            "rope.scaling.type": k.string("linear"),
            "rope.scaling.factor": k.f32(_number(parameters, "factor")),
        }, {}
    if kind == "yarn":
        return keys | (_latent_yarn if family.latent else _yarn)(family, parameters, config), {}
    if kind == "llama3":
        return keys, {"rope_freqs": _llama3(parameters, config, base, n_rot)}
    raise ConversionError(
        f"config.json: rope type is {json.dumps(kind)}; supported: default, linear, yarn, llama3, longrope, proportional"
    )


def _rotated(family: Family, parameters: dict[str, Any], config: dict[str, Any], head_dim: int) -> int:
    """Dimensions of a head that are rotated."""
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    n_rot = head_dim
    if family.rope_part is None:
        if partial not in (None, 1, 1.0):
            raise ConversionError(f"config.json: 'partial_rotary_factor' is {json.dumps(partial)}; supported: 1")
    elif partial is None and isinstance(config.get("rotary_dim"), int):
        n_rot = config["rotary_dim"]
    else:
        n_rot = int(head_dim * (family.rope_part if partial is None else partial))
    if n_rot % 2 or not 2 <= n_rot <= head_dim:
        raise ConversionError(f"config.json: {n_rot} dimensions of a head of {head_dim} cannot be rotated in pairs")
    return n_rot


def _number(parameters: dict[str, Any], key: str, default: float | None = None) -> float:
    value = parameters.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConversionError(f"config.json: rope setting '{key}' is {json.dumps(value)}, expected a positive number")
    return float(value)


def _original_context(parameters: dict[str, Any], config: dict[str, Any]) -> int:
    """Positions the model was first trained for."""
    value = parameters.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(value or _number(config, "max_position_embeddings"))


def _yarn(family: Family, parameters: dict[str, Any], config: dict[str, Any]) -> k.Keys:
    truncate = parameters.get("truncate", True)
    if truncate is not family.yarn_truncate:
        raise ConversionError(
            f"config.json: rope setting 'truncate' is {json.dumps(truncate)}; GGUF has no key for it, and readers of "
            f"'{family.arch}' take it for {json.dumps(family.yarn_truncate)}"
        )
    original = _original_context(parameters, config)
    factor = _number(parameters, "factor", _number(config, "max_position_embeddings") / original)
    if factor <= 1:
        raise ConversionError(f"config.json: rope setting 'factor' is {factor:g}, expected more than 1 for yarn")
    keys: k.Keys = {
        "rope.scaling.type": k.string("yarn"),
        "rope.scaling.factor": k.f32(factor),
        "rope.scaling.original_context_length": k.u32(original),
        "rope.scaling.yarn_beta_fast": k.f32(_number(parameters, "beta_fast", 32.0)),
        "rope.scaling.yarn_beta_slow": k.f32(_number(parameters, "beta_slow", 1.0)),
    }
    # Readers multiply cos and sin by attn_factor times the paper's 0.1 ln(factor) + 1; a configuration gives the
    # product.
    paper = _magnitude(factor, 1.0)
    wanted = parameters.get("attention_factor")
    if wanted is None and parameters.get("mscale") and parameters.get("mscale_all_dim"):
        wanted = _magnitude(factor, parameters["mscale"]) / _magnitude(factor, parameters["mscale_all_dim"])
    if wanted is not None and not math.isclose(wanted, paper, rel_tol=1e-6):
        keys["rope.scaling.attn_factor"] = k.f32(float(wanted) / paper)
    return keys


def _latent_yarn(family: Family, parameters: dict[str, Any], config: dict[str, Any]) -> k.Keys:
    """Of latent attention: logits are stretched by the square of 0.1 mscale_all_dim ln(factor) + 1, cos and sin are not."""
    mscale, over_all = parameters.get("mscale", 1.0), _number(parameters, "mscale_all_dim")
    if parameters.get("attention_factor") is not None or mscale != over_all:
        raise ConversionError(
            f"config.json: rope settings 'mscale' {json.dumps(mscale)} and 'mscale_all_dim' {over_all:g} must agree, "
            f"without an 'attention_factor': GGUF readers take cos and sin as they are"
        )
    keys = _yarn(family, parameters, config)
    keys.pop("rope.scaling.attn_factor", None)
    return keys | {"rope.scaling.yarn_log_multiplier": k.f32(0.1 * over_all)}


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0


def _proportional(parameters: dict[str, Any], head_dim: int) -> npt.NDArray[np.float32]:
    """Gemma 4: the first pairs turn as if all did, the rest stand still, which in GGUF is a divisor beyond any
    position.
    """
    if parameters.get("factor") not in (None, 1, 1.0):
        raise ConversionError(f"config.json: rope setting 'factor' is {json.dumps(parameters['factor'])}; supported: 1")
    turning = int(_number(parameters, "partial_rotary_factor", 1.0) * head_dim // 2)
    return np.where(np.arange(head_dim // 2) < turning, 1.0, 1e30).astype(np.float32)


def _long_and_short(
    parameters: dict[str, Any], config: dict[str, Any], n_rot: int
) -> tuple[k.Keys, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """LongRoPE (Ding et al. 2024): divisors for contexts beyond the original length and for those within it."""
    found = []
    for key in ("long_factor", "short_factor"):
        values = parameters.get(key)
        if not isinstance(values, list) or len(values) != n_rot // 2:
            raise ConversionError(f"config.json: rope setting '{key}' must be a list of {n_rot // 2} numbers")
        found.append(np.array(values, np.float32))
    original = _original_context(parameters, config)
    stretch = _number(config, "max_position_embeddings") / original
    paper = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    usual = _number(parameters, "attention_factor", paper)
    long, short = (_number(parameters, key, usual) for key in ("long_mscale", "short_mscale"))
    if long != short:
        raise ConversionError(
            f"config.json: rope settings 'long_mscale' {long:g} and 'short_mscale' {short:g} differ; GGUF has one"
        )
    return (
        {
            "rope.scaling.type": k.string("longrope"),
            "rope.scaling.original_context_length": k.u32(original),
            "rope.scaling.attn_factor": k.f32(long),
        },
        found[0],
        found[1],
    )


def _llama3(parameters: dict[str, Any], config: dict[str, Any], base: float, head_dim: int) -> npt.NDArray[np.float32]:
    """Low frequencies are divided by `factor`, high ones kept, those between blended by wavelength."""
    factor = _number(parameters, "factor")
    low, high = _number(parameters, "low_freq_factor"), _number(parameters, "high_freq_factor")
    if low >= high:
        raise ConversionError(
            f"config.json: rope settings 'low_freq_factor' {low:g} and 'high_freq_factor' {high:g} are out of order"
        )
    frequency = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = _original_context(parameters, config) * frequency / (2 * np.pi)  # over the original context
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)
