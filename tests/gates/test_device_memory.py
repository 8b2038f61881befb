"""A device's memory after the load: contexts that find none make the expert cache shrink, between passes, and no bit of any answer changes.

The emulated device's limit is set to what is in use, so whatever is reserved from then on has to come from the cache.
"""

from __future__ import annotations

import functools
import threading
import time

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError, OutOfMemory
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions
from tests.cuda.devices import counters, set_options
from tests.gates.running import TOKENS, split

NAME, KIND = "qwen2_moe_1408", "q8_0"  # 48 slots, and a context takes a sixth of their bytes
PROMPT, DECODED = 24, 16


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_options()


@functools.cache
def on_the_cpu(name, kind):
    """Logits of a prompt and of each token decoded after it."""
    with Model.load(split(name, kind), device="cpu", n_ctx=64) as model:
        return list(answer(model.context))


@pytest.fixture
def expected():
    return on_the_cpu(NAME, KIND)


def answer(context):
    """The bytes of the logits, step by step, from the beginning."""
    native = context.native
    native.truncate(0)
    out, rows, n_vocab = ffi.new("const float**"), ffi.new("int64_t*"), ffi.new("int64_t*")
    for step in [TOKENS[:PROMPT], *([token] for token in TOKENS[PROMPT : PROMPT + DECODED])]:
        native.eval(step, all_logits=True)
        checked(lib.moepic_context_logits(out, rows, n_vocab, native.pointer))
        yield bytes(ffi.buffer(out[0], rows[0] * n_vocab[0] * 4))


def load(name=NAME, kind=KIND, *, strict=False, cpu_lane=False, **options):
    how = {"device": "emulated", "strict": strict, "cpu_lane": cpu_lane, "n_ctx": 64, "n_batch": 64, "n_threads": 2}
    return Model.load(split(name, kind), streaming=StreamingOptions(staging=2**16, **options), **how)


def limit_to_use(**options):
    set_options(memory_bytes=counters()["device_bytes"], **options)


def check(model):
    checked(lib.moepic_test_stream_check(model._weights._pointer))


def test_a_further_context_is_given_what_the_cache_has(expected, caplog):
    with load() as model:
        assert list(answer(model.context)) == expected
        before = model.stream_stats
        limit_to_use()
        further = model.new_context()
        stats = model.stream_stats
        assert stats.given_back_bytes > 0
        assert 0 < stats.cache_bytes < before.cache_bytes
        assert stats.cache_bytes + stats.given_back_bytes == pytest.approx(before.cache_bytes, rel=0.01)  # gaps
        # Everything was resident; as much stays as there is room for.
        assert stats.resident_bytes == stats.cache_bytes
        assert "the expert cache gives back" in caplog.text
        check(model)
        assert list(answer(further)) == expected
        assert list(answer(model.context)) == expected
        assert model.stream_stats.total("n_miss") + model.stream_stats.total("n_partial") > 0
        assert "given back" in str(model.stream_stats)
        check(model)


@pytest.mark.parametrize("eviction", ["whole", "granules"])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_what_is_worth_most_stays(expected, eviction, scope):
    """What is given up is the same share of every layer."""
    with load(eviction=eviction, scope=scope, predictor="none", policy="lfu") as model:
        assert list(answer(model.context)) == expected
        limit_to_use()
        model.new_context()
        check(model)
        model.reset_stats()
        assert list(answer(model.context)) == expected
        stats = model.stream_stats
        assert stats.given_back_bytes > 0
        assert stats.total("n_miss") + stats.total("n_partial") > 0
        for row in stats.decode:
            assert row.n_hit > row.n_miss, f"layer {row.layer} lost more than others"


def test_strict_keeps_the_cache_and_refuses_the_context(expected):
    with load(strict=True) as model:
        limit_to_use()
        with pytest.raises(OutOfMemory, match="strict keeps it"):
            model.new_context()
        assert model.stream_stats.given_back_bytes == 0
        assert list(answer(model.context)) == expected
        set_options()
        assert list(answer(model.new_context())) == expected


def test_when_nothing_is_left_a_context_is_refused_and_the_others_go_on(expected):
    with load(policy="lru") as model:
        limit_to_use()
        contexts = [model.context]

        def take_everything():
            while len(contexts) < 1000:
                contexts.append(model.new_context())

        with pytest.raises(OutOfMemory, match="allocating"):
            take_everything()
        assert len(contexts) > 2
        assert model.stream_stats.cache_bytes < model.info.cache_bytes / 2
        check(model)
        for context in (contexts[0], contexts[-1]):
            assert list(answer(context)) == expected
        contexts.pop().close()
        assert list(answer(model.new_context())) == expected
    assert counters()["device_bytes"] == 0


def test_a_context_larger_than_everything_costs_the_cache_nothing():
    with load() as model:
        limit_to_use()
        before = model.stream_stats.cache_bytes
        with pytest.raises(OutOfMemory, match="keys and values"):
            model.new_context(n_ctx=2**20, n_batch=1)
        # What is small was reserved before the keys and values, and has taken pieces.
        assert model.stream_stats.cache_bytes > 0.8 * before


