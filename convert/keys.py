"""Metadata keys of a GGUF as bytes: each function gives a value's type and content as the file holds them (GGUF v3,
little endian).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

# name -> serialised value (u32 type, then content). Order is the order in the file.
Keys = dict[str, bytes]

_U16, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9


def _text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def u16(value: int) -> bytes:
    return struct.pack("<IH", _U16, value)


def u32(value: int) -> bytes:
    return struct.pack("<II", _U32, value)


def i32(value: int) -> bytes:
    return struct.pack("<Ii", _I32, value)


def f32(value: float) -> bytes:
    return struct.pack("<If", _F32, value)


def boolean(value: bool) -> bytes:
    return struct.pack("<I?", _BOOL, value)


def string(value: str) -> bytes:
    return struct.pack("<I", _STRING) + _text(value)


def strings(values: Sequence[str]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, _STRING, len(values)) + b"".join(map(_text, values))


def i32s(values: Sequence[int]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, _I32, len(values)) + struct.pack(f"<{len(values)}i", *values)


def booleans(values: Sequence[bool]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, _BOOL, len(values)) + bytes(values)


def f32s(values: Sequence[float]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, _F32, len(values)) + struct.pack(f"<{len(values)}f", *values)


def entry(name: str, value: bytes) -> bytes:
    """A key with its value, as it stands in the file."""
    return _text(name) + value
