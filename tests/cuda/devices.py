"""The kinds of device that tests run on: the emulation always, a GPU where there is one."""

from __future__ import annotations

import pytest

from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError, check

EMULATED, CUDA = 0, 1
KINDS = [pytest.param(EMULATED, id="emulated"), pytest.param(CUDA, id="cuda", marks=pytest.mark.gpu)]


def call(code: int) -> None:
    check(code, ffi.string(lib.moepic_last_error()).decode())


def open_device(kind: int, folder: str | None = None):
    """The device's description; raises DeviceError where there is none."""
    info = ffi.new("moepic_test_device_info *")
    call(lib.moepic_test_device_open(kind, ffi.NULL if folder is None else folder.encode(), info))
    return info


def need(kind: int) -> None:
    """Open the device of `kind`, or skip with the reason if it is a GPU that is not there."""
    try:
        open_device(kind)
    except DeviceError as error:
        if kind == EMULATED:
            raise
        pytest.skip(str(error))


def set_options(
    *,
    memory_bytes: int = 4 << 30,
    seed: int = 1,
    n_threads: int = 2,
    most_delay_us: int = 0,
    failing_allocation: int = 0,
    failing_copy: int = 0,
    failing_launch: int = 0,
    starving_launch: int = 0,
) -> None:
    """What the emulated device has and what goes wrong on it (native/src/device/simt_options.h)."""
    call(
        lib.moepic_test_simt_options(
            memory_bytes,
            seed,
            n_threads,
            most_delay_us,
            failing_allocation,
            failing_copy,
            failing_launch,
            starving_launch,
        )
    )


def counters() -> dict[str, int]:
    device_bytes, pinned_bytes = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    n_launches, n_copies = ffi.new("int64_t *"), ffi.new("int64_t *")
    call(lib.moepic_test_simt_counters(device_bytes, pinned_bytes, n_launches, n_copies))
    return {
        "device_bytes": device_bytes[0],
        "pinned_bytes": pinned_bytes[0],
        "n_launches": n_launches[0],
        "n_copies": n_copies[0],
    }
