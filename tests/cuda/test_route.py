"""The router of a device against the engine's: the same experts, and weights equal in every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ops_native import Floats, assert_same_bits, available_isas

from .vector_native import route

FAST = available_isas()[-1]
SOFTMAX, SIGMOID, SOFTMAX_SELECTED, SPARSE_MIXER = 1, 2, 3, 255


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_routes_alike(device: str, logits: Floats, k: int, **job: Any) -> np.ndarray:
    """Answers the ids that both chose."""
    scores, ids, weights = route(device, FAST, logits, k, **job)
    want_scores, want_ids, want_weights = route(None, FAST, logits, k, **job)
    assert np.array_equal(ids, want_ids), f"{job}: {ids} and {want_ids}"
    assert (np.diff(ids, axis=1) > 0).all(), "ascending"
    assert_same_bits(weights, want_weights, f"weights, {list(job)}")
    if job["scoring"] != SPARSE_MIXER:
        assert_same_bits(scores, want_scores, f"scores, {list(job)}")
    return ids


@pytest.mark.parametrize("scoring", [SOFTMAX, SIGMOID, SOFTMAX_SELECTED])
@pytest.mark.parametrize(("n_expert", "k"), [(1, 1), (8, 2), (60, 4), (128, 8), (512, 10), (40, 40)])
def test_scorings_route_alike(device: str, scoring: int, n_expert: int, k: int) -> None:
    logits = draw(n_expert, 5, n_expert) * 3
    assert_routes_alike(device, logits, k, scoring=scoring)
    bias, scale = draw(1, n_expert), draw(2, n_expert)
    assert_routes_alike(
        device, logits, k, scoring=scoring, renormalise=True, router_scale=2.5, selection_bias=bias, expert_scale=scale
    )


@pytest.mark.parametrize("groups_by_best", [False, True])
@pytest.mark.parametrize(("n_expert", "k", "n_group", "n_group_used"), [(64, 6, 8, 3), (160, 6, 8, 1), (40, 4, 40, 7)])
def test_groups_route_alike(
    device: str, groups_by_best: bool, n_expert: int, k: int, n_group: int, n_group_used: int
) -> None:
    groups = {"n_group": n_group, "n_group_used": n_group_used, "groups_by_best": groups_by_best}
    ids = assert_routes_alike(
        device, draw(3, 6, n_expert), k, scoring=SIGMOID, selection_bias=draw(4, n_expert), **groups
    )
    used = [len(set(row // (n_expert // n_group))) for row in ids]
    assert max(used) <= n_group_used
    tied = np.round(draw(5, 6, n_expert) * 2) / 2
    assert_routes_alike(device, tied, k, scoring=SOFTMAX, **groups)


@pytest.mark.parametrize("n_expert", [2, 16, 256])
def test_the_sparse_mixer_routes_alike(device: str, n_expert: int) -> None:
    logits = draw(6, 8, n_expert)
    logits[1] *= 0.001  # some lie within the jitter of each other
    logits[2] = 1.0
    logits[3] = -np.abs(logits[3])
    assert_routes_alike(device, logits, 2, scoring=SPARSE_MIXER)


def test_of_equal_scores_the_lower_id_wins(device: str) -> None:
    logits = np.zeros((2, 70), np.float32)
    logits[1, [3, 40, 69]] = 1.0
    ids = assert_routes_alike(device, logits, 4, scoring=SOFTMAX)
    assert ids.tolist() == [[0, 1, 2, 3], [0, 3, 40, 69]]


@pytest.mark.parametrize("scoring", [SIGMOID, SOFTMAX_SELECTED, SPARSE_MIXER])
def test_nan_loses_against_numbers(device: str, scoring: int) -> None:
    logits = draw(7, 3, 33)
    logits[0, [0, 2, 32]] = np.nan
    logits[1, 1:] = np.nan
    logits[2, 5] = np.nan
    logits[2, 6] = -np.inf
    ids = assert_routes_alike(device, logits, 2, scoring=scoring)
    assert not {0, 2, 32} & set(ids[0])
    assert ids[1].tolist() == [0, 1], "the only number, then the lowest id"


def test_softmax_of_a_nan_takes_the_first(device: str) -> None:
    logits = draw(8, 1, 20)
    logits[0, 11] = np.nan
    assert assert_routes_alike(device, logits, 3, scoring=SOFTMAX).tolist() == [[0, 1, 2]]
