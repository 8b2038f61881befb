"""Recorded routing: our own compact format (docs/trace-format.md), and two formats others record. Arrays in, arrays out; runs nothing.

A trace is token by token, layer by layer, the ids a router chose and their weights; optionally the ids that were predicted before it spoke, and what
became of the missing granules.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, IoError, ModelFormatError

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]

MAGIC = b"MOEPICTR"
VERSION = 1
HAS_PREDICTED, HAS_OUTCOME, HAS_FOUND = 1, 2, 4
_HEADER = struct.Struct(
    "<8sHHHHHHIII"
)  # magic, version, flags, n_layer, n_used, n_guess, 0, json bytes, record bytes, 0
OUTCOME = np.dtype([("stall_s", "<f4"), ("resident", "<u2"), ("link", "<u2"), ("cpu", "<u2"), ("prefetched", "<u2")])
PREFILL, DECODE = 0, 1


@dataclass(frozen=True)
class Trace:
    """Routing of `n_token` tokens through `n_layer` MoE layers.

    ids          [n_token, n_layer, n_used] int32, -1 where a token used fewer experts (or the layer was not run for it)
    weights      [n_token, n_layer, n_used] float32, as applied to the experts' outputs; 0 where the id is -1
    sequence     [n_token] int32, which conversation or turn
    phase        [n_token] uint8, PREFILL or DECODE
    n_expert, n_granule, granule_bytes   [n_layer]; a granule is gate, up and down together
    predicted    [n_token, n_layer, n_guess] int32, or None; best first, -1 for none
    outcome      [n_token, n_layer] of OUTCOME, or None: granules found resident, served by each lane, prefetched in time; seconds waited
    found        [n_token, n_layer, n_used] int32 granules of each routed expert that were resident before it was asked for, or None
    """

    ids: Ids
    weights: Floats
    sequence: Ids
    phase: NDArray[np.uint8]
    n_expert: Ids
    n_granule: Ids
    granule_bytes: NDArray[np.int64]
    predicted: Ids | None = None
    outcome: NDArray[Any] | None = None
    found: Ids | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def n_token(self) -> int:
        return int(self.ids.shape[0])

    @property
    def n_layer(self) -> int:
        return int(self.ids.shape[1])

    @property
    def n_used(self) -> int:
        return int(self.ids.shape[2])

    @property
    def expert_bytes(self) -> NDArray[np.int64]:
        """[n_layer] bytes of one expert."""
        return self.n_granule.astype(np.int64) * self.granule_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all experts of all layers: what a budget of 100% is."""
        return int((self.n_expert * self.expert_bytes).sum())

    @property
    def n_prefill(self) -> int:
        """Tokens before the first decoded one."""
        decoded = np.flatnonzero(self.phase == DECODE)
        return int(decoded[0]) if len(decoded) else self.n_token

    @property
    def recall(self) -> float:
        """Share of routed experts that were among the predicted ones; 0 without predictions."""
        return 0.0 if self.predicted is None else _found(self.ids, self.predicted)

    @property
    def stays(self) -> float:
        """Share of routed experts that the layer used for the token before, too."""
        return _found(self.ids[1:], self.ids[:-1])

    def without_guesses(self) -> Trace:
        """The same routing, nothing predicted."""
        return replace(self, predicted=None)

    def tokens(self, which: slice | NDArray[np.integer[Any]]) -> Trace:
        """The same model with some of the tokens, or with tokens in another order."""
        names = ("ids", "weights", "sequence", "phase", "predicted", "outcome", "found")
        parts: dict[str, Any] = {name: getattr(self, name) for name in names}
        cut: dict[str, Any] = {name: part if part is None else part[which] for name, part in parts.items()}
        return replace(self, **cut)

    def cut_into(self, n_granule: int) -> Trace:
        """The same routing with experts of `n_granule` granules; bytes are rounded up to whole granules. What was found resident is counted in
        granules as they were, so it is dropped.
        """
        if n_granule < 1:
            raise ArgumentError(f"granules: {n_granule}, expected at least 1")
        size = -(-self.expert_bytes // n_granule)
        counts = np.full(self.n_layer, n_granule, np.int32)
        return replace(self, n_granule=counts, granule_bytes=size, outcome=None, found=None)


def _found(ids: Ids, among: Ids) -> float:
    """Share of `ids` that their token and layer has `among` it as well."""
    routed = ids >= 0
    named = (ids[..., :, None] == among[..., None, :]).any(axis=3)
    return float((named & routed).sum() / max(1, routed.sum()))


def _record_dtype(n_layer: int, n_used: int, n_guess: int, flags: int) -> np.dtype[Any]:
    layer: list[Any] = [("ids", "<i2", (n_used,)), ("weights", "<f2", (n_used,))]
    if flags & HAS_PREDICTED:
        layer.append(("predicted", "<i2", (n_guess,)))
    if flags & HAS_OUTCOME:
        layer.append(("outcome", OUTCOME))
    if flags & HAS_FOUND:
        layer.append(("found", "<u2", (n_used,)))
    return np.dtype(
        [("sequence", "<u4"), ("phase", "u1"), ("pad", "u1", (3,)), ("layers", np.dtype(layer), (n_layer,))]
    )


def header_bytes(*, flags: int, n_used: int, info: dict[str, Any]) -> bytes:
    """Magic, sizes and JSON of a file whose records follow; `info` holds n_expert, n_granule and granule_bytes, one value a layer."""
    n_layer = len(info["n_expert"])
    n_guess = n_used if flags & HAS_PREDICTED else 0
    text = json.dumps(info).encode()
    text += b" " * (-len(text) % 8)
    size = _record_dtype(n_layer, n_used, n_guess, flags).itemsize
    return _HEADER.pack(MAGIC, VERSION, flags, n_layer, n_used, n_guess, 0, len(text), size, 0) + text


def write_trace(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write our format; weights are rounded to float16.

    Raises `ArgumentError` where an id does not fit, `IoError`.
    """
    parts = {HAS_PREDICTED: trace.predicted, HAS_OUTCOME: trace.outcome, HAS_FOUND: trace.found}
    flags = sum(flag for flag, part in parts.items() if part is not None)
    n_guess = trace.predicted.shape[2] if trace.predicted is not None else 0
    if trace.n_expert.max(initial=0) > 32767:
        raise ArgumentError(f"trace: {trace.n_expert.max()} experts, but ids are 16 bits")
    dtype = _record_dtype(trace.n_layer, trace.n_used, n_guess, flags)
    records = np.zeros(trace.n_token, dtype)
    records["sequence"], records["phase"] = trace.sequence, trace.phase
    records["layers"]["ids"], records["layers"]["weights"] = trace.ids, trace.weights
    if trace.predicted is not None:
        records["layers"]["predicted"] = trace.predicted
    if trace.outcome is not None:
        records["layers"]["outcome"] = trace.outcome
    if trace.found is not None:
        records["layers"]["found"] = trace.found
    info = trace.info | {name: getattr(trace, name).tolist() for name in ("n_expert", "n_granule", "granule_bytes")}
    text = json.dumps(info).encode()
    text += b" " * (-len(text) % 8)
    header = _HEADER.pack(MAGIC, VERSION, flags, trace.n_layer, trace.n_used, n_guess, 0, len(text), dtype.itemsize, 0)
    try:
        Path(path).write_bytes(header + text + records.tobytes())
    except OSError as error:
        raise IoError(f"trace: cannot write '{path}': {error.strerror}") from error


def read_trace(path: str | os.PathLike[str], *, expert_bytes: int | None = None) -> Trace:
    """Read a trace in our format, `route_trace v1` (CSV), or a JSON list of decode steps; told apart by their first bytes.

    expert_bytes   of one expert, for a file that does not say.
    Raises         `IoError`; `ModelFormatError` that names what is wrong and where.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise IoError(f"trace: cannot read '{path}': {error.strerror}") from error
    name = Path(path).name
    if data.startswith(MAGIC):
        return _from_records(data, name)
    if data.startswith(b"# route_trace v1"):
        return _from_csv(data.decode("utf-8", "replace"), name)
    if data.lstrip()[:1] == b"{":
        return _from_steps(data, name, expert_bytes)
    raise ModelFormatError(f"trace: '{name}' is neither a moepic trace, nor route_trace v1, nor JSON steps")


def _from_records(data: bytes, name: str) -> Trace:
    if len(data) < _HEADER.size:
        raise ModelFormatError(f"trace: '{name}' ends inside its header ({len(data)} bytes)")
    _, version, flags, n_layer, n_used, n_guess, _, n_json, n_record, _ = _HEADER.unpack_from(data)
    if version != VERSION or flags & ~(HAS_PREDICTED | HAS_OUTCOME | HAS_FOUND):
        raise ModelFormatError(f"trace: '{name}' is version {version} with flags {flags}, this build reads {VERSION}")
    dtype = _record_dtype(n_layer, n_used, n_guess, flags)
    start = _HEADER.size + n_json
    if min(n_layer, n_used) == 0 or dtype.itemsize != n_record or start > len(data):
        raise ModelFormatError(f"trace: '{name}': header and records disagree ({dtype.itemsize} and {n_record} bytes)")
    try:
        info = json.loads(data[_HEADER.size : start])
        shape = {
            key: np.asarray(info.pop(key), np.int64).reshape(n_layer)
            for key in ("n_expert", "n_granule", "granule_bytes")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"trace: '{name}': the header's JSON is unusable: {error}") from error
    # A record cut short is the last one of a run that was killed; what was written before it stands.
    records = np.frombuffer(data, dtype, (len(data) - start) // n_record, start)
    layers = records["layers"]
    return _checked(
        Trace(
            ids=layers["ids"].astype(np.int32),
            weights=layers["weights"].astype(np.float32),
            sequence=records["sequence"].astype(np.int32),
            phase=records["phase"].copy(),
            n_expert=shape["n_expert"].astype(np.int32),
            n_granule=shape["n_granule"].astype(np.int32),
            granule_bytes=shape["granule_bytes"],
            predicted=layers["predicted"].astype(np.int32) if flags & HAS_PREDICTED else None,
            outcome=layers["outcome"].copy() if flags & HAS_OUTCOME else None,
            found=layers["found"].astype(np.int32) if flags & HAS_FOUND else None,
            info=info,
        ),
        name,
    )


def _from_csv(text: str, name: str) -> Trace:
    """`route_trace v1`: turn,phase,step,layer,slot,expert,weight,... with sizes in `# key=value` lines."""
    info: dict[str, Any] = {}
    sizes: dict[int, int] = {}
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.startswith("#"):
                pairs = dict(part.split("=", 1) for part in line[1:].split() if "=" in part)
                if "layer" in pairs:
                    sizes[int(pairs["layer"])] = int(pairs["expert_bytes"])
                else:
                    info |= pairs
            elif line and not line.startswith("turn"):
                rows.append([float(cell) for cell in line.split(",")[:7]])
        except (ValueError, KeyError) as error:
            raise ModelFormatError(f"trace: '{name}', line {number}: {error}") from error
    if not rows or not sizes or "n_expert" not in info or "n_expert_used" not in info:
        raise ModelFormatError(f"trace: '{name}' has no rows, or no sizes in its head")
    table = np.array(rows)
    turn, phase, step, layer, slot, expert = table[:, :6].astype(np.int64).T
    order = {model_layer: at for at, model_layer in enumerate(sorted(sizes))}
    tokens, token = np.unique(np.stack([turn, step], axis=1), axis=0, return_inverse=True)
    n_used = int(info["n_expert_used"])
    if not set(layer.tolist()) <= order.keys() or slot.min() < 0 or slot.max() >= n_used:
        raise ModelFormatError(f"trace: '{name}' names a layer or a slot that its head does not")
    at = (token.reshape(-1), np.array([order[int(il)] for il in layer]), slot)
    ids = np.full((len(tokens), len(order), n_used), -1, np.int32)
    weights = np.zeros(ids.shape, np.float32)
    ids[at], weights[at] = expert, table[:, 6]
    phases = np.zeros(len(tokens), np.uint8)
    phases[at[0]] = phase
    n_layer = len(order)
    return _checked(
        Trace(
            ids=ids,
            weights=weights,
            sequence=tokens[:, 0].astype(np.int32),
            phase=phases,
            n_expert=np.full(n_layer, int(info["n_expert"]), np.int32),
            n_granule=np.ones(n_layer, np.int32),
            granule_bytes=np.array([sizes[il] for il in sorted(sizes)], np.int64),
            info={"model": info.get("model", ""), "source": name, "layers": sorted(sizes)},
        ),
        name,
    )


def _from_steps(data: bytes, name: str, expert_bytes: int | None) -> Trace:
    """{"steps": [{"decode_step", "layers": [{"layer", "expert_ids", "weights"}]}]}; it knows no sizes."""
    if expert_bytes is None:
        raise ArgumentError(f"trace: '{name}' does not say how large an expert is; give expert_bytes")
    try:
        steps = json.loads(data)["steps"]
        ids = np.array([[layer["expert_ids"] for layer in step["layers"]] for step in steps], np.int32)
        weights = np.array([[layer["weights"] for layer in step["layers"]] for step in steps], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(f"trace: '{name}' is not a list of decode steps with equal layers: {error}") from error
    if ids.ndim != 3 or ids.size == 0 or ids.shape != weights.shape:
        raise ModelFormatError(f"trace: '{name}' has steps of unequal shape")
    n_token, n_layer, _ = ids.shape
    # The number of experts is not recorded either; a power of two above the largest id is how models are made.
    n_expert = 1 << int(ids.max()).bit_length()
    return _checked(
        Trace(
            ids=ids,
            weights=weights,
            sequence=np.zeros(n_token, np.int32),
            phase=np.full(n_token, DECODE, np.uint8),
            n_expert=np.full(n_layer, n_expert, np.int32),
            n_granule=np.ones(n_layer, np.int32),
            granule_bytes=np.full(n_layer, expert_bytes, np.int64),
            info={"source": name, "assumed": ["expert_bytes", "n_expert"]},
        ),
        name,
    )


def _checked(trace: Trace, name: str) -> Trace:
    if min(trace.n_expert.min(), trace.n_granule.min(), trace.granule_bytes.min()) < 1:
        raise ModelFormatError(f"trace: '{name}' has a layer without experts, granules or bytes")
    wrong = (trace.ids < -1) | (trace.ids >= trace.n_expert[None, :, None])
    if wrong.any():
        token, layer, _ = np.argwhere(wrong)[0]
        raise ModelFormatError(f"trace: '{name}': token {token}, MoE layer {layer} names an expert out of range")
    return trace
