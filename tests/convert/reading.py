"""Reads a converter's output with the `gguf` package, which is the oracle for the format and for dequantization."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quant_shape_to_byte_shape


@dataclass
class Stored:
    """`shape` is row-major; `raw` are the bytes, uint8 `[..., row bytes]`."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    raw: np.ndarray[Any, Any]
    offset: int

    def floats(self) -> np.ndarray[Any, Any]:
        return dequantize(self.raw.reshape(quant_shape_to_byte_shape(self.shape, self.kind)), self.kind).reshape(
            self.shape
        )


class File:
    """All shards of a GGUF; keys of the first."""

    def __init__(self, path: Path) -> None:
        match = re.match(r"(.*)-00001-of-(\d{5})\.gguf$", path.name)
        count = int(match[2]) if match else 1
        paths = (
            [path.with_name(f"{match[1]}-{i + 1:05d}-of-{match[2]}.gguf") for i in range(count)] if match else [path]
        )
        readers = [GGUFReader(p) for p in paths]
        self.shard_keys = [{n: f.contents() for n, f in r.fields.items() if not n.startswith("GGUF.")} for r in readers]
        self.keys = self.shard_keys[0]
        self.shards = [[t.name for t in r.tensors] for r in readers]
        self.tensors: dict[str, Stored] = {}
        for reader in readers:
            for t in reader.tensors:
                shape = tuple(int(n) for n in reversed(t.shape))
                raw = np.ascontiguousarray(t.data).view(np.uint8).copy()
                self.tensors[t.name] = Stored(
                    t.tensor_type, shape, raw.reshape(quant_shape_to_byte_shape(shape, t.tensor_type)), t.data_offset
                )

    def floats(self, name: str) -> np.ndarray[Any, Any]:
        return self.tensors[name].floats()

    def expert_bytes(self, il: int, which: str) -> np.ndarray[Any, Any]:
        """All experts of a layer, uncut: gate and up uint8 `[E, n_ff, row bytes]`, down `[E, n_embd, row bytes]`."""
        whole = self.tensors.get(f"blk.{il}.ffn_{which}_exps.weight")
        if whole:
            return whole.raw
        parts = [self.tensors.get(f"blk.{il}.ffn_{which}_exps_{part}.weight") for part in ("top", "bot")]
        if which != "down":
            return np.concatenate([p.raw for p in parts if p], axis=1)
        # [E, granules, n_embd, bytes of a granule's row]: put the granules of a row side by side.
        turned = [p.raw.transpose(0, 2, 1, 3).reshape(p.shape[0], p.shape[2], -1) for p in parts if p]
        return np.concatenate(turned, axis=2)

    def expert_biases(self, il: int, which: str) -> np.ndarray[Any, Any]:
        """Of gate or up, uncut: `[E, n_ff]`."""
        names = [f"blk.{il}.ffn_{which}_exps{part}.bias" for part in ("", "_top", "_bot")]
        return np.concatenate([self.floats(name) for name in names if name in self.tensors], axis=1)

    def experts(self, il: int, which: str) -> np.ndarray[Any, Any]:
        """The same, dequantized."""
        name = next(n for n in self.tensors if re.match(rf"blk\.{il}\.ffn_{which}_exps.*weight", n))
        return dequantize(self.expert_bytes(il, which), self.tensors[name].kind)
