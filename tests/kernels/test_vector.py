"""The vector ops against float64 torch and numpy, and bit for bit between instruction sets.

u = 2^-24 is half an ulp relative to a value; every bound counts roundings to first order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops_native import Floats, Vector, assert_close, assert_same_bits, available_isas

ISAS = available_isas()
U = 2.0**-24
SIZES = [1, 2, 15, 16, 17, 31, 33, 576, 1000]
TINY = 2.0**-149  # the smallest float32


def random_floats(n: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng([seed, n]).standard_normal(n) * scale).astype(np.float32)


def ulp_errors(found: Floats, exact: np.ndarray) -> np.ndarray:
    """|found - exact| in units of the float32 spacing at the exact value."""
    return np.asarray(np.abs(found.astype(np.float64) - exact) / np.spacing(exact.astype(np.float32)))


@pytest.mark.parametrize("isa", ISAS)
def test_exp_is_within_one_ulp(isa: str) -> None:
    """Over the whole range, subnormal results included, and densely where softmax works."""
    ranges = [(-103.9, 88.7, 200_001), (-20, 0, 100_001), (-1e-3, 1e-3, 20_001)]
    x = np.concatenate([np.linspace(*ends) for ends in ranges]).astype(np.float32)
    found, exact = Vector(isa).exp(x), np.exp(x.astype(np.float64))
    errors = ulp_errors(found, exact)
    worst = int(np.argmax(errors))
    assert errors[worst] <= 1.0, f"exp({x[worst]!r}) = {found[worst]!r}, {errors[worst]:.3f} ulp off"


@pytest.mark.parametrize("isa", ISAS)
def test_exp_at_the_ends(isa: str) -> None:
    x = np.array([-np.inf, -1e30, -105, -104, 0.0, -0.0, 88.9, 1e30, np.inf, np.nan, -np.nan], dtype=np.float32)
    expected = np.array([0, 0, 0, 0, 1, 1, np.inf, np.inf, np.inf, np.nan, np.nan], dtype=np.float32)
    assert_same_bits(Vector(isa).exp(x), expected, "exp")


def test_every_instruction_set_gives_the_same_bits() -> None:
    specials = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 100, -100], dtype=np.float32)
    for n in SIZES:
        x, y, w, head, angles = (random_floats(size, seed, 3.0) for seed, size in enumerate([n, n, n, 2 * n, 2 * n]))
        mixed = np.concatenate([specials, x])
        calls: list[tuple[str, tuple[Any, ...]]] = [
            ("exp", (mixed,)),
            ("sigmoid", (mixed,)),
            ("silu_glu", (mixed, np.resize(y, mixed.shape))),
            ("silu_clamped_glu", (mixed, np.resize(y, mixed.shape))),
            ("gelu_glu", (mixed, np.resize(y, mixed.shape))),
            ("soft_cap", (mixed,)),
            ("softmax", (x,)),
            ("rms_norm", (x, w, 1e-5)),
            ("rms_norm", (x, None, 1e-6)),
            ("layer_norm", (x, w, y, 1e-5)),
            ("scale_add", (y, 0.3, x)),
            ("add", (y, x)),
            ("scale", (mixed, 0.3)),
            ("rope", (head, angles, head.size, False)),
            ("rope", (head, angles, head.size, True)),
        ]
        for op, arguments in calls:
            for isa in ISAS:
                found, expected = (getattr(Vector(which), op)(*arguments) for which in (isa, "scalar"))
                assert_same_bits(found, expected, f"{isa}: {op} of {n}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_rms_norm_agrees_with_torch(isa: str, n: int) -> None:
    """A partial sum rounds n / 16 times, the tree 4, halved by the root; mean, eps, root, quotient, products: 5.5 u."""
    x, w = random_floats(n, 1, 4.0), random_floats(n, 2)
    for weight in (w, None):
        module = torch.nn.RMSNorm(n, eps=1e-5, elementwise_affine=weight is not None, dtype=torch.float64)
        if weight is not None:
            module.weight.data = torch.from_numpy(weight.astype(np.float64))
        expected = module(torch.from_numpy(x.astype(np.float64))).detach().numpy()
        eps_error = 1e-12  # eps itself is rounded to float32 on its way
        bound = (((n + 15) // 16 + 4) / 2 + 5.5) * U * np.abs(expected) + eps_error
        assert_close(Vector(isa).rms_norm(x, weight, 1e-5), expected, bound, f"rms_norm of {n}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_softmax_agrees_with_torch(isa: str, n: int) -> None:
    """x - max is rounded once (|x - max| u), exp 2 u; the sum has as much and n / 16 + 4 roundings; the quotient u."""
    x = random_floats(n, 7, 6.0)
    expected = torch.softmax(torch.from_numpy(x.astype(np.float64)), dim=0).numpy()
    spread = float(x.max() - x.min())
    bound = (2 * (spread + 2) + (n + 15) // 16 + 4 + 1) * U * expected + TINY
    found = Vector(isa).softmax(x)
    assert_close(found, expected, bound, f"softmax of {n}")


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_at_the_ends(isa: str) -> None:
    vector = Vector(isa)
    x = np.array([-np.inf, 0.0, -np.inf] + [-np.inf] * 20, dtype=np.float32)
    assert_same_bits(vector.softmax(x), (x == 0).astype(np.float32), "all weight on the only finite entry")
    huge = np.array([3e38, 3e38, -3e38, 0], dtype=np.float32)
    assert_same_bits(vector.softmax(huge), np.array([0.5, 0.5, 0, 0], dtype=np.float32), "huge logits")
    for place in (0, 5, 16, 19):
        x = np.zeros(20, dtype=np.float32)
        x[place] = np.nan
        assert np.isnan(vector.softmax(x)).all(), f"NaN at {place} reaches every weight"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_silu_glu_and_sigmoid_agree_with_torch(isa: str, n: int) -> None:
    """exp 2 u of the part e / (1 + e), sum u, quotient u, product u: at most 5 u."""
    gate, up = random_floats(n, 1, 20.0), random_floats(n, 2)
    gate64, up64 = torch.from_numpy(gate.astype(np.float64)), torch.from_numpy(up.astype(np.float64))
    silu = (torch.nn.functional.silu(gate64) * up64).numpy()
    assert_close(Vector(isa).silu_glu(gate, up), silu, 5 * U * np.abs(silu) + TINY, "silu(gate) * up")
    # As transformers' GptOssExperts writes it. The slope 1.702 and its product add 2 u of the exponent, |1.702 g|. Where e^(1.702 |g|) is
    # infinite, below -88.7, a result of less than 100 * 8 / e^88.7 is zero.
    low, clamped = gate64.clamp(max=7), up64.clamp(-7, 7)
    swish = (low * torch.sigmoid(low * 1.702) * (clamped + 1)).numpy()
    exponent = 1.702 * np.abs(low.numpy())
    bound = (7 + 2 * exponent) * U * np.abs(swish) + 800 * np.exp(-88.7)
    assert_close(Vector(isa).silu_clamped_glu(gate, up), swish, bound, "clamped silu")
    logistic = torch.sigmoid(gate64).numpy()
    assert_close(Vector(isa).sigmoid(gate), logistic, 4 * U * logistic + TINY, "sigmoid")


@pytest.mark.parametrize("isa", ISAS)
def test_activations_saturate(isa: str) -> None:
    x = np.array([-1e30, -200, 200, 1e30, np.inf, np.nan], dtype=np.float32)
    ones = np.ones_like(x)
    assert_same_bits(Vector(isa).sigmoid(x), np.array([0, 0, 1, 1, 1, np.nan], dtype=np.float32), "sigmoid")
    silu = np.array([0, 0, 200, 1e30, np.inf, np.nan], dtype=np.float32)
    assert np.array_equal(Vector(isa).silu_glu(x, ones), silu, equal_nan=True)
    clamped = Vector(isa).silu_clamped_glu(x, ones)
    assert np.array_equal(clamped[[0, 1, 5]], np.array([0, 0, np.nan], np.float32), equal_nan=True)
    assert (clamped[2:5] == clamped[2]).all(), "beyond 7 nothing grows"
    assert np.isnan(Vector(isa).silu_clamped_glu(ones, np.full_like(x, np.nan))).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize("n_rot", [2, 6, 32, 64, 80])
def test_rope_rotates_the_pairs(isa: str, neox: bool, n_rot: int) -> None:
    """As complex numbers: (a + i b) (c + i s). A product and a fused sum round: 2 u (|a| + |b|). The rest stays."""
    head = random_floats(96, 1)
    theta = np.random.default_rng(n_rot).uniform(-3, 3, n_rot // 2)
    cos_sin = np.stack([np.cos(theta), np.sin(theta)], axis=-1).astype(np.float32)
    half = n_rot // 2
    first, second = (slice(0, half), slice(half, n_rot)) if neox else (slice(0, n_rot, 2), slice(1, n_rot, 2))
    pairs = head[first].astype(np.complex128) + 1j * head[second]
    turned = pairs * (cos_sin[:, 0].astype(np.complex128) + 1j * cos_sin[:, 1])
    expected = head.astype(np.float64)
    expected[first], expected[second] = turned.real, turned.imag
    bound = np.zeros_like(expected)
    bound[first] = bound[second] = 2 * U * (np.abs(head[first]) + np.abs(head[second]))
    assert_close(Vector(isa).rope(head, cos_sin, n_rot, neox), expected, bound, f"rope of {n_rot}, neox {neox}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_sums_are_rounded_once(isa: str, n: int) -> None:
    y, x = random_floats(n, 1), random_floats(n, 2)
    assert_same_bits(Vector(isa).add(y, x), y + x, "add")
    a = np.float32(0.7)
    # A product of floats is exact in float64 and the sum is off by 2^-53 at most; fma rounds once.
    exact = y.astype(np.float64) + x.astype(np.float64) * float(a)
    assert_close(Vector(isa).scale_add(y, float(a), x), exact, U * np.abs(exact) * (1 + 1e-6) + 2.0**-150, "scale_add")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_layer_norm_agrees_with_torch(isa: str, n: int) -> None:
    """The mean of values of size X is (n / 16 + 6) u X off, and so is each difference from it, by one rounding more; squares, root and
    products add what rms_norm has. Far from zero, so that a variance by the difference of two sums would fail.
    """
    x, w, b = random_floats(n, 1) + np.float32(100), random_floats(n, 2), random_floats(n, 3)
    exact = torch.nn.functional.layer_norm(
        torch.from_numpy(x).double(), (n,), torch.from_numpy(w).double(), torch.from_numpy(b).double(), 1e-5
    ).numpy()
    inverse = 1 / np.sqrt(x.astype(np.float64).var() + 1e-5)
    off = (n / 16 + 7) * U * np.abs(x).max() * inverse
    bound = np.abs(w) * (off + (n / 16 + 12) * U * (np.abs(exact - b).max() / np.abs(w).min() + 1)) + 2 * U * np.abs(
        exact
    )
    assert_close(Vector(isa).layer_norm(x, w, b, 1e-5), exact, bound, f"layer_norm of {n}")


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_agrees_with_torch(isa: str) -> None:
    """gelu = g / (1 + e^-y), y = sqrt(8 / pi) (g + 0.044715 g^3): 4 roundings of y move it by 4 u |y| (1 - sigmoid(y)), exp by 2 u,
    sum, quotient and product by 3 u more. An e^-y beyond the largest float is infinite, so what is below 2^-120 may vanish.
    """
    g = np.concatenate([np.linspace(-12, 12, 4001), random_floats(500, 3, 0.01)]).astype(np.float32)
    up = np.resize(random_floats(640, 4), g.shape)
    y = 1.5957691216057308 * (g.astype(np.float64) + 0.044715 * g.astype(np.float64) ** 3)
    exact = g / (1 + np.exp(-y))
    # torch's 1 + tanh ends at 2^-53 of g; down to there it says the same.
    theirs = torch.nn.functional.gelu(torch.from_numpy(g).double(), approximate="tanh").numpy()
    np.testing.assert_allclose(exact, theirs, atol=2.0**-49)
    bound = 1.05 * U * (4 * np.abs(y) + 6) * np.abs(exact * up) + 2.0**-120
    assert_close(Vector(isa).gelu_glu(g, up), exact * up, bound, "gelu")


@pytest.mark.parametrize("isa", ISAS)
def test_soft_cap_agrees_with_numpy(isa: str) -> None:
    """30 (2 / (1 + e^-2y) - 1): the quotient, of size up to 2, has an error of 8 u; the argument's 2 roundings move it by 2 u at most."""
    x = np.concatenate([np.linspace(-200, 200, 4001), random_floats(500, 3), [np.inf, -np.inf]]).astype(np.float32)
    exact = 30 * np.tanh(x.astype(np.float64) / 30)
    assert_close(Vector(isa).soft_cap(x), exact, 30 * 10 * U, "soft cap")
    assert np.isnan(Vector(isa).soft_cap(np.array([np.nan], np.float32))).all()
