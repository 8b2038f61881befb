"""The native reader as Python objects, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft import ARRAY

from moepic_gguf._ffi import ffi, lib


class Refused(Exception):
    """The reader's refusal: ``code`` and ``text``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


@dataclass(frozen=True)
class Tensor:
    """A row of the tensor table; ``data`` is None when the type is unknown."""

    name: str
    type: int
    dims: tuple[int, ...]
    shard: int
    offset: int
    data: bytes | None


class File:
    """An open file; ``keys`` maps names to (type, element type, elements)."""

    def __init__(self, handle: Any, keep: object = None) -> None:
        self._handle, self._keep = ffi.gc(handle, lib.moepic_file_free), keep

    @classmethod
    def parse(cls, data: bytes, name: str = "test.gguf") -> File:
        """Read bytes in memory. Raises Refused."""
        out = ffi.new("moepic_file **")
        # A copy of the exact size, so that a sanitizer sees a read past the end.
        copy = ffi.new("char[]", data) if not data else ffi.from_buffer(bytearray(data))
        _check(lib.moepic_test_gguf_parse(out, copy, len(data), name.encode()))
        return cls(out[0], copy)

    @classmethod
    def open(cls, path: Path | str) -> File:
        """Open a file or a split. Raises Refused."""
        out = ffi.new("moepic_file **")
        _check(lib.moepic_file_open(out, str(path).encode()))
        return cls(out[0])

    def element(self, key: int, index: int) -> Any:
        """Conversions of one element (moepic_test_gguf_element)."""
        out = ffi.new("moepic_test_gguf_element *")
        _check(lib.moepic_test_gguf_get(out, self._handle, key, index))
        return out

    def _value(self, key: int, index: int) -> Any:
        out = self.element(key, index)
        if out.has_text:
            return _bytes(out.text)
        if out.has_bool:
            return bool(out.boolean)
        if out.has_i64:
            return out.i64
        if out.has_u64:
            return out.u64
        return out.f64 if out.has_f64 else None

    @property
    def keys(self) -> dict[str, tuple[int, int, list[Any]]]:
        """Names to (type, element type, elements); elements of nested arrays are None, as the reader skips them."""
        out = {}
        info = ffi.new("moepic_key *")
        for i in range(lib.moepic_file_key_count(self._handle)):
            _check(lib.moepic_file_key(info, self._handle, i))
            name = _bytes(info.name).decode()
            nested = info.type == ARRAY and info.element_type == ARRAY
            values = [None if nested else self._value(i, j) for j in range(info.count)]
            out[name] = (info.type, info.element_type, values)
        return out

    @property
    def tensors(self) -> list[Tensor]:
        """All shards' tensors."""
        out = []
        row = ffi.new("moepic_tensor *")
        for i in range(lib.moepic_file_tensor_count(self._handle)):
            _check(lib.moepic_file_tensor(row, self._handle, i))
            data = None if row.data == ffi.NULL else bytes(ffi.buffer(row.data, row.n_bytes))
            dims = tuple(row.ne[d] for d in range(row.n_dims))
            out.append(Tensor(_bytes(row.name).decode(), row.type, dims, row.shard, row.offset, data))
        return out

    def find_key(self, name: str) -> int:
        """Position, or -1."""
        out = ffi.new("int64_t *")
        _check(lib.moepic_test_gguf_find_key(out, self._handle, name.encode()))
        return int(out[0])

    def find_tensor(self, name: str) -> int:
        """Position, or -1."""
        out = ffi.new("int64_t *")
        _check(lib.moepic_test_gguf_find_tensor(out, self._handle, name.encode()))
        return int(out[0])

    def facts(self) -> tuple[int, int]:
        """Version and alignment."""
        version, alignment = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        _check(lib.moepic_test_gguf_facts(version, alignment, self._handle))
        return version[0], alignment[0]

    def read(self, tensor: int, at: int, n: int) -> bytes:
        """Bytes of a tensor's data by system calls."""
        out = bytearray(n)
        _check(lib.moepic_test_gguf_read(ffi.from_buffer("uint8_t[]", out), self._handle, tensor, at, n))
        return bytes(out)

    @property
    def shard_paths(self) -> list[str]:
        """Files in shard order."""
        out = []
        text = ffi.new("moepic_text *")
        for i in range(lib.moepic_file_shard_count(self._handle)):
            _check(lib.moepic_file_shard_path(text, self._handle, i))
            out.append(_bytes(text).decode())
        return out


def _bytes(text: Any) -> bytes:
    return bytes(ffi.buffer(text.data, text.size)) if text.size else b""


def _check(code: int) -> None:
    if code != 0:
        raise Refused(code, ffi.string(lib.moepic_last_error()).decode())
