"""Keys, values and attention of a device against the CPU's kernels: equal bytes, whole or split over chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_native import Floats, KvCache, assert_same_bits, available_isas
from ops_native import attend as cpu_attend

from .vector_native import attend, kv_store

FAST = available_isas()[-1]


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(kv_type: str, n_pos: int, n_head_kv: int, dim_k: int, dim_v: int, capacity: int = 0) -> KvCache:
    """A cache that holds n_pos random positions, or the last `capacity` of them."""
    cache = KvCache(kv_type, n_head_kv, dim_k, dim_v, capacity or (n_pos + 15) // 16 * 16)
    cache.store(FAST, 0, draw(1, n_pos, n_head_kv, dim_k), draw(2, n_pos, n_head_kv, dim_v))
    return cache


def assert_attends_alike(device: str, cache: KvCache, n_pos: int, n: int, n_head: int, **options: Any) -> None:
    """The last n of n_pos positions attend; with scratch and without."""
    q = draw(3, n, n_head, cache.head_dim_k) * 2
    scale = float(np.float32(cache.head_dim_k**-0.5))
    expected, _ = cpu_attend(FAST, cache, q, n_pos - n, scale=scale, **options)
    for with_scratch in (True, False):
        found, is_split = attend(device, cache, q, n_pos - n, scale=scale, with_scratch=with_scratch, **options)
        assert is_split, "few blocks: the device splits the work where it may"
        assert_same_bits(found, expected, f"{n} of {n_pos} positions, scratch {with_scratch}, {list(options)}")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("first", "n", "n_head_kv", "dim_k", "dim_v", "capacity"),
    [(0, 1, 1, 32, 32, 16), (13, 40, 3, 64, 96, 64), (500, 30, 2, 96, 32, 512)],
)
def test_stored_keys_and_values_are_the_cpus(
    device: str, kv_type: str, first: int, n: int, n_head_kv: int, dim_k: int, dim_v: int, capacity: int
) -> None:
    k, v = draw(4, n, n_head_kv * dim_k + 8), draw(5, n, n_head_kv * dim_v)
    k[0, :32], v[-1] = 0.0, 1e8  # 0, and beyond the largest half
    k[n // 2] *= 1e-7
    ours, expected = (KvCache(kv_type, n_head_kv, dim_k, dim_v, capacity) for _ in range(2))
    kv_store(device, ours, first, k, v)
    expected.store(FAST, first, k[:, :-8].reshape(n, n_head_kv, dim_k), v.reshape(n, n_head_kv, dim_v))
    assert np.array_equal(ours.keys, expected.keys), "keys"
    assert np.array_equal(ours.values, expected.values), "values"


@pytest.mark.parametrize(("dim_k", "dim_v"), [(2, 2), (24, 40), (72, 18)])
def test_odd_head_dims_are_stored_like_the_cpus(device: str, dim_k: int, dim_v: int) -> None:
    k, v = draw(6, 19, 2 * dim_k), draw(7, 19, 2 * dim_v)
    ours, expected = (KvCache("f16", 2, dim_k, dim_v, 32) for _ in range(2))
    kv_store(device, ours, 3, k, v)
    expected.store(FAST, 3, k.reshape(19, 2, dim_k), v.reshape(19, 2, dim_v))
    assert np.array_equal(ours.keys, expected.keys), "keys; their padding is nobody's"
    assert np.array_equal(ours.values, expected.values), "values; their padding is zero"


def test_a_value_that_is_not_finite_poisons_its_scale(device: str) -> None:
    cache = KvCache("q8_0", 1, 64, 64, 16)
    k, v = draw(8, 2, 64), draw(9, 2, 64)
    k[0, 3], v[1, 40] = np.nan, np.inf
    kv_store(device, cache, 0, k, v)
    scales = [data.reshape(2, 544)[:, :4].copy().view(np.float16) for data in (cache.keys, cache.values)]
    assert np.array_equal(np.isnan(scales[0]), [[True, False], [False, False]])
    assert np.array_equal(np.isnan(scales[1]), [[False, False], [False, True]])


# n_head, n_head_kv, head_dim_k, head_dim_v: groups of one, of less than a tile, of more than one, and dims of no power of 2
SHAPES = [(2, 2, 64, 64), (3, 1, 32, 96), (6, 1, 64, 32), (20, 1, 32, 32), (4, 2, 160, 128)]


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize(("n_head", "n_head_kv", "dim_k", "dim_v"), SHAPES)
def test_attention_is_the_cpus(device: str, kv_type: str, n_head: int, n_head_kv: int, dim_k: int, dim_v: int) -> None:
    sinks = draw(10, n_head) * 3
    for n_pos, n in [(1, 1), (40, 7), (300, 1), (531, 5)]:
        cache = filled(kv_type, n_pos, n_head_kv, dim_k, dim_v)
        assert_attends_alike(device, cache, n_pos, n, n_head)
        assert_attends_alike(device, cache, n_pos, n, n_head, window=100, sinks=sinks)


@pytest.mark.parametrize(("dim_k", "dim_v"), [(2, 2), (24, 40), (72, 18), (576, 512)])
def test_attention_with_odd_head_dims_is_the_cpus(device: str, dim_k: int, dim_v: int) -> None:
    assert_attends_alike(device, filled("f16", 300, 1, dim_k, dim_v), 300, 3, 3)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("window", [1, 17, 256, 300, -256, -100])
def test_windows_are_the_cpus(device: str, kv_type: str, window: int) -> None:
    """20 tokens around position 512: rows of one block see chunks that others do not."""
    assert_attends_alike(device, filled(kv_type, 520, 1, 32, 32), 520, 20, 2, window=window)


def test_a_ring_that_wrapped_is_read_like_the_cpus(device: str) -> None:
    ring = filled("f16", 1300, 2, 32, 32, capacity=512)
    for window in (1, 200, 472, -300):
        assert_attends_alike(device, ring, 1300, 10, 4, window=window)


@pytest.mark.parametrize("window", [0, 1, 100, 300, -256, -100])
def test_a_launch_made_for_all_positions_of_a_chunk_serves_each(device: str, window: int) -> None:
    """As in a graph, which is captured at one of them. The window begins in one chunk or another."""
    for n_pos in (257, 300, 512):
        cache, into_chunk = filled("f16", n_pos, 2, 32, 32), (n_pos - 1) % 256
        q, scale = draw(3, 1, 4, 32) * 2, float(np.float32(32**-0.5))
        expected, _ = cpu_attend(FAST, cache, q, n_pos - 1, scale=scale, window=window)
        slack = (into_chunk, 255 - into_chunk)
        found, _ = attend(device, cache, q, n_pos - 1, scale=scale, window=window, slack=slack)
        assert_same_bits(found, expected, f"at {n_pos - 1}")


def test_many_chunks_are_joined_like_the_cpus(device: str) -> None:
    """More than a warp scans at once; keys that grow move the maximum in each chunk."""
    n_pos = 40 * 256 + 3
    cache = KvCache("f16", 1, 2, 16, n_pos // 16 * 16 + 16)
    k = draw(11, n_pos, 1, 2) * np.linspace(0.1, 3.0, n_pos, dtype=np.float32)[:, None, None]
    cache.store(FAST, 0, k, draw(12, n_pos, 1, 16))
    assert_attends_alike(device, cache, n_pos, 2, 1)


def test_a_prompt_is_attended_to_like_the_cpus(device: str) -> None:
    """Enough rows that the work is not split, and a last tile that is not full."""
    n, cache = 131, filled("f16", 131, 8, 32, 32)
    q = draw(13, n, 8, 32)
    expected, _ = cpu_attend(FAST, cache, q, 0, scale=0.2)
    found, _ = attend(device, cache, q, 0, scale=0.2)
    assert_same_bits(found, expected, "131 tokens")


def test_infinities_behind_the_last_position_or_before_the_window_are_not_seen(device: str) -> None:
    bad = np.full((25, 1, 32), np.inf, dtype=np.float32)
    for n in (1, 6):
        cache = filled("f16", 270, 1, 32, 32, capacity=320)
        expected, _ = cpu_attend(FAST, cache, draw(14, n, 2, 32), 270 - n, scale=0.2, window=9)
        assert np.isfinite(expected).all()
        cache.store(FAST, 270, bad, bad)
        cache.store(FAST, 270 - n - 8 - 20, bad[:20], bad[:20])
        found, _ = attend(device, cache, draw(14, n, 2, 32), 270 - n, scale=0.2, window=9)
        assert_same_bits(found, expected, f"{n} tokens")


def test_nan_is_seen_where_the_cpu_sees_it(device: str) -> None:
    for n in (1, 5):
        cache = filled("f16", 600, 2, 32, 32)
        bad = draw(15, 1, 2, 32)
        bad[0, 1, 3] = np.nan
        cache.store(FAST, 300, bad, draw(16, 1, 2, 32))
        assert_attends_alike(device, cache, 600, n, 4)
