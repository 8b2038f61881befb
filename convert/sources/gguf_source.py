"""A GGUF file, or all shards of one, as a source: every key and tensor as it is, experts of any known layout as sets
that can be cut anew.

Layouts of routed experts: three stacked tensors; fused `ffn_gate_up_exps` (gate rows first); one tensor per expert
(before 2024); already split by us. Nothing is decoded: bytes are moved, so the result is bit-exact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

from moepic_gguf.errors import ConversionError

from .. import keys as k
from ..arch import GGUF_ARCHITECTURES
from ..tensors import Bytes, Neurons, Tensor, row_bytes
from . import Content

_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
_STEP_BYTES = 16 << 20
# Written anew, or of no meaning in the output.
_OWN_KEYS = ("moepic.version", "moepic.granule", "moepic.top_granules")
_HASHED = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `shape` is row-major."""

    name: str
    path: Path
    offset: int
    kind: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        n = 1
        for size in self.shape[:-1]:
            n *= size
        return n * row_bytes(self.shape[-1], self.kind)

    def read(self, first: int, n_bytes: int) -> Bytes:
        """Bytes [first, first + n_bytes) of the data."""
        with open(self.path, "rb") as file:
            file.seek(self.offset + first)
            raw = file.read(n_bytes)
        if len(raw) != n_bytes:
            raise ConversionError(f"'{self.path.name}' ends inside tensor '{self.name}' (truncated download?)")
        return np.frombuffer(raw, np.uint8)


@dataclass(frozen=True)
class _Rows:
    """Where rows [first, last) of gate or up are: tensor and byte of the first one, per expert."""

    first: int
    last: int
    at: Callable[[int], tuple[Stored, int]]


@dataclass(frozen=True)
class _Columns:
    """Where `count` columns of down are, cut into runs of `granule`: `[count / granule, n_embd, granule]` from that
    byte on.
    """

    count: int
    granule: int
    at: Callable[[int], tuple[Stored, int]]


def _stacked_at(stored: Stored, stride: int, skip: int = 0) -> Callable[[int], tuple[Stored, int]]:
    """Experts one after another in a tensor, `stride` bytes apart."""
    return lambda expert: (stored, expert * stride + skip)


def _one_at(stored: list[Stored]) -> Callable[[int], tuple[Stored, int]]:
    """A tensor per expert."""
    return lambda expert: (stored[expert], 0)


