"""States that can't be cut back: reuse, truncation, regeneration and cancellation give the logits of a fresh sequence, bit for bit, and
redo no more than they must.

The models keep states of different kinds: delta nets beside attention, short convolutions beside attention.
"""

from __future__ import annotations

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import CancelledError
from tests.making import gguf_file

RNG = np.random.default_rng(5)
TOKENS = RNG.integers(3, 320, 220).tolist()
NAMES = ["qwen3_next", "qwen3_5_moe", "lfm2_moe"]


def path_of(name):
    return gguf_file(name, "--outtype", "q8_0", "--no-split")


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    with Model.load(path_of(request.param), n_ctx=256, n_batch=16) as model:
        yield model


@pytest.fixture(scope="module")
def fresh(loaded):
    """Logits after TOKENS[:n], computed from the beginning by another context, all in one batch."""
    with loaded.new_context(n_batch=256) as context:
        known = context.logits(TOKENS)

    def get(n: int) -> np.ndarray:
        return known[n - 1]

    return get


@pytest.fixture
def native(loaded):
    with loaded.new_context() as context:
        yield context.native


def last_row(native) -> np.ndarray:
    out, rows, vocab = ffi.new("const float**"), ffi.new("int64_t*"), ffi.new("int64_t*")
    assert lib.moepic_context_logits(out, rows, vocab, native.pointer) == 0
    data = np.frombuffer(ffi.buffer(out[0], rows[0] * vocab[0] * 4), np.float32).copy()
    return data.reshape(rows[0], vocab[0])[-1]


def stop_after(n_layers: int):
    """A probe that cancels when it has seen so many layers."""
    seen = 0

    @ffi.callback("moepic_probe_fn")
    def probe(event, _):
        nonlocal seen
        seen += event.kind == lib.MOEPIC_PROBE_FFN_INPUT
        return event.kind == lib.MOEPIC_PROBE_FFN_INPUT and seen == n_layers

    return probe


def computed(native) -> int:
    counters = native.counters()
    return int(counters["prefill_tokens"] + counters["decode_tokens"])


def test_truncating_anywhere_and_going_on_equals_a_fresh_sequence(native, fresh):
    native.eval(TOKENS[:100])
    for n in (99, 97, 96, 64, 63, 48, 17, 16, 15, 1):
        native.truncate(n)
        native.eval(TOKENS[n : n + 3])
        assert np.array_equal(last_row(native), fresh(n + 3)), f"truncated to {n}"
        native.eval([7, 8, 9])  # what is given up next


def test_truncating_to_nothing_begins_anew(native, fresh):
    native.eval(TOKENS[:40])
    native.truncate(0)
    native.eval(TOKENS[:5])
    assert np.array_equal(last_row(native), fresh(5))


def test_tokens_given_up_are_computed_again_once_and_counted(native, fresh):
    native.eval(TOKENS[:20])
    for i in range(20, 30):
        native.eval(TOKENS[i : i + 1])
    native.truncate(25)  # inside the answer: the checkpoint before it lies at 19
    before = computed(native)
    native.eval(TOKENS[25:26])
    assert computed(native) - before == (25 - 19) + 1
    native.eval(TOKENS[26:27])
    assert computed(native) - before == (25 - 19) + 2
    assert np.array_equal(last_row(native), fresh(27))


def test_an_answer_is_generated_anew_from_its_prompt_alone(native, fresh):
    """Again and again: a checkpoint stays when it has been used."""
    prompt = TOKENS[:50]
    native.eval(prompt)
    for n_answer in (30, 1, 10):
        for _ in range(n_answer):
            native.eval([int(RNG.integers(3, 320))])
        assert native.reuse(prompt) == len(prompt) - 1
        native.eval(prompt[-1:])
        assert np.array_equal(last_row(native), fresh(50))


def test_a_conversation_goes_on_where_it_stands(native, fresh):
    """Turn by turn, each prompt holding all before it: nothing is computed twice."""
    at = 0
    for end, answered in ((20, 33), (50, 61), (90, 95), (140, 150)):
        assert native.reuse(TOKENS[:end]) == at
        native.eval(TOKENS[at:end])
        assert np.array_equal(last_row(native), fresh(end))
        for i in range(end, answered):
            native.eval(TOKENS[i : i + 1])
        at = answered
    assert computed(native) == 150


