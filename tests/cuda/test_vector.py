"""Norms, gates, heads and recurrences of a device against the CPU's kernels in the engine's order: equal bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matmul_native import quantize as cpu_quantize
from ops_native import ISAS, Floats, Vector, as_float, assert_same_bits, available_isas, check

from moepic_gguf._ffi import lib

from .matrix_native import KINDS
from .vector_native import NO_ACTS, Acts, conv, delta_gates, delta_rule, each, glu, heads, latent_heads, norm

FAST = available_isas()[-1]
CPU = Vector(FAST)
EPS = 1e-5


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_acts(acts: Acts, x: Floats, what: str) -> None:
    """Each kind has the bytes that the CPU makes of x [n, cols]."""
    for kind, found in acts.places.items():
        expected, _ = cpu_quantize(FAST, KINDS[kind], np.ascontiguousarray(x[:, : acts.cols]))
        used = {0: acts.cols * 4, 1: acts.cols // 32 * 44, 2: acts.cols // 256 * 308}[kind]
        same = np.array_equal(found[:, :used], expected.reshape(len(x), -1)[:, :used])
        assert same, f"{what}: activations for {KINDS[kind]} differ"


def rms(x: Floats, weight: Floats | None) -> Floats:
    return CPU.rms_norm(x, weight, EPS)


# cols, kinds of activations that these can have; the last is longer than what a block stages at once
ROWS = [(1, (0,)), (15, (0,)), (16, (0,)), (72, ()), (96, (0, 1)), (256, (0, 1, 2)), (768, (1, 2)), (5120, (0, 1, 2))]


@pytest.mark.parametrize(("cols", "kinds"), ROWS)
@pytest.mark.parametrize("kind", ["weight", "bare", "layer"])
def test_norms_and_their_activations_are_the_cpus(device: str, cols: int, kinds: tuple[int, ...], kind: str) -> None:
    n, stride = 3, cols + 5
    x, weight, bias = draw(1, n, stride) * 3 + 1, draw(2, cols), draw(3, cols)
    acts = Acts(kinds, n, cols)
    w, b = None if kind == "bare" else weight, bias if kind == "layer" else None
    for in_place in (False, True):
        factor = 0.37 if in_place else 1.0
        y = norm(device, x, cols, w, b, eps=EPS, factor=factor, acts=acts, in_place=in_place)
        for t in range(n):
            row = x[t, :cols]
            expected = rms(row, w) if b is None else CPU.layer_norm(row, weight, bias, EPS)
            if in_place:
                expected = CPU.scale(expected, factor)
            assert_same_bits(y[t, :cols], expected, f"row {t}, in place {in_place}")
        assert_acts(acts, y, f"in place {in_place}")
        rest = x[:, cols:] if in_place else np.full_like(x[:, cols:], np.nan)
        assert_same_bits(y[:, cols:], rest, "behind the columns")


def test_a_norm_of_what_is_not_finite_is_the_cpus(device: str) -> None:
    x = draw(4, 4, 300)
    x[0, 7], x[1, 299], x[2] = np.inf, np.nan, 0.0
    weight, bias = draw(5, 300), draw(6, 300)
    found = norm(device, x, 300, weight, eps=0.0)
    assert_same_bits(found, np.stack([CPU.rms_norm(row, weight, 0.0) for row in x]), "rms")
    found = norm(device, x, 300, weight, bias, eps=EPS)
    assert_same_bits(found, np.stack([CPU.layer_norm(row, weight, bias, EPS) for row in x]), "layer")


@pytest.mark.parametrize("n", [1, 255, 257, 1000])
def test_elementwise_steps_are_the_cpus(device: str, n: int) -> None:
    y, x = draw(7, n), draw(8, n)
    if n > 2:
        y[:3], x[:3] = [np.inf, np.nan, -0.0], [0.0, 1.0, 0.0]
    multiplied = y.copy()
    check(lib.moepic_test_multiply(ISAS[FAST], as_float(multiplied), as_float(x), n))
    assert_same_bits(each(device, 0, y, 0.3), CPU.scale(y, 0.3), "scale")
    assert_same_bits(each(device, 1, y, 0.3, x), CPU.scale_add(y, 0.3, x), "scale_add")
    assert_same_bits(each(device, 2, y, x=x), CPU.add(y, x), "add")
    assert_same_bits(each(device, 3, y, x=x), multiplied, "multiply")
    wide = (y * 40).astype(np.float32)
    assert_same_bits(each(device, 4, wide), CPU.sigmoid(wide), "sigmoid")


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(("cols", "kinds"), [(1, (0,)), (50, ()), (160, (0, 1)), (2304, (0, 1, 2))])
def test_glus_and_their_activations_are_the_cpus(device: str, kind: int, cols: int, kinds: tuple[int, ...]) -> None:
    n, stride = 3, cols + 3
    gate, up = draw(9, n, stride) * 6, draw(10, n, stride) * 6
    gate[0, 0], up[1, 0], gate[2, 0] = np.nan, np.inf, -np.inf
    for in_place in (False, True):
        acts = Acts(kinds, n, cols)
        out = glu(device, kind, gate, up, cols, acts, in_place)
        expected = gate[:, :cols].copy()
        for g, u in zip(expected, up, strict=True):
            check(lib.moepic_test_glu(ISAS[FAST], kind, as_float(g), as_float(u), as_float(g), cols))
        assert_same_bits(out[:, :cols], expected, f"kind {kind}, in place {in_place}")
        # A NaN has other bits on a device, so floats are compared where there are none.
        finite = [t for t in range(n) if np.isfinite(out[t, :cols]).all()]
        some = Acts(kinds, len(finite), cols)
        some.places = {kind: place[finite] for kind, place in acts.places.items()}
        if finite:
            assert_acts(some, out[finite], f"in place {in_place}")


def rotate(row: Floats, angles: Floats, neox: bool) -> Floats:
    return CPU.rope(row, angles, angles.size, neox)


def make_heads(job: dict[str, Any]) -> tuple[Floats, Floats, Floats]:
    """Decoder::make_heads over the CPU's kernels: q, k, v."""
    q, k, v = job["q"].copy(), job["k"].copy(), job["v"].copy()
    if job.get("gated_q") is not None:
        q[:] = job["gated_q"][:, :, 0]
    if job.get("copies_values"):
        v[:] = k
    for t in range(len(q)):
        if job.get("value_norm"):
            v[t] = [rms(head, None) for head in v[t]]
        for rows, weight in ((q[t], job.get("q_norm")), (k[t], job.get("k_norm"))):
            if job.get("whole_norm"):
                rows[:] = rms(rows.ravel(), weight).reshape(rows.shape)
            for head in rows:
                if job.get("head_norm") and not job.get("norm_after_rope"):
                    head[:] = rms(head, weight)
                if job.get("rotates"):
                    head[:] = rotate(head, job["angles"][t], bool(job.get("neox")))
                if job.get("head_norm") and job.get("norm_after_rope"):
                    head[:] = rms(head, weight)
        if job.get("q_scale") is not None:
            q[t] = CPU.scale(q[t].ravel(), float(job["q_scale"][t])).reshape(q[t].shape)
    return q, k, v


