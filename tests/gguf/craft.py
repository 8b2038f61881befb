"""GGUF bytes made by hand, from the format's description alone: no reader or writer of ours or of others takes part.

Every count, length and offset can be given falsely, which is what the hostile files of ``hostile.py`` do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B",
    U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip

U64_MAX = 2**64 - 1
TYPE_F32, TYPE_Q4_0, TYPE_Q8_0, TYPE_Q4_K, TYPE_UNKNOWN = 0, 2, 8, 12, 4242
BLOCKS = {TYPE_F32: (1, 4), TYPE_Q4_0: (32, 18), TYPE_Q8_0: (32, 34), TYPE_Q4_K: (256, 144)}


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string: u64 length (a false one when given), then the bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def scalar(kind: int, value: int | float | str | bytes) -> bytes:
    """The payload of one value, without its type tag."""
    if kind == STRING:
        assert isinstance(value, (str, bytes))
        return text(value)
    return struct.pack(CODES[kind], value)


def array(kind: int, payloads: Iterable[bytes], count: int | None = None) -> bytes:
    """An array payload: element type, count (a false one when given), elements."""
    parts = list(payloads)
    return struct.pack("<IQ", kind, len(parts) if count is None else count) + b"".join(parts)


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    """One key with its type tag and payload."""
    return text(name) + struct.pack("<I", kind) + payload


def number(name: str | bytes, kind: int, value: int | float) -> bytes:
    """A key with a number."""
    return key(name, kind, scalar(kind, value))


def words(name: str | bytes, value: str | bytes) -> bytes:
    """A key with a string."""
    return key(name, STRING, text(value))


@dataclass
class TensorSpec:
    """One row of the tensor table; ``offset`` None means: after the tensor before, aligned."""

    name: str | bytes
    dims: Sequence[int]
    type: int = TYPE_F32
    offset: int | None = None
    n_dims: int | None = None
    n_bytes: int | None = None

    def size(self) -> int:
        """Bytes of data that the file carries for it."""
        if self.n_bytes is not None:
            return self.n_bytes
        length, size = BLOCKS.get(self.type, (1, 0))
        elements = 1
        for dim in self.dims:
            elements *= dim
        return elements // length * size


@dataclass
class Craft:
    """A file to be: ``build()`` gives its bytes. Data repeats the bytes 1 to 251, so that a shifted read shows."""

    keys: list[bytes] = field(default_factory=lambda: [words("general.architecture", "llama")])
    tensors: list[TensorSpec] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    data: bytes | None = None

    def build(self) -> bytes:
        """The whole file."""
        out = bytearray(self.magic + struct.pack("<I", self.version))
        out += struct.pack("<Q", len(self.tensors) if self.n_tensors is None else self.n_tensors)
        out += struct.pack("<Q", len(self.keys) if self.n_keys is None else self.n_keys)
        out += b"".join(self.keys)
        end = 0
        for tensor in self.tensors:
            offset = end if tensor.offset is None else tensor.offset
            if tensor.offset is None:
                end = -(-(offset + tensor.size()) // self.alignment) * self.alignment
            out += text(tensor.name)
            out += struct.pack("<I", len(tensor.dims) if tensor.n_dims is None else tensor.n_dims)
            out += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims) + struct.pack("<IQ", tensor.type, offset)
        if self.tensors:
            out += bytes(-len(out) % self.alignment)
            out += (bytes(range(1, 252)) * (end // 251 + 1))[:end] if self.data is None else self.data
        return bytes(out)


def rich() -> Craft:
    """A well-formed file with every value type, arrays of each, and tensors of known and unknown types."""
    values = {U8: 255, I8: -128, U16: 65535, I16: -32768, U32: 2**32 - 1, I32: -(2**31), F32: 1.5, BOOL: 1}
    values |= {U64: U64_MAX, I64: -(2**63), F64: -2.25}
    keys = [words("general.architecture", "llama"), number("general.alignment", U32, 64)]
    for kind, value in values.items():
        keys.append(number(f"scalar.{kind}", kind, value))
        keys.append(key(f"array.{kind}", ARRAY, array(kind, [scalar(kind, value), scalar(kind, 0), scalar(kind, 1)])))
    keys.append(words("text", "žluťoučký 🐎"))
    keys.append(words("text.empty", ""))
    keys.append(key("array.text", ARRAY, array(STRING, [text("a"), text(""), text(b"\xff\xfe"), text("é")])))
    keys.append(key("array.empty", ARRAY, array(U32, [])))
    nested = array(ARRAY, [array(STRING, [text("deep")]), array(ARRAY, [array(I8, [b"\x01"])]), array(BOOL, [b"\x01"])])
    keys.append(key("array.nested", ARRAY, nested))
    keys.append(number("after.nested", U32, 7))
    tensors = [
        TensorSpec("token_embd.weight", [8, 3]),
        TensorSpec("blk.0.ffn_gate_exps.weight", [32, 2, 3], TYPE_Q8_0),
        TensorSpec("future", [5, 1, 1, 2], TYPE_UNKNOWN),
        TensorSpec("blk.0.ffn_down_exps.weight", [256, 2], TYPE_Q4_K),
    ]
    return Craft(keys=keys, tensors=tensors, alignment=64)
