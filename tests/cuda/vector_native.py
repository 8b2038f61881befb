"""The steps of a device library that are no matrix product, as numpy functions."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from matmul_native import Bytes, aligned, pointer
from ops_native import ISAS, Floats, KvCache, as_float

from .matrix_native import DEVICES, KINDS, act_bytes

PLACES = ("floats", "blocks_32", "blocks_256")


def checked(code: int) -> None:
    """Raise with the library's text for a negative code."""
    if code != 0:
        raise RuntimeError(ffi.string(lib.moepic_last_error()).decode())


@dataclass
class Acts:
    """Where a step puts activations of n rows, in the kinds asked for; bytes nobody writes stay 0."""

    kinds: tuple[int, ...]
    n: int
    cols: int
    places: dict[int, Bytes] = field(init=False)

    def __post_init__(self) -> None:
        sizes = {kind: act_bytes(KINDS[kind], self.cols) for kind in self.kinds}
        self.places = {kind: aligned(self.n * size).reshape(self.n, size) for kind, size in sizes.items()}

    def fill(self, to: Any) -> None:
        """Writes the C struct."""
        to.mask = sum(1 << kind for kind in self.kinds)
        for kind, place in self.places.items():
            setattr(to, PLACES[kind], pointer(place, "void *"))

    def struct(self) -> Any:
        """The C struct; these places must outlive it."""
        out = ffi.new("moepic_test_acts *")
        self.fill(out)
        return out


NO_ACTS = Acts((), 0, 0)


def norm(
    device: str,
    x: Floats,
    cols: int,
    weight: Floats | None,
    bias: Floats | None = None,
    *,
    eps: float,
    factor: float = 1.0,
    acts: Acts = NO_ACTS,
    in_place: bool = False,
) -> Floats:
    """y of rows x [n, stride]; columns from `cols` on are as they were (NaN, or x in place)."""
    y = x.copy() if in_place else np.full_like(x, np.nan)
    n, stride = x.shape
    checked(
        lib.moepic_test_device_norm(
            DEVICES[device], ffi.NULL if in_place else as_float(x), as_float(y), n, stride, cols, as_float(weight),
            as_float(bias), eps, factor, acts.struct(),
        )
    )  # fmt: skip
    return y


def each(device: str, op: int, y: Floats, a: float = 0.0, x: Floats | None = None) -> Floats:
    """y *= a, fma(a, x, y), y += x, y *= x, sigmoid by number."""
    out = y.copy()
    checked(lib.moepic_test_device_each(DEVICES[device], op, as_float(out), a, as_float(x), y.size))
    return out


def glu(device: str, kind: int, gate: Floats, up: Floats, cols: int, acts: Acts, in_place: bool = False) -> Floats:
    """Rows of stride gate.shape[1]; columns from `cols` on are as they were."""
    gate = gate.copy()
    out = gate if in_place else np.full_like(gate, np.nan)
    to = ffi.NULL if in_place else as_float(out)
    n, stride = gate.shape
    checked(
        lib.moepic_test_device_glu(
            DEVICES[device], kind, as_float(gate), as_float(up), to, n, stride, cols, acts.struct()
        )
    )
    return out


def fill_struct(to: Any, values: dict[str, Any]) -> None:
    """Fields of a C struct from numbers, bools, float32 arrays and None."""
    for name, value in values.items():
        if value is None:
            continue
        setattr(to, name, as_float(value) if isinstance(value, np.ndarray) else value)


def heads(device: str, **job: Any) -> None:
    """Fields of moepic_test_device_heads_job; q, k and v change in place."""
    given = ffi.new("moepic_test_device_heads_job *")
    fill_struct(given, job)
    checked(lib.moepic_test_device_heads(DEVICES[device], given))


def latent_heads(device: str, acts: Acts, **job: Any) -> None:
    """Fields of moepic_test_device_latent_job; q and k change in place."""
    given = ffi.new("moepic_test_device_latent_job *")
    fill_struct(given, job)
    acts.fill(given.acts)
    checked(lib.moepic_test_device_latent_heads(DEVICES[device], given))


def device_kv(cache: KvCache) -> Any:
    """The C struct; the cache must outlive it."""
    places = [ffi.cast("void *", data.ctypes.data) for data in (cache.keys, cache.values)]
    sizes = [0 if cache.type == "f16" else 1, cache.n_head_kv, cache.head_dim_k, cache.head_dim_v, cache.capacity]
    return ffi.new("moepic_test_device_kv *", [*sizes, *places])


def kv_store(device: str, cache: KvCache, pos: int, k: Floats, v: Floats) -> None:
    """k [n, stride] and v [n, stride] at positions pos, pos + 1, .."""
    code = lib.moepic_test_device_kv_store(
        DEVICES[device], device_kv(cache), pos, len(k), as_float(k), k.shape[1], as_float(v), v.shape[1]
    )
    checked(code)