class GgufExperts:
    """Routed experts of one layer. See `tensors.Experts`."""

    def __init__(
        self,
        layer: int,
        n_expert: int,
        n_embd: int,
        kinds: dict[str, GGMLQuantizationType],
        rows: dict[str, list[_Rows]],
        columns: list[_Columns],
    ) -> None:
        self.layer, self.n_expert, self.n_embd, self.kinds = layer, n_expert, n_embd, kinds
        self._rows, self._columns = rows, columns
        self.order_unit = int(GGML_QUANT_SIZES[kinds["down"]][0])
        self.n_ff = sum(part.count for part in columns)
        # Of gate and up: tensors `[n_expert, ...]` and the run of their columns that is meant, in the order of the neurons.
        self.bias_parts: dict[str, list[tuple[Stored, int, int]]] = {}

    def bias_kind(self, which: str) -> GGMLQuantizationType | None:
        return self.bias_parts[which][0][0].kind if self.bias_parts.get(which) else None

    def biases(self, which: str) -> Bytes:
        parts = []
        for stored, first, last in self.bias_parts[which]:
            whole = stored.read(0, stored.n_bytes).reshape(self.n_expert, stored.shape[1], -1)
            parts.append(whole[:, first:last])
        return np.concatenate(parts, axis=1)

    def rows(self, which: str, expert: int, neurons: Neurons) -> Bytes:
        if not isinstance(neurons, slice):
            return self.rows(which, expert, slice(0, self.n_ff))[neurons]
        size = row_bytes(self.n_embd, self.kinds[which])
        found = []
        for part in self._rows[which]:
            first, last = max(part.first, neurons.start), min(part.last, neurons.stop)
            if first < last:
                stored, at = part.at(expert)
                found.append(stored.read(at + (first - part.first) * size, (last - first) * size))
        return np.concatenate(found).reshape(-1, size)

    def columns(self, expert: int, neurons: Neurons) -> Bytes:
        block_len = GGML_QUANT_SIZES[self.kinds["down"]][0]
        blocks = self._blocks(expert)
        if isinstance(neurons, slice):
            wanted: slice | np.ndarray[Any, np.dtype[np.int64]] = slice(
                neurons.start // block_len, neurons.stop // block_len
            )
        else:
            runs = neurons.reshape(-1, block_len)
            wanted = runs[:, 0] // block_len
            if not np.array_equal(runs, wanted[:, None] * block_len + np.arange(block_len)):
                raise ConversionError(
                    f"layer {self.layer}: an order of neurons that breaks {self.kinds['down'].name} blocks of "
                    f"down cannot be bit-exact"
                )
        return np.ascontiguousarray(blocks[:, wanted]).reshape(self.n_embd, -1)

    def _blocks(self, expert: int) -> Bytes:
        """All of an expert's down: `[n_embd, blocks of a row, block bytes]`."""
        block_bytes = GGML_QUANT_SIZES[self.kinds["down"]][1]
        parts = []
        for part in self._columns:
            stored, at = part.at(expert)
            size = row_bytes(part.granule, self.kinds["down"])
            raw = stored.read(at, part.count // part.granule * self.n_embd * size).reshape(-1, self.n_embd, size)
            parts.append(raw.transpose(1, 0, 2).reshape(self.n_embd, -1, block_bytes))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def work_bytes(self) -> int:
        return 4 * self.n_embd * row_bytes(self.n_ff, self.kinds["down"])


class _File:
    """Keys (raw) and tensors of one GGUF file."""

    def __init__(self, path: Path) -> None:
        try:
            reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError, OverflowError, OSError, MemoryError, UnicodeDecodeError) as error:
            raise ConversionError(f"'{path}' is not a readable GGUF file: {error}") from None
        if reader.byte_order != "I":
            raise ConversionError(f"'{path}' is big-endian; supported: little-endian files")
        self.keys: k.Keys = {}
        self.values: dict[str, Any] = {}
        for name, field in reader.fields.items():
            if name.startswith("GGUF."):
                continue
            # A key is its name (length, text), type and content; the last two are carried over as they are.
            begin = field.offset + field.parts[0].nbytes + field.parts[1].nbytes
            end = field.offset + sum(int(part.nbytes) for part in field.parts)
            self.keys[name] = reader.data[begin:end].tobytes()
            if not name.startswith("tokenizer."):
                self.values[name] = field.contents()
        self.tensors: dict[str, Stored] = {}
        size = path.stat().st_size
        for t in reader.tensors:
            stored = Stored(t.name, path, int(t.data_offset), t.tensor_type, tuple(int(n) for n in reversed(t.shape)))
            if stored.shape[-1] % GGML_QUANT_SIZES[stored.kind][0] or stored.offset + stored.n_bytes > size:
                raise ConversionError(
                    f"'{path.name}': tensor '{t.name}' {list(stored.shape)} {stored.kind.name} does not fit the "
                    f"file (truncated download?)"
                )
            self.tensors[t.name] = stored


def _shard_paths(path: Path) -> list[Path]:
    match = _SHARD.match(path.name)
    if not match:
        return [path]
    paths = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{match[3]}.gguf") for i in range(int(match[3]))]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise ConversionError(f"'{path.name}' is one of {len(paths)} shards; missing: {', '.join(missing[:3])}")
    return paths


