"""The tasks that a device lists for itself, against lists made here from what TaskListJob promises (native/src/device/jobs.h)."""

from __future__ import annotations

import numpy as np
import pytest

from .vector_native import list_tasks


@pytest.mark.parametrize(("n", "k", "n_expert"), [(1, 1, 1), (1, 8, 128), (8, 8, 16), (5, 3, 3), (8, 22, 60)])
@pytest.mark.parametrize("n_granules", [1, 3, 8])
@pytest.mark.parametrize("weighted_input", [False, True])
def test_the_list_is_the_one_the_host_would_make(
    device: str, n: int, k: int, n_expert: int, n_granules: int, weighted_input: bool
) -> None:
    rng = np.random.default_rng([n, k, n_expert, n_granules])
    ids = np.sort([rng.choice(n_expert, k, replace=False) for _ in range(n)], axis=1).astype(np.int32)
    weights = rng.random((n, k)).astype(np.float32)
    granules = rng.integers(1, 2**63, (n_expert, n_granules), dtype=np.uint64)  # never followed
    found = list_tasks(device, ids, weights if weighted_input else None, granules, n_written=6)

    entries = sorted((int(ids[t, j]), t, j) for t in range(n) for j in range(k))
    for at, (expert, token, j) in enumerate(entries):
        assert found.entry_token[at] == token
        assert found.token_entry[token, j] == at
        if found.entry_weight is not None:
            assert found.entry_weight[at] == weights[token, j]
        is_first = at == 0 or entries[at - 1][0] != expert
        count = int((ids == expert).sum()) if is_first else 0
        for granule in range(n_granules):
            task = at * n_granules + granule
            assert found.data[task] == granules[expert, granule]
            assert found.tasks[task].tolist() == [granule, at, count, task]
    assert found.token_entry[:, k].tolist() == list(range(n))
    assert found.tasks[:, 2].sum() == n * k * n_granules
    assert np.array_equal(found.told, ids)
    assert found.flag == found.n_written == 7
