"""The sampler against a plain numpy description of each rule, and against the frequencies the rules promise."""

from __future__ import annotations

import numpy as np
import pytest

from moepic_gguf._ffi import ffi, lib

RNG = np.random.default_rng(7)
LOGITS = (RNG.standard_normal(500) * 3).astype(np.float32)


class Sampler:
    def __init__(self, **options):
        native = ffi.new("moepic_sampler_options*")
        lib.moepic_sampler_options_init(native)
        bias = options.pop("bias", {})
        self.keep = (ffi.new("int32_t[]", list(bias)), ffi.new("float[]", list(bias.values())))
        native.n_bias, native.bias_ids, native.bias_values = len(bias), *self.keep
        for name, value in options.items():
            setattr(native, name, value)
        out = ffi.new("moepic_sampler**")
        self.code = lib.moepic_sampler_create(out, native)
        self.error = ffi.string(lib.moepic_last_error()).decode() if self.code else ""
        self.handle = ffi.gc(out[0], lib.moepic_sampler_free) if self.code == 0 else None

    def draw(self, logits=LOGITS):
        token = ffi.new("int32_t*")
        code = lib.moepic_sampler_sample_logits(token, self.handle, ffi.from_buffer("float[]", logits), len(logits))
        return token[0] if code == 0 else code

    def draws(self, n, logits=LOGITS):
        return np.array([self.draw(logits) for _ in range(n)])

    def accept(self, *tokens):
        assert lib.moepic_sampler_accept(self.handle, ffi.new("int32_t[]", tokens), len(tokens)) == 0


def softmax(x, temperature=1.0):
    e = np.exp((x.astype(np.float64) - x.max()) / temperature)
    return e / e.sum()


def kept_set(logits, **rules):
    """Ids that survive the filters, in plain numpy: top-k, typical, top-p, min-p, in the documented order."""
    ids = np.argsort(-logits, kind="stable")
    if rules.get("top_k"):
        ids = ids[: rules["top_k"]]
    if rules.get("typical_p", 1.0) < 1.0:
        p = softmax(logits[ids])
        surprise = np.abs(-np.log(p) - -(p * np.log(p)).sum())
        order = np.argsort(surprise, kind="stable")
        n = int(np.searchsorted(np.cumsum(p[order]), rules["typical_p"])) + 1
        ids = ids[np.sort(order[:n])]
    if rules.get("top_p", 1.0) < 1.0:
        n = int(np.searchsorted(np.cumsum(softmax(logits[ids])), rules["top_p"])) + 1
        ids = ids[:n]
    if rules.get("min_p", 0.0) > 0.0:
        p = softmax(logits[ids])
        ids = ids[p >= rules["min_p"] * p[0]]
    return set(ids.tolist())


def test_zero_temperature_takes_the_maximum_and_the_lowest_id_of_a_tie():
    assert Sampler(temperature=0.0).draw() == int(np.argmax(LOGITS))
    tied = np.zeros(10, np.float32)
    tied[[3, 7]] = 2.0
    assert Sampler(temperature=0.0).draw(tied) == 3


@pytest.mark.parametrize(
    "rules",
    [
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"typical_p": 0.7},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
        {"top_k": 30, "typical_p": 0.8, "top_p": 0.7},
    ],
)
def test_filters_keep_exactly_the_tokens_of_their_definition(rules):
    allowed = kept_set(LOGITS, **rules)
    assert 1 <= len(allowed) < len(LOGITS)
    # Hot enough that every survivor is drawn: n draws miss one of probability p with chance (1 - p)^n.
    sampler = Sampler(temperature=3.0, seed=3, **rules)
    probability = softmax(LOGITS[sorted(allowed)], 3.0).min()
    n = int(np.ceil(np.log(1e-9) / np.log1p(-probability)))
    assert n < 40000
    assert set(sampler.draws(n).tolist()) == allowed


def test_draws_follow_the_softmax():
    logits = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    n = 20000
    counts = np.bincount(Sampler(temperature=0.8, seed=11).draws(n, logits), minlength=4)
    expected = softmax(logits, 0.8) * n
    # Pearson chi-square, 3 degrees of freedom: 27 is beyond the 1e-5 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 27


def test_one_seed_gives_one_sequence_and_another_gives_another():
    first = Sampler(temperature=1.0, seed=5).draws(50)
    assert (first == Sampler(temperature=1.0, seed=5).draws(50)).all()
    assert (first != Sampler(temperature=1.0, seed=6).draws(50)).any()
    sampler = Sampler(temperature=1.0, seed=5)
    sampler.draws(20)
    lib.moepic_sampler_reset(sampler.handle)
    assert (sampler.draws(50) == first).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"repeat_penalty": 2.0}, [1.0, -4.0, 0.5]),
        ({"presence_penalty": 0.75}, [1.25, -2.75, 0.5]),
        ({"frequency_penalty": 0.5}, [1.0, -2.5, 0.5]),
        ({"repeat_penalty": 2.0, "presence_penalty": 0.25, "frequency_penalty": 0.5}, [-0.25, -4.75, 0.5]),
    ],
)
def test_penalties_change_logits_as_defined(options, expected):
    # Seen through the arg max: a fourth token's logit is swept and must win exactly when it is above the penalised maximum.
    base = np.array([2.0, -2.0, 0.5], np.float32)
    best = max(expected)
    for delta, wins in ((-1e-3, False), (1e-3, True)):
        sampler = Sampler(temperature=0.0, penalty_last_n=-1, **options)
        sampler.accept(0, 0, 1)
        logits = np.append(base, np.float32(best + delta)).astype(np.float32)
        assert (sampler.draw(logits) == 3) is wins
        if not wins:
            assert sampler.draw(logits) == int(np.argmax(expected))


def test_penalties_look_back_only_so_far():
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    sampler = Sampler(temperature=0.0, repeat_penalty=2.0, penalty_last_n=2)
    sampler.accept(0, 2, 2)
    assert sampler.draw(logits) == 0  # token 0 is three tokens back
    sampler.accept(0)
    assert sampler.draw(logits) == 1


def test_logit_bias_adds_and_forbids():
    top = int(np.argmax(LOGITS))
    assert Sampler(temperature=0.0, bias={top: -np.inf}).draw() == int(np.argsort(-LOGITS)[1])
    assert Sampler(temperature=0.0, bias={17: 1000.0}).draw() == 17
    everything = dict.fromkeys(range(4), -np.inf)
    assert Sampler(temperature=1.0, bias=everything).draw(np.zeros(4, np.float32)) == lib.MOEPIC_E_ARGUMENT
    assert Sampler(temperature=0.0, bias={9: 1.0}).draw(np.zeros(4, np.float32)) == lib.MOEPIC_E_ARGUMENT


def test_not_a_number_is_never_chosen_and_infinity_wins():
    logits = np.array([np.nan, 1.0, np.nan, 0.5], np.float32)
    assert set(Sampler(temperature=1.0, seed=1).draws(200, logits).tolist()) <= {1, 3}
    assert set(Sampler(temperature=1.0, seed=1).draws(50, np.array([0.0, np.inf, 3.0], np.float32)).tolist()) == {1}
    assert Sampler(temperature=0.0).draw(np.full(3, np.nan, np.float32)) == lib.MOEPIC_E_ARGUMENT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("typical_p", float("nan")),
        ("top_k", -3),
        ("repeat_penalty", 0.0),
        ("penalty_last_n", -2),
    ],
)
def test_an_option_out_of_range_is_named(name, value):
    sampler = Sampler(**{name: value})
    assert sampler.code == lib.MOEPIC_E_ARGUMENT
    assert name in sampler.error
