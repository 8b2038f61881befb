"""A Hugging Face folder as a source: config.json to keys, safetensors to tensors in their output types. Every stored
tensor must find its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from moepic_gguf.errors import ConversionError

from .. import keys as k
from ..arch import FAMILIES, NEXTN, Experts, Family
from ..quantize import OUTTYPES, Chooser, encode
from ..rope import rope_keys_and_factors
from ..tensors import STEP_FLOATS, Bytes, Floats, Tensor, made
from ..vocabulary import vocabulary_keys
from . import Content, state_mixers
from .hf_config import Config
from .hf_experts import HfExperts
from .matrix import MXFP4, Matrix, Packed, Plain, Turned
from .per_layer import head_sizes, sliding_layers, usual_layers
from .safetensors import Weights, read_folder

_PREFIX = "model."
# Of checkpoints that see and hear, too.
_LONG_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")
# Buffers of old checkpoints, derived from the configuration.
_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def _find_family(config: Config) -> Family:
    kind = config.values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ConversionError(
            f"config.json: 'model_type' is {json.dumps(kind)}; supported: {', '.join(sorted(FAMILIES))}"
        )
    for key, allowed in family.requires.items():
        config.refuse_unless(key, allowed)
    quantization = config.values.get("quantization_config")
    packed = family.experts is not None and family.experts.alternating and isinstance(quantization, dict)
    if quantization is not None and not (packed and quantization.get("quant_method") == "mxfp4"):
        raise ConversionError("config.json: 'quantization_config' is set; convert the original, unquantized checkpoint")
    n_ctx = config.integer("max_position_embeddings")
    window = config.values.get(family.window_key)
    windows = bool(family.window_period)
    if not windows and "use_sliding_window" not in family.requires and isinstance(window, int) and 0 < window < n_ctx:
        raise ConversionError(
            f"config.json: 'sliding_window' is {window}, less than max_position_embeddings {n_ctx}; "
            f"sliding-window attention is not supported"
        )
    known = {"full_attention"} | ({family.window_kind} if windows else set())
    known |= {family.state_mixer.layer_type} if family.state_mixer else set()
    for kind in config.values.get("layer_types") or []:
        if kind not in known:
            listed = ", ".join(json.dumps(one) for one in sorted(known))
            raise ConversionError(f"config.json: 'layer_types' holds {json.dumps(kind)}; supported: {listed}")
    return family


class _Reader:
    """Takes stored tensors by name, checks shapes, and remembers what was taken."""

    def __init__(self, stored: dict[str, Weights]) -> None:
        self._stored = {_short(name): weights for name, weights in stored.items()}
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._stored

    def take(self, name: str, shape: tuple[int, ...], *, codes: bool = False) -> Weights:
        weights = self._stored.get(name)
        if weights is None:
            raise ConversionError(f"checkpoint: tensor '{_PREFIX}{name}' of shape {list(shape)} is missing")
        # A vector may be stored as a matrix of one row (shared_expert_gate).
        if weights.shape != shape and tuple(n for n in weights.shape if n > 1) != tuple(n for n in shape if n > 1):
            raise ConversionError(
                f"checkpoint: tensor '{weights.name}' has shape {list(weights.shape)}, config.json implies "
                f"{list(shape)}"
            )
        if (weights.dtype == "U8") != codes:
            raise ConversionError(
                f"checkpoint: tensor '{weights.name}' is stored as {weights.dtype}, expected {'U8' if codes else 'floats'} "
                f"(a quantized checkpoint? convert the original)"
            )
        self._taken.add(name)
        return weights

    def take_any(self, names: tuple[str, ...], shape: tuple[int, ...]) -> Weights:
        return self.take(next((name for name in names if self.has(name)), names[0]), shape)

    def rows_of(self, name: str) -> int:
        """Rows of a tensor whose size no setting tells."""
        if name not in self._stored:
            raise ConversionError(f"checkpoint: tensor '{_PREFIX}{name}' is missing")
        return self._stored[name].n_rows

    def drop(self, name: str) -> None:
        self._taken.add(name)

    def drop_all(self, pattern: str) -> int:
        """Leave out what is called so; how many."""
        found = {name for name in self._stored if re.match(pattern, name)}
        self._taken |= found
        return len(found)

    def refuse_leftovers(self) -> None:
        left = sorted(name for name in self._stored.keys() - self._taken if not name.endswith(_DERIVED))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ConversionError(
                f"checkpoint: tensor '{self._stored[left[0]].name}'{more} has no place in this architecture"
            )


def _short(name: str) -> str:
    """A tensor's name without what stands before the text model."""
    return name.removeprefix(next((one for one in (*_LONG_PREFIXES, _PREFIX) if name.startswith(one)), ""))


