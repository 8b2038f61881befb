"""GGUF files seen from Python: keys as a mapping, tensors as a table. No weights are read and nothing of models is
known here.

The native reader has checked every length against the file before anything in this module runs.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArgumentError, IoError, MoepicError, UnsupportedModelError, check

_BOOL, _STRING, _ARRAY = 7, 8, 9
_FLOATS = (6, 12)


def last_error() -> str:
    """Text of the last native failure on this thread."""
    from ._ffi import ffi, lib

    return str(ffi.string(lib.moepic_last_error()), "utf-8", "replace")


def checked(code: int) -> int:
    """`code` if it is no error, else its exception with the native text. Call it on the thread that made the native
    call.
    """
    if code < 0:
        check(code, last_error())
    return code


def text_of(value: Any) -> str:
    """A native `moepic_text` as str; bytes that are not UTF-8 are replaced (names are shown, never compared)."""
    from ._ffi import ffi

    return ffi.unpack(value.data, value.size).decode("utf-8", "replace") if value.size else ""


def _string(value: Any) -> str | bytes:
    from ._ffi import ffi

    raw = ffi.unpack(value.data, value.size) if value.size else b""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


class Metadata(Mapping[str, object]):
    """The keys of one file, read on demand. Integers, floats, bools, str (bytes where a string is not UTF-8), and lists
    of these.

    A split file shows the keys of its first shard. Reading after the owner was closed raises `MoepicError`.
    """

    def __init__(self, borrow: Callable[[], Any]) -> None:
        """`borrow` returns the native file, or raises when it is closed; it is asked before every read."""
        from ._ffi import ffi, lib

        self._borrow = borrow
        self._keys: dict[str, tuple[int, int, int, int]] = {}  # name -> index, type, element type, count
        file = borrow()
        key = ffi.new("moepic_key*")
        for index in range(lib.moepic_file_key_count(file)):
            checked(lib.moepic_file_key(key, file, index))
            self._keys[text_of(key.name)] = (index, key.type, key.element_type, key.count)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __getitem__(self, name: str) -> object:
        from ._ffi import ffi, lib

        index, kind, element, count = self._keys[name]
        file = self._borrow()
        if element == _ARRAY:
            raise UnsupportedModelError(
                f"metadata: '{name}' is an array of arrays, which this reader checks but does not unfold"
            )
        values: list[Any]
        if element == _STRING:
            texts = ffi.new("moepic_text[]", max(count, 1))
            checked(lib.moepic_file_values_text(texts, file, index))
            values = [_string(texts[i]) for i in range(count)]
        elif element in _FLOATS:
            doubles = ffi.new("double[]", max(count, 1))
            checked(lib.moepic_file_values_f64(doubles, file, index))
            values = ffi.unpack(doubles, count) if count else []
        else:
            integers = ffi.new("int64_t[]", max(count, 1))
            checked(lib.moepic_file_values_i64(integers, file, index))
            values = ffi.unpack(integers, count) if count else []
            if element == _BOOL:
                values = [bool(value) for value in values]
        return values if kind == _ARRAY else values[0]

    def count(self, name: str) -> int:
        """Elements of an array key without reading them; 1 for a scalar."""
        return self._keys[name][3]

    def __repr__(self) -> str:
        return f"<Metadata: {len(self)} keys>"


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table. `shape` is row-major (the file lists dimensions fastest first)."""

    name: str
    type: str  # GGUF letters, or '?<id>' for a type this build does not know
    shape: tuple[int, ...]
    n_bytes: int  # 0 for an unknown type
    shard: int
    offset: int  # bytes from the start of that shard's file

    @property
    def n_weights(self) -> int:
        total = 1
        for length in self.shape:
            total *= length
        return total


def resolve_path(path: str | os.PathLike[str]) -> Path:
    """`path` if it is a file, else an `IoError` that says what is there and what to try. `ArgumentError` for what is no
    path at all.
    """
    try:
        found = Path(os.path.expanduser(os.fsdecode(path)))
    except TypeError:
        raise ArgumentError(f"path: expected text or a path, found {type(path).__name__} {path!r}") from None
    if not os.fspath(path):
        raise ArgumentError("path: it is empty; name a GGUF file")
    try:
        if found.is_file():
            return found
        raise IoError(f"'{found}' {_what_is_there(found)}")
    except OSError as error:
        if isinstance(error, IoError):
            raise
        raise IoError(f"'{found}' cannot be looked at: {error.strerror}") from None


