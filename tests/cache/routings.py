"""Random models and routings for the tests of the pure rooms, and recorded ones where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from moepic_gguf.trace import DECODE, PREFILL, Trace

RECORDED = [
    "qwen3-30b-a3b-top6.csv",
    "gpt-oss-120b-top2.csv",
    "gemma-4-26b-a4b-top6.csv",
    "qwen3.6-35b-a3b-128steps.json",
]


def recorded_file(name: str) -> Path:
    """A trace of the folder MOEPIC_TRACES; skips without it. They are others' data and not part of the source."""
    folder = os.environ.get("MOEPIC_TRACES")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"MOEPIC_TRACES names no folder with the recorded trace {name}")
    return Path(folder) / name


def make_trace(
    ids: np.ndarray, n_expert: int, *, n_granule: int = 1, granule_bytes: int = 1000, n_prefill: int = 0
) -> Trace:
    """`ids` [n_token, n_layer, n_used] of layers that are all alike."""
    n_token, n_layer, n_used = ids.shape
    return Trace(
        ids=ids.astype(np.int32),
        weights=np.where(ids >= 0, np.float32(1 / n_used), np.float32(0)),
        sequence=np.zeros(n_token, np.int32),
        phase=np.where(np.arange(n_token) < n_prefill, PREFILL, DECODE).astype(np.uint8),
        n_expert=np.full(n_layer, n_expert, np.int32),
        n_granule=np.full(n_layer, n_granule, np.int32),
        granule_bytes=np.full(n_layer, granule_bytes, np.int64),
    )


def random_ids(
    rng: np.random.Generator,
    n_token: int,
    n_layer: int,
    n_expert: int,
    n_used: int,
    *,
    skew: float = 1.0,
    stay: float = 0.3,
) -> np.ndarray:
    """Zipf popularity (exponent `skew`, its own order in each layer); with probability `stay` an expert of the last token is used again."""
    ids = np.zeros((n_token, n_layer, n_used), np.int64)
    for layer in range(n_layer):
        popularity = (np.arange(n_expert) + 1.0) ** -skew
        popularity = rng.permutation(popularity / popularity.sum())
        for token in range(n_token):
            kept = [e for e in ids[token - 1, layer] if token and rng.random() < stay]
            others = rng.choice(n_expert, n_expert, replace=False, p=popularity)
            ids[token, layer] = [*kept, *[e for e in others if e not in kept]][:n_used]
    return ids


@st.composite
def traces(draw: st.DrawFn, *, max_granule: int = 4, unequal: bool = False) -> Trace:
    """Small models with random routing; with `unequal`, layers of different granule sizes and some -1 ids."""
    n_layer, n_expert = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    n_used, n_token = draw(st.integers(1, min(3, n_expert))), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = random_ids(
        rng,
        n_token,
        n_layer,
        n_expert,
        n_used,
        skew=draw(st.sampled_from([0.0, 0.8, 1.5])),
        stay=draw(st.sampled_from([0, 0.4])),
    )
    if unequal:
        ids[rng.random(ids.shape) < 0.1] = -1
    trace = make_trace(ids, n_expert, n_granule=draw(st.integers(1, max_granule)))
    if unequal:
        trace.granule_bytes[:] = rng.choice([700, 1000], n_layer)
    return trace
