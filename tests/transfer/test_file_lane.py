"""The file lane against the file itself: bytes, order, cancelling, errors, and what is left in the page cache."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moepic_gguf.errors import ArgumentError, IoError

from .lanes import DEMAND, PAGE, PREFETCH, THREADS, URING, Lane, numbered_pages, open_files

KINDS = [pytest.param(URING, id="uring"), pytest.param(THREADS, id="threads")]
WAYS = [pytest.param(True, id="direct"), pytest.param(False, id="cached")]
N_BYTES = 5 * (1 << 20) + 1234  # several reads long, and ending inside a page


@pytest.fixture(scope="module")
def content() -> bytes:
    return np.random.default_rng(7).integers(0, 256, N_BYTES, np.uint8).tobytes()


@pytest.fixture(scope="module")
def random_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = tmp_path_factory.mktemp("lane") / "random.bin"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def pages_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lane") / "pages.bin"
    path.write_bytes(numbered_pages(256).tobytes())
    return path


@pytest.fixture(scope="module", params=[(io, direct) for io in (URING, THREADS) for direct in (True, False)], ids=str)
def open_lane(request: pytest.FixtureRequest, random_file: Path, pages_file: Path) -> Iterator[Lane]:
    """One lane for many examples: what one leaves behind would show in the next."""
    io, direct = request.param
    with open_files(random_file, pages_file, frame_bytes=N_BYTES, io=io, direct=direct, strict=True) as lane:
        yield lane


def test_it_says_how_it_works(random_file: Path) -> None:
    with open_files(random_file, io=URING, strict=True) as lane:
        assert lane.describe() == "file: io_uring, direct"
    with open_files(random_file, io=THREADS, n_threads=3, direct=False) as lane:
        assert lane.describe() == "file: 3 threads, page cache"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_hold_the_bytes_of_the_file_at_any_offset_and_length(
    open_lane: Lane, content: bytes, data: st.DataObject
) -> None:
    edges = st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1, 1 << 20, (1 << 20) + 1, N_BYTES - PAGE, N_BYTES - 1])
    pieces = []
    room = N_BYTES
    for _ in range(data.draw(st.integers(1, 3))):
        offset = data.draw(st.one_of(edges, st.integers(0, N_BYTES - 1)))
        most = min(N_BYTES - offset, room)
        if most == 0:
            break
        n_bytes = data.draw(st.one_of(st.just(most), st.integers(1, most), st.integers(1, min(most, 9))))
        room -= n_bytes
        pieces.append((0, offset, n_bytes))
    before = open_lane.stats
    found = open_lane.read(pieces)
    after = open_lane.stats
    for (_, offset, n_bytes), got in zip(pieces, found, strict=True):
        assert got == content[offset : offset + n_bytes]
    n_payload = sum(n for _, _, n in pieces)
    assert after.bytes - before.bytes == n_payload
    # Alignment adds less than a page at either end of a piece.
    assert n_payload <= after.raw_bytes - before.raw_bytes < n_payload + 2 * PAGE * len(pieces)
    assert after.n_transfers == before.n_transfers + 1


def test_pieces_of_one_transfer_may_come_from_several_files(open_lane: Lane, content: bytes) -> None:
    found = open_lane.read([(1, 7 * PAGE, PAGE), (0, 11, 100), (1, 3 * PAGE, 8)])
    assert found[0] == numbered_pages(8)[7 * PAGE :].tobytes()
    assert found[1] == content[11:111]
    assert found[2] == (3).to_bytes(8, "little")


@pytest.mark.parametrize("io", KINDS)
def test_many_transfers_at_once_all_come_and_keep_their_bytes(io: int, random_file: Path, content: bytes) -> None:
    rng = np.random.default_rng(io)
    with open_files(random_file, io=io, frame_bytes=200_000, n_frames=8) as lane:
        wanted = {}
        for _ in range(100):
            offset = int(rng.integers(0, N_BYTES - 200_000))
            wanted[lane.submit([(0, offset, 200_000)], int(rng.integers(0, 2)))] = offset
        for _ in range(100):
            found = lane.take()
            offset = wanted.pop(found.ticket)
            assert found.bytes() == content[offset : offset + 200_000]
            lane.release(found.ticket)
        stats = lane.stats
        assert (stats.n_transfers, stats.bytes) == (100, 100 * 200_000)
        # The rate of late and the rate since the start are the same bytes over the same time, weighted differently.
        assert stats.busy_s > 0
        assert stats.rate > 0
        assert stats.raw_bytes > stats.bytes


@pytest.mark.parametrize("io", KINDS)
def test_demand_goes_before_prefetch_and_each_in_its_order_and_a_promoted_one_behind_earlier_demand(
    io: int, pages_file: Path
) -> None:
    with open_files(pages_file, io=io, frame_bytes=PAGE, n_frames=2) as lane:
        # Both frames are held, so what follows is queued; then one frame comes free at a time, and one transfer moves at a time.
        held = [lane.submit([(0, 0, PAGE)]) for _ in range(2)]
        for _ in held:
            lane.take()
        p1, p2, p3 = (lane.submit([(0, page * PAGE, PAGE)], PREFETCH) for page in (1, 2, 3))
        d1, d2 = (lane.submit([(0, page * PAGE, PAGE)]) for page in (4, 5))
        lane.promote(p3)
        d3 = lane.submit([(0, 6 * PAGE, PAGE)])
        assert lane.next(0.05) is None
        lane.release(held[0])
        order = []
        for _ in range(4):
            order.append(lane.take().ticket)
            lane.release(order[-1])
        # Prefetches: only one frame may be theirs, so they too go one by one.
        for _ in range(2):
            order.append(lane.take().ticket)
            lane.release(order[-1])
        assert order == [d1, d2, p3, d3, p1, p2]


@pytest.mark.parametrize("n_frames", [2, 4, 9])
def test_one_frame_in_four_and_at_least_one_is_kept_for_demand(n_frames: int, pages_file: Path) -> None:
    kept = max(1, n_frames // 4)
    with open_files(pages_file, frame_bytes=PAGE, n_frames=n_frames) as lane:
        prefetches = [lane.submit([(0, page * PAGE, PAGE)], PREFETCH) for page in range(n_frames)]
        ready = [lane.take().ticket for _ in range(n_frames - kept)]
        assert lane.next(0.05) is None, "a prefetch took a frame kept for demand"
        demands = [lane.submit([(0, 0, PAGE)]) for _ in range(kept)]
        assert {lane.take().ticket for _ in demands} == set(demands)
        # A prefetch that is wanted now may use what is kept for demand, and no other frame.
        late = prefetches[-1]
        lane.promote(late)
        assert lane.next(0.05) is None
        lane.release(demands[0])
        assert lane.take().ticket == late
        assert set(ready) == set(prefetches[: n_frames - kept])


@pytest.mark.parametrize("io", KINDS)
def test_cancelling_keeps_its_word_in_every_state(io: int, pages_file: Path) -> None:
    with open_files(pages_file, io=io, frame_bytes=PAGE, n_frames=2) as lane:
        first, second = lane.submit([(0, 0, PAGE)]), lane.submit([(0, PAGE, PAGE)])
        assert {lane.take().ticket, lane.take().ticket} == {first, second}
        queued = lane.submit([(0, 2 * PAGE, PAGE)])
        assert lane.cancel(queued), "queued: goes at once"
        assert not lane.cancel(queued), "one call drops a transfer, and only that one says so"
        assert not lane.cancel(first), "delivered: the caller's to release"
        lane.release(first)
        assert lane.next(0.05) is None, "a cancelled transfer is never delivered"
        assert not lane.cancel(first), "it was delivered, whoever asks later"
        assert lane.read([(0, 9 * PAGE, 8)]) == [(9).to_bytes(8, "little")], "its frame serves the next"
        assert lane.stats.n_cancelled == 1


@pytest.mark.parametrize("io", KINDS)
def test_cancelling_while_moving_drops_what_comes_and_gives_the_frame_back(io: int, random_file: Path) -> None:
    with open_files(random_file, io=io, frame_bytes=N_BYTES, n_frames=2) as lane:
        n_true = 0
        for _ in range(30):
            ticket = lane.submit([(0, 0, N_BYTES)])
            if lane.cancel(ticket):
                n_true += 1
            else:
                assert lane.take().ticket == ticket
                lane.release(ticket)
        assert lane.next(0.1) is None
        assert n_true > 0, "nothing was caught under way"
        stats = lane.stats
        assert (stats.n_cancelled, stats.n_transfers) == (n_true, 30 - n_true)
        assert stats.raw_bytes == stats.dropped_bytes + (30 - n_true) * N_BYTES
        lane.read([(0, 0, N_BYTES)])  # both frames are free: with one lost, the second would still do, so twice
        held = [lane.submit([(0, 0, N_BYTES)]) for _ in range(2)]
        assert {lane.take().ticket, lane.take().ticket} == set(held)


@pytest.mark.parametrize("direct", WAYS)
@pytest.mark.parametrize("io", KINDS)
def test_a_file_truncated_while_in_use_fails_that_transfer_alone(io: int, direct: bool, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.bin"
    path.write_bytes(numbered_pages(1024).tobytes())
    with open_files(path, io=io, direct=direct, frame_bytes=1 << 22, n_frames=2) as lane:
        os.truncate(path, 100 * PAGE + 17)
        for offset, n_bytes in [(0, 1 << 22), (100 * PAGE, 18), (200 * PAGE, 5)]:
            lane.submit([(0, 0, 8), (0, offset, n_bytes)])
            found = lane.take()
            assert found.code == -2
            assert found.pieces == []
            # A big piece is several reads, and any that the end cuts may be the first to say so.
            assert f"file: '{path}': asked for " in str(found.error)
            assert f"the file ends at {100 * PAGE + 17} (truncated while in use?)" in str(found.error)
            if n_bytes < PAGE:
                assert f"asked for {n_bytes} bytes at {offset}," in str(found.error)
            lane.release(found.ticket)  # due, and harmless
        assert lane.read([(0, 100 * PAGE, 17)]) == [(100).to_bytes(8, "little") * 2 + b"\x64"]
        assert lane.stats.n_failed == 3
        assert lane.stats.bytes == 17


@pytest.mark.parametrize("io", KINDS)
def test_a_file_replaced_by_renaming_is_read_as_it_was(io: int, tmp_path: Path) -> None:
    path, other = tmp_path / "old.bin", tmp_path / "new.bin"
    path.write_bytes(numbered_pages(4).tobytes())
    other.write_bytes(bytes(PAGE))
    with open_files(path, io=io) as lane:
        other.rename(path)
        assert lane.read([(0, 3 * PAGE, 8)]) == [(3).to_bytes(8, "little")]


def descriptors_of(name: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if name in target:
            found.append(int(entry))
    return found


@pytest.mark.parametrize("io", KINDS)
def test_a_descriptor_that_cannot_be_read_any_more_fails_with_the_systems_reason(io: int, tmp_path: Path) -> None:
    path = tmp_path / "unreadable.bin"
    path.write_bytes(numbered_pages(4).tobytes())
    with open_files(path, io=io) as lane:
        (fd,) = descriptors_of("unreadable.bin")
        kept = os.dup(fd)
        writable = os.open(path, os.O_WRONLY)
        os.dup2(writable, fd)  # the same file, and no right to read it
        lane.submit([(0, PAGE, 10)])
        found = lane.take()
        assert found.error == f"file: '{path}': reading 10 bytes at {PAGE} failed: Bad file descriptor"
        os.dup2(kept, fd)
        os.close(kept)
        os.close(writable)
        assert lane.read([(0, PAGE, 8)]) == [(1).to_bytes(8, "little")]


def test_a_ring_that_dies_fails_its_transfers_and_ends_cleanly(pages_file: Path) -> None:
    before = set(descriptors_of("[io_uring]"))
    lane = open_files(pages_file, io=URING)
    (fd,) = set(descriptors_of("[io_uring]")) - before
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, fd)
    os.close(null)
    tickets = [lane.submit([(0, 0, 8)]) for _ in range(3)]
    errors = [lane.take() for _ in tickets]
    lane.close()
    assert all("io_uring: io_uring_enter failed" in str(found.error) for found in errors)


def test_missing_files_folders_and_pipes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(IoError, match=r"file: '.*absent\.bin' can't be opened: No such file"):
        open_files(tmp_path / "absent.bin")
    with pytest.raises(IoError, match="not a regular file"):
        open_files(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IoError, match="not a regular file"):
        open_files(tmp_path / "pipe")


def test_transfers_that_make_no_sense_are_refused_before_anything_moves(pages_file: Path) -> None:
    with open_files(pages_file, frame_bytes=2 * PAGE, max_pieces=2) as lane:
        for pieces, complaint in [
            ([], "0 pieces, expected 1 to 2"),
            ([(0, 0, 1)] * 3, "3 pieces, expected 1 to 2"),
            ([(1, 0, 1)], "source 1, there are 1"),
            ([(-1, 0, 1)], "source -1"),
            ([(0, 0, 0)], "1 byte or more"),
            ([(0, (1 << 63) - 1, 2)], "below 2\\^63"),
            ([(0, 0, 1 << 20)], "takes 1048576 bytes with alignment, a frame has 24576"),
        ]:
            with pytest.raises(ArgumentError, match=complaint):
                lane.submit(pieces)
    for options, complaint in [
        ({"n_frames": 1}, "n_frames is 1, expected 2"),
        ({"frame_bytes": 0}, "frame_bytes is 0"),
        ({"max_pieces": 0}, "max_pieces is 0"),
        ({"n_threads": 0}, "n_threads is 0"),
    ]:
        with pytest.raises(ArgumentError, match=complaint):
            open_files(pages_file, **options)
    with pytest.raises(ArgumentError, match="no paths"):
        open_files()


@pytest.mark.parametrize("io", KINDS)
def test_an_empty_file_and_a_file_of_one_byte_can_be_read(io: int, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "one").write_bytes(b"x")
    with open_files(tmp_path / "empty", tmp_path / "one", io=io) as lane:
        assert lane.read([(1, 0, 1)]) == [b"x"]
        lane.submit([(0, 0, 1)])
        assert "the file ends at 0" in str(lane.take().error)


# ---- the page cache ---------------------------------------------------------------------------------------------------------------------


def cached_pages(path: Path) -> int:
    """Pages of a file in the page cache, by mincore; needs the right to write the file, which a test has."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        n_pages = -(-len(mapped) // mmap.PAGESIZE)
        vector = (ctypes.c_ubyte * n_pages)()
        buffer = (ctypes.c_char * 1).from_buffer(mapped)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(buffer)), ctypes.c_size_t(len(mapped)), vector)
        del buffer
        assert failed == 0, os.strerror(ctypes.get_errno())
        return sum(byte & 1 for byte in vector)


