"""The matrix steps of a device library as numpy functions."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from matmul_native import Bytes, Floats, Tiles, aligned, check, pointer

DEVICES = {"emulated": 0, "cuda": 1}
KINDS = ["F32", "Q8_0", "Q4_K"]  # a weight type for each kind of activations, by ops::ActKind


def type_id(name: str) -> int:
    """GGUF's number of a type."""
    return int(GGMLQuantizationType[name])


def act_bytes(name: str, cols: int) -> int:
    """Bytes of one token's activations for weights of a type."""
    tiles, acts = ffi.new("int64_t *"), ffi.new("int64_t *")
    check(lib.moepic_test_matmul_bytes(type_id(name), 1, cols, tiles, acts))
    return int(acts[0])


def quantize(device: str, kinds: list[int], x: Floats, cols: int) -> list[Bytes]:
    """Activations [n, bytes] of rows x[n, >= cols] for each of `kinds`; bytes nobody writes are 0."""
    out = [aligned(len(x) * act_bytes(name, cols)).reshape(len(x), -1) if i in kinds else None for i, name in enumerate(KINDS)]
    mask = sum(1 << kind for kind in kinds)
    to = [pointer(one, "void *") for one in out]
    check(lib.moepic_test_device_quantize(DEVICES[device], mask, pointer(x, "float *"), len(x), x.shape[1], cols, *to))
    return [one for one in out if one is not None]


@dataclass(frozen=True)
class Job:
    """One matrix of a list; y is written in place."""

    tiles: Tiles
    acts: Bytes
    y: Floats
    bias: Floats | None = None
    n_group: int = 1
    y_group: int = 0


def matmul(device: str, jobs: list[Job], n_tokens: int) -> None:
    """All jobs in one launch."""
    given = ffi.new("moepic_test_device_matmul_job[]", len(jobs))
    for to, job in zip(given, jobs, strict=True):
        to.type, to.rows, to.cols = job.tiles.type, job.tiles.rows, job.tiles.cols
        to.tiles, to.acts = pointer(job.tiles.data, "void *"), pointer(job.acts, "void *")
        to.y, to.y_stride = pointer(job.y, "float *"), job.y.shape[1]
        to.bias = pointer(job.bias, "float *")
        to.n_group, to.y_group = job.n_group, job.y_group
    check(lib.moepic_test_device_matmul(DEVICES[device], given, len(jobs), n_tokens))
