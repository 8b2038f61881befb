"""The emulated link: its bytes, and that it is neither faster nor, within bounds a busy machine keeps, much slower than it says."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moepic_gguf.errors import ArgumentError

from .lanes import PAGE, PREFETCH, numbered_pages, open_link

N_BYTES = 4 << 20


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, N_BYTES, np.uint8)


def test_it_says_that_it_is_emulated(source: np.ndarray) -> None:
    with open_link(source, bytes_s=25e9, latency_s=10e-6) as lane:
        assert lane.describe() == "link: emulated 25.0 GB/s + 10 us"


def test_pieces_hold_the_bytes_of_their_sources(source: np.ndarray) -> None:
    pages = numbered_pages(16)
    with open_link(source, pages, bytes_s=1e10) as lane:
        found = lane.read([(0, 5, 1000), (1, 3 * PAGE, 8), (0, N_BYTES - 1, 1)])
        assert found == [source[5:1005].tobytes(), (3).to_bytes(8, "little"), source[-1:].tobytes()]
        assert (lane.stats.bytes, lane.stats.raw_bytes) == (1009, 1009)


def test_it_is_never_faster_than_it_says_and_many_small_copies_do_not_drift(source: np.ndarray) -> None:
    n, n_bytes, bytes_s, latency_s = 300, 20_000, 100e6, 100e-6
    stated_s = n * (latency_s + n_bytes / bytes_s)  # 90 ms
    with open_link(source, bytes_s=bytes_s, latency_s=latency_s, frame_bytes=n_bytes, n_frames=n) as lane:
        start = time.perf_counter()
        tickets = [lane.submit([(0, i * 1000, n_bytes)]) for i in range(n)]
        found = [lane.take() for _ in range(n)]
        took_s = time.perf_counter() - start
        stats = lane.stats
        assert [delivery.ticket for delivery in found] == tickets, "one after the other"
        assert took_s >= stated_s
        # A thread that oversleeps once is late by that once. Drift would cost 300 times a wake-up of 50 us or more, 15 ms at least; a second
        # is what a loaded machine may take from a thread.
        assert took_s < stated_s + 1.0
        assert stats.busy_s == pytest.approx(took_s, rel=0.2, abs=0.01)
        assert stats.bytes / stats.busy_s <= n_bytes / (latency_s + n_bytes / bytes_s)
        # The rate of late weighs bytes and seconds by 2^(-age / 0.25 s): no weight is below that of the whole time, so neither is the quotient
        # further from the plain one.
        mean, weight = stats.bytes / stats.busy_s, 2 ** (-stats.busy_s / 0.25)
        assert 0.99 * mean * weight <= stats.rate <= 1.01 * mean / weight


def test_latency_is_paid_once_per_transfer_not_per_piece(source: np.ndarray) -> None:
    latency_s = 0.2  # three of them would be 0.6 s
    with open_link(source, bytes_s=1e10, latency_s=latency_s) as lane:
        start = time.perf_counter()
        lane.read([(0, 0, 1000), (0, 5000, 1000), (0, 9000, 1000)])
        took_s = time.perf_counter() - start
        assert latency_s <= took_s < 2 * latency_s


def test_a_link_faster_than_memory_is_as_fast_as_memory_and_says_so(source: np.ndarray) -> None:
    with open_link(source, bytes_s=1e18, frame_bytes=N_BYTES) as lane:
        for _ in range(10):
            lane.read([(0, 0, N_BYTES)])
        assert 1e6 < lane.stats.rate < 1e13  # no memory copies 10 TB/s


def test_a_slow_reader_of_deliveries_does_not_slow_the_link(source: np.ndarray) -> None:
    """Frames that come back late do: a link without a frame waits, and its clock with it."""
    n_bytes, bytes_s = 100_000, 10e6  # 10 ms each
    with open_link(source, bytes_s=bytes_s, frame_bytes=n_bytes, n_frames=2) as lane:
        tickets = [lane.submit([(0, 0, n_bytes)]) for _ in range(3)]
        first, second = lane.take(), lane.take()
        time.sleep(0.05)
        assert lane.next(0.0) is None
        released = time.perf_counter()
        lane.release(tickets[0])
        lane.take()
        assert time.perf_counter() - released >= n_bytes / bytes_s
        assert second.at_s - first.at_s < 1.0


def test_cancelling_a_copy_under_way_drops_it(source: np.ndarray) -> None:
    with open_link(source, bytes_s=5e6) as lane:  # 1 MiB in 0.2 s
        ticket = lane.submit([(0, 0, 1 << 20)])
        deadline = time.monotonic() + 10
        while lane.stats.busy_s == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert lane.cancel(ticket)
        behind = lane.submit([(0, 0, 10)], PREFETCH)
        assert lane.take().ticket == behind, "a cancelled transfer is never delivered"
        stats = lane.stats
        assert (stats.n_cancelled, stats.dropped_bytes, stats.bytes) == (1, 1 << 20, 10)


def test_statistics_start_again_on_request(source: np.ndarray) -> None:
    with open_link(source, bytes_s=1e9) as lane:
        lane.read([(0, 0, 1 << 20)])
        lane.reset_stats()
        stats = lane.stats
        assert (stats.bytes, stats.raw_bytes, stats.n_transfers, stats.busy_s) == (0, 0, 0, 0.0)
        assert stats.rate > 0, "what is known of the link is kept"


def test_it_ends_at_once_with_a_long_copy_under_way(source: np.ndarray) -> None:
    lane = open_link(source, bytes_s=1000.0)  # 1 MiB in 17 minutes
    lane.submit([(0, 0, 1 << 20)])
    time.sleep(0.01)
    start = time.perf_counter()
    lane.close()
    assert time.perf_counter() - start < 5


def test_pieces_and_options_that_make_no_sense_are_refused(source: np.ndarray) -> None:
    with open_link(source, bytes_s=1e9) as lane, pytest.raises(ArgumentError, match="a piece of 2 bytes at 4194303"):
        lane.submit([(0, N_BYTES - 1, 2)])
    for options in [{"bytes_s": 0.0}, {"bytes_s": float("nan")}, {"bytes_s": 1e9, "latency_s": -1.0}]:
        with pytest.raises(ArgumentError):
            open_link(source, **options)
    with pytest.raises(ArgumentError, match="no sources"):
        open_link(bytes_s=1e9)


@pytest.mark.threads
def test_every_transfer_is_delivered_once_or_cancelled_whoever_calls_at_once() -> None:
    pages = numbered_pages(64)
    with open_link(pages, bytes_s=4e9, latency_s=1e-6, frame_bytes=PAGE, n_frames=6) as lane:
        lane.stress(4, 500, 64)
        stats = lane.stats
        assert stats.n_transfers + stats.n_cancelled == 4 * 500
        # Busy time is wall time with something moving; it cannot be less than the copies' stated time.
        moved = stats.n_transfers * (1e-6 + PAGE / 4e9)
        assert stats.busy_s >= 0.99 * moved
