"""The matrix steps of a device library as numpy functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from matmul_native import Bytes, Floats, Tiles, aligned, check, pointer
from numpy.typing import NDArray

from moepic_gguf._ffi import ffi, lib

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
    assert x.dtype == np.float32
    out = [
        aligned(len(x) * act_bytes(name, cols)).reshape(len(x), -1) if i in kinds else None
        for i, name in enumerate(KINDS)
    ]
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


@dataclass(frozen=True)
class Granules:
    """Granules of experts, as a strip lays them out: gate, up and down in tiles, then biases."""

    n_embd: int
    granule: int
    n_granules: int
    types: tuple[str, str, str]  # gate, up, down
    gate: list[Tiles]  # one per task, as the others
    up: list[Tiles]
    down: list[Tiles]
    gate_bias: Floats | None = None  # [n_tasks, granule]
    up_bias: Floats | None = None


@dataclass(frozen=True)
class Entries:
    """Which tokens each task is for."""

    tasks: NDArray[np.int32]  # [n_tasks, 4]: granule, first entry, number of entries, first row of few
    runs: NDArray[np.int32] | None  # [n_runs, 2]: first task, number of tasks; None: few
    token: NDArray[np.int32]
    weight: Floats | None


def experts(device: str, granules: Granules, entries: Entries, x: Floats, glu: int, partials: Floats) -> Bytes:
    """Intermediates [n_entries, n_granules, bytes], and down's sums in place in partials [rows, n_embd]."""
    parts = [[one.data for one in tiles] for tiles in (granules.gate, granules.up, granules.down)]
    for bias in (granules.gate_bias, granules.up_bias):
        if bias is not None:
            parts.append([np.ascontiguousarray(row).view(np.uint8) for row in bias])
    at, offsets = 0, []
    for part in parts:
        offsets.append(at)
        at += -(-len(part[0]) // 64) * 64 if part else 0
    data = aligned(len(entries.tasks) * at).reshape(-1, at)
    for part, offset in zip(parts, offsets, strict=True):
        for row, one in zip(data, part, strict=True):
            row[offset : offset + len(one)] = one
    job = ffi.new("moepic_test_device_expert_job *")
    job.n_embd, job.granule, job.n_granules = granules.n_embd, granules.granule, granules.n_granules
    job.gate_type, job.up_type, job.down_type = (type_id(name) for name in granules.types)
    job.up_offset, job.down_offset, job.granule_bytes = offsets[1], offsets[2], at
    job.gate_bias_offset, job.up_bias_offset = offsets[3:] or (0, 0)
    job.granules = pointer(data, "void *")
    tasks, runs = np.ascontiguousarray(entries.tasks), entries.runs
    job.n_tasks, job.tasks = len(tasks), pointer(tasks, "int32_t *")
    job.n_runs, job.runs = 0 if runs is None else len(runs), pointer(runs, "int32_t *")
    job.n_tokens, job.x = len(x), pointer(x, "float *")
    job.n_entries, job.entry_token = len(entries.token), pointer(entries.token, "int32_t *")
    job.entry_weight, job.glu = pointer(entries.weight, "float *"), glu
    row = act_bytes(granules.types[2], granules.granule)
    intermediate = aligned(len(entries.token) * granules.n_granules * row).reshape(-1, granules.n_granules, row)
    job.intermediate = pointer(intermediate, "void *")
    job.partials, job.n_rows = pointer(partials, "float *"), len(partials)
    check(lib.moepic_test_device_experts(DEVICES[device], job))
    return intermediate


@dataclass(frozen=True)
class Reduction:
    """device::ReduceJob; token_entry is [n, k + 1]."""

    token_entry: NDArray[np.int32]
    ids: NDArray[np.int32]
    weights: Floats | None
    down_bias: Floats | None
    partials: Floats
    rows: NDArray[np.int32] | None
    n_granules: int
    shared_partials: Floats | None
    shared_granules: int
    first_shared: int
    shared_weight: Floats | None
    residual_scale: float


def reduce(device: str, given: Reduction, x: Floats, shared_x: Floats) -> None:
    """Adds to x and shared_x (which may be x) in place."""
    job = ffi.new("moepic_test_device_reduce_job *")
    job.n, job.n_embd = x.shape
    job.k = given.token_entry.shape[1] - 1
    job.x, job.shared_x = pointer(x, "float *"), pointer(shared_x, "float *")
    job.residual_scale = given.residual_scale
    job.token_entry, job.ids = pointer(given.token_entry, "int32_t *"), pointer(given.ids, "int32_t *")
    job.weights, job.down_bias = pointer(given.weights, "float *"), pointer(given.down_bias, "float *")
    job.n_expert = 0 if given.down_bias is None else len(given.down_bias)
    job.partials, job.n_rows = pointer(given.partials, "float *"), len(given.partials)
    job.rows, job.n_row_numbers = pointer(given.rows, "int32_t *"), 0 if given.rows is None else given.rows.size
    job.n_granules, job.shared_granules, job.first_shared = given.n_granules, given.shared_granules, given.first_shared
    job.shared_partials = pointer(given.shared_partials, "float *")
    job.n_shared_rows = 0 if given.shared_partials is None else len(given.shared_partials)
    job.shared_weight = pointer(given.shared_weight, "float *")
    check(lib.moepic_test_device_reduce(DEVICES[device], job))