HEADS: list[dict[str, Any]] = [
    {"rotates": True},
    {"rotates": True, "neox": True, "head_norm": True, "weights": "head"},
    {"rotates": True, "neox": True, "head_norm": True, "norm_after_rope": True, "weights": "head"},
    {"rotates": True, "head_norm": True},
    {"rotates": True, "neox": True, "whole_norm": True, "weights": "row"},
    {"rotates": True, "whole_norm": True, "gated": True, "copies_values": True, "value_norm": True, "weights": "row"},
    {"rotates": True, "gated": True, "head_norm": True, "weights": "head"},
    {"rotates": True, "copies_values": True, "value_norm": True, "head_norm": True, "weights": "head"},
    {"scaled": True},
]


@pytest.mark.parametrize("options", HEADS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize(("n", "n_head", "n_head_kv", "dim"), [(1, 12, 2, 64), (3, 5, 5, 24), (2, 20, 1, 128)])
def test_heads_are_the_engines(
    device: str, options: dict[str, Any], n: int, n_head: int, n_head_kv: int, dim: int
) -> None:
    options = dict(options)
    weights, gated, scaled = options.pop("weights", None), options.pop("gated", False), options.pop("scaled", False)
    n_rot = dim // 2 if options.get("neox") else dim
    job: dict[str, Any] = {
        "q": draw(11, n, n_head, dim), "k": draw(12, n, n_head_kv, dim), "v": draw(13, n, n_head_kv, dim),
        "angles": draw(14, n, n_rot), **options,
    }  # fmt: skip
    if gated:
        job["gated_q"], job["q"] = draw(15, n, n_head, 2, dim), np.full_like(job["q"], np.nan)
    if weights == "head":
        job["q_norm"], job["k_norm"] = draw(16, dim), draw(17, dim)
    if weights == "row":
        job["q_norm"], job["k_norm"] = draw(16, n_head * dim), draw(17, n_head_kv * dim)
    if scaled:
        job["q_scale"] = draw(18, n)
    expected = make_heads(job)
    sizes = {"n": n, "n_head": n_head, "n_head_kv": n_head_kv, "head_dim_k": dim, "head_dim_v": dim, "n_rot": n_rot}
    heads(device, eps=EPS, **sizes, **job)
    for name, want in zip("qkv", expected, strict=True):
        assert_same_bits(job[name], want, name)


@pytest.mark.parametrize("kinds", [(0,), (1,), (1, 2)])
@pytest.mark.parametrize(("n", "n_head", "plain", "kv_rank", "n_rot"), [(1, 9, 256, 64, 16), (3, 2, 256, 72, 64)])
@pytest.mark.parametrize("neox", [False, True])
def test_latent_heads_are_the_engines(
    device: str, kinds: tuple[int, ...], n: int, n_head: int, plain: int, kv_rank: int, n_rot: int, neox: bool
) -> None:
    raw, angles, weight = draw(20, n, n_head, plain + n_rot), draw(21, n, n_rot), draw(22, kv_rank)
    q, k = np.full((n, n_head, kv_rank + n_rot), 7.0, np.float32), draw(23, n, kv_rank + n_rot)
    want_q, want_k = q.copy(), k.copy()
    for t in range(n):
        want_k[t, :kv_rank] = rms(k[t, :kv_rank], weight)
        want_k[t, kv_rank:] = rotate(k[t, kv_rank:], angles[t], neox)
        for h in range(n_head):
            want_q[t, h, kv_rank:] = rotate(raw[t, h, plain:], angles[t], neox)
    acts = Acts(kinds, n * n_head, plain)
    sizes = {"n": n, "n_head": n_head, "plain": plain, "kv_rank": kv_rank, "n_rot": n_rot}
    latent_heads(device, acts, **sizes, raw=raw, q=q, k=k, k_norm=weight, eps=EPS, angles=angles, neox=neox)
    assert_same_bits(q, want_q, "q: the rotated part, and nothing else")
    assert_same_bits(k, want_k, "k")
    assert_acts(acts, np.ascontiguousarray(raw[:, :, :plain]).reshape(n * n_head, plain), "plain parts")


def cpu_conv(x: Floats, taps: Floats, state: Floats | None, silu: bool) -> tuple[Floats, Floats]:
    y, after = x.copy(), np.full((len(taps) - 1, x.shape[1]), np.nan, np.float32)
    sizes = (len(x), as_float(taps), len(taps), x.shape[1])
    check(
        lib.moepic_test_causal_conv(
            ISAS[FAST], as_float(y), *sizes, as_float(state), as_float(after), 0, x.shape[1], int(silu)
        )
    )
    return y, after


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(
    ("n", "cut", "n_taps", "channels"), [(1, 0, 4, 130), (2, 1, 3, 17), (21, 13, 8, 40), (9, 0, 2, 1)]
)
def test_the_convolution_is_the_cpus(
    device: str, silu: bool, begins: bool, n: int, cut: int, n_taps: int, channels: int
) -> None:
    x, taps = draw(30, n, channels), draw(31, n_taps, channels)
    state = None if begins else draw(32, n_taps - 1, channels)
    x[0, 0] = np.inf  # leaves with the last tap: nothing older may be multiplied by 0
    y, middle, after = conv(device, x, taps, state, cut, silu)
    if cut:
        want, want_middle = cpu_conv(x[:cut], taps, state, silu)
        assert_same_bits(y[:cut], want, "first leg")
        assert_same_bits(middle, want_middle, "state between")
        state = want_middle
    want, want_after = cpu_conv(np.ascontiguousarray(x[cut:]), taps, state, silu)
    assert_same_bits(y[cut:], want, "last leg")
    assert_same_bits(after, want_after, "state")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("n", "n_head_k", "n_head_v", "dim"), [(1, 2, 4, 128), (3, 3, 36, 24)])
