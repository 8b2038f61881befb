"""Vector ops and attention of the native library as numpy functions, one object per instruction set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib

Floats = NDArray[np.float32]
ISAS = {"scalar": 0, "avx2": 1, "avx512": 2}
KV_TYPES = {"f16": 0, "q8_0": 1}


def check(code: int) -> None:
    """Raise RuntimeError for a negative code."""
    if code != 0:
        raise RuntimeError(f"native code {code}")


def available_isas() -> list[str]:
    """Names of the instruction sets this build and machine can run; scalar is always among them."""
    found, name = ffi.new("int *"), ffi.new("char const **")
    names = []
    for isa, number in ISAS.items():
        check(lib.moepic_test_isa(number, found, name))
        if found[0]:
            names.append(isa)
    assert "scalar" in names
    return names


def as_float(array: Floats | None) -> object:
    """The first element of a contiguous float32 array, or NULL."""
    if array is None:
        return ffi.NULL
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return ffi.cast("float *", array.ctypes.data)


def aligned_bytes(n: int, fill: int) -> NDArray[np.uint8]:
    """n bytes that start on a 64-byte border."""
    raw = np.full(n + 64, fill, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n]


@dataclass(frozen=True)
class Vector:
    """The vector ops of one instruction set; each returns a new array."""

    isa: str

    def _in_place(self, op: int, x: Floats) -> Floats:
        out = np.array(x, dtype=np.float32)
        check(lib.moepic_test_vector(ISAS[self.isa], op, as_float(out), out.size))
        return out

    def exp(self, x: Floats) -> Floats:
        return self._in_place(0, x)

    def sigmoid(self, x: Floats) -> Floats:
        return self._in_place(1, x)

    def softmax(self, x: Floats) -> Floats:
        return self._in_place(2, x)

    def rms_norm(self, x: Floats, weight: Floats | None, eps: float) -> Floats:
        out = np.array(x, dtype=np.float32)
        check(lib.moepic_test_rms_norm(ISAS[self.isa], as_float(out), as_float(weight), eps, as_float(out), out.size))
        return out

    def soft_cap(self, x: Floats) -> Floats:
        return self._in_place(3, x)

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
        out = np.array(x, dtype=np.float32)
        arrays = [as_float(one) for one in (out, weight, bias)]
        check(lib.moepic_test_layer_norm(ISAS[self.isa], *arrays, eps, as_float(out), out.size))
        return out

    def rope(self, head: Floats, cos_sin: Floats, n_rot: int, neox: bool) -> Floats:
        out = np.array(head, dtype=np.float32)
        check(lib.moepic_test_rope(ISAS[self.isa], as_float(out), as_float(cos_sin), n_rot, int(neox)))
        return out

    def silu_glu(self, gate: Floats, up: Floats) -> Floats:
        return self._glu(0, gate, up)

    def silu_clamped_glu(self, gate: Floats, up: Floats) -> Floats:
        return self._glu(1, gate, up)

    def gelu_glu(self, gate: Floats, up: Floats) -> Floats:
        return self._glu(2, gate, up)

    def sigmoid_glu(self, gate: Floats, up: Floats) -> Floats:
        return self._glu(3, gate, up)

    def _glu(self, kind: int, gate: Floats, up: Floats) -> Floats:
        out = np.array(gate, dtype=np.float32)
        check(lib.moepic_test_glu(ISAS[self.isa], kind, as_float(out), as_float(up), as_float(out), out.size))
        return out

    def scale_add(self, y: Floats, a: float, x: Floats) -> Floats:
        out = np.array(y, dtype=np.float32)
        check(lib.moepic_test_scale_add(ISAS[self.isa], as_float(out), a, as_float(x), out.size, 0))
        return out

    def scale(self, y: Floats, a: float) -> Floats:
        out = np.array(y, dtype=np.float32)
        check(lib.moepic_test_scale_add(ISAS[self.isa], as_float(out), a, ffi.NULL, out.size, 0))
        return out

    def add(self, y: Floats, x: Floats) -> Floats:
        out = np.array(y, dtype=np.float32)
        check(lib.moepic_test_scale_add(ISAS[self.isa], as_float(out), 0.0, as_float(x), out.size, 1))
        return out


@dataclass
class KvCache:
    """Keys and values of one layer. Unwritten bytes are 0xff: NaN as halves, so a read of them shows."""

    type: str
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    capacity: int
    keys: NDArray[np.uint8] = field(init=False)
    values: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        sizes = ffi.new("int64_t[2]")
        check(lib.moepic_test_kv_bytes(self._view(ffi.NULL, ffi.NULL), sizes, sizes + 1))
        self.keys, self.values = aligned_bytes(sizes[0], 0xFF), aligned_bytes(sizes[1], 0xFF)

    def _view(self, keys: object, values: object) -> object:
        sizes = [KV_TYPES[self.type], self.n_head_kv, self.head_dim_k, self.head_dim_v, self.capacity]
        return ffi.new("moepic_test_kv *", [*sizes, keys, values])

    def view(self) -> object:
        """The C struct; this cache must outlive it."""
        return self._view(ffi.cast("void *", self.keys.ctypes.data), ffi.cast("void *", self.values.ctypes.data))

    def store(self, isa: str, pos: int, k: Floats, v: Floats) -> None:
        """k [n, n_head_kv, head_dim_k] and v [n, n_head_kv, head_dim_v] at positions pos, pos + 1, .."""
        k, v = np.ascontiguousarray(k, dtype=np.float32), np.ascontiguousarray(v, dtype=np.float32)
        check(lib.moepic_test_kv_store(ISAS[isa], self.view(), pos, len(k), as_float(k), as_float(v)))


def attend(
    isa: str,
    cache: KvCache,
    q: Floats,
    first_pos: int,
    *,
    scale: float,
    window: int = 0,
    sinks: Floats | None = None,
    tokens: tuple[int, int] | None = None,
    heads: tuple[int, int] | None = None,
    out: Floats | None = None,
    repeats: int = 1,
) -> tuple[Floats, float]:
    """Attention of q [n_tokens, n_head, head_dim_k]; returns out [n_tokens, n_head, head_dim_v] and CPU seconds.

    tokens and heads restrict the job to ranges; the rest of out stays NaN (or as given).
    """
    n_tokens, n_head, _ = q.shape
    q = np.ascontiguousarray(q, dtype=np.float32)
    if out is None:
        out = np.full((n_tokens, n_head, cache.head_dim_v), np.nan, dtype=np.float32)
    seconds = ffi.new("double *")
    check(
        lib.moepic_test_attention(
            ISAS[isa], cache.view(), as_float(q), as_float(out), n_head, first_pos, *(tokens or (0, n_tokens)),
            *(heads or (0, n_head)), scale, window, as_float(sinks), repeats, seconds,
        )
    )  # fmt: skip
    return out, seconds[0]


def assert_same_bits(found: Floats, expected: Floats, what: str) -> None:
    """Bit equality (any NaN equals any NaN); a failure names the first differing place and both values."""
    assert found.shape == expected.shape, f"{what}: shapes {found.shape} and {expected.shape}"
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        raise AssertionError(
            f"{what}: {(~same).sum()} of {same.size} differ; first at {at}: {found[at]!r} and {expected[at]!r}"
        )


def assert_close(found: Floats, expected: NDArray[np.float64], bound: NDArray[np.float64] | float, what: str) -> None:
    """|found - expected| <= bound everywhere; a failure shows the worst place."""
    error = np.abs(found.astype(np.float64) - expected)
    excess = np.where(np.isnan(error), np.inf, error / np.maximum(bound, np.finfo(np.float64).tiny))
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
    assert excess[worst] <= 1.0, (
        f"{what}: worst at {tuple(int(i) for i in worst)}: found {found[worst]!r}, expected {expected[worst]!r}, "
        f"error {error[worst]:.3g} is {excess[worst]:.3g} times the bound"
    )