class _Finder:
    """Finds and checks the tensors of a layer's experts; keeps count of what was used."""

    def __init__(self, tensors: dict[str, Stored], n_expert: int) -> None:
        self.tensors, self.n_expert = tensors, n_expert
        self.used: set[str] = set()

    def take(self, name: str, dims: int) -> Stored | None:
        stored = self.tensors.get(name)
        if stored is None:
            return None
        # Trailing GGUF dims of 1 are left out by some writers: [rows, cols] of a single expert.
        shape = (1,) * (dims - len(stored.shape)) + stored.shape
        if len(shape) != dims:
            raise ConversionError(f"tensor '{name}' has shape {list(stored.shape)}, expected {dims} dimensions")
        self.used.add(name)
        return Stored(stored.name, stored.path, stored.offset, stored.kind, shape)

    def need(self, name: str, dims: int) -> Stored:
        stored = self.take(name, dims)
        if stored is None:
            raise ConversionError(f"tensor '{name}' is missing")
        return stored

    def experts(self, il: int) -> GgufExperts | None:
        found = self._experts(il)
        if found:
            found.bias_parts = {which: self._biases(il, which, found.n_ff) for which in ("gate", "up")}
        return found

    def _biases(self, il: int, which: str, n_ff: int) -> list[tuple[Stored, int, int]]:
        stem = f"blk.{il}.ffn_{which}_exps"
        parts = [self.take(f"{stem}{part}.bias", 2) for part in ("", "_top", "_bot")]
        found = [(part, 0, part.shape[1]) for part in parts if part]
        fused = self.take(f"blk.{il}.ffn_gate_up_exps.bias", 2)
        if fused:
            found.append((fused, 0, n_ff) if which == "gate" else (fused, n_ff, 2 * n_ff))
        wrong = any(
            s.shape[0] != self.n_expert or last > s.shape[1] or s.kind != found[0][0].kind for s, _, last in found
        )
        if found and (wrong or sum(last - first for _, first, last in found) != n_ff):
            shapes = ", ".join(str(list(s.shape)) for s, _, _ in found)
            raise ConversionError(
                f"layer {il}: biases of '{which}' have shapes {shapes}, expected {[self.n_expert, n_ff]} together"
            )
        return found

    def _experts(self, il: int) -> GgufExperts | None:
        blk = f"blk.{il}."
        if self.n_expert == 0:
            return None
        if any(f"{blk}ffn_down_exps{part}.weight" in self.tensors for part in ("_top", "_bot")):
            return self._pre_split(il, blk)
        if f"{blk}ffn_down_exps.weight" in self.tensors:
            return self._stacked(il, blk)
        if f"{blk}ffn_down.0.weight" in self.tensors:
            return self._one_by_one(il, blk)
        return None

    def _check(self, il: int, gate: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]) -> None:
        """Shapes `[n_expert, n_ff, n_embd]` of gate and up, `[n_expert, n_embd, n_ff]` of down."""
        if gate != up or down != (gate[0], gate[2], gate[1]) or gate[0] != self.n_expert:
            raise ConversionError(
                f"layer {il}: experts of shapes gate {list(gate)}, up {list(up)}, down {list(down)} do not fit "
                f"together ({self.n_expert} experts)"
            )

    def _stacked(self, il: int, blk: str) -> GgufExperts:
        down = self.need(f"{blk}ffn_down_exps.weight", 3)
        n_expert, n_embd, n_ff = down.shape
        fused = self.take(f"{blk}ffn_gate_up_exps.weight", 3)
        if fused:
            gate = up = fused
            if fused.shape[1] != 2 * n_ff:
                raise ConversionError(
                    f"tensor '{fused.name}' has {fused.shape[1]} rows, expected {2 * n_ff} (gate and up)"
                )
            self._check(il, (fused.shape[0], n_ff, fused.shape[2]), (fused.shape[0], n_ff, fused.shape[2]), down.shape)
        else:
            gate, up = self.need(f"{blk}ffn_gate_exps.weight", 3), self.need(f"{blk}ffn_up_exps.weight", 3)
            self._check(il, gate.shape, up.shape, down.shape)

        def rows(stored: Stored, skip: int) -> list[_Rows]:
            size = row_bytes(n_embd, stored.kind)
            return [_Rows(0, n_ff, _stacked_at(stored, stored.shape[1] * size, skip * size))]

        matrix = down.n_bytes // n_expert
        kinds = {"gate": gate.kind, "up": up.kind, "down": down.kind}
        found = {"gate": rows(gate, 0), "up": rows(up, n_ff if fused else 0)}
        return GgufExperts(il, n_expert, n_embd, kinds, found, [_Columns(n_ff, n_ff, _stacked_at(down, matrix))])

    def _one_by_one(self, il: int, blk: str) -> GgufExperts:
        of = {
            w: [self.need(f"{blk}ffn_{w}.{e}.weight", 2) for e in range(self.n_expert)] for w in ("gate", "up", "down")
        }
        for w, all_of in of.items():
            if any((s.shape, s.kind) != (all_of[0].shape, all_of[0].kind) for s in all_of):
                raise ConversionError(f"layer {il}: the experts' '{w}' tensors differ in shape or type")
        n_embd, n_ff = of["down"][0].shape
        self._check(il, *((self.n_expert, *of[w][0].shape) for w in ("gate", "up", "down")))
        found = {w: [_Rows(0, n_ff, _one_at(of[w]))] for w in ("gate", "up")}
        kinds = {w: of[w][0].kind for w in of}
        return GgufExperts(il, self.n_expert, n_embd, kinds, found, [_Columns(n_ff, n_ff, _one_at(of["down"]))])

    def _pre_split(self, il: int, blk: str) -> GgufExperts:
        found: dict[str, list[_Rows]] = {"gate": [], "up": []}
        columns: list[_Columns] = []
        kinds: dict[str, GGMLQuantizationType] = {}
        first = n_embd = 0
        for part in ("_top", "_bot"):
            down = self.take(f"{blk}ffn_down_exps{part}.weight", 4)
            if down is None:
                continue
            n_expert, n_granules, n_embd, granule = down.shape
            count = n_granules * granule
            for w in ("gate", "up"):
                stored = self.need(f"{blk}ffn_{w}_exps{part}.weight", 3)
                self._check(il, stored.shape, stored.shape, (n_expert, n_embd, count))
                if kinds.setdefault(w, stored.kind) != stored.kind:
                    raise ConversionError(
                        f"tensor '{stored.name}' is {stored.kind.name}, the top {kinds[w].name}; an expert's "
                        f"parts must agree"
                    )
                matrix = stored.n_bytes // n_expert
                found[w].append(_Rows(first, first + count, _stacked_at(stored, matrix)))
            if kinds.setdefault("down", down.kind) != down.kind:
                raise ConversionError(
                    f"tensor '{down.name}' is {down.kind.name}, the top {kinds['down'].name}; an expert's parts "
                    f"must agree"
                )
            matrix = down.n_bytes // n_expert
            columns.append(_Columns(count, granule, _stacked_at(down, matrix)))
            first += count
        return GgufExperts(il, self.n_expert, n_embd, kinds, found, columns)


