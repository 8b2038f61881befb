"""The predictor: guesses, scores against counting by hand, and the switch that turns a losing layer off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import ArgumentError
from moepic_gguf.metadata import checked

NONE, PREVIOUS, NEXT = 0, 1, 2


class Predictor:
    """The native predictor."""

    def __init__(
        self, n_layer: int, source: int, *, half_life: float = 32.0, trial: int = 16, pause: int = 256
    ) -> None:
        made = ffi.new("moepic_test_predictor **")
        checked(lib.moepic_test_predictor_new(made, n_layer, source, half_life, trial, pause))
        self.handle = ffi.gc(made[0], lib.moepic_test_predictor_free)

    def foretell(self, layer: int, ids: Sequence[int]) -> None:
        checked(lib.moepic_test_predictor_foretell(self.handle, layer, ffi.new("int32_t[]", list(ids)), len(ids)))

    def guess(self, layer: int) -> tuple[list[int], bool]:
        ids, count, act = ffi.new("int32_t[64]"), ffi.new("int32_t *"), ffi.new("int32_t *")
        checked(lib.moepic_test_predictor_guess(self.handle, layer, ids, 64, count, act))
        return list(ids[0 : count[0]]), bool(act[0])

    def observe(
        self,
        layer: int,
        used: Sequence[int],
        *,
        useful: int = 0,
        wasted: int = 0,
        late: int = 0,
        saved_s: float = 0.0,
        lost_s: float = 0.0,
    ) -> None:
        checked(
            lib.moepic_test_predictor_observe(
                self.handle, layer, ffi.new("int32_t[]", list(used)), len(used), useful, wasted, late, saved_s, lost_s
            )
        )

    def score(self, layer: int) -> Any:
        score = ffi.new("moepic_test_score *")
        checked(lib.moepic_test_predictor_score(self.handle, layer, score))
        return score


def test_previous_token_guesses_what_the_layer_used_last() -> None:
    predictor = Predictor(2, PREVIOUS)
    assert predictor.guess(0) == ([], False)
    predictor.observe(0, [3, 5, -1])
    assert predictor.guess(0) == ([3, 5], True)
    assert predictor.guess(1) == ([], False), "layers do not share guesses"
    lib.moepic_test_predictor_forget(predictor.handle)
    assert predictor.guess(0) == ([], False), "a new sequence starts without"


def test_a_later_foretelling_replaces_an_earlier_one() -> None:
    predictor = Predictor(3, NEXT)
    predictor.foretell(2, [1, 2])  # two layers ahead
    predictor.foretell(2, [2, 4])  # one layer ahead
    assert predictor.guess(2) == ([2, 4], True)
    predictor.observe(2, [2, 9])
    assert predictor.guess(2) == ([], False), "a guess is good for one token"
    assert (predictor.score(2).n_right, predictor.score(2).n_used, predictor.score(2).n_guessed) == (1, 2, 2)


def test_none_never_guesses() -> None:
    predictor = Predictor(1, NONE)
    predictor.foretell(0, [1])
    predictor.observe(0, [1])
    assert predictor.guess(0) == ([], False)


def test_recall_is_counted_per_layer() -> None:
    rng = np.random.default_rng(0)
    predictor = Predictor(3, PREVIOUS)
    used = rng.integers(0, 6, (50, 3, 2))
    for token in used:
        for layer in range(3):
            predictor.observe(layer, token[layer].tolist())
    for layer in range(3):
        right = sum(int(e in used[t - 1, layer]) for t in range(1, 50) for e in used[t, layer])
        assert predictor.score(layer).n_right == right
        assert predictor.score(layer).recall == pytest.approx(right / (49 * 2))


def test_a_layer_that_loses_time_is_switched_off_alone_keeps_scoring_and_tries_again() -> None:
    predictor = Predictor(2, NEXT, trial=4, pause=10)
    for token in range(4):
        for layer, (saved, lost) in enumerate([(2e-3, 1e-3), (1e-3, 2e-3)]):
            assert predictor.guess(layer) == ([], False)
            predictor.foretell(layer, [token])
            assert predictor.guess(layer)[1], "a trial comes first"
            predictor.observe(layer, [token], useful=10, wasted=5, late=1, saved_s=saved, lost_s=lost)
    assert predictor.score(0).is_on
    assert not predictor.score(1).is_on
    assert predictor.score(1).n_switched_off == 1
    for token in range(10):
        predictor.foretell(1, [7])
        assert predictor.guess(1) == ([7], False)
        predictor.observe(1, [7 if token % 2 else 8])
    assert predictor.score(1).is_on, "after the pause it tries again"
    assert predictor.score(1).n_right == 4 + 5
    assert (predictor.score(1).useful_bytes, predictor.score(1).wasted_bytes, predictor.score(1).late_bytes) == (
        40,
        20,
        4,
    )


def test_old_gains_do_not_excuse_present_losses() -> None:
    predictor = Predictor(1, NEXT, half_life=8.0, trial=1)
    for token in range(400):
        predictor.foretell(0, [1])
        predictor.observe(0, [1], saved_s=1e-3 if token < 200 else 0.0, lost_s=0.0 if token < 200 else 1e-3)
        if not predictor.score(0).is_on:
            break
    # A balance of s 2^(1/8) ... is worn down within about the half-life: 1 / (1 - 2^(-1/8)) = 12 tokens of gain.
    assert 200 < token < 212


@pytest.mark.parametrize("options", [{"half_life": 0.0}, {"trial": 0}, {"pause": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Predictor(1, NEXT, **options)
    with pytest.raises(ArgumentError, match="source"):
        Predictor(1, 3)
    with pytest.raises(ArgumentError, match="layer 1"):
        Predictor(1, NEXT).foretell(1, [0])
