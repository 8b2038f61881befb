"""What the benchmarks of streamed experts share: decoding that follows a recording, cold files, spreads, and a record's folder.

Every token is fed alone and none is drawn: the work is the same whatever the logits say, and `decode` returns a digest of the last ones, which must not
depend on budget, policy or lane (docs/design.md, section 8).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from traces import Target

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.cli.bench_record import environment
from moepic_gguf.errors import ArgumentError
from moepic_gguf.metadata import checked
from moepic_gguf.model import ModelInfo
from moepic_gguf.streaming import StreamingOptions
from moepic_gguf.trace import Trace

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A file to measure, and what it is made of."""

    path: Path
    info: ModelInfo
    target: Target

    @property
    def expert_bytes(self) -> int:
        """All routed experts."""
        return self.target.n_expert * self.target.n_granule * sum(self.target.granule_bytes)

    @property
    def n_experts(self) -> int:
        """Of all layers together."""
        return self.target.n_expert * self.target.n_layer

    @property
    def dense_bytes_per_token(self) -> int:
        """Weights a token reads whatever is routed."""
        return self.info.active_bytes - self.target.n_used * self.target.n_granule * sum(self.target.granule_bytes)


def subject_of(path: Path) -> Subject:
    """Loads all but the experts, and looks."""
    with Model.load(path, device="cpu", n_ctx=16, n_batch=1, streaming=StreamingOptions(always=True, cache=0)) as model:
        info = model.info
    layers = [layer for layer in info.layers if layer.n_expert]
    shapes = {(layer.n_expert, layer.n_expert_used, layer.n_granules) for layer in layers}
    if len(shapes) != 1:
        raise ArgumentError(f"'{path.name}': layers differ in their experts; such models are not measured here")
    granule_bytes = tuple(layer.expert_bytes // layer.n_granules for layer in layers)
    return Subject(path, info, Target(*shapes.pop(), granule_bytes))


def follow(model: Model, trace: Trace | None) -> None:
    """Routes the token at position p by the trace's token p from now on, and hands its guesses to the predictor next_layer; None: by its routers again."""
    if trace is None:
        with model.context.native.exclusive() as context:
            checked(lib.moepic_test_force_routing(context, ffi.NULL, ffi.NULL, 0))
        return
    ids = np.ascontiguousarray(trace.ids, np.int32)
    guesses = None if trace.predicted is None else np.ascontiguousarray(trace.predicted, np.int32)
    pointers = [ffi.NULL if array is None else ffi.cast("int32_t *", array.ctypes.data) for array in (ids, guesses)]
    with model.context.native.exclusive() as context:
        checked(lib.moepic_test_force_routing(context, *pointers, len(ids)))


def token_ids(n_tokens: int, n_vocab: int, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(n_vocab) for _ in range(n_tokens)]


@dataclass(frozen=True)
class Decoded:
    """Wall seconds of each token, and a digest of the last token's logits."""

    token_s: list[float]
    digest: str

    @property
    def tpot_s(self) -> float:
        return statistics.fmean(self.token_s)


def decode(model: Model, ids: Sequence[int]) -> Decoded:
    """Feeds `ids` one by one, behind what the context holds."""
    token_s = []
    for token in ids:
        start = time.perf_counter()
        model.context.native.eval([token])
        token_s.append(time.perf_counter() - start)
    logits = np.empty((1, model.info.n_vocab), np.float32)
    model.context.native.copy_logits(logits)
    return Decoded(token_s, hashlib.sha256(logits.tobytes()).hexdigest()[:16])


def evict(path: Path) -> None:
    """Drops the file's pages from the page cache: else they stay, and stay charged to whoever read them first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alternating(names: Sequence[T], repeat: int) -> list[T]:
    """The order of a repeat: every second one backwards, so that what drifts does not favour a place in the row."""
    return list(names) if repeat % 2 == 0 else list(reversed(names))


def quantile(values: Iterable[float], q: float) -> float:
    return float(np.quantile(list(values), q))


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """median (smallest-largest)"""
    median, low, high = (scale * value for value in (statistics.median(values), min(values), max(values)))
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table to paste into findings.md."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def new_folder(text: str) -> Path:
    """The type of an option --out, so that it is checked before the hours of measuring."""
    folder = Path(text)
    if folder.exists():
        raise argparse.ArgumentTypeError(f"'{folder}' exists; records are not overwritten")
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A column for each name that any row has."""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        writer.writerows(rows)


def write_record(folder: Path, path: Path, rows: Sequence[dict[str, Any]], text: str, **more: Any) -> None:
    """env.json, rows.csv and table.md; findings.md is written by hand. Of paths the names are kept: records travel, folders stay private."""
    folder.mkdir(parents=True)
    env = environment(path, with_hash=True) | more
    (folder / "env.json").write_text(
        json.dumps(env, indent=1, default=lambda value: Path(value).name) + "\n", encoding="utf-8"
    )
    write_rows(folder / "rows.csv", rows)
    (folder / "table.md").write_text(text, encoding="utf-8")
