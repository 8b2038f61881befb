"""Every way through a device's engine, by itself and shared by threads, with so few weights and tokens that it can run under the sanitizers in CI
(./dev asan --quick, ./dev tsan --quick). What kinds of weights, files and policies add is in the other gates.
"""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from moepic_gguf import Model
from moepic_gguf._ffi import lib
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions
from tests.cuda.devices import set_options
from tests.gates.running import logits_of, on_threads, read_logits
from tests.python import tiny_gguf

pytestmark = pytest.mark.threads  # streams are threads, whoever calls

PROMPT, BATCH, ALONE = 12, 4, 4  # waves of experts, granules of several tokens, granules of one
TOKENS = np.random.default_rng(3).integers(0, 200, PROMPT + BATCH + ALONE).tolist()
STEPS = [TOKENS[:PROMPT], TOKENS[PROMPT : PROMPT + BATCH], *([token] for token in TOKENS[PROMPT + BATCH :])]

# A quarter of the experts is resident, the link and the CPU share what is missing, and the next layer's experts are fetched ahead.
STREAMED = {"cache_share": 0.25, "cpu_bytes_s": 5e9, "predictor": "next_layer", "adapt": False}
RESIDENT = {"predictor": "none"}


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def path(request, tmp_path_factory):
    shape = tiny_gguf.Shape(n_layer=3, n_expert=8, n_ff=128, tokenizer=False, kind=GGMLQuantizationType[request.param])
    return tiny_gguf.write(tmp_path_factory.mktemp("small") / "tiny.gguf", shape)


@pytest.fixture(scope="module")
def expected(path):
    with Model.load(path, device="cpu", n_ctx=64, granule=64) as model:
        return logits_of(model, steps=STEPS)


@pytest.fixture(autouse=True)
def late_copies():
    set_options(most_delay_us=100)
    yield
    set_options()


def load(path, *, cache_share=None, **options):
    if cache_share is not None:
        with Model.load(path, device="cpu", n_ctx=64) as model:
            options["cache"] = int(cache_share * model.info.expert_bytes)
    how = {"n_ctx": 64, "n_threads": 2, "granule": 64, "cpu_lane": cache_share is not None}
    return Model.load(path, device="emulated", streaming=StreamingOptions(**options), **how)


def stats_of(model):
    checked(lib.moepic_test_stream_check(model._weights._pointer))
    stats = model.stream_stats
    assert stats is not None
    assert stats.n_failed == 0
    return stats


def test_link_and_cpu_bring_what_is_missing(path, expected):
    with load(path, **STREAMED) as model:
        assert logits_of(model, steps=STEPS) == expected
        stats = stats_of(model)
        assert stats.evictions > 0
        for name in ("n_hit", "n_link", "n_in_place", "useful_bytes"):
            assert stats.total(name, prefill=True) + stats.total(name) > 0, name


def test_the_device_routes_what_is_resident(path, expected):
    with load(path, **RESIDENT) as model:
        assert logits_of(model, steps=STEPS) == expected
        assert stats_of(model).n_device_routed > 0


@pytest.mark.parametrize("options", [STREAMED, RESIDENT], ids=["streamed", "resident"])
def test_contexts_share_a_device(path, expected, options):
    with load(path, **options) as model:
        contexts = [model.new_context(n_batch=3) for _ in range(2)]

        def work(context):
            context.native.eval(TOKENS)  # the host runs ahead: it reads nothing before the last token's logits
            last, found = read_logits(context), logits_of(model, context, STEPS)
            assert found.endswith(last)
            return found

        assert on_threads(contexts, work) == [expected] * len(contexts)
        stats_of(model)
