"""What gates of streamed experts share: kinds of models, one run that visits every schedule, and the comparison of bits.

A run is a prompt of 40 tokens in one batch (waves), 5 tokens as a small batch (granules one by one, several tokens), and 12 tokens decoded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from moepic_gguf import Context, Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamStats
from tests.making import ordinary, resplit

Result = TypeVar("Result")

TOKENS = np.random.default_rng(7).integers(3, 320, 57).tolist()
PROMPT, BATCH = 40, 5
STEPS = [TOKENS[:PROMPT], TOKENS[PROMPT : PROMPT + BATCH], *([token] for token in TOKENS[PROMPT + BATCH :])]

# (variant, type): one granule and many, shared expert, biases, MXFP4, dense first layers, k-quants, codebooks, floats; a dense feed-forward beside the
# experts with a norm for the router; weights on the experts' input, and layers between those with experts; layers with states; LayerNorms.
KINDS = [
    ("qwen3_moe_256", "q4_k"),
    ("qwen3_moe_256", "iq2"),
    ("qwen3_moe_256", "iq3"),
    ("qwen2_moe_1408", "q8_0"),
    ("gpt_oss", "mxfp4"),
    ("mixtral", "f32"),
    ("deepseek_v3", "q8_0"),
    ("gemma4", "q4_0"),
    ("llama4", "f32"),
    ("qwen3_next", "q8_0"),
    ("phimoe", "q8_0"),
]
IDS = [f"{name}-{kind}" for name, kind in KINDS]


@dataclass
class Run:
    logits: bytes
    stats: StreamStats | None
    resident: int


def read_logits(context: Context) -> bytes:
    """The logits of the context's last call."""
    out, rows, n_vocab = ffi.new("const float**"), ffi.new("int64_t*"), ffi.new("int64_t*")
    checked(lib.moepic_context_logits(out, rows, n_vocab, context.native.pointer))
    return bytes(ffi.buffer(out[0], rows[0] * n_vocab[0] * 4))


def stats_of(model: Model) -> StreamStats:
    assert model.stream_stats is not None
    return model.stream_stats


def on_threads(contexts: Sequence[Context], work: Callable[[Context], Result]) -> list[Result]:
    """work(context) for each, a thread for each, and what they return; the first error of one is raised."""
    with ThreadPoolExecutor(len(contexts)) as pool:
        return list(pool.map(work, contexts))


def logits_of(model: Model, context: Context | None = None, steps: Sequence[Sequence[int]] = STEPS) -> bytes:
    """All logits of a run, from its first token on."""
    context = context or model.context
    context.native.truncate(0)
    found = b""
    for step in steps:
        context.native.eval(step, all_logits=True)
        found += read_logits(context)
    return found


def run(path, *, streaming=None, passes=1, **load) -> Run:
    with Model.load(path, n_ctx=64, streaming=streaming, **load) as model:
        found = b""
        for _ in range(passes):
            found = logits_of(model)
        checked(lib.moepic_test_stream_check(model._weights._pointer))
        return Run(found, model.stream_stats, model.info.expert_bytes)


def split(name, kind, ratio="0.5"):
    return resplit(ordinary(name, kind), "--split-ratio", ratio)


def same(found: Run, expected: Run) -> StreamStats:
    assert found.stats is not None
    a, b = np.frombuffer(found.logits, np.uint32), np.frombuffer(expected.logits, np.uint32)
    assert a.shape == b.shape
    wrong = np.flatnonzero(a != b)
    assert not len(wrong), f"{len(wrong)} of {len(a)} logits differ, first at {wrong[0]}"
    stats = found.stats
    assert stats.resident_bytes <= stats.cache_bytes
    assert stats.n_failed == 0
    return stats