def cold_file(path: Path) -> Path:
    """A file of 16 MiB that is on the disk and not in the page cache; skips where such a thing cannot be had."""
    path.write_bytes(numbered_pages(4096).tobytes())
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if cached_pages(path) > 0:
        pytest.skip("this file system keeps every page in memory (tmpfs?)")
    return path


@pytest.mark.parametrize("io", KINDS)
def test_direct_reads_leave_no_page_in_the_page_cache(io: int, tmp_path: Path) -> None:
    path = cold_file(tmp_path / "cold.bin")
    try:
        lane = open_files(path, io=io, frame_bytes=1 << 22, strict=True)
    except IoError as refusal:
        pytest.skip(f"no direct reads here: {refusal}")
    with lane:
        for offset in range(0, 16 << 20, 1 << 22):
            assert len(lane.read([(0, offset, 1 << 22)])[0]) == 1 << 22
    assert cached_pages(path) == 0
    with open_files(path, io=io, frame_bytes=1 << 22, direct=False) as lane:
        lane.read([(0, 0, 1 << 22)])
    assert cached_pages(path) >= (1 << 22) // mmap.PAGESIZE, "the measure sees pages that are there"


# ---- where the kernel refuses -----------------------------------------------------------------------------------------------------------

# Runs a script with system calls that seccomp(2) refuses, as containers do: `refuse(number, errno, [(argument, mask, value)])`.
REFUSING = """
import ctypes, errno, struct, sys
from pathlib import Path
from moepic_gguf._ffi import ffi, lib
from tests.transfer.lanes import *
from moepic_gguf.errors import IoError

said = []
@ffi.callback("moepic_log_fn")
def sink(level, text, user):
    said.append((level, ffi.string(text).decode()))
lib.moepic_log_set(sink, ffi.NULL)

def refuse(number, error, conditions=()):
    program = [(0x20, 0, 0, 0), (0x15, 0, 3 * len(conditions) + 1, number)]          # load the number; another one: allow
    for i, (argument, mask, value) in enumerate(conditions):
        left = 3 * (len(conditions) - i - 1) + 1
        program += [(0x20, 0, 0, 16 + 8 * argument), (0x54, 0, 0, mask), (0x15, 0, left, value)]
    program += [(0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]           # errno; allow
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    fprog = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    if libc.prctl(22, 2, fprog, 0, 0) != 0:
        print("no seccomp"); sys.exit(0)

path = Path(sys.argv[1])
"""
SYS_IO_URING_SETUP, SYS_FCNTL = 425, 72  # x86-64