def _paired(values: Floats, head_dim: int) -> Floats:
    """Rows of each head from [first half | second half] to neighbours (0, d/2, 1, d/2 + 1, ...)."""
    heads = values.reshape(-1, 2, head_dim // 2, values.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


class _Builder:
    def __init__(self, config: Config, family: Family, reader: _Reader, chooser: Chooser) -> None:
        self.config, self.family, self.reader, self.chooser = config, family, reader, chooser
        self.n_embd = config.integer("hidden_size")
        self.n_head = config.integer("num_attention_heads")
        self.n_head_kv = config.integer("num_key_value_heads", self.n_head)
        self.head_dim = config.integer("head_dim", self.n_embd // self.n_head)
        if family.latent:
            self.head_dim = config.integer("qk_rope_head_dim")  # what is rotated
        elif not config.values.get("head_dim") and self.n_embd % self.n_head:
            raise ConversionError(
                f"config.json: 'hidden_size' {self.n_embd} is not a multiple of 'num_attention_heads' {self.n_head}"
            )
        self.slides = sliding_layers(family, config.values, config.integer("num_hidden_layers"))
        if self.n_head % self.n_head_kv:
            raise ConversionError(
                f"config.json: 'num_attention_heads' {self.n_head} is not a multiple of 'num_key_value_heads' "
                f"{self.n_head_kv}"
            )

    def tensor(self, name: str, role: str, weights: Weights, shape: tuple[int, ...], head_rows: int = 0) -> Tensor:
        """A stored tensor as an output one. `head_rows`: rows of a head, to be paired; 0 leaves the order alone."""
        kind = self.chooser.choose(name, shape)
        rows, cols = (1, shape[0]) if len(shape) == 1 else shape
        step = max(1, STEP_FLOATS // cols)
        shift = np.float32(self.family.norm_shift if role == "norm" else 0.0)
        if head_rows:
            step = max(1, step // head_rows) * head_rows

        def chunks() -> Iterator[Bytes]:
            # A vector that is stored as a matrix of one column has its elements in the same order.
            if weights.cols != cols:
                values = weights.rows(0, weights.n_rows).reshape(rows, cols)
                yield encode(values + shift if shift else values, kind, weights.name).reshape(-1)
                return
            for first in range(0, rows, step):
                values = weights.rows(first, min(first + step, rows))
                values = values + shift if shift else values
                yield encode(_paired(values, head_rows) if head_rows else values, kind, weights.name).reshape(-1)

        return Tensor(name, shape, kind, role, chunks, min(step, rows) * cols * 12)

    def take(self, name: str, role: str, stored: str, shape: tuple[int, ...], head_rows: int = 0) -> Tensor:
        return self.tensor(name, role, self.reader.take(stored, shape), shape, head_rows)

    def layer(self, il: int) -> tuple[list[Tensor], HfExperts | None]:
        src, dst, family = f"layers.{il}.", f"blk.{il}.", self.family
        out = self.norm(f"{dst}attn_norm", src + family.norms[0])
        if self.has_state(il):
            out += state_mixers.tensors(self, dst, src)
        else:
            out += self._latent(dst, src) if family.latent else self._heads(il, dst, src)
        out += self.norm(f"{dst}{family.ffn_norm}", src + family.norms[1])
        for name, stored in family.extra_norms.items():
            out += self.norm(dst + name, src + stored)
        if self.reader.has(f"{src}layer_scalar"):
            out.append(self.take(f"{dst}layer_output_scale.weight", "norm", f"{src}layer_scalar", (1,)))
        moe = self.is_moe(il)
        if not moe or family.beside:
            out += self._gated(dst, "", "feed-forward", src + family.dense, self.dense_width())
        if not moe:
            return out, None
        for name, (stored, length) in family.branches.items():
            role = "norm" if name.endswith("norm.weight") else "router"
            out.append(self.take(dst + name, role, src + stored, (self.config.integer(length),)))
        return self._moe(il, out)

    def norm(self, name: str, stored: str) -> list[Tensor]:
        """A norm of the model's width, with its bias where the family has one."""
        parts = ("weight", "bias") if self.family.norm_bias else ("weight",)
        return [self.take(f"{name}.{part}", "norm", f"{stored}.{part}", (self.n_embd,)) for part in parts]

    def has_state(self, il: int) -> bool:
        """Whether layer `il` keeps a state instead of keys and values."""
        mixer = self.family.state_mixer
        return mixer is not None and state_mixers.layer_types(self.config)[il] == mixer.layer_type

    def dense_width(self) -> int:
        """Width of a dense feed-forward."""
        if not self.family.widths_adjusted:
            return self.config.integer(self.family.dense_width)
        return self.reader.rows_of("layers.0." + self.family.dense.format(w=self.family.dense_names[0]))

    def sizes(self, il: int) -> tuple[int, int]:
        """Width of a head and number of key heads of a layer."""
        usual = (self.head_dim, self.n_head_kv)
        return head_sizes(self.family, self.config.values, il, self.slides[il], usual)

    def _heads(self, il: int, dst: str, src: str) -> list[Tensor]:
        """Ordinary attention: q, k, v, output, with what the family adds."""
        n_embd, family, out = self.n_embd, self.family, list[Tensor]()
        head_dim, n_head_kv = self.sizes(il)
        q_rows, kv_rows = self.n_head * head_dim, n_head_kv * head_dim
        bias = self.config.flag(family.qkv_bias)
        wide_q = 2 * q_rows if family.gated_attention else q_rows
        for letter, rows in (("q", wide_q), ("k", kv_rows), ("v", kv_rows)):
            paired = head_dim if family.rows_paired and letter != "v" else 0
            if letter == "v" and family.wide_heads and not self.reader.has(f"{src}self_attn.v_proj.weight"):
                continue  # values are the keys
            stem = f"{src}self_attn.{letter}_proj."
            out.append(self.take(f"{dst}attn_{letter}.weight", "attention", f"{stem}weight", (rows, n_embd), paired))
            if bias:
                out.append(self._bias(f"{dst}attn_{letter}.bias", f"{stem}bias", rows, paired))
        output = f"{src}self_attn.{family.attention_output}."
        out.append(self.take(f"{dst}attn_output.weight", "attention", f"{output}weight", (n_embd, q_rows)))
        if bias and family.output_bias:
            out.append(self._bias(f"{dst}attn_output.bias", f"{output}bias", n_embd, 0))
        if family.qk_norm and self.config.flag(family.qk_norm_key):
            for letter, stored, rows in zip("qk", family.qk_norm_names, (q_rows, kv_rows), strict=True):
                width = rows if family.qk_norm == "whole" else head_dim
                out.append(
                    self.take(f"{dst}attn_{letter}_norm.weight", "norm", f"{src}self_attn.{stored}.weight", (width,))
                )
        if family.sinks:
            out.append(self.take(f"{dst}attn_sinks.weight", "attention", src + family.sinks, (self.n_head,)))
        return out

    def _latent(self, dst: str, src: str) -> list[Tensor]:
        """DeepSeek's attention. `kv_b_proj` holds, per head, rows that make keys out of the latent and rows that make
        values; absorbed attention wants the first turned round.
        """
        rank, n_rot, plain, wide = self.latent_sizes()
        n_head, attn = self.n_head, f"{src}self_attn."
        shapes = {"attn_kv_a_mqa": ("kv_a_proj_with_mqa", rank + n_rot, self.n_embd)}
        norms = {"attn_kv_a_norm": ("kv_a_layernorm", rank)}
        q_rank = self.config.values.get("q_lora_rank")
        if q_rank:
            shapes["attn_q_a"] = ("q_a_proj", q_rank, self.n_embd)
            norms["attn_q_a_norm"] = ("q_a_layernorm", q_rank)
        shapes |= {
            ("attn_q_b" if q_rank else "attn_q"): (
                "q_b_proj" if q_rank else "q_proj",
                n_head * (plain + n_rot),
                q_rank or self.n_embd,
            ),
            "attn_output": ("o_proj", self.n_embd, n_head * wide),
        }
        out = [
            self.take(f"{dst}{name}.weight", "attention", f"{attn}{stored}.weight", (rows, cols))
            for name, (stored, rows, cols) in shapes.items()
        ]
        out += [
            self.take(f"{dst}{name}.weight", "norm", f"{attn}{stored}.weight", (width,))
            for name, (stored, width) in norms.items()
        ]
        both = self.reader.take(f"{attn}kv_b_proj.weight", (n_head * (plain + wide), rank))

        def heads(name: str, shape: tuple[int, ...], part: slice, turned: bool) -> Tensor:
            kind = self.chooser.choose(name, shape)

            def chunks() -> Iterator[Bytes]:
                for h in range(n_head):
                    rows = both.rows(h * (plain + wide), (h + 1) * (plain + wide))[part]
                    yield encode(rows.T if turned else rows, kind, both.name).reshape(-1)

            return Tensor(name, shape, kind, "attention", chunks, (plain + wide) * rank * 12)

        out.append(heads(f"{dst}attn_k_b.weight", (n_head, rank, plain), slice(plain), True))
        out.append(heads(f"{dst}attn_v_b.weight", (n_head, wide, rank), slice(plain, None), False))
        return out

    def latent_sizes(self) -> tuple[int, int, int, int]:
        """Width of the latent, rotated and plain dimensions of a key, width of a value."""
        names = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
        rank, n_rot, plain, wide = (self.config.integer(name) for name in names)
        return rank, n_rot, plain, wide

    def _bias(self, name: str, stored: str, rows: int, paired: int) -> Tensor:
        weights = self.reader.take(stored, (rows,))

        def chunks() -> Iterator[Bytes]:
            values = weights.rows(0, weights.n_rows).reshape(rows, 1)
            yield encode(_paired(values, paired) if paired else values, GGMLQuantizationType.F32, weights.name).reshape(
                -1
            )

        return Tensor(name, (rows,), GGMLQuantizationType.F32, "attention", chunks, rows * 12)

    def _gated(self, dst: str, suffix: str, role: str, stored: str, width: int) -> list[Tensor]:
        shapes = {"gate": (width, self.n_embd), "up": (width, self.n_embd), "down": (self.n_embd, width)}
        return [
            self.take(f"{dst}ffn_{w}{suffix}.weight", role, stored.format(w=name), shape)
            for (w, shape), name in zip(shapes.items(), self.family.dense_names, strict=True)
        ]

    def is_moe(self, il: int) -> bool:
        names, config = self.family.experts, self.config
        if names is None or (names.switch and not config.flag(names.switch)):
            return False
        if names.layers and config.values.get(names.layers) is not None:
            return il in config.values[names.layers]
        if kinds := config.values.get("mlp_layer_types"):
            return bool(kinds[il] == "sparse")
        first = config.integer(names.first_layer, 0, least=0) if names.first_layer else 0
        last = config.integer(names.last_layer, -1, least=-1) if names.last_layer else -1
        dense = il < first or (last >= 0 and il > last) or il in (config.values.get("mlp_only_layers") or [])
        return not dense and (il + 1) % config.integer(names.step, 1) == 0

    def shared_width(self) -> int:
        """Width of the shared experts together; 0: there are none."""
        shared = self.family.shared
        if shared is None:
            return 0
        return self.config.integer(shared.width) * (
            self.config.integer(shared.count, 0, least=0) if shared.count else 1
        )

    def _moe(self, il: int, out: list[Tensor]) -> tuple[list[Tensor], HfExperts]:
        names, src, dst = self.family.experts, f"layers.{il}.", f"blk.{il}."
        assert names is not None
        n_expert, n_ff, n_embd = self.config.first_integer(names.count), self.config.integer(names.width), self.n_embd
        router = self.reader.take_any(tuple(src + name for name in names.routers), (n_expert, n_embd))
        out.append(self.tensor(f"{dst}ffn_gate_inp.weight", "router", router, (n_expert, n_embd)))
        if names.selection_bias and self.config.values.get(names.selection_key or "", True):
            bias_names = tuple(src + name for name in names.selection_bias)
            selection = self.reader.take_any(bias_names, (n_expert,))
            out.append(self.tensor(f"{dst}exp_probs_b.bias", "router", selection, (n_expert,)))
        if (shared := self.family.shared) and self.shared_width():
            if shared.gate:
                gate = self.reader.take(src + shared.gate, (n_embd,))
                out.append(self.tensor(f"{dst}ffn_gate_inp_shexp.weight", "router", gate, (n_embd,)))
            out += self._gated(
                dst, "_shexp", "shared expert", f"{src}{shared.stem}.{{w}}_proj.weight", self.shared_width()
            )
        if names.router_bias:
            out.append(self.take(f"{dst}ffn_gate_inp.bias", "router", src + names.router_bias, (n_expert,)))
        bias: dict[str, Callable[[], Floats]] = {}
        if names.alternating:
            stored, bias = self._alternating(names, src, n_expert, n_ff)
            down_bias = src + names.fused[0][1] + "_bias"
            out.append(self.take(f"{dst}ffn_down_exps.bias", "expert", down_bias, (n_expert, n_embd)))
        elif names.turned:
            stored = self._columns_of_experts(names, src, n_expert, n_ff)
        else:
            stored = self._rows_of_experts(names, src, n_expert, n_ff)
        kinds = {
            w: self.chooser.choose(
                f"{dst}ffn_{w}_exps.weight", (n_expert, n_embd, n_ff) if w == "down" else (n_expert, n_ff, n_embd)
            )
            for w in ("gate", "up", "down")
        }
        return out, HfExperts(il, kinds, stored, n_ff, n_embd, bias)

    def _rows_of_experts(self, names: Experts, src: str, n_expert: int, n_ff: int) -> dict[str, list[Matrix]]:
        """Experts whose rows are stored as rows: one tensor each, or fused."""
        take, n_embd, experts = self.reader.take, self.n_embd, range(n_expert)
        for gate_up_name, down_name in names.fused:
            if not self.reader.has(src + gate_up_name):
                continue
            gate_up = take(src + gate_up_name, (n_expert, 2 * n_ff, n_embd))
            down = take(src + down_name, (n_expert, n_embd, n_ff))
            return {
                "gate": [Plain(gate_up, e * 2 * n_ff) for e in experts],
                "up": [Plain(gate_up, e * 2 * n_ff + n_ff) for e in experts],
                "down": [Plain(down, e * n_embd) for e in experts],
            }
        return {
            "gate": [Plain(take(src + names.gate.format(e=e), (n_ff, n_embd))) for e in experts],
            "up": [Plain(take(src + names.up.format(e=e), (n_ff, n_embd))) for e in experts],
            "down": [Plain(take(src + names.down.format(e=e), (n_embd, n_ff))) for e in experts],
        }

    def _columns_of_experts(self, names: Experts, src: str, n_expert: int, n_ff: int) -> dict[str, list[Matrix]]:
        """Experts whose rows are stored as columns, gates before ups."""
        n_embd, experts = self.n_embd, range(n_expert)
        wide = self.reader.take(src + names.fused[0][0], (n_expert, n_embd, 2 * n_ff))
        deep = self.reader.take(src + names.fused[0][1], (n_expert, n_ff, n_embd))
        return {
            "gate": [Turned(wide, e * n_embd, n_embd) for e in experts],
            "up": [Turned(wide, e * n_embd, n_embd, n_ff) for e in experts],
            "down": [Turned(deep, e * n_ff, n_ff) for e in experts],
        }

    def _alternating(
        self, names: Experts, src: str, n_expert: int, n_ff: int
    ) -> tuple[dict[str, list[Matrix]], dict[str, Callable[[], Floats]]]:
        """Experts with gate and up in turn, as floats or in MXFP4, and the biases of gate and up."""
        take, n_embd, experts = self.reader.take, self.n_embd, range(n_expert)
        gate_up, down = (src + name for name in names.fused[0])
        stored: dict[str, list[Matrix]]
        if self.reader.has(gate_up + "_blocks"):
            if n_embd % 32 or n_ff % 32:
                raise ConversionError(f"config.json: sizes {n_embd} and {n_ff} are not made of MXFP4 blocks of 32")
            wide, deep = (n_expert, 2 * n_ff, n_embd // 32), (n_expert, n_embd, n_ff // 32)
            codes, exponents = (
                take(f"{gate_up}_blocks", (*wide, 16), codes=True),
                take(f"{gate_up}_scales", wide, codes=True),
            )
            down_codes, down_exponents = (
                take(f"{down}_blocks", (*deep, 16), codes=True),
                take(f"{down}_scales", deep, codes=True),
            )
            stored = {
                "gate": [Packed(codes, exponents, e * 2 * n_ff, 2) for e in experts],
                "up": [Packed(codes, exponents, e * 2 * n_ff + 1, 2) for e in experts],
                "down": [Packed(down_codes, down_exponents, e * n_embd) for e in experts],
            }
        else:
            wide_floats = take(gate_up, (n_expert, n_embd, 2 * n_ff))
            deep_floats = take(down, (n_expert, n_ff, n_embd))
            stored = {
                "gate": [Turned(wide_floats, e * n_embd, n_embd, 0, 2) for e in experts],
                "up": [Turned(wide_floats, e * n_embd, n_embd, 1, 2) for e in experts],
                "down": [Turned(deep_floats, e * n_ff, n_ff) for e in experts],
            }
        bias = take(f"{gate_up}_bias", (n_expert, 2 * n_ff))
        return stored, {
            "gate": lambda: bias.rows(0, n_expert)[:, 0::2],
            "up": lambda: bias.rows(0, n_expert)[:, 1::2],
        }

    def keys(self) -> k.Keys:
        config, family, arch = self.config, self.family, self.family.arch
        keys: k.Keys = {
            f"{arch}.block_count": k.u32(config.integer("num_hidden_layers")),
            f"{arch}.context_length": k.u32(config.integer("max_position_embeddings")),
            f"{arch}.embedding_length": k.u32(self.n_embd),
            f"{arch}.attention.head_count": k.u32(self.n_head),
            f"{arch}.attention.head_count_kv": k.u32(self.n_head_kv),
            f"{arch}.attention.key_length": k.u32(self.head_dim),
            f"{arch}.attention.value_length": k.u32(self.head_dim),
            f"{arch}.attention.layer_norm_rms_epsilon": k.f32(config.number(family.norm_eps)),
            f"{arch}.vocab_size": k.u32(config.integer("vocab_size")),
        }
        if config.values.get(family.dense_width) is not None or family.experts is None:
            keys[f"{arch}.feed_forward_length"] = k.u32(self.dense_width())
        if family.state_mixer:
            keys |= state_mixers.keys(self)
        if family.latent:
            rank, n_rot, plain, wide = self.latent_sizes()
            sizes = {
                "head_count_kv": 1,
                "key_length": rank + n_rot,
                "value_length": rank,
                "key_length_mla": plain + n_rot,
                "value_length_mla": wide,
                "kv_lora_rank": rank,
            }
            if config.values.get("q_lora_rank"):
                sizes["q_lora_rank"] = config.integer("q_lora_rank")
            keys |= {f"{arch}.attention.{name}": k.u32(size) for name, size in sizes.items()}
        if (experts := family.experts) and not (experts.switch and not config.flag(experts.switch)):
            keys[f"{arch}.expert_count"] = k.u32(config.first_integer(experts.count))
            keys[f"{arch}.expert_used_count"] = k.u32(config.integer(experts.used))
            keys[f"{arch}.expert_weights_norm"] = k.boolean(config.flag(experts.norm))
            if family.no_qk_norm_experts:
                self._check_qk_norm(experts)
            if experts.states_width:
                keys[f"{arch}.expert_feed_forward_length"] = k.u32(config.integer(experts.width))
            if experts.gating:
                keys[f"{arch}.expert_gating_func"] = k.u32(experts.gating)
            if experts.scale:
                keys[f"{arch}.expert_weights_scale"] = k.f32(config.number(experts.scale))
            by = experts.grouped_by
            if (
                experts.groups
                and config.integer(experts.groups[0], 1) > 1
                and (not by or config.values.get(by[0]) == by[1])
            ):
                keys[f"{arch}.expert_group_count"] = k.u32(config.integer(experts.groups[0]))
                keys[f"{arch}.expert_group_used_count"] = k.u32(config.integer(experts.groups[1]))
            if experts.first_layer:
                dense = [not self.is_moe(il) for il in range(len(self.slides))]
                keys[f"{arch}.leading_dense_block_count"] = k.u32((*dense, False).index(False))
            if experts.last_layer or experts.states_step:
                keys[f"{arch}.interleave_moe_layer_step"] = k.u32(config.integer(experts.step, 1))
            if self.shared_width():
                keys[f"{arch}.expert_shared_feed_forward_length"] = k.u32(self.shared_width())
            if family.shared and family.shared.count:
                keys[f"{arch}.expert_shared_count"] = k.u32(config.integer(family.shared.count, 0, least=0))
        keys |= {f"{arch}.{key}": k.f32(config.number(name)) for key, name in family.multipliers.items()}
        keys |= {
            f"{arch}.{key}": k.f32(0.0 if config.values.get(name) is None else config.number(name))
            for key, name in family.optional_floats.items()
        }
        keys |= {f"{arch}.{key}": k.u32(value) for key, value in family.constants.items()}
        return keys | {f"{arch}.{key}": value for key, value in self._attention_keys().items()}

    def _check_qk_norm(self, experts: Experts) -> None:
        """A norm of q and k without a weight has no key: readers know it by the number of experts."""
        without, has = self.family.no_qk_norm_experts, self.config.flag("use_qk_norm")
        if has is (self.config.first_integer(experts.count) == without):
            raise ConversionError(
                f"config.json: 'use_qk_norm' is {json.dumps(has)}; GGUF has no key for it, and readers of "
                f"'{self.family.arch}' take it for true unless there are {without} experts"
            )

    def _attention_keys(self) -> k.Keys:
        """Windows, and heads that are not the same everywhere."""
        config, family, keys = self.config, self.family, k.Keys()
        if family.window_period:
            keys["attention.sliding_window"] = k.u32(config.integer(family.window_key))
            if family.states_pattern or self.slides != usual_layers(family, len(self.slides)):
                keys["attention.sliding_window_pattern"] = k.booleans(self.slides)
        if family.scaled_by and config.integer(family.scaled_by) != self.head_dim:
            keys["attention.scale"] = k.f32(config.integer(family.scaled_by) ** -0.5)
        if family.wide_heads:
            full = next((il for il, slides in enumerate(self.slides) if not slides), 0)
            wide, n_head_kv = self.sizes(full)[0], [self.sizes(il)[1] for il in range(len(self.slides))]
            keys |= {f"attention.{name}_length": k.u32(wide) for name in ("key", "value")}
            keys |= {f"attention.{name}_length_swa": k.u32(self.head_dim) for name in ("key", "value")}
            keys["attention.head_count_kv"] = k.i32s(n_head_kv)
        if family.window_key == "attention_chunk_size":
            keys["attention.temperature_length"] = k.u32(config.integer("floor_scale", 8192))
        return keys


def open_folder(folder: Path, outtype: str | None, *, with_vocabulary: bool = True, pre: str | None = None) -> Content:
    """Read a Hugging Face folder.

    outtype          a key of `quantize.OUTTYPES`; None keeps the floats the checkpoint has, and MXFP4 experts as such.
    with_vocabulary  False leaves the tokenizer out; the file then serves token ids.
    pre              `tokenizer.ggml.pre`, instead of finding it out.
    Raises           ConversionError, which names the key or tensor.
    """
    config = Config(folder)
    family = _find_family(config)
    stored = read_folder(folder)
    reader = _Reader(stored)
    tied = config.flag("tie_word_embeddings") or (
        not reader.has("lm_head.weight") and "tie_word_embeddings" not in config.values
    )
    packed = any(weights.dtype == "U8" for weights in stored.values())
    experts = MXFP4 if packed and outtype is None else None
    outtype = outtype or _stored_type(stored)
    n_layer, n_vocab = config.integer("num_hidden_layers"), config.integer("vocab_size")
    n_expert = config.first_integer(family.experts.count) if family.experts else 0
    chooser = Chooser(outtype, n_layer, n_expert, tied, experts, state_mixers.layers_with_values(config, family))
    builder = _Builder(config, family, reader, chooser)

    head = [builder.take("token_embd.weight", "embedding", "embed_tokens.weight", (n_vocab, builder.n_embd))]
    wide = builder.sizes(builder.slides.index(False))[0] if False in builder.slides else builder.head_dim
    rope, factors = rope_keys_and_factors(family, config.values, wide, builder.head_dim)
    head += [_vector(f"{rope_name}.weight", "norm", values) for rope_name, values in factors.items()]
    layers = [builder.layer(il) for il in range(n_layer)]
    last_norm, stored_norm = family.last_norm
    tail = builder.norm(last_norm, stored_norm)
    if tied:
        reader.drop("lm_head.weight")
    else:
        tail.append(builder.take("output.weight", "output", "lm_head.weight", (n_vocab, builder.n_embd)))
    if family.head_bias and config.flag(family.head_bias):
        tail.append(builder.take("output.bias", "output", "lm_head.bias", (n_vocab,)))
    warnings = _leave_out(config, family, reader, n_layer)
    reader.refuse_leftovers()

    name = folder.resolve().name
    keys: k.Keys = {
        "general.architecture": k.string(family.arch),
        "general.type": k.string("model"),
        "general.name": k.string(name),
        "general.file_type": k.u32(OUTTYPES[outtype][1]),
        "general.quantization_version": k.u32(2),
    }
    keys |= builder.keys()
    keys |= {f"{family.arch}.{key}": value for key, value in rope.items()}
    keys |= {
        "moepic.source.name": k.string(name),
        "moepic.source.format": k.string("safetensors"),
        "moepic.source.config_sha256": k.string(config.sha256),
    }
    keys |= vocabulary_keys(folder, config.values, n_vocab, warnings, pre=pre, wanted=with_vocabulary)
    inputs = sorted({weights.path for weights in stored.values()})
    return Content(family.arch, keys, head, list(layers), tail, [config.path, *inputs], chooser.fallbacks, warnings)


def _leave_out(config: Config, family: Family, reader: _Reader, n_layer: int) -> list[str]:
    """Drop what the family leaves out, and blocks for multi-token prediction, which follow the layers; say so."""
    n_nextn = next((config.integer(key, least=0) for key in family.nextn if config.values.get(key) is not None), 0)
    patterns = {what: [pattern] for what, pattern in family.left_out.items()}
    patterns.setdefault(NEXTN, []).extend(rf"layers\.{n_layer + i}\." for i in range(n_nextn))
    dropped = {what: reader.drop_all("|".join(names)) for what, names in patterns.items() if names}
    return [f"{count} tensors of {what} are left out" for what, count in dropped.items() if count]


def _stored_type(stored: dict[str, Weights]) -> str:
    """The widest float type that holds a matrix."""
    found = {weights.dtype for weights in stored.values() if len(weights.shape) > 1} - {"U8"}
    if found & {"F32", "F64"} or found >= {"F16", "BF16"}:
        return "f32"
    return "f16" if "F16" in found else "bf16"


def _vector(name: str, role: str, values: npt.NDArray[np.float32]) -> Tensor:
    return made(name, values.shape, role, lambda: values)
