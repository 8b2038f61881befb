"""The SIMT emulation as a tool: faults planted in kernels and streams are found, and correct kernels are left alone."""

from __future__ import annotations

import os
import shutil

import pytest

from .planting import build, run

pytestmark = [
    pytest.mark.no_sanitizer,  # each program here is built with its own
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the planted kernels"),
]

CORRECT = {
    "sum": "499500",
    "warp": "11120 11376 11632 11888 11144 11400",
    "multiply": " ".join(["0"] * 32),
    "rotate": " ".join(str(i) for i in range(96))
    + " "
    + " ".join(str(i) for i in range(96))
    + " "
    + " ".join(str(i) for i in range(96)),
    "handover": "3",
    "mailbox": "0 wrong",
    "captured": "1 8 8",
}


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def asan(shared_folder):
    return build("address", shared_folder / "planted-address")


@pytest.fixture(scope="session")
def tsan(shared_folder):
    return build("thread", shared_folder / "planted-thread")


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
@pytest.mark.parametrize(("scenario", "result"), CORRECT.items())
def test_correct_work_gives_its_result_and_no_report(request, sanitizer, scenario, result):
    for seed in range(1, 4):
        done = run(request.getfixturevalue(sanitizer), scenario, 300, seed)
        assert (done.code, done.out) == (0, result), done.err


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("shared_overrun", "writes 4 bytes in a place that ends 4 bytes beyond the block's 384 bytes of shared memory"),
        ("device_overrun", "writes 4 bytes in a place that begins 0 bytes behind an allocation of 384 bytes"),
        ("use_after_free", "reads 4 bytes in a place that is neither memory of the device nor pinned"),
        ("host_pointer", "reads 4 bytes in a place that is neither memory of the device nor pinned"),
        ("neighbour", "reads 4 bytes in a place that is neither memory of the device nor pinned"),
    ],
)
def test_memory_that_a_kernel_may_not_touch_is_an_error(asan, scenario, words):
    done = run(asan, scenario)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("error -1: ")
    assert words in done.out


def test_the_host_may_not_touch_device_memory(asan):
    done = run(asan, "host_reads")
    assert done.code != 0
    assert "AddressSanitizer: use-after-poison" in done.err


def test_a_stack_that_overflows_meets_a_guard(asan):
    done = run(asan, "deep")
    assert done.code != 0
    assert "stack-overflow" in done.err


@pytest.mark.parametrize("scenario", ["race", "warp_race", "block_race"])
def test_missing_synchronisation_in_kernels_is_a_race(tsan, scenario):
    done = run(tsan, scenario)
    assert done.code != 0
    assert "ThreadSanitizer: data race" in done.err
    assert "planted.cu:" in done.err


@pytest.mark.parametrize("scenario", ["host_race", "no_handover"])
def test_missing_events_between_streams_and_host_are_a_race(tsan, scenario):
    """The locks of the queues can order by accident what nothing orders on purpose, so some delays are tried."""
    runs = (run(tsan, scenario, 20000, seed) for seed in range(1, 11))
    assert any(done.code != 0 and "ThreadSanitizer: data race" in done.err for done in runs)


def test_a_copy_that_nobody_waits_for_is_late(asan):
    """The handover without its event reads what was there before for some delay; with the event it never does."""
    seen = {run(asan, "no_handover", 20000, seed).out for seed in range(1, 9)}
    assert "0" in seen


def test_fresh_shared_memory_is_not_zero(asan):
    assert set(run(asan, "fresh_shared").out.split()) <= {"nan", "-nan"}


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("leaver", ["thread 7", "__syncthreads", "left"]),
        ("two_barriers", ["at another", "__syncthreads"]),
        ("lacking_mask", ["0x0000ffff", "which lacks it"]),
        ("absent_lane", ["a warp shuffle", "has left"]),
        ("short_warp", ["the warp has 8 lanes"]),
        ("other_vote", ["a warp vote", "__syncwarp"]),
        ("stuck", ["no thread can go on", "__syncwarp", "__syncthreads"]),
        ("trap", ["__trap", "thread 5"]),
    ],
)
def test_threads_that_would_hang_a_gpu_are_an_error_with_a_place(asan, scenario, words):
    done = run(asan, scenario)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("error -1: ")
    assert "planted.cu:" in done.out
    for word in words:
        assert word in done.out


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("large_block", "block (1025, 1, 1)"),
        ("large_shared", "65540 bytes of shared memory"),
        ("pageable", "source of a copy is neither memory of the device nor pinned"),
        ("beyond", "target of a copy ends 4 bytes beyond its allocation of 64 bytes"),
        ("freed", "never allocated, or freed"),
        ("pinned_twice", "pinned already"),
        ("unopened", "opened no device"),
        ("after_failure", "__trap"),
        ("captured_waits", "the capture is lost: making a stream wait"),
        ("captured_records", "the capture is lost: recording an event"),
        ("captured_synchronizes", "the capture is lost: waiting for a stream"),
        ("captured_allocates", "the capture is lost: allocating"),
        ("captured_frees", "the capture is lost: freeing"),
        ("captured_frees_later", "a graph: the target of a copy is neither memory of the device"),
    ],
)
def test_calls_that_cuda_would_refuse_or_slow_down_are_errors(asan, scenario, words):
    done = run(asan, scenario)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("error -")
    assert words in done.out


def test_pinned_memory_of_the_caller_can_be_copied_from(asan):
    assert run(asan, "pinned").out == "5"