def run_refusing(script: str, path: Path) -> str:
    if os.uname().machine != "x86_64":
        pytest.skip("system call numbers are those of x86-64")
    done = subprocess.run(
        [sys.executable, "-c", REFUSING + script, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    if "no seccomp" in done.stdout:
        pytest.skip("seccomp filters are not allowed here")
    return done.stdout


@pytest.mark.no_sanitizer
def test_a_kernel_that_forbids_io_uring_gets_threads_and_that_is_said(pages_file: Path) -> None:
    script = f"""
refuse({SYS_IO_URING_SETUP}, errno.EPERM)
for io in (AUTOMATIC, URING):
    with open_files(path, io=io) as lane:
        assert lane.describe() == "file: 4 threads, direct", lane.describe()
        assert lane.read([(0, 5 * PAGE, 8)]) == [(5).to_bytes(8, "little")]
assert [level for level, _ in said] == [1, 2], said
assert all("io_uring: the kernel refuses it: Operation not permitted; reading with threads" in text for _, text in said), said
try:
    open_files(path, io=URING, strict=True)
except IoError as error:
    assert "the kernel refuses it" in str(error)
    print("refused")
"""
    assert run_refusing(script, pages_file) == "refused\n"


@pytest.mark.no_sanitizer
@pytest.mark.parametrize("io", KINDS)
def test_without_direct_reads_pages_are_given_back_and_that_is_said(io: int, tmp_path: Path) -> None:
    script = f"""
refuse({SYS_FCNTL}, errno.EINVAL, [(1, 0xFFFFFFFF, {fcntl.F_SETFL}), (2, {os.O_DIRECT}, {os.O_DIRECT})])
with open_files(path, io={io}, frame_bytes=1 << 20) as lane:
    print(lane.describe())
    for page in range(0, 4096, 256):
        assert lane.read([(0, page * PAGE + 8, 1 << 19)])[0][:8] == page.to_bytes(8, "little")
assert len(said) == 1 and said[0][0] == 2 and "no O_DIRECT (Invalid argument)" in said[0][1], said
try:
    open_files(path, io={io}, strict=True)
except IoError as error:
    assert "no O_DIRECT" in str(error)
    print("refused")
"""
    path = cold_file(tmp_path / "cold.bin")
    reader = "io_uring" if io == URING else "4 threads"
    assert run_refusing(script, path) == f"file: {reader}, page cache given back (no O_DIRECT)\nrefused\n"
    assert cached_pages(path) == 0


def test_a_file_system_without_direct_reads_is_recognised() -> None:
    """sysfs has real sizes and takes no O_DIRECT; here it stands for FUSE and old overlays."""
    path = Path("/sys/kernel/btf/vmlinux")
    try:
        content = path.read_bytes()
    except OSError as error:
        pytest.skip(f"needs {path}: {error}")
    with open_files(path) as lane:
        if "no O_DIRECT" not in lane.describe():
            pytest.skip("this kernel reads sysfs directly")
        assert lane.read([(0, 4321, 100_000)]) == [content[4321:104_321]]
        assert lane.read([(0, len(content) - 5, 5)]) == [content[-5:]]


# ---- ends and threads -------------------------------------------------------------------------------------------------------------------


@pytest.mark.threads
@pytest.mark.parametrize("io", KINDS)
def test_a_lane_can_end_with_transfers_queued_moving_and_ready(io: int, random_file: Path) -> None:
    for n in range(12):
        lane = open_files(random_file, io=io, frame_bytes=1 << 20, n_frames=4)
        for i in range(n):
            lane.submit([(0, i * PAGE, 1 << 20)], DEMAND if i % 2 else PREFETCH)
        lane.close()


@pytest.mark.threads
@pytest.mark.parametrize("io", KINDS)
def test_every_transfer_is_delivered_once_or_cancelled_whoever_calls_at_once(io: int, pages_file: Path) -> None:
    with open_files(pages_file, io=io, frame_bytes=PAGE, n_frames=6) as lane:
        lane.stress(4, 500, 256)
        stats = lane.stats
        assert stats.n_transfers + stats.n_cancelled == 4 * 500
        assert stats.n_failed == 0
