"""Work stops promptly: Ctrl-C, closing, cancelling, other threads, asyncio. The slow model's whole prefill takes much
longer than is allowed here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from moepic_gguf import Model, MoepicError

_PROMPT = [(7 * i) % 250 for i in range(4000)]
# One layer of one batch of the slow model takes far below a second even on a loaded machine; all of them take far
# longer.
_PROMPTLY_S = 1.5


@pytest.fixture(scope="module")
def slow(slow_file):
    with Model.load(slow_file, n_ctx=4096, n_threads=2) as model:
        yield model


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def still_works(model):
    with model.new_context(n_ctx=64) as fresh:
        expected = fresh.generate([1, 2, 3], max_tokens=3, ignore_eos=True).tokens
    model.context.clear()
    assert model.generate([1, 2, 3], max_tokens=3, ignore_eos=True).tokens == expected


def test_ctrl_c_stops_a_prefill_within_a_layer(slow):
    start = time.perf_counter()
    later(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        slow.generate(_PROMPT, max_tokens=50)
    took = time.perf_counter() - start
    assert 0.25 < took < 0.3 + _PROMPTLY_S
    assert slow.stats.prefill_tokens < len(_PROMPT), "the prefill was not finished, so it was stopped"
    still_works(slow)


def test_ctrl_c_stops_a_stream_of_tokens(slow):
    run = slow.generate([1, 2, 3], max_tokens=4000, ignore_eos=True, stream=True)
    later(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        for _ in run:
            pass
    assert run.finish_reason in (None, "cancelled")
    still_works(slow)


def test_ctrl_c_stops_logits_too(slow):
    later(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        slow.logits(_PROMPT)
    assert time.perf_counter() - start < 0.3 + _PROMPTLY_S
    still_works(slow)


def test_cancel_from_another_thread_ends_the_answer(slow):
    run = slow.generate(_PROMPT, max_tokens=10, stream=True)
    later(0.3, run.cancel)
    start = time.perf_counter()
    assert list(run) == []
    assert time.perf_counter() - start < 0.3 + _PROMPTLY_S
    assert run.finish_reason == "cancelled"
    still_works(slow)


def test_closing_the_model_while_another_thread_computes_stops_it(slow_file):
    model = Model.load(slow_file, n_ctx=4096, n_threads=1)
    run = model.generate(_PROMPT, max_tokens=10, stream=True)
    worker = threading.Thread(target=lambda: list(run))
    worker.start()
    time.sleep(0.3)
    start = time.perf_counter()
    model.close()
    assert time.perf_counter() - start < _PROMPTLY_S
    worker.join(_PROMPTLY_S)
    assert not worker.is_alive()
    assert run.finish_reason == "cancelled"


def test_a_second_thread_gets_a_clear_error(slow):
    run = slow.generate(_PROMPT, max_tokens=5, stream=True)
    worker = threading.Thread(target=lambda: list(run))
    worker.start()
    time.sleep(0.3)
    try:
        for call in (lambda: slow.generate([1, 2], max_tokens=2), lambda: slow.logits([1, 2]), slow.context.clear):
            with pytest.raises(MoepicError, match="another thread"):
                call()
    finally:
        run.cancel()
        worker.join()
    still_works(slow)


def test_two_contexts_compute_at_the_same_time(slow):
    results = {}

    def work(name):
        with slow.new_context(n_ctx=256, n_threads=1) as context:
            results[name] = context.generate([1, 2, 3], max_tokens=20, ignore_eos=True).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 20


def test_agenerate_gives_the_same_text_and_lets_others_run(model):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        stream = model.agenerate("the hand", max_tokens=30, ignore_eos=True)
        pieces = [piece async for piece in stream]
        ticking.cancel()
        return "".join(pieces), stream.result, ticks

    text, result, ticks = asyncio.run(main())
    assert text == result.text == model.generate("the hand", max_tokens=30, ignore_eos=True).text
    assert result.finish_reason == "length"
    assert ticks > 10


def test_cancelling_the_task_stops_the_work(slow):
    async def main():
        async def consume():
            async for _ in slow.agenerate(_PROMPT, max_tokens=5):
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.3)
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.perf_counter() - start

    assert asyncio.run(main()) < _PROMPTLY_S
    still_works(slow)


def test_ctrl_c_inside_a_native_callback_is_not_swallowed(tiny_file, monkeypatch, capfd):
    """The demo's calibration listens to every layer; Ctrl-C mostly comes while Python is in there."""
    from tiny_gguf import Shape

    from moepic_gguf.demo import build

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build.Path, "read_text", lambda *_, **__: "the hand")
    monkeypatch.setattr(build.np, "frombuffer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.calibrate(tiny_file(Shape(n_expert=0)), 2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("runs", [True, False])
def test_ctrl_c_while_the_helper_thread_starts_leaves_nothing_running(slow, monkeypatch, runs):
    """The interrupt may come between the thread's start and the wait for it; then the call is over, or never made,
    before the context is given back.
    """
    start = threading.Thread.start
    helpers = []

    def interrupted(thread):
        if thread.name == "moepic-eval":
            helpers.append(thread)
            if runs:
                start(thread)
            raise KeyboardInterrupt
        start(thread)

    for _ in range(3):
        slow.context.clear()
        slow.reset_stats()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                slow.generate(_PROMPT, max_tokens=1)
        assert slow.stats.prefill_tokens < len(_PROMPT)
        if runs:
            helpers[-1].join(0.2)  # it has nothing left to do but to end
            assert not helpers[-1].is_alive()
    still_works(slow)