def attend(
    device: str,
    cache: KvCache,
    q: Floats,
    first_pos: int,
    *,
    scale: float,
    window: int = 0,
    sinks: Floats | None = None,
    with_scratch: bool = True,
    slack: tuple[int, int] = (0, 0),
) -> tuple[Floats, bool]:
    """Attention of q [n, n_head, head_dim_k], and whether the device asked for scratch. The launch is made for first positions from slack[0]
    before it to slack[1] behind it.
    """
    n, n_head, _ = q.shape
    out = np.full((n, n_head, cache.head_dim_v), np.nan, dtype=np.float32)
    split = ffi.new("int *")
    checked(
        lib.moepic_test_device_attention(
            DEVICES[device], device_kv(cache), as_float(q), as_float(out), n, n_head, first_pos, *slack, scale, window,
            as_float(sinks), int(with_scratch), split,
        )
    )  # fmt: skip
    return out, bool(split[0])


def conv(
    device: str, x: Floats, taps: Floats, state: Floats | None, cut: int, silu: bool
) -> tuple[Floats, Floats, Floats]:
    """(y, state after `cut` tokens, state after the last) of x [n, channels]."""
    y = x.copy()
    middle, after = (np.full((len(taps) - 1, x.shape[1]), np.nan, np.float32) for _ in range(2))
    checked(
        lib.moepic_test_device_conv(
            DEVICES[device], as_float(y), len(x), cut, as_float(taps), len(taps), x.shape[1], int(silu), as_float(state),
            as_float(middle), as_float(after),
        )
    )  # fmt: skip
    return y, middle, after


def delta_gates(
    device: str,
    channels: Floats,
    n_head_k: int,
    head_dim_k: int,
    length_eps: float,
    raw_beta: Floats,
    alpha: Floats | None,
    rate: Floats,
    alpha_bias: Floats,
) -> tuple[Floats, Floats, Floats]:
    """(channels with lengths, beta, decay)."""
    channels, n = channels.copy(), len(channels)
    beta, decay = (np.full((n, rate.size), np.nan, np.float32) for _ in range(2))
    checked(
        lib.moepic_test_device_delta_gates(
            DEVICES[device], n, channels.shape[1], n_head_k, rate.size, head_dim_k, as_float(channels), length_eps,
            as_float(raw_beta), as_float(alpha), as_float(rate), as_float(alpha_bias), as_float(beta), as_float(decay),
        )
    )  # fmt: skip
    return channels, beta, decay


def delta_rule(device: str, **job: Any) -> None:
    """Fields of moepic_test_device_rule_job; out, middle and to change in place."""
    given = ffi.new("moepic_test_device_rule_job *")
    fill_struct(given, job)
    checked(lib.moepic_test_device_delta_rule(DEVICES[device], given))


def route(device: str | None, isa: str, logits: Floats, k: int, **job: Any) -> tuple[Floats, NDArray[np.int32], Floats]:
    """(scores, ids, weights) of logits [n, n_expert]; device None: the engine's router. Fields of moepic_test_route_job."""
    given = ffi.new("moepic_test_route_job *")
    scores = logits.copy()
    ids, weights = np.full((len(logits), k), -1, np.int32), np.full((len(logits), k), np.nan, np.float32)
    fill_struct(given, {"n_group": 1, "n_group_used": 1, "router_scale": 1.0, **job})
    given.n, given.n_expert, given.k = len(logits), logits.shape[1], k
    given.logits, given.weights = as_float(scores), as_float(weights)
    given.ids = ffi.cast("int32_t *", ids.ctypes.data)
    checked(lib.moepic_test_route(-1 if device is None else DEVICES[device], ISAS[isa], given))
    return scores, ids, weights


@dataclass(frozen=True)
class TaskList:
    """What device::TaskListJob makes of n tokens' ids."""

    data: NDArray[np.uint64]  # [n k n_granules], as tasks
    tasks: NDArray[np.int32]  # [n k n_granules, 4]: granule, first entry, number of entries, first row
    entry_token: NDArray[np.int32]
    entry_weight: Floats | None
    token_entry: NDArray[np.int32]  # [n, k + 1]
    told: NDArray[np.int32]  # [n, k]
    flag: int
    n_written: int


def list_tasks(
    device: str, ids: NDArray[np.int32], weights: Floats | None, granules: NDArray[np.uint64], n_written: int
) -> TaskList:
    """ids and weights [n, k], granules [n_expert, n_granules]; what nobody writes is -1, or NaN."""
    (n, k), (n_expert, n_granules) = ids.shape, granules.shape
    n_tasks = n * k * n_granules
    out = TaskList(
        np.zeros(n_tasks, np.uint64), np.full((n_tasks, 4), -1, np.int32), np.full(n * k, -1, np.int32),
        None if weights is None else np.full(n * k, np.nan, np.float32), np.full((n, k + 1), -1, np.int32),
        np.full((n, k), -1, np.int32), 0, n_written,
    )  # fmt: skip
    job = ffi.new("moepic_test_task_list_job *")
    job.n, job.k, job.n_granules, job.n_expert, job.n_written = n, k, n_granules, n_expert, n_written
    job.ids, job.weights = ffi.cast("int32_t *", ids.ctypes.data), as_float(weights)
    job.granules = ffi.cast("uint64_t *", granules.ctypes.data)
    job.task_data = ffi.cast("uint64_t *", out.data.ctypes.data)
    for name in ("tasks", "entry_token", "token_entry", "told"):
        setattr(job, name, ffi.cast("int32_t *", getattr(out, name).ctypes.data))
    job.entry_weight = as_float(out.entry_weight)
    checked(lib.moepic_test_device_list_tasks(DEVICES[device], job))
    return replace(out, flag=job.flag, n_written=job.n_written)
