"""What a granule costs a thread of the CPU lane: measured by how many tokens share it, and believed only as far as it was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib
from moepic_gguf.metadata import checked

BYTES = 1_000_000
READ_S = BYTES / 8e9  # of the rate that is believed at first


def ask(
    n_tokens: list[int], seconds: list[float] | float = -1.0, *, most_bytes_s: float = np.inf
) -> NDArray[np.float64]:
    """What each granule was believed to take before it took its seconds."""
    n = len(n_tokens)
    expected = np.empty(n)
    bytes_, tokens = np.full(n, BYTES, np.int64), np.array(n_tokens, np.int32)
    took = np.ascontiguousarray(np.broadcast_to(seconds, n), np.float64)
    pointers = [ffi.cast(f"{kind} *", array.ctypes.data) for kind, array in (("int64_t", bytes_), ("int32_t", tokens))]
    doubles = [ffi.cast("double *", array.ctypes.data) for array in (expected, took)]
    checked(lib.moepic_test_cpu_cost(doubles[0], 8e9, most_bytes_s, *pointers, doubles[1], n))
    return expected


def test_at_first_reading_bounds_few_tokens_and_multiplying_many() -> None:
    few, many = [1, 2, 8, 16], [32, 64, 1024]
    np.testing.assert_allclose(ask(few), READ_S)
    np.testing.assert_allclose(ask(many), [READ_S * n / 16 for n in many])


def test_a_rate_is_learnt_for_its_number_of_tokens_alone() -> None:
    """Those of one power of two share it."""
    observed = [96] * 100
    found = ask([*observed, 64, 127, 63, 128, 1], [*[3e-3] * 100, *[-1.0] * 5])
    np.testing.assert_allclose(found[100:102], 3e-3, rtol=1e-3)
    np.testing.assert_allclose(found[102:], ask([63, 128, 1]))


def test_no_rate_is_believed_above_the_most() -> None:
    found = ask([1, 1, 1], [1e-6, 1e-6, -1.0], most_bytes_s=8e9)
    np.testing.assert_allclose(found, READ_S)


def test_any_number_of_tokens_has_a_rate() -> None:
    found = ask([4096, 100_000], [5e-2, -1.0])
    assert found[1] < found[0] * 2, "numbers beyond the last power share its rate"
