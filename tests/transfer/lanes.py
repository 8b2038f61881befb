"""The native lanes for tests: submit pieces, take deliveries, read statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moepic_gguf._ffi import ffi, lib
from moepic_gguf.metadata import checked

DEMAND, PREFETCH = 0, 1
AUTOMATIC, URING, THREADS = 0, 1, 2
PAGE = 4096

Piece = tuple[int, int, int]  # source, offset, bytes


@dataclass(frozen=True)
class Delivery:
    ticket: int
    error: str | None
    code: int
    pieces: list[Any]  # addresses
    n_bytes: list[int]
    at_s: float

    def bytes(self, piece: int = 0) -> bytes:
        return bytes(ffi.buffer(self.pieces[piece], self.n_bytes[piece]))


class Lane:
    """A lane of either kind; close it, or use it in `with`."""

    def __init__(self, handle: Any, kept: Any = None) -> None:
        self.handle = handle
        self._kept = kept  # memory that must live as long
        self._sent: dict[int, list[int]] = {}

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.handle is not None:
            lib.moepic_test_lane_free(self.handle)
            self.handle = None

    def submit(self, pieces: Sequence[Piece], urgency: int = DEMAND) -> int:
        ticket = ffi.new("uint64_t *")
        given = ffi.new("moepic_test_piece[]", [tuple(piece) for piece in pieces])
        checked(lib.moepic_test_lane_submit(ticket, self.handle, given, len(pieces), urgency))
        self._sent[ticket[0]] = [n for _, _, n in pieces]
        return int(ticket[0])

    def promote(self, ticket: int) -> None:
        lib.moepic_test_lane_promote(self.handle, ticket)

    def cancel(self, ticket: int) -> bool:
        return bool(lib.moepic_test_lane_cancel(self.handle, ticket))

    def release(self, ticket: int) -> None:
        lib.moepic_test_lane_release(self.handle, ticket)

    def next(self, timeout_s: float = 20.0) -> Delivery | None:
        """The next delivery; None when none comes in time."""
        out = ffi.new("moepic_test_delivery *")
        lib.moepic_test_lane_next(out, self.handle, timeout_s)
        if out.ticket == 0:
            return None
        error = ffi.string(out.error).decode() if out.code else None
        pieces = [out.pieces[i] for i in range(out.n_pieces)]
        return Delivery(out.ticket, error, out.code, pieces, self._sent[out.ticket], out.at_s)

    def take(self, timeout_s: float = 20.0) -> Delivery:
        """The next delivery, which must come."""
        found = self.next(timeout_s)
        assert found is not None, "nothing was delivered in time"
        return found

    def read(self, pieces: Sequence[Piece], urgency: int = DEMAND) -> list[bytes]:
        """One transfer from start to end, alone."""
        ticket = self.submit(pieces, urgency)
        found = self.take()
        assert found.ticket == ticket
        assert found.error is None, found.error
        copies = [found.bytes(i) for i in range(len(pieces))]
        self.release(ticket)
        return copies

    @property
    def stats(self) -> Any:
        out = ffi.new("moepic_test_lane_stats *")
        lib.moepic_test_lane_get_stats(out, self.handle)
        return out

    def reset_stats(self) -> None:
        lib.moepic_test_lane_reset_stats(self.handle)

    def claim(self) -> tuple[int, int, bool, int] | None:
        """Of a manual lane: number, ticket, whether it is the first of its transfer, offset of the step that goes now."""
        claim, first = ffi.new("int32_t *"), ffi.new("int32_t *")
        ticket, offset = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.moepic_test_lane_claim(claim, ticket, first, offset, self.handle)
        return None if claim[0] < 0 else (claim[0], ticket[0], bool(first[0]), offset[0])

    def finish(self, claim: int, moved_bytes: int, *, fails: bool = False) -> None:
        lib.moepic_test_lane_finish(self.handle, claim, moved_bytes, fails)

    def stress(self, n_threads: int, n_transfers: int, n_pages: int) -> None:
        checked(lib.moepic_test_lane_stress(self.handle, n_threads, n_transfers, n_pages))

    def describe(self) -> str:
        text = ffi.new("char[]", 256)
        lib.moepic_test_lane_describe(text, 256, self.handle)
        return ffi.string(text).decode()


def open_files(
    *paths: Path,
    frame_bytes: int = 1 << 20,
    max_pieces: int = 3,
    n_frames: int = 4,
    io: int = AUTOMATIC,
    n_threads: int = 4,
    direct: bool = True,
    strict: bool = False,
) -> Lane:
    made = ffi.new("moepic_test_lane **")
    names = [ffi.new("char[]", str(path).encode()) for path in paths]
    options = ffi.new("moepic_test_file_io *", (io, n_threads, direct, strict))
    checked(
        lib.moepic_test_lane_open_files(
            made, ffi.new("char *[]", names), len(names), frame_bytes, max_pieces, n_frames, options
        )
    )
    return Lane(made[0])


def open_link(
    *sources: np.ndarray,
    bytes_s: float,
    latency_s: float = 0.0,
    frame_bytes: int = 1 << 20,
    max_pieces: int = 3,
    n_frames: int = 4,
) -> Lane:
    made = ffi.new("moepic_test_lane **")
    pointers = [ffi.cast("uint8_t *", source.ctypes.data) for source in sources]
    sizes = [source.nbytes for source in sources]
    checked(
        lib.moepic_test_lane_open_link(
            made,
            ffi.new("uint8_t *[]", pointers),
            ffi.new("uint64_t[]", sizes),
            len(sources),
            frame_bytes,
            max_pieces,
            n_frames,
            bytes_s,
            latency_s,
        )
    )
    return Lane(made[0], sources)


def open_manual(*, frame_bytes: int = 1 << 20, max_pieces: int = 4, n_frames: int = 4, depth: int = 8) -> Lane:
    made = ffi.new("moepic_test_lane **")
    checked(lib.moepic_test_lane_open_manual(made, frame_bytes, max_pieces, n_frames, depth))
    return Lane(made[0])


def numbered_pages(n_pages: int) -> np.ndarray:
    """Pages that hold their own number in every 8-byte word, as bytes: any misplaced piece shows."""
    return np.repeat(np.arange(n_pages, dtype=np.uint64), PAGE // 8).view(np.uint8)
