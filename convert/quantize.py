"""Which type each tensor gets for an `--outtype`, and the bytes of weights in a type. Encoders are the native
library's; float types are numpy's.

The mixes are llama.cpp's, tensor by tensor, so that a name means what people expect (`q4_k` is its Q4_K_S, `q5_k` its
Q5_K_S): 1-D tensors and routers stay F32; the output matrix (or the embedding that stands for it) is Q6_K; `q4_k_m`
gives `down` and the attention values Q6_K in some layers. Rows that a type's blocks do not divide fall back to a type
of 32, then to F16; the caller reports it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from moepic_gguf.errors import ConversionError

from .tensors import Bytes, Floats, flat

T = GGMLQuantizationType

# --outtype -> (type of matrices, general.file_type as llama.cpp numbers them)
OUTTYPES: dict[str, tuple[T, int]] = {
    "f32": (T.F32, 0),
    "f16": (T.F16, 1),
    "bf16": (T.BF16, 32),
    "q8_0": (T.Q8_0, 7),
    "q6_k": (T.Q6_K, 18),
    "q5_k": (T.Q5_K, 16),
    "q4_k": (T.Q4_K, 14),
    "q4_k_m": (T.Q4_K, 15),
    "q4_0": (T.Q4_0, 2),
    "mxfp4": (T.MXFP4, 38),
}
_SMALLER_BLOCKS = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
# Small beside the rest, and read as floats: routers, the taps of convolutions.
_EXACT = ("ffn_gate_inp", "ssm_conv1d", "shortconv.conv")
_FLOATS = (T.F32, T.F16, T.BF16)


@dataclass
class Chooser:
    """Chooses types; `experts` is that of routed experts, where it is not to follow from `outtype`; `value_layers` are the
    layers with attention values, where not all have them; `fallbacks` collects (tensor, wanted, given) where the shape
    did not allow the wish.
    """

    outtype: str
    n_layer: int
    n_expert: int
    tied: bool
    experts: T | None = None
    value_layers: list[int] | None = None
    fallbacks: list[tuple[str, T, T]] = field(default_factory=list)

    def choose(self, name: str, shape: tuple[int, ...]) -> T:
        """The type of tensor `name` (GGUF name, before any split) of row-major `shape`."""
        if len(shape) < 2 or name.endswith(".bias") or any(part in name for part in _EXACT):
            return T.F32
        wanted = self.experts if self.experts is not None and "_exps" in name else self._wish(name)
        given = wanted
        if shape[-1] % GGML_QUANT_SIZES[given][0]:
            given = _SMALLER_BLOCKS.get(given, given)
        if shape[-1] % GGML_QUANT_SIZES[given][0]:
            given = T.F16
        if given != wanted:
            self.fallbacks.append((name, wanted, given))
        return given

    def _wish(self, name: str) -> T:
        plain = OUTTYPES[self.outtype][0]
        if plain in _FLOATS:
            return plain
        if plain is T.MXFP4:
            return T.MXFP4 if "_exps" in name else T.Q8_0
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return T.Q8_0 if plain is T.Q8_0 else T.Q6_K
        if not name.startswith("blk."):
            return plain
        layer, part = name.split(".")[1:3]
        return self._in_layer(int(layer), part, plain)

    def _in_layer(self, layer: int, part: str, plain: T) -> T:
        """The exceptions inside a layer; llama.cpp's rules for the same file types."""
        values = part in ("attn_v", "attn_qkv")
        if self.n_expert == 8 and (values or part == "attn_k"):
            return T.Q8_0  # small beside eight experts, and all tokens pass through them
        if plain is not T.Q4_K:
            return plain
        if self.n_expert == 8 and part == "attn_output":
            return T.Q5_K
        if self.outtype == "q4_k_m":
            place, n = self._place_of_values(layer) if values else (layer, self.n_layer)
            return T.Q6_K if (values or part.startswith("ffn_down")) and self._more_bits(place, n) else plain
        first = (values and self._place_of_values(layer)[0] < 4) or (
            part.startswith("ffn_down") and layer < self.n_layer // 8
        )
        return T.Q5_K if first else plain

    def _place_of_values(self, layer: int) -> tuple[int, int]:
        """Which of the layers that have attention values this is, and how many there are."""
        if self.value_layers is None:
            return layer, self.n_layer
        return self.value_layers.index(layer), len(self.value_layers)

    @staticmethod
    def _more_bits(place: int, n: int) -> bool:
        eighth = n // 8
        return place < eighth or place >= 7 * n // 8 or (place - eighth) % 3 == 2


def encode(weights: Floats, kind: T, name: str, importance: Floats | None = None) -> Bytes:
    """Float rows `[rows, cols]` to uint8 `[rows, row bytes]` of `kind`. `name` is for errors.

    importance   `[cols]` weights of the squared error, or None; float types ignore it.
    Raises ConversionError where a value has no image: overflow in F16, NaN or infinity in a block type.
    """
    rows = np.ascontiguousarray(weights, dtype=np.float32)
    if kind is T.F32:
        return flat(rows).reshape(len(rows), -1)
    if kind is T.F16:
        with np.errstate(over="ignore"):
            halves = rows.astype(np.float16)
        if np.any(np.isinf(halves) & np.isfinite(rows)):
            raise ConversionError(
                f"tensor '{name}': a value of {np.abs(rows).max():g} does not fit F16 (largest 65504); use "
                f"--outtype bf16"
            )
        return flat(halves).reshape(len(rows), -1)
    if kind is T.BF16:
        return _bfloat16(rows)
    if not np.isfinite(rows).all():
        raise ConversionError(
            f"tensor '{name}' holds NaN or infinity, which {kind.name} has no code for (a broken checkpoint?)"
        )
    return _encode_blocks(rows, kind, importance)


def _bfloat16(rows: Floats) -> Bytes:
    """Round to nearest even; NaN stays NaN (quiet)."""
    bits = rows.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = np.isnan(rows)
    if nan.any():
        rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x40)
    return flat(rounded.astype(np.uint16)).reshape(len(rows), -1)


def _encode_blocks(rows: Floats, kind: T, importance: Floats | None) -> Bytes:
    from moepic_gguf._ffi import ffi, lib
    from moepic_gguf.errors import check

    n_rows, cols = rows.shape
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    out: npt.NDArray[np.uint8] = np.empty((n_rows, cols // block_len * block_bytes), np.uint8)
    weights = (
        ffi.NULL
        if importance is None
        else ffi.from_buffer("float[]", np.ascontiguousarray(importance, dtype=np.float32))
    )
    code = lib.moepic_quantize(
        ffi.from_buffer("uint8_t[]", out, require_writable=True),
        int(kind),
        ffi.from_buffer("float[]", rows),
        n_rows,
        cols,
        weights,
        len(os.sched_getaffinity(0)),
    )
    check(code, ffi.string(lib.moepic_last_error()).decode("utf-8", "replace"))
    return out