def _as_is(stored: Stored, role: str) -> Tensor:
    def chunks() -> Iterator[Bytes]:
        for first in range(0, stored.n_bytes, _STEP_BYTES):
            yield stored.read(first, min(_STEP_BYTES, stored.n_bytes - first))

    return Tensor(stored.name, stored.shape, stored.kind, role, chunks, min(stored.n_bytes, _STEP_BYTES))


# The first that is in a tensor's name.
_ROLES = (
    ("token_embd", "embedding"),
    ("norm", "norm"),
    ("ssm_", "mixer"),
    ("shortconv", "mixer"),
    ("attn_", "attention"),
    ("ffn_gate_inp", "router"),
    ("shexp", "shared expert"),
    ("ffn_", "feed-forward"),
    ("output", "output"),
)


def _role(name: str) -> str:
    return next((role for part, role in _ROLES if part in name), "other")


def open_gguf(path: Path) -> Content:
    """Read a GGUF file, or all shards of the set `path` belongs to. Raises ConversionError, which names the key or
    tensor.
    """
    paths = _shard_paths(path)
    files = [_File(p) for p in paths]
    first = files[0]
    tensors: dict[str, Stored] = {}
    for number, file in enumerate(files):
        if len(files) > 1 and (file.values.get("split.no"), file.values.get("split.count")) != (number, len(files)):
            raise ConversionError(
                f"'{paths[number].name}' says it is shard {file.values.get('split.no')} of "
                f"{file.values.get('split.count')}, its name says otherwise"
            )
        twice = tensors.keys() & file.tensors.keys()
        if twice:
            raise ConversionError(f"tensor '{sorted(twice)[0]}' is in more than one shard")
        tensors |= file.tensors
    promised = first.values.get("split.tensors.count")
    if len(files) > 1 and promised is not None and promised != len(tensors):
        raise ConversionError(f"'{path.name}': the shards hold {len(tensors)} tensors, the first promises {promised}")

    arch = first.values.get("general.architecture")
    if arch not in GGUF_ARCHITECTURES:
        raise ConversionError(
            f"'{path.name}': general.architecture is {arch!r}; supported: {', '.join(sorted(GGUF_ARCHITECTURES))}"
        )
    n_layer, n_expert = first.values.get(f"{arch}.block_count"), first.values.get(f"{arch}.expert_count", 0)
    if not isinstance(n_layer, int) or not isinstance(n_expert, int):
        raise ConversionError(
            f"'{path.name}': keys '{arch}.block_count' and '{arch}.expert_count' must be integers, found "
            f"{n_layer!r} and {n_expert!r}"
        )

    finder = _Finder(tensors, n_expert)
    experts = [finder.experts(il) for il in range(n_layer)]
    head: list[Tensor] = []
    tail: list[Tensor] = []
    plain: list[list[Tensor]] = [[] for _ in range(n_layer)]
    for name, stored in tensors.items():
        if name in finder.used:
            continue
        match = re.match(r"blk\.(\d+)\.", name)
        if match and int(match[1]) < n_layer:
            plain[int(match[1])].append(_as_is(stored, _role(name)))
        else:
            (tail if any(plain) else head).append(_as_is(stored, _role(name)))

    keys = {
        name: raw
        for name, raw in first.keys.items()
        if not name.startswith("split.") and name not in ("general.alignment", *_OWN_KEYS)
    }
    if first.values.get("moepic.neuron_order") == "natural":
        del keys["moepic.neuron_order"]
    if "moepic.source.name" not in keys:
        with open(paths[0], "rb") as raw:
            digest = hashlib.sha256(raw.read(_HASHED)).hexdigest()
        keys |= {
            "moepic.source.name": k.string(paths[0].name),
            "moepic.source.format": k.string("gguf"),
            "moepic.source.head_sha256": k.string(digest),
        }
    warnings = [] if any(experts) else ["the file has no routed experts: nothing to split, it is only copied"]
    return Content(arch, keys, head, list(zip(plain, experts, strict=True)), tail, paths, warnings=warnings)
