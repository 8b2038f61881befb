"""Layers with a window keep a ring of keys and values. Whatever is taken back and computed anew, the logits are those of a context that
keeps everything, byte for byte; and where the ring has forgotten a window, the counters show that it was computed again.

The ring here is 768 positions: a window of 12 (chunks of 16), batches of 16 and a margin of 512, rounded up to 256. With batches of 1536
it would be longer than the context, so nothing is a ring: that is the reference.
"""

from __future__ import annotations

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from tests.making import gguf_file

N_CTX, RING = 1536, 768
TOKENS = np.random.default_rng(11).integers(3, 320, 1400).tolist()
NAMES = ["gpt_oss_default_rope", "gemma3", "gemma4", "llama4_chunks"]


@pytest.fixture(params=NAMES)
def path(request):
    return gguf_file(request.param, "--outtype", "f16", "--no-split")


def last_logits(native) -> bytes:
    out, rows, vocab = ffi.new("const float**"), ffi.new("int64_t*"), ffi.new("int64_t*")
    assert lib.moepic_context_logits(out, rows, vocab, native.pointer) == 0
    return bytes(ffi.buffer(out[0] + (rows[0] - 1) * vocab[0], vocab[0] * 4))


def fresh(path, tokens) -> bytes:
    """Logits after `tokens` of a context that keeps every position."""
    with Model.load(path, n_ctx=N_CTX, n_batch=N_CTX) as model:
        model.context.native.eval(tokens)
        return last_logits(model.context.native)


def test_a_ring_gives_the_bytes_of_a_whole_cache_and_is_smaller(path):
    with Model.load(path, n_ctx=N_CTX, n_batch=16) as ring, Model.load(path, n_ctx=N_CTX, n_batch=N_CTX) as whole:
        assert ring.logits(TOKENS).tobytes() == whole.logits(TOKENS).tobytes()
        small, large = ring.context.stats.kv_bytes, whole.context.stats.kv_bytes
    # Every layer that looks back over a window, and none other, has half the positions.
    assert small < 0.9 * large


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_decoding_goes_round_the_ring(kv_type):
    path = gguf_file("gpt_oss_default_rope", "--outtype", "f16", "--no-split")
    load = {"n_ctx": N_CTX, "kv_type": kv_type}
    with Model.load(path, n_batch=16, **load) as ring, Model.load(path, n_batch=N_CTX, **load) as whole:
        native, other = ring.context.native, whole.context.native
        for model in (native, other):
            model.eval(TOKENS[: RING - 8])
        for i in range(RING - 8, RING + 24):
            native.eval(TOKENS[i : i + 1])
            other.eval(TOKENS[i : i + 1])
            assert last_logits(native) == last_logits(other), f"position {i}"


@pytest.mark.parametrize(
    ("back", "again"),
    [
        (1, False),
        (100, False),
        (512, False),  # the margin
        (900, True),
        (1390, True),  # to ten tokens, fewer than the window
    ],
)
def test_a_truncated_context_goes_on_as_if_it_had_never_been_longer(path, back, again):
    keep = len(TOKENS) - back
    with Model.load(path, n_ctx=N_CTX, n_batch=16) as model:
        native = model.context.native
        native.eval(TOKENS)
        before = native.counters()["prefill_tokens"]
        native.truncate(keep)
        native.eval([7, 8, 9])
        assert last_logits(native) == fresh(path, [*TOKENS[:keep], 7, 8, 9])
        assert native.counters()["prefill_tokens"] - before == 3 + again * keep
        native.eval([10])
        assert last_logits(native) == fresh(path, [*TOKENS[:keep], 7, 8, 9, 10])


def test_truncating_step_by_step_is_as_honest_as_at_once(path):
    """Each step alone lies within the margin; together they do not."""
    with Model.load(path, n_ctx=N_CTX, n_batch=16) as model:
        native = model.context.native
        native.eval(TOKENS)
        for keep in (1000, 700, 400, 50):
            native.truncate(keep)
        native.eval([5])
        assert last_logits(native) == fresh(path, [*TOKENS[:50], 5])
        native.truncate(0)
        native.eval(TOKENS[:30])
        assert last_logits(native) == fresh(path, TOKENS[:30])


def test_going_back_and_forth_at_the_edge_of_the_margin_is_right(path):
    random = np.random.default_rng(5)
    tokens = list(TOKENS[:900])
    with Model.load(path, n_ctx=N_CTX, n_batch=16) as model:
        native = model.context.native
        native.eval(tokens)
        for _ in range(6):
            keep = int(random.integers(max(1, len(tokens) - 800), len(tokens)))
            more = random.integers(3, 320, int(random.integers(1, 400))).tolist()[: N_CTX - keep]
            tokens = [*tokens[:keep], *more]
            native.truncate(keep)
            native.eval(more)
            assert last_logits(native) == fresh(path, tokens), f"kept {keep}, then {len(more)} more"


def test_a_prefix_is_reused_only_where_its_windows_are_held(path):
    with Model.load(path, n_ctx=N_CTX, n_batch=16) as model:
        native = model.context.native
        native.eval(TOKENS)
        assert native.reuse([*TOKENS[:1200], 4, 5]) == 1200
        native.eval([4, 5])
        assert last_logits(native) == fresh(path, [*TOKENS[:1200], 4, 5])
        assert native.reuse([*TOKENS[:300], 6]) == 0
        native.eval([*TOKENS[:300], 6])
        assert last_logits(native) == fresh(path, [*TOKENS[:300], 6])
        assert native.counters()["reused_tokens"] == 1200


def test_a_stopped_prefill_leaves_a_context_that_is_still_right(path):
    """The pass that was stopped may have overwritten the oldest positions of the ring."""
    with Model.load(path, n_ctx=N_CTX, n_batch=16) as model:
        native = model.context.native
        native.eval(TOKENS[:800])
        lib.moepic_context_cancel(native.pointer)
        assert lib.moepic_context_eval(native.pointer, TOKENS[800:816], 16, 0) < 0
        native.eval(TOKENS[900:910])
        assert last_logits(native) == fresh(path, [*TOKENS[:800], *TOKENS[900:910]])
