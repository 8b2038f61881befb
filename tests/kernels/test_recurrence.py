"""The short convolution and the gated delta rule against numpy in float64, and against themselves: every instruction set, any cut of the
tokens into calls and of the channels into tasks gives the same bits.
"""

from __future__ import annotations

import numpy as np
import pytest
from ops_native import ISAS, as_float, available_isas, check

from moepic_gguf._ffi import lib

EPS = np.finfo(np.float32).eps


def conv(isa, x, taps, state, silu, channels=None):
    """(y, state after) of x [tokens, channels], taps [n_taps, channels]; state [n_taps - 1, channels] or None."""
    y, after = np.array(x), np.full((len(taps) - 1, x.shape[1]), np.nan, np.float32)
    for begin, end in channels or [(0, x.shape[1])]:
        check(
            lib.moepic_test_causal_conv(
                ISAS[isa], as_float(y), len(x), as_float(taps), len(taps), x.shape[1], as_float(state), as_float(after),
                begin, end, int(silu),
            )
        )  # fmt: skip
    return y, after


def conv_reference(x, taps, state, silu):
    """In float64, and the sum of absolute terms, which scales the error."""
    before = np.zeros((len(taps) - 1, x.shape[1])) if state is None else state.astype(np.float64)
    padded = np.concatenate([before, x.astype(np.float64)])
    windows = np.stack([padded[j : j + len(x)] for j in range(len(taps))])
    y, size = (windows * taps[:, None]).sum(0), np.abs(windows * taps[:, None]).sum(0)
    return (y / (1 + np.exp(-y)) if silu else y), size, padded[len(x) :]


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("n_tokens", "n_channels", "n_taps"), [(1, 1, 2), (1, 16, 3), (3, 17, 3), (7, 96, 4), (40, 333, 8)]
)
@pytest.mark.parametrize("begins", [True, False])
def test_the_convolution_equals_its_definition(isa, silu, n_tokens, n_channels, n_taps, begins):
    x, taps = draw(1, n_tokens, n_channels), draw(2, n_taps, n_channels)
    state = None if begins else draw(3, n_taps - 1, n_channels)
    y, after = conv(isa, x, taps, state, silu)
    want, size, want_after = conv_reference(x, taps, state, silu)
    # A chain of n_taps fused multiply-adds errs by at most n_taps roundings of its partial sums; silu's slope is below 1.1, and it adds an
    # exponential of 1 ulp, an addition and a division, of a result no larger than the sum.
    bound = size * EPS * (1.1 * n_taps / 2 + (3 if silu else 0))
    assert np.all(np.abs(y - want) <= bound)
    assert np.array_equal(after, want_after.astype(np.float32)), "the last inputs, as they were"


@pytest.mark.parametrize("isa", available_isas())
def test_the_convolution_does_not_depend_on_calls_or_tasks(isa):
    x, taps = draw(4, 23, 100), draw(5, 4, 100)
    want, after = conv("scalar", x, taps, None, True)
    for cuts in ([23], [1, 22], [5, 1, 1, 16], [1] * 23):
        state, parts, at = None, [], 0
        for n in cuts:
            part, state = conv(
                isa, np.ascontiguousarray(x[at : at + n]), taps, state, True, [(0, 48), (48, 64), (64, 100)]
            )
            parts.append(part)
            at += n
        assert np.array_equal(np.concatenate(parts).view(np.uint32), want.view(np.uint32))
        assert np.array_equal(state.view(np.uint32), after.view(np.uint32))


def delta(isa, q, k, v, decay, beta, state):
    """(out, state after); state [d_k, d_v up to a multiple of 16] or None."""
    out, width = np.full_like(v, np.nan), (v.shape[1] + 15) // 16 * 16
    after = np.full((q.shape[1], width), np.nan, np.float32)
    parts = [np.ascontiguousarray(part) for part in (q, k, v, decay, beta)]
    check(
        lib.moepic_test_delta_rule(
            ISAS[isa],
            len(q),
            q.shape[1],
            v.shape[1],
            *map(as_float, parts),
            as_float(out),
            as_float(state),
            as_float(after),
        )
    )
    return out, after


def delta_case(seed, n_tokens, d_k, d_v):
    """Queries and keys of unit length, as the engine makes them; forgetting from none to nearly all."""
    q, k, v = draw(seed, n_tokens, d_k), draw(seed + 1, n_tokens, d_k), draw(seed + 2, n_tokens, d_v)
    rng = np.random.default_rng(seed + 3)
    decay = np.exp(-rng.exponential(0.3, n_tokens)).astype(np.float32)
    beta = rng.uniform(0, 1, n_tokens).astype(np.float32)
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    return q.astype(np.float32), k.astype(np.float32), v, decay, beta


def delta_reference(q, k, v, decay, beta, state):
    q, k, v, decay, beta = (x.astype(np.float64) for x in (q, k, v, decay, beta))
    s = np.zeros((q.shape[1], v.shape[1])) if state is None else state[:, : v.shape[1]].astype(np.float64)
    out = []
    for t in range(len(q)):
        s = decay[t] * s
        s = s + np.outer(k[t], beta[t] * (v[t] - k[t] @ s))
        out.append(q[t] @ s)
    return np.array(out), s


