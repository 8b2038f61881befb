"""Streams that break, are stopped, or are shared: a typed error, nothing lost, and a model that goes on. Small: this runs under ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import lib
from moepic_gguf.errors import CancelledError, IoError
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions
from tests.python import tiny_gguf

pytestmark = pytest.mark.threads

TOKENS = np.random.default_rng(1).integers(0, 200, 60).tolist()
SHAPE = tiny_gguf.Shape(n_layer=3, n_expert=16, n_expert_used=4, n_ff=128)
LINK = {"link_bytes_s": 2e7, "cpu_bytes_s": 2e7}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("failures") / "tiny.gguf", SHAPE)


@pytest.fixture
def path(source, tmp_path):
    return shutil.copy(source, tmp_path / "mine.gguf")


def streamed(path, **options):
    # A quarter of the experts: 3 layers x 16 experts x 3 x 64 x 128 floats.
    options = {"always": True, "cache": 3 * 16 * 3 * 64 * 128 * 4 // 4, **options}
    load = {key: options.pop(key) for key in ("n_threads", "n_batch") if key in options}
    return Model.load(path, n_ctx=128, streaming=StreamingOptions(**options), **load)


def check(model):
    checked(lib.moepic_test_stream_check(model._weights._pointer))


@pytest.fixture(scope="module")
def expected(source):
    with Model.load(source, n_ctx=128) as model:
        return model.logits(TOKENS).tobytes()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("io", ["io_uring", "threads"])
def test_a_file_cut_short_ends_the_answer_with_an_error_and_mended_goes_on(path, expected, io, direct):
    whole = os.path.getsize(path)
    with open(path, "rb") as file:
        content = file.read()
    with streamed(path, io=io, direct=direct, cache=0) as model:
        assert model.logits(TOKENS[:8]).shape[0] == 8
        os.truncate(path, whole // 3)
        with pytest.raises(IoError, match=r"mine\.gguf.*(ends at|truncated)"):
            model.logits(TOKENS)
        check(model)
        with pytest.raises(IoError):
            model.generate(TOKENS[:4], max_tokens=4)
        check(model)
        with open(path, "r+b") as file:  # the same file, made whole again
            file.write(content)
        assert model.logits(TOKENS).tobytes() == expected
        assert model.stream_stats.n_failed > 0
        check(model)


def test_a_file_that_vanishes_is_still_read(path, expected):
    """An open file outlives its name; what the user sees is no error at all."""
    with streamed(path, cache=0) as model:
        os.unlink(path)
        assert model.logits(TOKENS).tobytes() == expected


def test_a_file_that_is_gone_before_loading_is_named(tmp_path):
    with pytest.raises(IoError, match="gone"):
        streamed(tmp_path / "gone.gguf")


@pytest.mark.parametrize("options", [{}, LINK], ids=["file", "link"])
def test_cancelling_anywhere_leaves_residency_and_results_right(source, expected, options):
    with streamed(source, n_threads=2, n_batch=16, **options) as model:
        stopped = 0
        for i in range(12):
            model.context.clear()
            timer = threading.Timer(0.0005 * (i + 1), model.context.native.cancel)
            timer.start()
            try:
                for _ in range(40):
                    model.context.native.truncate(0)
                    model.context.native.eval(TOKENS)
                    for token in TOKENS[:4]:
                        model.context.native.eval([token])
            except CancelledError:
                stopped += 1
            timer.join()
            check(model)
        lib.moepic_context_clear_cancel(model.context.native.pointer)
        assert stopped == 12
        assert model.logits(TOKENS).tobytes() == expected


@pytest.mark.parametrize("options", [{}, {"policy": "auto", "scope": "global"}, LINK], ids=["file", "auto", "link"])
def test_two_contexts_share_one_cache(source, expected, options):
    with streamed(source, n_threads=2, **options) as model:
        found: dict[int, bytes] = {}

        def work(index: int) -> None:
            with model.new_context(n_batch=(7, 40)[index], n_threads=index + 1) as context:
                for _ in range(3):
                    found[index] = context.logits(TOKENS).tobytes()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {0: expected, 1: expected}
        assert model.stream_stats.evictions > 0
        check(model)


def test_closing_with_transfers_under_way_is_clean(source):
    for _ in range(5):
        model = streamed(source, predictor="next_layer", cache=0, link_bytes_s=1e6)
        model.context.native.eval(TOKENS[:1])
        model.close()


def test_the_policy_is_chosen_while_running_and_changes_no_token(source):
    with Model.load(source, n_ctx=512) as model:
        plain = list(model.generate(TOKENS[:8], max_tokens=300, stop_tokens=[]).tokens)
    options = StreamingOptions(always=True, cache=3 * 16 * 3 * 64 * 128 * 4 // 4, policy="auto")
    with Model.load(source, n_ctx=512, streaming=options) as model:
        assert list(model.generate(TOKENS[:8], max_tokens=300, stop_tokens=[]).tokens) == plain
        assert model.stream_stats.policy in ("lrfu", "lru", "lfu", "lcp")
        check(model)