def test_lengths_and_gates_are_the_engines(
    device: str, together: bool, n: int, n_head_k: int, n_head_v: int, dim: int
) -> None:
    n_channels, group, length_eps = (2 * n_head_k + n_head_v) * dim, n_head_v // n_head_k, 1e-6
    channels, rate, bias = draw(40, n, n_channels), -np.exp(draw(41, n_head_v)), draw(42, n_head_v) * 4
    raw = draw(43, n, n_head_v * (2 if together else 1)) * 4
    alpha = None if together else draw(44, n, n_head_v) * 4
    found, beta, decay = delta_gates(device, channels, n_head_k, dim, length_eps, raw, alpha, rate, bias)

    want = channels.copy()
    d = np.float32(dim)
    for row in want:
        for h in range(2 * n_head_k):
            x = CPU.rms_norm(row[h * dim : (h + 1) * dim], None, float(np.float32(length_eps) / d))
            row[h * dim : (h + 1) * dim] = CPU.scale(x, float(1 / d if h < n_head_k else 1 / np.sqrt(d)))
    assert_same_bits(found, want, "lengths")
    betas = raw
    if together:  # per key head its betas, then its alphas
        by_key = raw.reshape(n, n_head_k, 2, group)
        betas, alpha = (np.ascontiguousarray(by_key[:, :, i]).reshape(n, n_head_v) for i in range(2))
    assert alpha is not None
    x, rates, want_decay = alpha + bias, np.tile(rate, (n, 1)), np.full_like(decay, np.nan)
    check(lib.moepic_test_decay(as_float(rates), as_float(x), as_float(want_decay), x.size))
    assert_same_bits(beta, CPU.sigmoid(betas), "beta")
    assert_same_bits(decay, want_decay, "decay")


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    ("n", "cut", "n_head_k", "n_head_v", "d_k", "d_v"),
    [(1, 0, 2, 4, 128, 128), (5, 3, 1, 2, 20, 40), (3, 1, 2, 2, 7, 18)],
)
def test_the_delta_rule_is_the_cpus(
    device: str, begins: bool, tiled: bool, n: int, cut: int, n_head_k: int, n_head_v: int, d_k: int, d_v: int
) -> None:
    key_rows, padded, offset = n_head_k * d_k, (d_v + 15) // 16 * 16, 48
    channels = draw(50, n, 2 * key_rows + n_head_v * d_v) / np.float32(np.sqrt(d_k))
    rng = np.random.default_rng(51)
    beta, decay = rng.uniform(0, 1, (2, n, n_head_v)).astype(np.float32)
    shape = (offset + n_head_v * d_k * padded,)
    state = np.full(shape, 5.0, np.float32)
    matrices = np.zeros((n_head_v, d_k, padded), np.float32)
    matrices[:, :, :d_v] = draw(52, n_head_v, d_k, d_v)
    state[offset:] = matrices.ravel()
    middle, to = np.full(shape, 9.0, np.float32), np.full(shape, 9.0, np.float32)
    out = np.full((n, n_head_v, d_v), np.nan, np.float32)
    sizes = {"n": n, "cut": cut, "n_head_k": n_head_k, "n_head_v": n_head_v, "head_dim_k": d_k, "head_dim_v": d_v}
    delta_rule(
        device, **sizes, n_channels=channels.shape[1], tiled_value_heads=tiled, channels=channels, beta=beta, decay=decay,
        out=out, state_offset=offset, **{"from": None if begins else state}, middle=middle, to=to,
    )  # fmt: skip

    q, k = (channels[:, i * key_rows : (i + 1) * key_rows].reshape(n, n_head_k, d_k) for i in range(2))
    v = channels[:, 2 * key_rows :].reshape(n, n_head_v, d_v)
    for h in range(n_head_v):
        key_head = h % n_head_k if tiled else h // (n_head_v // n_head_k)
        before = None if begins else np.ascontiguousarray(matrices[h])
        for t0, t1, after in ((0, cut, middle), (cut, n, to)):
            if t0 == t1:
                continue
            rows = [
                np.ascontiguousarray(x[t0:t1, i])
                for x, i in ((q, key_head), (k, key_head), (v, h), (decay, h), (beta, h))
            ]
            want, want_after = np.full((t1 - t0, d_v), np.nan, np.float32), np.full((d_k, padded), np.nan, np.float32)
            places = [as_float(x) for x in (*rows, want, before, want_after)]
            check(lib.moepic_test_delta_rule(ISAS[FAST], t1 - t0, d_k, d_v, *places))
            found = after[offset:].reshape(n_head_v, d_k, padded)[h]
            assert_same_bits(out[t0:t1, h], want, f"head {h}, tokens {t0} to {t1}")
            assert_same_bits(found, want_after, f"state of head {h} after token {t1}")
            before = want_after
    assert np.all(to[:offset] == 9.0), "what lies before the matrices is another step's"


def test_no_rows_are_nothing_to_do(device: str) -> None:
    norm(device, np.zeros((0, 64), np.float32), 64, None, eps=EPS)
    each(device, 0, np.zeros(0, np.float32), 2.0)
    glu(device, 0, np.zeros((0, 64), np.float32), np.zeros((0, 64), np.float32), 64, NO_ACTS)