SHAPES = [(1, 1, 1), (1, 16, 16), (5, 20, 40), (9, 16, 24), (30, 64, 64), (12, 128, 128), (3, 7, 200)]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(("n_tokens", "d_k", "d_v"), SHAPES)
@pytest.mark.parametrize("begins", [True, False])
def test_the_delta_rule_equals_its_definition(isa, n_tokens, d_k, d_v, begins):
    case = delta_case(10, n_tokens, d_k, d_v)
    state = None
    if not begins:
        state = np.zeros((d_k, (d_v + 15) // 16 * 16), np.float32)
        state[:, :d_v] = draw(20, d_k, d_v)
    out, after = delta(isa, *case, state)
    want, want_after = delta_reference(*case, state)
    # With unit keys and beta, decay <= 1 a step neither grows the state nor its error: S - beta k k^T S is a contraction. Each token adds the
    # roundings of two chains of d_k terms (of size |S| |k| <= |S|), and some four more per element; sums of d_k roundings of random sign
    # grow as sqrt(d_k). 8 covers the constant and the worst of all elements.
    size = max(np.abs(want_after).max(), np.abs(case[2]).max(), 0 if state is None else np.abs(state).max())
    bound = 8 * EPS * n_tokens * np.sqrt(d_k) * size
    assert np.abs(after[:, :d_v] - want_after).max() <= bound
    assert np.abs(out - want).max() <= bound
    assert np.all(after[:, d_v:] == 0), "the padding stays zero"
    assert bound < 0.05 * np.abs(want).max() or n_tokens == 1, "the bound can fail"


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(("n_tokens", "d_k", "d_v"), [(11, 20, 40), (11, 64, 200)])
def test_the_delta_rule_does_not_depend_on_calls(isa, n_tokens, d_k, d_v):
    q, k, v, decay, beta = delta_case(30, n_tokens, d_k, d_v)
    want, after = delta("scalar", q, k, v, decay, beta, None)
    for cuts in ([11], [1, 10], [4, 1, 6], [1] * 11):
        state, parts, at = None, [], 0
        for n in cuts:
            part, state = delta(isa, *(x[at : at + n] for x in (q, k, v, decay, beta)), state)
            parts.append(part)
            at += n
        assert np.array_equal(np.concatenate(parts).view(np.uint32), want.view(np.uint32))
        assert np.array_equal(state.view(np.uint32), after.view(np.uint32))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("n", [1, 15, 16, 17, 250])
def test_a_product_and_a_gate_are_exact_per_element(isa, n):
    x, y = draw(40, n), draw(41, n)
    out = np.array(y)
    check(lib.moepic_test_multiply(ISAS[isa], as_float(out), as_float(x), n))
    assert np.array_equal(out, x * y)
    gated = np.empty(n, np.float32)
    check(lib.moepic_test_glu(ISAS[isa], 3, as_float(x), as_float(y), as_float(gated), n))
    # An exponential of 1 ulp, an addition and a division.
    want = y / (1 + np.exp(-x.astype(np.float64)))
    assert np.all(np.abs(gated - want) <= 2.5 * EPS * np.abs(want))


def decay(rate, x):
    out = np.full_like(x, np.nan)
    check(lib.moepic_test_decay(as_float(rate), as_float(x), as_float(out), x.size))
    return out


def test_the_decay_is_that_of_long_doubles_and_rounded_once():
    """Half a unit in the last place, and what ops/decay.h derives for the double that is rounded."""
    rng = np.random.default_rng(11)
    x = np.concatenate(
        [rng.uniform(-60, 60, 200_000), rng.uniform(-1, 1, 20_000), [0.0, -0.0, 1e-30, 88.0, 3e38, -3e38]]
    )
    x = x.astype(np.float32)
    rate = -np.exp(rng.uniform(-8, 3, x.size)).astype(np.float32)
    rate[:1000] *= -1  # growth: no model has it, but the formula does
    exponent = rate.astype(np.longdouble) * np.logaddexp(np.longdouble(0), x.astype(np.longdouble))
    with np.errstate(over="ignore"):
        want = np.exp(exponent)
    found = decay(rate, x)
    fits = want < np.finfo(np.float32).max
    assert np.all(np.isinf(found[~fits])), "what no float can hold is infinite"
    ulp = np.spacing(want[fits].astype(np.float32)).astype(np.longdouble)
    bound = ulp / 2 + want[fits] * (16 * np.abs(exponent[fits]) + 4) * 2.0**-53
    assert np.all(np.abs(found[fits] - want[fits]) <= bound)


def test_the_decay_of_what_is_not_finite_is_its_limit():
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    rate = np.array([-1, -1, -inf, nan, -1, 0], np.float32)
    x = np.array([inf, -inf, 1, 1, nan, 5], np.float32)
    assert np.array_equal(decay(rate, x), np.array([0, 1, 0, nan, nan, 1], np.float32), equal_nan=True)