def test_a_changed_turn_costs_that_turn(native, fresh):
    """The prompt is edited after some turns: the state before it is still there."""
    native.eval(TOKENS[:60])
    for i in range(60, 70):
        native.eval(TOKENS[i : i + 1])
    native.eval([*TOKENS[70:72], 5, 6, 7, 8])
    assert native.reuse(TOKENS[:80]) == 70, "where the edited prompt began"
    native.eval(TOKENS[70:80])
    assert np.array_equal(last_row(native), fresh(80))


def test_reuse_keeps_no_more_than_it_has_a_state_for(native, fresh):
    native.eval(TOKENS[:32])  # two batches: checkpoints at 16 and 31
    kept = native.reuse([*TOKENS[:20], 5, 6])
    assert kept == 16
    native.eval(TOKENS[16:24])
    assert np.array_equal(last_row(native), fresh(24))


def test_many_prompts_leave_at_most_so_many_checkpoints_and_the_newest_is_there(native, fresh):
    """More prompts than slots. Whatever was given up, going back is right; to the last prompt it is free."""
    for at in range(0, 200, 5):
        native.eval(TOKENS[at : at + 5])
    assert native.reuse(TOKENS[:200]) == 199
    native.eval(TOKENS[199:200])
    assert np.array_equal(last_row(native), fresh(200))
    for n in (180, 101, 33, 8):
        native.truncate(n)
        before = computed(native)
        native.eval(TOKENS[n : n + 1])
        assert np.array_equal(last_row(native), fresh(n + 1))
        assert computed(native) - before <= 100, "checkpoints are spread, so some are near"


def test_cancelling_inside_a_batch_leaves_the_state_before_it(native, fresh, loaded):
    """Cancelled before every layer once: the finished batches stay, and going on gives what a fresh sequence gives."""
    n_layer = loaded.info.n_layer
    for stop_at in range(n_layer):
        native.truncate(0)
        native.eval(TOKENS[:10])
        listener = stop_after(
            n_layer + stop_at
        )  # in the second batch of 16; before its first layer: at the end of the first
        lib.moepic_context_set_probe(native.pointer, listener, ffi.NULL)
        with pytest.raises(CancelledError):
            native.eval(TOKENS[10:60])
        lib.moepic_context_set_probe(native.pointer, ffi.NULL, ffi.NULL)
        assert lib.moepic_context_tokens(ffi.NULL, native.pointer) == 26, "the batch before it was finished"
        native.eval(TOKENS[26:70])
        assert np.array_equal(last_row(native), fresh(70))


def test_cancelling_a_single_token_leaves_the_state_before_it(native, fresh):
    native.eval(TOKENS[:30])
    native.eval(TOKENS[30:31])
    native.cancel()
    with pytest.raises(CancelledError):
        native.eval(TOKENS[31:32])
    native.eval(TOKENS[31:32])
    assert np.array_equal(last_row(native), fresh(32))


def test_cancelling_while_given_up_tokens_are_computed_again_is_harmless(native, fresh):
    native.eval(TOKENS[:10])
    for i in range(10, 60):
        native.eval(TOKENS[i : i + 1])
    native.truncate(55)
    native.cancel()
    with pytest.raises(CancelledError):
        native.eval(TOKENS[55:56])
    assert lib.moepic_context_tokens(ffi.NULL, native.pointer) == 55
    native.eval(TOKENS[55:56])
    assert np.array_equal(last_row(native), fresh(56))


def test_generation_again_gives_the_same_text(loaded):
    prompt = TOKENS[:30]
    first = loaded.generate(prompt, max_tokens=12, stop_tokens=[])
    other = loaded.generate(TOKENS[:10] + TOKENS[40:60], max_tokens=5, stop_tokens=[])
    again = loaded.generate(prompt, max_tokens=12, stop_tokens=[])
    regenerated = loaded.generate(prompt, max_tokens=12, stop_tokens=[])
    assert first.tokens == again.tokens == regenerated.tokens
    assert regenerated.reused_tokens == len(prompt) - 1
    assert other.tokens
    loaded.context.clear()


def test_the_memory_of_states_is_reserved_bounded_and_reported(loaded):
    stats = loaded.stats
    assert 0 < stats.state_bytes <= 256 << 20
    with loaded.new_context(n_ctx=64) as small:
        assert small.stats.state_bytes == stats.state_bytes, "it does not grow with the context"
    with Model.load(gguf_file("qwen3_moe", "--outtype", "q8_0", "--no-split"), n_ctx=64) as plain:
        assert plain.stats.state_bytes == 0
