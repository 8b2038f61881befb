"""Does something pay? The trial that asks wall time: it finds differences of some percent under what tokens miss and machines do, and a few tokens decide nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib
from moepic_gguf.metadata import checked

BLOCK, LEAST, MOST, PAUSE = 8, 40, 256, 512  # tokens; native/src/engine/trial.h


@dataclass
class Found:
    """Before each token, and at last."""

    is_on: NDArray[np.bool_]
    is_trying: NDArray[np.bool_]
    cost: NDArray[np.float64]
    n_switched_off: int

    @property
    def decided_at(self) -> int:
        """Tokens of the first trial."""
        return int(np.argmin(self.is_trying))


def run(
    seconds: NDArray[np.float64], missing: NDArray[np.float64], extra_s: NDArray[np.float64] | float = 0.0
) -> Found:
    n = len(seconds)
    verdicts = ffi.new("moepic_test_verdict[]", n + 1)
    arrays = [np.ascontiguousarray(np.broadcast_to(values, n), np.float64) for values in (seconds, missing, extra_s)]
    checked(lib.moepic_test_trial(verdicts, *(ffi.cast("double *", array.ctypes.data) for array in arrays), n))
    columns = {
        name: np.array([getattr(verdict, name) for verdict in verdicts]) for name in ("is_on", "is_trying", "cost")
    }
    return Found(
        columns["is_on"].astype(bool), columns["is_trying"].astype(bool), columns["cost"], verdicts[n].n_switched_off
    )


def tokens(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Like 10 ms of work and 30 MB missing at 3 GB/s: what is missed halves and doubles from token to token, work is 5 % uneven, and every twentieth
    token loses a time slice.
    """
    rng = np.random.default_rng(seed)
    missing = 30e6 * np.exp(0.6 * rng.standard_normal(n))
    work = 10e-3 * (1 + 0.05 * rng.standard_normal(n)) + 4e-3 * (rng.random(n) < 0.05)
    return work + missing / 3e9, missing


def test_windows_take_turns_and_every_block_holds_both_sides_alike() -> None:
    found = run(np.full(2 * BLOCK, 1e-2), np.full(2 * BLOCK, 1e6))
    assert found.is_on[: 2 * BLOCK].astype(int).tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]


def test_what_saves_stays_and_what_costs_is_switched_off() -> None:
    for seed in range(20):
        seconds, missing = tokens(MOST + BLOCK, seed)
        for share in (-0.2, -0.1, 0.1, 0.2):
            found = run(seconds, missing, share * 20e-3)
            assert LEAST <= found.decided_at <= MOST
            after = found.is_on[found.decided_at :]
            assert np.all(after == (share < 0)), (seed, share)
            assert found.n_switched_off == (share > 0)
            # Some 0.75 ms of standard error in 20 ms where five blocks decide, less where it took more.
            assert abs(found.cost[-1] - share) < 0.1


def test_a_large_difference_is_found_at_once_and_a_small_one_takes_its_tokens() -> None:
    def tokens_until(share: float) -> float:
        return float(np.mean([run(*tokens(MOST, seed), share * 20e-3).decided_at for seed in range(20)]))

    assert tokens_until(0.5) == LEAST
    assert 1.5 * LEAST < tokens_until(0.02) < MOST


def test_noise_seldom_decides_early() -> None:
    """Without any difference most trials run to their end, where the side that is taken does not matter."""
    early = [run(*tokens(MOST, seed)).decided_at < MOST for seed in range(100)]
    assert np.mean(early) <= 0.3


def test_a_machine_that_changes_its_speed_does_not_look_like_a_difference() -> None:
    for seed in range(20):
        seconds, missing = tokens(MOST, seed)
        seconds = np.where(np.arange(MOST) < 60, seconds, 1.4 * seconds)
        found = run(seconds, missing, -0.1 * 20e-3)
        assert found.is_on[-1], seed


def test_tokens_that_lost_their_core_do_not_hide_a_difference() -> None:
    """One token in fifteen takes a tenth of a second or more, on either side."""
    for seed in range(20):
        seconds, missing = tokens(MOST, seed)
        rng = np.random.default_rng(100 + seed)
        seconds = seconds + np.where(rng.random(MOST) < 1 / 15, rng.uniform(0.1, 0.5, MOST), 0.0)
        found = run(seconds, missing, 0.15 * 20e-3)
        assert found.decided_at < MOST, seed
        assert not found.is_on[-1], seed


def test_what_tokens_miss_is_not_taken_for_a_difference() -> None:
    """Tokens of the side that is on happen to miss twice as much; at equal bytes it is the better one."""
    n = LEAST
    is_on = run(np.full(n, 1e-2), np.full(n, 1e6)).is_on[:n]
    _, missing = tokens(n, 3)
    missing = np.where(is_on, 2 * missing, missing)
    seconds = 10e-3 + missing / 3e9
    assert np.mean(seconds[is_on]) > np.mean(seconds[~is_on])
    found = run(seconds, missing, -1e-3)
    assert found.decided_at == n
    assert found.is_on[-1]


def test_it_is_tried_again_after_a_pause_and_the_verdict_may_change() -> None:
    seconds, missing = tokens(MOST + PAUSE + 2 * MOST, 1)
    extra = np.full(len(seconds), 4e-3)
    first = run(seconds, missing, extra)
    extra[first.decided_at + PAUSE // 2 :] = -4e-3
    found = run(seconds, missing, extra)
    again = found.decided_at + PAUSE
    assert not found.is_on[found.decided_at : again].any()
    assert not found.is_trying[found.decided_at : again].any()
    assert found.is_trying[again : again + LEAST].all()
    assert found.is_on[-1]
    assert found.n_switched_off == 1
