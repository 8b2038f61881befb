"""Attention and the KV layout: against float64 attention over the rounded keys and values, and bit for bit.

Tolerance. u = 2^-24, every operation rounds once, S = max_p sum_d |scale q_d k_d|, n positions, C = n / 256 + 2.
A score is a chain of head_dim fused multiply-adds on once-rounded q: its error is at most e = (head_dim + 1) u S.
A weight e^(s - m) has the relative error 2 e (score and maximum) + 2 S u (the rounding of s - m) + 4 u (2 ulp of exp).
A chunk joins, and then each later one rescales it: at most C times a difference, an exp and a product are rounded, 6 u;
the maxima themselves telescope.
Denominator and numerator both carry that. Sums of n weights and of n weight * v, and the quotient, add (2 n + 4) u.
Hence, per output channel, to first order (a factor 1.05 covers the rest):
    |error| <= (2 (2 e + 2 S u + (4 + 6 C) u) + (2 n + 4) u) sum_p w_p |v_p|
That is the worst case; `test_typical_error_is_that_of_random_roundings` holds the mean to real size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ops_native import ISAS as ISA_NUMBERS
from ops_native import Floats, KvCache, as_float, assert_close, assert_same_bits, attend, available_isas, check

from moepic_gguf._ffi import lib

ISAS = available_isas()
FAST = ISAS[-1]
U = 2.0**-24
# n_head, n_head_kv, head_dim_k, head_dim_v
SHAPES = [(4, 4, 64, 64), (4, 2, 32, 32), (4, 1, 128, 128), (8, 1, 64, 64), (9, 3, 64, 64), (7, 1, 96, 96)]
SHAPES += [(2, 1, 256, 256), (4, 2, 160, 128)]


def round_q8_0(x: Floats) -> np.ndarray:
    """What q8_0 keeps of x [..., dim], as float64: per 32 channels d = half(max |x| / 127), codes round(x / d)."""
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, 32)
    d = (np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    inverse = np.where(d > 0, np.float32(1) / np.where(d > 0, d, 1), 0).astype(np.float32)
    codes = np.rint(np.clip(groups * inverse, -127, 127))
    return np.asarray((codes.astype(np.float64) * d.astype(np.float64)).reshape(x.shape), dtype=np.float64)


def rounded(x: Floats, kv_type: str) -> np.ndarray:
    """Stored values as float64."""
    return x.astype(np.float16).astype(np.float64) if kv_type == "f16" else round_q8_0(x)


class Case:
    """Random queries, keys and values: n_pos positions stored, the last n_tokens of them are the queries'."""

    def __init__(
        self,
        kv_type: str,
        n_pos: int,
        n_tokens: int,
        n_head: int,
        n_head_kv: int,
        dim_k: int,
        dim_v: int | None = None,
        store_with: str = FAST,
    ) -> None:
        rng = np.random.default_rng([n_pos, n_tokens, n_head, n_head_kv, dim_k])
        dim_v = dim_v or dim_k
        self.kv_type, self.n_pos, self.n_tokens = kv_type, n_pos, n_tokens
        self.k = rng.standard_normal((n_pos, n_head_kv, dim_k), dtype=np.float32)
        self.v = rng.standard_normal((n_pos, n_head_kv, dim_v), dtype=np.float32)
        self.q = rng.standard_normal((n_tokens, n_head, dim_k), dtype=np.float32) * np.float32(1.5)
        self.sinks = rng.standard_normal(n_head, dtype=np.float32) * np.float32(3)
        self.scale = float(np.float32(dim_k**-0.5))
        self.first_pos = n_pos - n_tokens
        # Two blocks more than needed: what lies behind the last position must not matter.
        self.cache = KvCache(kv_type, n_head_kv, dim_k, dim_v, (n_pos + 15) // 16 * 16 + 32)
        self.cache.store(store_with, 0, self.k, self.v)

    def run(self, isa: str, **options: Any) -> Floats:
        return attend(isa, self.cache, self.q, self.first_pos, scale=self.scale, **options)[0]

    def oracle(self, window: int = 0, sinks: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """torch's attention in float64, and the error bound, both [n_tokens, n_head, dim_v]."""
        group = self.q.shape[1] // self.k.shape[1]
        q = torch.from_numpy(self.q.astype(np.float64)).transpose(0, 1)
        k = torch.from_numpy(rounded(self.k, self.kv_type)).transpose(0, 1).repeat_interleave(group, dim=0)
        v = torch.from_numpy(rounded(self.v, self.kv_type)).transpose(0, 1).repeat_interleave(group, dim=0)
        own = torch.arange(self.first_pos, self.n_pos)[:, None]
        past = torch.arange(self.n_pos)[None, :]
        mask = past <= own
        if window > 0:
            mask &= past > own - window
        if window < 0:  # chunks
            mask &= past >= own // -window * -window
        extra = 0.0
        if sinks:
            # One more key that is all zero but for a channel that carries the logit; its value is zero.
            sink = torch.from_numpy(self.sinks.astype(np.float64))[:, None, None]
            q = torch.cat([q, (sink / self.scale).expand(-1, q.shape[1], -1)], dim=-1)
            k = torch.cat([k, torch.zeros(k.shape[0], k.shape[1], 1, dtype=torch.float64)], dim=-1)
            unit = torch.zeros(k.shape[0], 1, k.shape[2], dtype=torch.float64)
            unit[..., -1] = 1.0
            k, v = torch.cat([k, unit], dim=1), torch.cat([v, torch.zeros_like(v[:, :1])], dim=1)
            mask = torch.cat([mask, torch.ones(self.n_tokens, 1, dtype=torch.bool)], dim=1)
            extra = float(np.abs(self.sinks).max())
        attention = torch.nn.functional.scaled_dot_product_attention
        expected = attention(q, k, v, attn_mask=mask, scale=self.scale)
        size = attention(q, k, v.abs(), attn_mask=mask, scale=self.scale)
        largest = float((q.abs() @ k.abs().transpose(1, 2)).max()) * self.scale + extra
        score_error = (self.k.shape[2] + 1) * U * largest
        n = self.n_pos
        relative = 2 * (2 * score_error + 2 * largest * U + (4 + 6 * (n / 256 + 2)) * U) + (2 * n + 4) * U
        return expected.transpose(0, 1).numpy(), 1.05 * relative * size.transpose(0, 1).numpy()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(("n_head", "n_head_kv", "dim_k", "dim_v"), SHAPES)
def test_agrees_with_torch(kv_type: str, n_head: int, n_head_kv: int, dim_k: int, dim_v: int) -> None:
    for n_pos, n_tokens in [(1, 1), (16, 1), (40, 17), (257, 1), (531, 37)]:
        case = Case(kv_type, n_pos, n_tokens, n_head, n_head_kv, dim_k, dim_v)
        for window, sinks in [(0, False), (100, True), (-100, False)]:
            expected, bound = case.oracle(window, sinks)
            found = case.run(FAST, window=window, sinks=case.sinks if sinks else None)
            assert_close(
                found, expected, bound, f"{n_pos} positions, {n_tokens} tokens, window {window}, sinks {sinks}"
            )


@pytest.mark.parametrize(("dim_k", "dim_v"), [(2, 2), (24, 24), (40, 40), (80, 80), (72, 18), (576, 512)])
def test_odd_head_dims_agree_with_torch(dim_k: int, dim_v: int) -> None:
    case = Case("f16", 300, 21, 4, 2, dim_k, dim_v)
    expected, bound = case.oracle()
    assert_close(case.run(FAST), expected, bound, f"head dims {dim_k} and {dim_v}")


def test_typical_error_is_that_of_random_roundings() -> None:
    """Root mean square, relative: sqrt(n) u for a chain of n, here 128 channels and 2048 positions, times 4."""
    case = Case("f16", 2048, 8, 4, 2, 128)
    expected, _ = case.oracle()
    error = np.sqrt(np.mean((case.run(FAST) - expected) ** 2)) / np.sqrt(np.mean(expected**2))
    assert error < 4 * U * (np.sqrt(128) + np.sqrt(2048)), error


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_long_contexts_agree_with_torch(kv_type: str) -> None:
    case = Case(kv_type, 33_003, 5, 2, 1, 32)
    for window in (0, 20_000):
        expected, bound = case.oracle(window)
        assert_close(case.run(FAST, window=window), expected, bound, f"33003 positions, window {window}")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(("n_head", "n_head_kv", "dim_k", "dim_v"), [(8, 2, 64, 64), (5, 1, 96, 32), (2, 2, 128, 160)])
def test_every_instruction_set_gives_the_same_bits(
    kv_type: str, n_head: int, n_head_kv: int, dim_k: int, dim_v: int
) -> None:
    case = Case(kv_type, 290, 19, n_head, n_head_kv, dim_k, dim_v)
    for isa in ISAS:
        other = Case(kv_type, 290, 19, n_head, n_head_kv, dim_k, dim_v, store_with=isa)
        assert np.array_equal(other.cache.keys, case.cache.keys), f"{isa}: stored keys differ"
        assert np.array_equal(other.cache.values, case.cache.values), f"{isa}: stored values differ"
        for window in (0, 30):
            reference = case.run("scalar", window=window, sinks=case.sinks)
            assert_same_bits(case.run(isa, window=window, sinks=case.sinks), reference, f"{isa}, window {window}")


@pytest.mark.parametrize("isa", ISAS)
def test_odd_head_dims_give_the_same_bits(isa: str) -> None:
    for dim_k, dim_v in [(2, 2), (24, 40), (80, 18)]:
        case = Case("f16", 50, 11, 2, 1, dim_k, dim_v, store_with=isa)
        reference = Case("f16", 50, 11, 2, 1, dim_k, dim_v, store_with="scalar")
        assert_same_bits(case.run(isa), reference.run("scalar"), f"{isa}, head dims {dim_k} and {dim_v}")


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"] or ["scalar"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_head", [1, 2, 4, 8, 7])
def test_any_split_over_tokens_and_heads_gives_the_same_bits(isa: str, kv_type: str, n_head: int) -> None:
    case = Case(kv_type, 300, 70, n_head, 1, 64)
    for window in (0, 90):
        whole = case.run(isa, window=window)
        for token_cuts, head_cuts in [
            ((0, 1, 2, 9, 40, 70), (0, n_head)),
            ((0, 33, 70), tuple(range(n_head + 1))),
            ((0, 69, 70), (0, (n_head + 1) // 2, n_head)),
        ]:
            parts = np.full_like(whole, np.nan)
            for t0, t1 in pairwise(token_cuts):
                for h0, h1 in pairwise(head_cuts):
                    case.run(isa, window=window, tokens=(t0, t1), heads=(h0, h1), out=parts)
            assert_same_bits(parts, whole, f"tokens cut at {token_cuts}, heads at {head_cuts}, window {window}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(("n_pos", "n_tokens"), [(1, 1), (256, 1), (1000, 1), (1030, 21)])
def test_chunks_computed_apart_and_joined_give_the_same_bits(isa: str, kv_type: str, n_pos: int, n_tokens: int) -> None:
    case = Case(kv_type, n_pos, n_tokens, 6, 2, 32, 96)
    for window in (0, 300, -100):
        out = np.full((n_tokens, 6, 96), np.nan, dtype=np.float32)
        sizes = (6, case.first_pos, n_tokens, case.scale, window, as_float(case.sinks))
        check(
            lib.moepic_test_attention_split(
                ISA_NUMBERS[isa], case.cache.view(), as_float(case.q), as_float(out), *sizes
            )
        )
        assert_same_bits(out, case.run(isa, window=window, sinks=case.sinks), f"window {window}")


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"] or ["scalar"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_pos", [255, 256, 257, 271, 512, 513])
def test_a_prefilled_token_equals_its_own_decode(isa: str, kv_type: str, n_pos: int) -> None:
    case = Case(kv_type, n_pos, 40, 4, 2, 64)
    for window in (0, 17, 256):
        prefill = case.run(isa, window=window, sinks=case.sinks)
        for t in range(0, 40, 3):
            # A cache that ends with the token: nothing behind it was ever written.
            seen = case.first_pos + t + 1
            cache = KvCache(kv_type, 2, 64, 64, (seen + 15) // 16 * 16)
            cache.store(isa, 0, case.k[:seen], case.v[:seen])
            alone, _ = attend(
                isa, cache, case.q[t : t + 1], seen - 1, scale=case.scale, window=window, sinks=case.sinks
            )
            assert_same_bits(alone[0], prefill[t], f"token {t} at position {seen - 1}, window {window}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_ring_gives_the_bytes_of_all_positions(isa: str, kv_type: str) -> None:
    """512 positions are kept of 1300; the window and the tokens of the job are among them."""
    case = Case(kv_type, 1300, 40, 4, 2, 64, store_with=isa)
    ring = KvCache(kv_type, 2, 64, 64, 512)
    ring.store(isa, 0, case.k, case.v)
    for window in (1, 100, 472, -300):
        found, _ = attend(isa, ring, case.q, case.first_pos, scale=case.scale, window=window)
        assert_same_bits(found, case.run(isa, window=window), f"window {window}")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_window_that_hides_nothing_equals_no_window(kv_type: str) -> None:
    case = Case(kv_type, 700, 33, 4, 2, 64)
    assert_same_bits(case.run(FAST, window=700), case.run(FAST), "window 700 of 700 positions")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_the_window_hides_is_never_read(kv_type: str) -> None:
    """Positions before the window hold infinities; the output is the one with plain values there."""
    case = Case(kv_type, 700, 20, 4, 2, 64)
    for window in (10, 300, 512):
        hidden = case.first_pos - window + 1
        plain = case.run(FAST, window=window)
        bad = np.full((hidden, 2, 64), np.inf, dtype=np.float32)
        poisoned = Case(kv_type, 700, 20, 4, 2, 64)
        poisoned.cache.store(FAST, 0, bad, bad)
        assert_same_bits(poisoned.run(FAST, window=window), plain, f"window {window}")


def test_positions_behind_the_last_are_never_used() -> None:
    case = Case("f16", 250, 9, 4, 2, 64)
    plain = case.run(FAST)
    bad = np.full((20, 2, 64), np.inf, dtype=np.float32)
    case.cache.store(FAST, 250, bad, bad)
    assert_same_bits(case.run(FAST), plain, "infinities behind the last position")


def test_a_dominating_sink_takes_all_the_weight() -> None:
    case = Case("f16", 64, 3, 2, 1, 32)
    out = case.run(FAST, sinks=np.full(2, 1000.0, dtype=np.float32))
    assert np.all(out == 0.0), np.abs(out).max()


def test_growing_scores_rescale_every_chunk() -> None:
    """Keys that grow along the sequence move the maximum in each chunk; very large scores do not overflow."""
    case = Case("f16", 1500, 5, 2, 1, 64)
    case.k *= np.linspace(0.1, 30.0, 1500, dtype=np.float32)[:, None, None]
    case.cache.store(FAST, 0, case.k, case.v)
    expected, bound = case.oracle()
    assert_close(case.run(FAST), expected, bound, "growing keys")


@pytest.mark.parametrize("isa", ISAS)
def test_nan_in_a_key_or_query_is_seen(isa: str) -> None:
    for kv_type in ("f16", "q8_0"):
        case = Case(kv_type, 40, 2, 2, 2, 32, store_with=isa)
        bad = case.k[7:8].copy()
        bad[0, 1, 3] = np.nan
        case.cache.store(isa, 7, bad, case.v[7:8])
        out = case.run(isa)
        assert np.isfinite(out[:, 0]).all(), f"{kv_type}: head 0 has no NaN"
        assert np.isnan(out[:, 1]).all(), f"{kv_type}: head 1 has a NaN key"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_the_layout_is_the_documented_one(isa: str, kv_type: str) -> None:
    """Decoded here from the drawing in cpu/kv_layout.h, bit for bit equal to the rounding."""
    heads, dim, capacity = 3, 64, 48
    rng = np.random.default_rng(5)
    k, v = rng.standard_normal((2, 41, heads, dim), dtype=np.float32)
    k[3, 0, :32] = 0.0
    k[4], v[5] = k[4] * 1e-6, v[5] * 1e4
    cache = KvCache(kv_type, heads, dim, dim, capacity)
    cache.store(isa, 0, k, v)
    blocks = capacity // 16
    if kv_type == "f16":
        keys = cache.keys.view(np.float16).reshape(heads, blocks, dim, 16).transpose(1, 3, 0, 2)
        values = cache.values.view(np.float16).reshape(heads, blocks, dim // 16, 16, 16).transpose(1, 3, 0, 2, 4)
    else:
        key_groups = cache.keys.reshape(heads, blocks, dim // 32, 544)
        value_groups = cache.values.reshape(heads, blocks, dim // 32, 544)
        key_scales = key_groups[..., :32].copy().view(np.float16).astype(np.float64)
        value_scales = value_groups[..., :32].copy().view(np.float16).astype(np.float64)
        key_codes = key_groups[..., 32:].copy().view(np.int8).reshape(heads, blocks, dim // 32, 32, 16)
        value_codes = value_groups[..., 32:].copy().view(np.int8).reshape(heads, blocks, dim // 32, 2, 16, 16)
        with np.errstate(invalid="ignore"):
            keys = (key_codes * key_scales[..., None, :]).transpose(1, 4, 0, 2, 3)
            values = (value_codes * value_scales[..., None, :, None]).transpose(1, 4, 0, 2, 3, 5)
    found_k = keys.reshape(capacity, heads, dim)[:41].astype(np.float64)
    found_v = values.reshape(capacity, heads, dim)[:41].astype(np.float64)
    assert np.array_equal(found_k, rounded(k, kv_type)), np.argwhere(found_k != rounded(k, kv_type))[:3]
    assert np.array_equal(found_v, rounded(v, kv_type)), np.argwhere(found_v != rounded(v, kv_type))[:3]
