"""The thread pool: every task runs exactly once per job, also when threads are late or outnumber the cores."""

from __future__ import annotations

import numpy as np
import pytest

from moepic_gguf._ffi import ffi, lib

pytestmark = pytest.mark.threads


@pytest.mark.parametrize(
    ("threads", "tasks", "rounds", "sleep_us"),
    [
        (1, 5, 100, 0),
        (2, 1, 1000, 0),
        (2, 64, 3000, 0),
        (3, 7, 2000, 0),
        (8, 33, 500, 0),
        (4, 21, 60, 200),
        (2, 0, 10, 0),
    ],
)
def test_each_task_runs_once_per_job(threads, tasks, rounds, sleep_us):
    counts = np.zeros(max(tasks, 1), np.int64)
    assert lib.moepic_test_pool(threads, tasks, tasks, rounds, sleep_us, ffi.from_buffer("int64_t[]", counts)) == 0
    assert (counts[:tasks] == rounds).all()


@pytest.mark.parametrize(
    ("threads", "tasks", "few", "rounds"), [(2, 40, 2, 400000), (3, 9, 3, 200000), (8, 33, 2, 4000)]
)
def test_a_thread_late_from_a_small_job_takes_nothing_of_a_larger_one(threads, tasks, few, rounds):
    """It knows the small job's number and next index, and must not take that index for one of the larger job."""
    counts = np.zeros(tasks, np.int64)
    assert lib.moepic_test_pool(threads, tasks, few, rounds, 0, ffi.from_buffer("int64_t[]", counts)) == 0
    assert (counts[:few] == rounds).all()
    assert (counts[few:] == rounds // 2).all()


def test_a_senseless_thread_count_is_an_error():
    assert lib.moepic_test_pool(-1, 1, 1, 1, 0, ffi.NULL) == lib.MOEPIC_E_ARGUMENT
    assert "threads" in ffi.string(lib.moepic_last_error()).decode()
