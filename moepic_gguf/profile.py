"""A warm start: how much each expert of one model was used, kept beside the model and refused for any other.

An expert cache that starts with the experts of earlier runs misses less in its first tokens; it learns on from there. Weights only: no text, no tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, IoError, ModelFormatError
from .metadata import GgufFile
from .trace import Trace

FORMAT, VERSION = "moepic-profile", 1


def model_hash(path: str | os.PathLike[str]) -> str:
    """sha256 over what a GGUF file (all its shards) says it holds: keys, tensor table, and the sizes of the files. Reads no weights.

    Two files of equal header and size but other weights have one hash; a profile of one suits the other as well as any.
    Raises `IoError`, `ModelFormatError`.
    """
    digest = hashlib.sha256()
    with GgufFile(path) as file:
        first: dict[int, int] = {}  # shard -> where its weights begin
        for tensor in file.tensors:
            first[tensor.shard] = min(first.get(tensor.shard, tensor.offset), tensor.offset)
        for index, shard in enumerate(file.shards):
            try:
                size = shard.stat().st_size
                with shard.open("rb") as source:
                    header = source.read(first.get(index, size))
            except OSError as error:
                raise IoError(f"model hash: cannot read '{shard}': {error.strerror}") from error
            digest.update(len(header).to_bytes(8, "little") + header + size.to_bytes(8, "little"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Profile:
    """uses [layer][expert]: how often each was used, or any weight in proportion; n_token: the tokens behind it."""

    model_hash: str
    uses: tuple[NDArray[np.float64], ...]
    n_token: int = 0
    source: str = ""

    @property
    def weights(self) -> NDArray[np.float64]:
        """[all experts of all layers, in order]: what `CacheOptions.profile` and the engine take."""
        return np.concatenate(self.uses)

    @classmethod
    def from_counts(
        cls,
        model_hash: str,
        uses: Sequence[Sequence[float] | NDArray[Any]],
        *,
        n_token: int = 0,
        source: str = "counts",
    ) -> Profile:
        """From one array of counts per MoE layer. Raises `ArgumentError` for a count below 0 or not finite."""
        rows = tuple(np.asarray(row, np.float64) for row in uses)
        for layer, row in enumerate(rows):
            if row.ndim != 1 or len(row) == 0 or not np.isfinite(row).all() or (row < 0).any():
                raise ArgumentError(f"profile: MoE layer {layer} needs one finite count of at least 0 per expert")
        if not rows:
            raise ArgumentError("profile: it has no layers")
        return cls(model_hash, rows, n_token, source)

    @classmethod
    def from_trace(cls, trace: Trace, model_hash: str, *, half_life: float | None = None) -> Profile:
        """From recorded routing; with `half_life` (tokens), late tokens weigh more. Raises `ArgumentError` where the trace names another model's hash."""
        told = trace.info.get("model_hash")
        if told and told != model_hash:
            raise ArgumentError(f"profile: the trace was recorded from model {_short(told)}, not {_short(model_hash)}")
        age = np.arange(trace.n_token)[::-1]
        weight = np.exp2(-age / half_life) if half_life else np.ones(trace.n_token)
        uses = []
        for layer in range(trace.n_layer):
            ids = trace.ids[:, layer]
            at = ids >= 0
            weights = np.broadcast_to(weight[:, None], ids.shape)[at]
            counts = np.bincount(ids[at], weights=weights, minlength=int(trace.n_expert[layer]))
            uses.append(counts.astype(np.float64))
        return cls(model_hash, tuple(uses), trace.n_token, str(trace.info.get("source", "trace")))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all; weights with six digits. Raises `IoError`."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "model_hash": self.model_hash,
            "n_token": self.n_token,
            "source": self.source,
            "uses": [[float(f"{use:.6g}") for use in row] for row in self.uses],
        }
        target = Path(path)
        part = target.with_name(target.name + ".part")
        try:
            part.write_text(json.dumps(record) + "\n", encoding="utf-8")
            os.replace(part, target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise IoError(f"profile: cannot write '{target}': {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model_hash: str, n_expert: Sequence[int] | None = None) -> Profile:
        """Read a profile of the model with `model_hash`; `n_expert` [MoE layers] is checked where it is given.

        Raises `IoError`; `ModelFormatError` for what is no profile, and for a profile of another model.
        """
        name = Path(path).name
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise IoError(f"profile: cannot read '{path}': {error.strerror}") from error
        except ValueError as error:
            raise ModelFormatError(f"profile '{name}': no JSON: {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ModelFormatError(f'profile \'{name}\': expected an object with "format": "{FORMAT}"')
        if record.get("version") != VERSION:
            raise ModelFormatError(f"profile '{name}': version {record.get('version')!r}, this build reads {VERSION}")
        if record.get("model_hash") != model_hash:
            raise ModelFormatError(
                f"profile '{name}' belongs to model {_short(record.get('model_hash'))}, not to {_short(model_hash)}: record one for this model"
            )
        try:
            made = cls.from_counts(
                model_hash, record["uses"], n_token=int(record["n_token"]), source=str(record["source"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(f"profile '{name}': {error}") from error
        if n_expert is not None and [len(row) for row in made.uses] != list(n_expert):
            raise ModelFormatError(
                f"profile '{name}': {len(made.uses)} layers of {len(made.uses[0])} experts, expected {len(n_expert)}"
            )
        return made


def _short(digest: object) -> str:
    return f"{str(digest)[:12]}..." if digest else "(none named)"
