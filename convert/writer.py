"""Streams tensors into GGUF v3 files, one or many shards, so that a target is either whole or absent. Knows no models
and no quantization.

All shards are written under `NAME.partial`, flushed to disk, and renamed last: the first shard, by which a set is
opened, comes at the very end. A `.partial` file is locked while its writer lives, so leftovers of a killed run are
told from a run at work; they are overwritten or removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from moepic_gguf.errors import ConversionError

from . import keys as k
from .tensors import Tensor

# Of pre-split files: direct reads of a segment start at a page. Ordinary files keep GGUF's default, because llama-quantize copies the key of
# another alignment into files that it aligns to 32 (seen in 0.5.0-dev), which nothing can read.
SPLIT_ALIGNMENT = 4096
DEFAULT_ALIGNMENT = 32
_PARTIAL = ".partial"
_SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Shard:
    """One file to write: its name, its keys and its tensors, in order."""

    path: Path
    keys: k.Keys
    tensors: Sequence[Tensor]
    alignment: int

    def padded(self, n: int) -> int:
        """`n` rounded up to the alignment."""
        return -(-n // self.alignment) * self.alignment

    def header(self) -> bytes:
        """Everything before the tensor data, padded."""
        infos: list[bytes] = []
        offset = 0
        for tensor in self.tensors:
            dims = tensor.shape[::-1]
            name = tensor.name.encode()
            infos.append(
                struct.pack("<Q", len(name))
                + name
                + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, int(tensor.kind), offset)
            )
            offset += self.padded(tensor.n_bytes)
        entries = b"".join(k.entry(name, value) for name, value in self.keys.items())
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys)) + entries + b"".join(infos)
        return head.ljust(self.padded(len(head)), b"\0")

    def n_bytes(self) -> int:
        return len(self.header()) + sum(self.padded(t.n_bytes) for t in self.tensors)


def shard_path(target: Path, number: int, count: int) -> Path:
    """The name of shard `number` (from 0) of `count`, by llama.cpp's convention; `target` itself where there is only
    one.
    """
    if count == 1:
        return target
    stem = _SHARD_NAME.sub("", target.name.removesuffix(".gguf"))
    return target.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")


def lay_out(
    target: Path, keys: k.Keys, groups: Sequence[Sequence[Tensor]], max_shard_bytes: int | None, alignment: int
) -> list[Shard]:
    """Distribute tensors over shards, in order.

    groups           each group begins a new shard (one group: no forced border).
    max_shard_bytes  tensor bytes of a shard; a single larger tensor gets a shard of its own. None: no limit.
    alignment        of the data of every tensor, a power of two.
    The first shard has all keys; the others only those of the split.
    """
    parts: list[list[Tensor]] = []
    for group in groups:
        size = 0
        for i, tensor in enumerate(group):
            if i == 0 or (max_shard_bytes is not None and size + tensor.n_bytes > max_shard_bytes):
                parts.append([])
                size = 0
            parts[-1].append(tensor)
            size += tensor.n_bytes
    parts = parts or [[]]
    total = sum(map(len, parts))
    shards: list[Shard] = []
    for number, part in enumerate(parts):
        own = dict(keys) if number == 0 else {}
        if alignment != DEFAULT_ALIGNMENT:
            own["general.alignment"] = k.u32(alignment)
        if len(parts) > 1:
            own |= {"split.no": k.u16(number), "split.count": k.u16(len(parts)), "split.tensors.count": k.i32(total)}
        shards.append(Shard(shard_path(target, number, len(parts)), own, part, alignment))
    return shards


def check_target(shards: Sequence[Shard], inputs: Sequence[Path], *, force: bool) -> None:
    """Raise ConversionError if the target is an input, exists without `force`, lies nowhere, or does not fit the
    disk.
    """
    folder = shards[0].path.parent
    if not folder.is_dir():
        raise ConversionError(f"output folder '{folder}' does not exist")
    for shard in shards:
        if shard.path.is_dir():
            raise ConversionError(
                f"output '{shard.path}' is a folder; name a file, for example '{shard.path / 'model.gguf'}'"
            )
        for path in inputs:
            if shard.path.exists() and path.exists() and shard.path.samefile(path):
                raise ConversionError(f"output '{shard.path}' is also an input; choose another name")
        if shard.path.exists() and not force:
            raise ConversionError(f"output '{shard.path}' exists; pass --force to replace it")
    needed = sum(shard.n_bytes() for shard in shards)
    # Leftovers are overwritten or removed, so their blocks count as free.
    held = sum(path.stat().st_blocks * 512 for path in _leftovers(shards))
    free = shutil.disk_usage(folder).free + held
    if needed > free:
        raise ConversionError(f"output needs {needed} bytes, '{folder}' has {free} free (short by {needed - free})")


def _leftovers(shards: Sequence[Shard]) -> list[Path]:
    """`.partial` files of this target, with any shard count."""
    first = shards[0].path
    stem = re.escape(_SHARD_NAME.sub("", first.name.removesuffix(".gguf")))
    ours = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.gguf\{_PARTIAL}")
    names = {_partial(shard.path).name for shard in shards}
    return sorted(path for path in first.parent.glob(f"*{_PARTIAL}") if path.name in names or ours.fullmatch(path.name))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)


def _open_locked(path: Path) -> BinaryIO:
    file = open(path, "ab")  # noqa: SIM115 - the caller's ExitStack closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConversionError(
            f"'{path}' is being written by another conversion; wait for it, or choose another name"
        ) from None
    file.truncate(0)
    return file


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(shards: Sequence[Shard], progress: Callable[[int], None] = lambda n: None) -> None:
    """Write all shards; `progress` is called with the bytes of each step.

    On any failure, Ctrl-C included, the partial files are removed and an older target stays as it was. Raises
    ConversionError (a tensor whose data disagrees with its shape, another writer at work) and OSError.
    """
    folder = shards[0].path.parent
    with contextlib.ExitStack() as stack:
        held: list[Path] = []
        stack.callback(_remove, held)
        files: list[BinaryIO] = []
        for shard in shards:
            files.append(stack.enter_context(_open_locked(_partial(shard.path))))
            held.append(_partial(shard.path))
        for path in _leftovers(shards):
            if path not in held:
                with _open_locked(path):
                    path.unlink()
        for shard, file in zip(shards, files, strict=True):
            _write_shard(shard, file, progress)
            file.flush()
            os.fsync(file.fileno())
        # From here a set is incomplete until its first shard, the one people open, is there again.
        if len(shards) > 1:
            shards[0].path.unlink(missing_ok=True)
        for shard in reversed(shards):
            os.replace(_partial(shard.path), shard.path)
        held.clear()
        _sync_folder(folder)


def _write_shard(shard: Shard, file: BinaryIO, progress: Callable[[int], None]) -> None:
    header = shard.header()
    file.write(header)
    progress(len(header))
    for tensor in shard.tensors:
        written = 0
        for chunk in tensor.chunks():
            file.write(chunk.data)
            written += chunk.nbytes
            progress(chunk.nbytes)
        if written != tensor.n_bytes:
            raise ConversionError(
                f"tensor '{tensor.name}': {written} bytes were made, its shape {list(tensor.shape)} takes "
                f"{tensor.n_bytes}"
            )
        padding = shard.padded(written) - written
        file.write(b"\0" * padding)
        progress(padding)
