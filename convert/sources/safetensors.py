"""Reads safetensors files: headers checked, rows read on demand as float32. Plain `pread`, so memory holds what was
asked for and no more.

Layout: u64 length of a JSON header, the header (name -> dtype, shape, data_offsets from its end), then the data.
Source: the safetensors format description, https://github.com/huggingface/safetensors. (Its Python package cannot
give bfloat16 to numpy.)
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moepic_gguf.errors import ConversionError

from ..tensors import Floats

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}
_LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Weights:
    """A stored tensor. `rows` reads a run of rows of its 2-D view, where all but the last dimension are rows."""

    name: str
    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        n = 1
        for size in self.shape[:-1]:
            n *= size
        return n

    def rows(self, first: int, last: int) -> Floats:
        """Rows [first, last) as float32 `[last - first, cols]`. Raises ConversionError where the file ends early."""
        values = self.codes(first, last)
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False)

    def codes(self, first: int, last: int) -> npt.NDArray[Any]:
        """The same rows in the type they are stored in; bfloat16 as uint16."""
        stored = np.dtype(_DTYPES[self.dtype])
        size = (last - first) * self.cols * stored.itemsize
        raw = bytearray(size)
        view, done = memoryview(raw), 0
        with open(self.path, "rb") as file:
            file.seek(self.offset + first * self.cols * stored.itemsize)
            while done < size:
                n = file.readinto(view[done:])
                if not n:
                    raise ConversionError(f"'{self.path.name}' ends inside tensor '{self.name}' (truncated download?)")
                done += n
        return np.frombuffer(raw, stored).reshape(last - first, self.cols)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ConversionError(f"'{path.name}' has {size} bytes, too few for a safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > min(size - 8, _LARGEST_HEADER):
            raise ConversionError(
                f"'{path.name}' declares a header of {length} bytes in a file of {size} (not safetensors, or a "
                f"truncated download?)"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ConversionError(f"'{path.name}': the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ConversionError(f"'{path.name}': the safetensors header is {type(header).__name__}, expected an object")
    return header, 8 + length


def _read_file(path: Path) -> dict[str, Weights]:
    header, start = _header(path)
    available = path.stat().st_size - start
    found: dict[str, Weights] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
            begin, end = int(begin), int(end)
        except (KeyError, TypeError, ValueError):
            raise ConversionError(f"'{path.name}': tensor '{name}' has a malformed entry in the header") from None
        if dtype not in _DTYPES:
            raise ConversionError(
                f"'{path.name}': tensor '{name}' is stored as {dtype}; supported: {', '.join(_DTYPES)} (a "
                f"quantized checkpoint? convert the original)"
            )
        if not 0 <= begin <= end <= available:
            raise ConversionError(
                f"'{path.name}': tensor '{name}' ends at byte {end}, the file has {available} (truncated download?)"
            )
        weights = Weights(name, path, start + begin, dtype, shape or (1,))
        if weights.n_rows * weights.cols * np.dtype(_DTYPES[dtype]).itemsize != end - begin or any(
            n < 1 for n in shape
        ):
            raise ConversionError(
                f"'{path.name}': tensor '{name}' of shape {list(shape)} does not fill its {end - begin} bytes of "
                f"{dtype}"
            )
        found[name] = weights
    return found


def read_folder(folder: Path) -> dict[str, Weights]:
    """All tensors of a checkpoint folder: one safetensors file, or the shards its index names. Raises
    ConversionError.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            names = sorted(set(wanted.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConversionError(f"'{index.name}' is not a safetensors index") from None
        if any(os.path.basename(name) != name for name in names):
            raise ConversionError(f"'{index.name}' names files outside the folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConversionError(
                f"'{folder.name}' lacks {len(missing)} of {len(names)} shards, first '{missing[0]}' (an "
                f"incomplete download?)"
            )
    else:
        wanted = {}
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names:
            other = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
            hint = (
                f"; '{other[0]}' is a pickle, which can run code: save the model as safetensors first" if other else ""
            )
            raise ConversionError(f"'{folder}' has no *.safetensors{hint}")
    tensors: dict[str, Weights] = {}
    for name in names:
        for tensor, weights in _read_file(folder / name).items():
            if wanted and wanted.get(tensor) != name:
                continue
            if tensor in tensors:
                raise ConversionError(f"tensor '{tensor}' is in '{tensors[tensor].path.name}' and in '{name}'")
            tensors[tensor] = weights
    lost = sorted(set(wanted) - set(tensors))
    if lost:
        raise ConversionError(f"'{index.name}' promises tensor '{lost[0]}', which '{wanted[lost[0]]}' does not hold")
    return tensors
