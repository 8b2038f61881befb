"""Opening device libraries, and memory, streams, events and mailboxes through the table (device/library.h, device/buffer.h)."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError, OutOfMemory

from .devices import CUDA, EMULATED, KINDS, call, counters, need, open_device, set_options
from .planting import environment


@pytest.fixture(autouse=True)
def clean_emulation():
    open_device(EMULATED)
    set_options()
    yield
    set_options()


def round_trip(kind: int, n_words: int, piece_words: int) -> None:
    sent = np.random.default_rng(n_words).integers(0, 1 << 32, n_words, np.uint32)
    received = np.zeros_like(sent)
    call(
        lib.moepic_test_device_round_trip(
            kind, ffi.from_buffer(sent), sent.nbytes, piece_words * 4, ffi.from_buffer(received, require_writable=True)
        )
    )
    np.testing.assert_array_equal(received, sent)


@pytest.mark.threads
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_words", "piece_words"), [(1, 1), (255, 256), (257, 257), (5000, 700)])
def test_bytes_come_back_from_a_device(kind, n_words, piece_words):
    need(kind)
    round_trip(kind, n_words, piece_words)


@pytest.mark.threads
@pytest.mark.parametrize("seed", range(4))
def test_events_order_streams_however_late_copies_are(seed):
    set_options(most_delay_us=2000, seed=seed)
    round_trip(EMULATED, 1000, 100)


def test_owners_give_everything_back():
    before = counters()
    round_trip(EMULATED, 1000, 300)
    after = counters()
    assert after["device_bytes"] == before["device_bytes"]
    assert after["pinned_bytes"] == before["pinned_bytes"]
    assert after["n_copies"] - before["n_copies"] == 4
    assert after["n_launches"] - before["n_launches"] == 4


def test_too_little_device_memory_names_what_it_was_for():
    set_options(memory_bytes=1000)
    with pytest.raises(OutOfMemory, match=r"the way there \(1\.95 KiB\).*out of memory"):
        round_trip(EMULATED, 500, 500)


@pytest.mark.parametrize("n", range(1, 5))
def test_an_allocation_that_fails_leaves_nothing_behind(n):
    before = counters()
    set_options(failing_allocation=n)
    with pytest.raises(OutOfMemory):
        round_trip(EMULATED, 100, 100)
    after = counters()
    assert (after["device_bytes"], after["pinned_bytes"]) == (before["device_bytes"], before["pinned_bytes"])


@pytest.mark.parametrize("option", ["failing_copy", "failing_launch"])
def test_a_failing_copy_or_launch_is_a_device_error(option):
    before = counters()
    set_options(**{option: 2})
    with pytest.raises(DeviceError, match="failed"):
        round_trip(EMULATED, 1000, 300)
    after = counters()
    assert (after["device_bytes"], after["pinned_bytes"]) == (before["device_bytes"], before["pinned_bytes"])


def test_the_emulation_says_what_it_is():
    info = open_device(EMULATED)
    assert info.is_emulated == 1
    assert ffi.string(info.name) == b"SIMT emulation"


@pytest.mark.parametrize(("kind", "option"), [(CUDA, "MOEPIC_CUDA"), (EMULATED, "MOEPIC_SIMT")])
def test_a_library_that_is_not_there_names_its_place_and_the_option_that_builds_it(tmp_path, kind, option):
    with pytest.raises(DeviceError, match=rf"'{tmp_path}/libmoepic_\w+\.so' does not exist.*{option}=ON"):
        open_device(kind, str(tmp_path))


def test_a_file_that_is_no_library_is_an_error(tmp_path):
    (tmp_path / "libmoepic_simt.so").write_bytes(b"not a library")
    with pytest.raises(DeviceError, match="can't load"):
        open_device(EMULATED, str(tmp_path))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build a library")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("extern int other; int other;", "has no moepic_device_api"),
        (
            'extern "C" const unsigned* moepic_device_api() { static const unsigned table[2] = {9999, 8}; return table; }',
            "table version 9999 of 8 bytes",
        ),
    ],
)
def test_a_library_of_another_make_is_an_error(tmp_path, source, words):
    (tmp_path / "other.cpp").write_text(source)
    subprocess.run(
        ["g++", "-shared", "-fPIC", tmp_path / "other.cpp", "-o", tmp_path / "libmoepic_simt.so"],
        check=True,
        env=environment(),
    )
    with pytest.raises(DeviceError, match=words):
        open_device(EMULATED, str(tmp_path))