def _what_is_there(found: Path) -> str:
    """The rest of the sentence that begins with a path which is no file: what it is, and what to try."""
    if found.is_dir():
        inside = sorted(found.glob("*.gguf"))
        if len(inside) == 1:
            tip = f"did you mean '{inside[0]}'?"
        elif inside:
            tip = "it holds " + ", ".join(f"'{item.name}'" for item in inside[:5])
        elif (found / "config.json").is_file():
            tip = f"it looks like a Hugging Face folder; convert it first: moepic-convert '{found}' model.gguf"
        else:
            tip = "it holds no .gguf file"
        return f"is a folder, not a GGUF file: {tip}"
    if found.exists():
        return "is no ordinary file (a device or a pipe?), and a model is mapped into memory: name a GGUF file on disk"
    if not found.parent.is_dir():
        return f"does not exist: the folder '{found.parent}' does not exist either"
    near = [item.name for item in sorted(found.parent.glob("*.gguf"))]
    if not near:
        return "does not exist: models/README.md says how to get and place models"
    close = difflib.get_close_matches(found.name, near, n=1, cutoff=0.5)
    if close:
        return f"does not exist: did you mean '{found.parent / close[0]}'?"
    return "does not exist: there are " + ", ".join(f"'{name}'" for name in near[:5])


class _Opened:
    """A native file until it is closed. A GgufFile and its keys share it: holding each other, they would stay mapped
    until Python looks for cycles.
    """

    def __init__(self, path: Path) -> None:
        from ._ffi import ffi, lib

        self._path = path
        out = ffi.new("moepic_file**")
        checked(lib.moepic_file_open(out, os.fsencode(path)))
        self._file: Any = ffi.gc(out[0], lib.moepic_file_free)

    def __call__(self) -> Any:
        if self._file is None:
            raise MoepicError(f"'{self._path}' is closed")
        return self._file

    def close(self) -> None:
        if self._file is not None:
            from ._ffi import ffi

            ffi.release(self._file)
            self._file = None


class GgufFile:
    """A GGUF file, or all shards of a split one; mapped, checked, and closed by `close()` or a `with` block.

    Raises `IoError` when it cannot be opened and `ModelFormatError` when its bytes break the format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolve_path(path)
        self._borrow = _Opened(self.path)
        self.metadata = Metadata(self._borrow)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufFile:
        """The same as `GgufFile(path)`."""
        return cls(path)

    def close(self) -> None:
        """Unmap the file; again is harmless."""
        self._borrow.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def problem(self) -> str | None:
        """Why this build can't run the file as a model (an architecture, key, tensor or type), or None; no weights are read."""
        from ._ffi import lib

        return last_error() if lib.moepic_model_check(self._borrow()) else None

    def kv_need(self) -> tuple[int, int, int] | None:
        """Bytes of keys and values in F16: per token, and in windows whatever the context; positions of a window. None where
        this build can't read the configuration.
        """
        from ._ffi import ffi, lib

        sizes = ffi.new("uint64_t[3]")
        if lib.moepic_model_kv_need(sizes, sizes + 1, sizes + 2, self._borrow()):
            return None
        return int(sizes[0]), int(sizes[1]), int(sizes[2])

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards together."""
        from ._ffi import lib

        return int(lib.moepic_file_bytes(self._borrow()))

    @property
    def shards(self) -> tuple[Path, ...]:
        """Paths of all shards in order; of an ordinary file, its own."""
        from ._ffi import ffi, lib

        file = self._borrow()
        out = ffi.new("moepic_text*")
        paths = []
        for shard in range(lib.moepic_file_shard_count(file)):
            checked(lib.moepic_file_shard_path(out, file, shard))
            paths.append(Path(os.fsdecode(ffi.unpack(out.data, out.size))))
        return tuple(paths)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensor table, in file order."""
        from ._ffi import ffi, lib

        file = self._borrow()
        row = ffi.new("moepic_tensor*")
        rows = []
        for index in range(lib.moepic_file_tensor_count(file)):
            checked(lib.moepic_file_tensor(row, file, index))
            shape = tuple(int(row.ne[i]) for i in reversed(range(row.n_dims)))
            rows.append(TensorInfo(text_of(row.name), type_name(row.type), shape, row.n_bytes, row.shard, row.offset))
        return tuple(rows)


def type_name(type_id: int) -> str:
    """GGUF letters of a block type, or '?<id>'."""
    from ._ffi import ffi, lib

    found = ffi.new("moepic_type*")
    if lib.moepic_type_get(found, type_id) < 0:
        return f"?{type_id}"
    return str(ffi.string(found.name), "ascii")