@pytest.mark.parametrize("seed", range(3))
def test_shrinking_at_any_time_changes_no_bit(expected, seed):
    rng = np.random.default_rng(seed)
    options = [
        {"predictor": "none"},
        {"policy": "lru", "eviction": "whole", "cpu_lane": True, "cpu_bytes_s": 1e9, "adapt": False},
        {"policy": "auto", "scope": "global", "lookahead": 2, "adapt": False},
    ][seed]
    set_options(most_delay_us=100, seed=seed + 1)
    with load(cache=[2**22, 2**21, 2**21][seed], **options) as model:
        limit_to_use(most_delay_us=100, seed=seed + 1)
        running = [(answer(model.context), iter(expected))]
        given_back = []
        for _ in range(3):
            further = model.new_context(n_ctx=64, n_batch=int(rng.integers(PROMPT, 40)))
            running.append((answer(further), iter(expected)))
            given_back.append(model.stream_stats.given_back_bytes)
            check(model)
            for _ in range(8):
                mine, theirs = running[int(rng.integers(len(running)))]
                assert next(mine, None) == next(theirs, None)
        for mine, theirs in running:
            assert list(mine) == list(theirs)
        check(model)
        assert given_back[-1] > given_back[0] > 0


@pytest.mark.threads
def test_contexts_come_while_others_compute(expected):
    set_options(most_delay_us=50)
    with load(cpu_lane=True, cpu_bytes_s=1e8, adapt=False) as model:
        limit_to_use(most_delay_us=50)
        found: list[list[bytes] | BaseException] = []

        def work(context):
            try:
                found.append(list(answer(context)))
            except BaseException as error:
                found.append(error)

        def come():
            try:
                for _ in range(3):
                    found.append(list(answer(model.new_context())))
            except BaseException as error:
                found.append(error)

        threads = [threading.Thread(target=work, args=(model.context,)), threading.Thread(target=come)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(one) for one in found] == [list] * 4, found
        assert all(one == expected for one in found)
        assert model.stream_stats.given_back_bytes > 0
        check(model)


def test_a_copy_that_fails_while_the_cache_shrinks_loses_residents_and_no_bit(expected):
    with load(policy="lfu") as model:
        assert list(answer(model.context)) == expected
        limit_to_use(failing_copy=1)
        with pytest.raises(DeviceError, match="asked for by a test"):
            model.new_context()
        set_options()
        stats = model.stream_stats
        assert stats.resident_bytes < stats.cache_bytes
        check(model)
        assert list(answer(model.context)) == expected
        check(model)


@pytest.mark.parametrize(
    ("name", "kind"), [(NAME, KIND), ("qwen3_next", "q8_0"), ("gpt_oss", "mxfp4")], ids=["plain", "states", "windows"]
)
def test_a_driver_without_memory_for_a_launch_is_given_a_piece_and_the_pass_begins_anew(name, kind, caplog):
    with load(name, kind, policy="lru") as model:
        given_back = 0
        for nth in (1, 7, 33, 200):
            set_options(starving_launch=nth)
            assert list(answer(model.context)) == on_the_cpu(name, kind)
            assert model.stream_stats.given_back_bytes > given_back
            given_back = model.stream_stats.given_back_bytes
            check(model)
        assert caplog.text.count("the expert cache gives back") == 4


@pytest.mark.parametrize("how", ["strict", "nothing is cached"])
def test_a_driver_without_memory_and_nothing_to_give_ends_the_answer(expected, how):
    with load(strict=how == "strict", cache=0 if how != "strict" else None) as model:
        set_options(starving_launch=30)
        with pytest.raises(OutOfMemory, match="strict keeps it" if how == "strict" else "asked for by a test"):
            list(answer(model.context))
        check(model)
        assert list(answer(model.context)) == expected


def finish_pinning(model):
    while model.stream_stats.to_pin_bytes:
        time.sleep(0.001)


@pytest.mark.threads
@pytest.mark.parametrize("cpu_lane", [False, True])
def test_a_model_serves_before_pinning_has_ended(expected, caplog, cpu_lane):
    caplog.set_level("INFO")
    before = counters()["pinned_bytes"]
    set_options(most_delay_us=60_000)  # on average half of it, 16 times
    with load(cache=2**20, predictor="none", cpu_lane=cpu_lane) as model:
        set_options(most_delay_us=2_000)
        at_first = model.stream_stats
        assert at_first.to_pin_bytes > 0
        assert "so far; the rest takes one more copy" in str(at_first)
        assert list(answer(model.context)) == expected
        assert model.stream_stats.pinned_bytes > at_first.pinned_bytes
        finish_pinning(model)
        stats = model.stream_stats
        assert stats.pinned_bytes == model.info.expert_bytes
        assert "of experts are pinned" in caplog.text
        assert "pinning" not in str(stats)
        assert list(answer(model.context)) == expected
        check(model)
    assert counters()["pinned_bytes"] == before


@pytest.mark.threads
def test_a_model_that_is_closed_while_it_pins_leaves_nothing_pinned(expected):
    before = counters()
    for _ in range(3):
        set_options(most_delay_us=20_000)
        with load() as model:
            assert model.stream_stats.to_pin_bytes > 0
    assert counters()["pinned_bytes"] == before["pinned_bytes"]
    assert counters()["device_bytes"] == before["device_bytes"]
    set_options()
    with load(cache=2**20) as model:
        assert list(answer(model.context)) == expected


def test_what_the_system_does_not_grant_is_said_and_goes_through_frames(expected, caplog):
    set_options(most_delay_us=30_000)
    with load(cache=2**20) as model:
        set_options(failing_allocation=2)
        finish_pinning(model)
        stats = model.stream_stats
        assert 0 < stats.pinned_bytes < model.info.expert_bytes
        assert caplog.text.count("the rest takes one more copy") == 1
        assert list(answer(model.context)) == expected


def test_strict_pins_before_the_load_returns(expected):
    set_options(most_delay_us=10_000)
    with load(strict=True) as model:
        set_options()
        assert model.stream_stats.to_pin_bytes == 0
        assert model.stream_stats.pinned_bytes == model.info.expert_bytes
        assert list(answer(model.context)) == expected
