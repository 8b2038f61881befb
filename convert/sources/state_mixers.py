"""Layers that keep a state instead of keys and values: gated delta nets (Qwen3-Next, Qwen3.5) and short convolutions
(LFM2). Their tensors in GGUF's order, and the keys with their sizes and places.

A delta net has n_k key heads and r value heads for each. Checkpoints store value heads in groups, those of one key head
together; `qwen35` in GGUF wants them tiled: head h goes with key head h mod n_k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moepic_gguf.errors import ConversionError

from .. import keys as k
from ..quantize import encode
from ..tensors import STEP_FLOATS, Bytes, Floats, Tensor, made
from .safetensors import Weights

if TYPE_CHECKING:
    from ..arch import Family
    from .hf import _Builder
    from .hf_config import Config

Order = npt.NDArray[np.int64]


def layer_types(config: Config) -> list[str]:
    """What each layer is, in the words of `layer_types`; older configurations say it in other ways."""
    n_layer, stated = config.integer("num_hidden_layers"), config.values.get("layer_types")
    if stated is None and isinstance(config.values.get("full_attn_idxs"), list):
        stated = ["full_attention" if il in config.values["full_attn_idxs"] else "conv" for il in range(n_layer)]
    if stated is None:
        period = config.integer("full_attention_interval", 4)
        stated = ["linear_attention" if (il + 1) % period else "full_attention" for il in range(n_layer)]
    if not isinstance(stated, list) or len(stated) != n_layer:
        raise ConversionError(f"config.json: 'layer_types' must name the kind of each of {n_layer} layers")
    return stated


def layers_with_values(config: Config, family: Family) -> list[int] | None:
    """The layers that have attention values, or channels among which there are values; None: all."""
    if family.state_mixer is None or family.state_mixer.kind != "short_conv":
        return None
    return [il for il, kind in enumerate(layer_types(config)) if kind != family.state_mixer.layer_type]


def keys(builder: _Builder) -> k.Keys:
    """Sizes of the state, and which layers have one."""
    config, arch, mixer = builder.config, builder.family.arch, builder.family.state_mixer
    assert mixer is not None
    states = [kind == mixer.layer_type for kind in layer_types(config)]
    if mixer.kind == "short_conv":
        return {
            f"{arch}.shortconv.l_cache": k.u32(config.integer("conv_L_cache")),
            f"{arch}.attention.head_count_kv": k.i32s([0 if state else builder.n_head_kv for state in states]),
        }
    sizes = _Sizes(builder)
    found: k.Keys = {
        f"{arch}.ssm.conv_kernel": k.u32(sizes.n_taps),
        f"{arch}.ssm.state_size": k.u32(sizes.d_k),
        f"{arch}.ssm.group_count": k.u32(sizes.n_k),
        f"{arch}.ssm.time_step_rank": k.u32(sizes.n_v),
        f"{arch}.ssm.inner_size": k.u32(sizes.n_v * sizes.d_v),
    }
    regular = [p for p in range(1, len(states) + 2) if states == [(il + 1) % p != 0 for il in range(len(states))]]
    if regular:
        return found | {f"{arch}.full_attention_interval": k.u32(regular[0])}
    return found | {f"{arch}.attention.recurrent_layers": k.booleans(states)}


def tensors(builder: _Builder, dst: str, src: str) -> list[Tensor]:
    """Those of one layer, without its norms."""
    mixer = builder.family.state_mixer
    assert mixer is not None
    return _short_conv(builder, dst, src) if mixer.kind == "short_conv" else _delta_net(builder, dst, src)


def _short_conv(builder: _Builder, dst: str, src: str) -> list[Tensor]:
    n = builder.n_embd
    shapes = {"in_proj": (3 * n, n), "conv": (n, builder.config.integer("conv_L_cache")), "out_proj": (n, n)}
    return [
        builder.take(f"{dst}shortconv.{name}.weight", "mixer", f"{src}conv.{name}.weight", shape)
        for name, shape in shapes.items()
    ]


class _Sizes:
    def __init__(self, builder: _Builder) -> None:
        config, mixer = builder.config, builder.family.state_mixer
        self.n_taps = config.integer("linear_conv_kernel_dim")
        self.n_k, self.n_v = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
        self.d_k, self.d_v = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
        self.tiled = mixer is not None and mixer.tiled_value_heads
        if self.n_v % self.n_k:
            raise ConversionError(
                f"config.json: 'linear_num_value_heads' {self.n_v} is not a multiple of 'linear_num_key_heads' {self.n_k}"
            )

    def value_order(self, unit: int) -> Order:
        """Places of value heads of `unit` elements each, in GGUF's order, in the stored one."""
        places = np.arange(self.n_v * unit).reshape(self.n_k, self.n_v // self.n_k, unit)
        return (places.swapaxes(0, 1) if self.tiled else places).reshape(-1)


def _delta_net(builder: _Builder, dst: str, src: str) -> list[Tensor]:
    s, n_embd, net, take = _Sizes(builder), builder.n_embd, f"{src}linear_attn.", builder.reader.take
    key_rows, value_rows = s.n_k * s.d_k, s.n_v * s.d_v
    channels = np.concatenate([np.arange(2 * key_rows), 2 * key_rows + s.value_order(s.d_v)])

    if s.tiled:
        qkv, z = (
            take(f"{net}in_proj_qkv.weight", (len(channels), n_embd)),
            take(f"{net}in_proj_z.weight", (value_rows, n_embd)),
        )
        qkv_rows, z_rows = channels, s.value_order(s.d_v)
    else:  # per key head: q, k, its values, their gates
        qkv = z = take(f"{net}in_proj_qkvz.weight", (2 * key_rows + 2 * value_rows, n_embd))
        values = s.n_v // s.n_k * s.d_v
        parts = np.arange(qkv.n_rows).reshape(s.n_k, -1)
        cuts = np.split(parts, np.cumsum([s.d_k, s.d_k, values]), axis=1)
        qkv_rows, z_rows = np.concatenate([cut.reshape(-1) for cut in cuts[:3]]), cuts[3].reshape(-1)
    out = [
        _reordered(builder, f"{dst}attn_qkv.weight", qkv, qkv_rows),
        _reordered(builder, f"{dst}attn_gate.weight", z, z_rows),
    ]
    if s.tiled:
        for name, stored in (("ssm_beta", "in_proj_b"), ("ssm_alpha", "in_proj_a")):
            weights = take(f"{net}{stored}.weight", (s.n_v, n_embd))
            out.append(_reordered(builder, f"{dst}{name}.weight", weights, s.value_order(1)))
    else:
        out.append(builder.take(f"{dst}ssm_ba.weight", "mixer", f"{net}in_proj_ba.weight", (2 * s.n_v, n_embd)))
    taps = take(f"{net}conv1d.weight", (len(channels), s.n_taps))
    out.append(_reordered(builder, f"{dst}ssm_conv1d.weight", taps, channels))

    bias, rate, order = take(f"{net}dt_bias", (s.n_v,)), take(f"{net}A_log", (s.n_v,)), s.value_order(1)
    out.append(made(f"{dst}ssm_dt.bias", (s.n_v,), "mixer", lambda: bias.rows(0, 1)[0][order]))
    out.append(made(f"{dst}ssm_a", (s.n_v,), "mixer", lambda: -np.exp(rate.rows(0, 1)[0][order])))
    out.append(builder.take(f"{dst}ssm_norm.weight", "mixer", f"{net}norm.weight", (s.d_v,)))
    last = take(f"{net}out_proj.weight", (n_embd, value_rows))
    out.append(_reordered(builder, f"{dst}ssm_out.weight", last, np.arange(n_embd), s.value_order(s.d_v)))
    return out


def _reordered(builder: _Builder, name: str, weights: Weights, rows: Order, cols: Order | None = None) -> Tensor:
    """A stored matrix with its rows, and perhaps columns, in another order."""
    shape = (len(rows), weights.cols)
    kind, step = builder.chooser.choose(name, shape), max(1, STEP_FLOATS // weights.cols)

    def read(wanted: Order) -> Floats:
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        return np.concatenate([weights.rows(int(run[0]), int(run[-1]) + 1) for run in runs])

    def chunks() -> Iterator[Bytes]:
        for first in range(0, len(rows), step):
            values = read(rows[first : first + step])
            yield encode(values if cols is None else values[:, cols], kind, weights.name).reshape(-1)

    return Tensor(name, shape, kind, "mixer", chunks, min(step, len(rows)) * weights.cols * 16)
