"""The engine under several threads: contexts that share weights, a cancel from elsewhere, a probe. Small on purpose: this is the set that
runs under ThreadSanitizer, where the native code is instrumented and Python is not."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf.errors import CancelledError

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from tiny_gguf import Shape, write

pytestmark = pytest.mark.threads

TOKENS = np.random.default_rng(1).integers(0, 200, 60).tolist()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("threads") / "tiny.gguf", Shape())


def test_two_contexts_on_two_threads_give_what_one_gives_alone(tiny):
    with Model.load(tiny, n_threads=3, n_ctx=128) as model:
        alone = model.logits(TOKENS).tobytes()
        found: dict[int, bytes] = {}

        def work(index: int) -> None:
            with model.new_context(n_batch=(7, 16)[index]) as context:
                for _ in range(3):
                    found[index] = context.logits(TOKENS).tobytes()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == alone
        assert found[1] == alone


def test_a_cancel_from_another_thread_stops_and_leaves_the_context_usable(tiny):
    from moepic_gguf._ffi import ffi, lib

    with Model.load(tiny, n_threads=2, n_ctx=128, n_batch=4) as model:
        expected = model.logits(TOKENS).tobytes()
        cancelled = 0
        for _ in range(20):
            model.context.clear()
            timer = threading.Timer(0.002, model.context.native.cancel)
            timer.start()
            try:
                for _ in range(200):
                    model.context.native.truncate(0)
                    model.context.native.eval(TOKENS)
            except CancelledError:
                cancelled += 1
                assert lib.moepic_context_tokens(ffi.NULL, model.context.native.pointer) < len(TOKENS)
            timer.join()
            model.context.native.clear_cancel()
        assert cancelled >= 15
        assert model.logits(TOKENS).tobytes() == expected


def test_a_probe_sees_every_layer_and_every_granule_once_and_changes_nothing(tiny):
    from moepic_gguf._ffi import ffi, lib

    seen: list[tuple[int, int, int, int]] = []

    @ffi.callback("moepic_probe_fn", error=1)
    def probe(event, _user):
        seen.append((event.kind, event.layer, event.expert, event.granule))
        return 0

    with Model.load(tiny, n_threads=3, n_ctx=128) as model:
        plain = model.logits(TOKENS[:6]).tobytes()
        lib.moepic_context_set_probe(model.context.native.pointer, probe, ffi.NULL)
        model.context.clear()
        assert model.logits(TOKENS[:6]).tobytes() == plain
        lib.moepic_context_set_probe(model.context.native.pointer, ffi.NULL, ffi.NULL)
        layers = model.info.layers
    for il, layer in enumerate(layers):
        kinds = [event[0] for event in seen if event[1] == il]
        assert kinds.count(lib.MOEPIC_PROBE_FFN_INPUT) == 1
        assert kinds.count(lib.MOEPIC_PROBE_ROUTING) == 1
        granules = [event[2:] for event in seen if event[1] == il and event[0] == lib.MOEPIC_PROBE_EXPERT_ACT]
        assert len(granules) == len(set(granules))
        assert {g for _, g in granules} == set(range(layer.n_granules))
