"""The exactness contract on a device, here the emulated one (docs/cuda.md): the bits of the CPU's engine, whatever the cache, cut, lane, predictor or
file, and whoever computes a granule. Every gate checks by counters that the feature it varies really fired.

With -m gpu the same runs on a GPU.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf.config import ContextOptions, LoadOptions
from moepic_gguf.errors import BudgetError, CancelledError, DeviceError, OutOfMemory
from moepic_gguf.planner import Machine
from moepic_gguf.streaming import StreamingOptions
from moepic_gguf.weights import memory_needs
from tests.cuda.devices import counters, set_options
from tests.gates.running import IDS, KINDS, PROMPT, TOKENS, Run, on_threads, run, same, split
from tests.making import gguf_file, ordinary
from tests.tiny.models import MODELS

DEVICES = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_options()


@pytest.fixture(scope="module")
def baseline():
    known: dict[tuple[str, str], Run] = {}

    def get(name, kind):
        if (name, kind) not in known:
            known[name, kind] = run(ordinary(name, kind), device="cpu", n_threads=2)
        return known[name, kind]

    return get


def on(device, path, *, cpu_lane=False, **options):
    load = {name: options.pop(name) for name in ("n_threads", "passes") if name in options}
    return run(path, device=device, cpu_lane=cpu_lane, streaming=StreamingOptions(**options), **load)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_budget_does_not_matter(baseline, device, name, kind, share):
    expected = baseline(name, kind)
    stats = same(on(device, split(name, kind), cache=int(share * expected.resident)), expected)
    assert stats.total("n_in_place") == 0
    if share == 0.0:
        assert stats.total("n_hit") == stats.total("n_resident") == 0
        assert stats.total("n_link") > 0
    elif share == 1.0:
        assert stats.total("n_miss") == stats.total("n_link") == 0
        assert stats.evictions == 0
    else:
        assert stats.total("n_link") > 0
        assert stats.total("n_hit") + stats.total("n_partial") > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
def test_the_cpu_computes_the_same_granules(baseline, device, name, kind):
    expected = baseline(name, kind)
    options = {"cache": expected.resident // 4, "predictor": "none", "cpu_lane": True, "adapt": False}
    stats = same(on(device, split(name, kind), cpu_bytes_s=1e15, **options), expected)
    assert stats.total("n_in_place") > 0


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_one_expert_is_divided_between_link_and_cpu(baseline, n_threads):
    """Copies come late, so the link takes the head of the queue and the CPU what it can of the tail."""
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    options = {"cache": 0, "predictor": "none", "cpu_bytes_s": 5e9, "cpu_lane": True, "adapt": False}
    for delay_us in (300, 100, 600, 0):  # who is the slower one depends on the machine, and on a sanitizer
        set_options(most_delay_us=delay_us)
        stats = same(on("emulated", split(name, kind), n_threads=n_threads, passes=3, **options), expected)
        if stats.total("n_in_place") > 0 and stats.total("n_link") > 0:
            return
    pytest.fail("one of the two took everything at every delay")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_family_gives_the_bits_of_the_cpu(device, name):
    path = gguf_file(name, "--outtype", "q8_0")
    expected = run(path, device="cpu")
    found = on(device, path, cache=expected.resident // 2, cpu_lane=True)
    a, b = np.frombuffer(found.logits, np.uint32), np.frombuffer(expected.logits, np.uint32)
    assert a.shape == b.shape
    assert not np.flatnonzero(a != b).size
    assert (found.stats is not None) == (expected.resident > 0)


@pytest.mark.parametrize("ratio", ["0", "0.34", "1", "ordinary"])
def test_the_cut_and_the_kind_of_the_file_do_not_matter(baseline, ratio):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    path = ordinary(name, kind) if ratio == "ordinary" else split(name, kind, ratio)
    same(on("emulated", path, cache=expected.resident // 3), expected)


@pytest.mark.parametrize(
    ("predictor", "lookahead"), [("none", 1), ("previous_token", 1), ("next_layer", 1), ("next_layer", 2)]
)
def test_fetching_ahead_does_not_matter(baseline, predictor, lookahead):
    set_options(most_delay_us=200)  # so that what is fetched ahead is late, too
    name, kind = "qwen3_next", "q8_0"
    expected = baseline(name, kind)
    options = {"predictor": predictor, "lookahead": lookahead, "adapt": False}
    stats = same(on("emulated", split(name, kind), cache=expected.resident // 4, passes=2, **options), expected)
    assert (stats.total("useful_bytes") > 0) == (predictor != "none")
    assert (stats.total("wasted_bytes") > 0) == (predictor != "none")


@pytest.mark.parametrize("policy", ["lru", "lfu", "lcp", "lrfu", "auto"])
@pytest.mark.parametrize("eviction", ["whole", "granules"])
def test_the_policy_does_not_matter(baseline, policy, eviction):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    stats = same(
        on("emulated", split(name, kind), cache=expected.resident // 3, policy=policy, eviction=eviction), expected
    )
    assert stats.evictions > 0


def test_frames_are_used_again_and_again(baseline):
    """Two frames a half: a prompt's queue goes round them many times, each time behind the kernels that read them."""
    set_options(most_delay_us=200)
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    stats = same(on("emulated", split(name, kind), cache=0, staging=1, predictor="none"), expected)
    assert stats.total("n_link", prefill=True) > 8


def test_what_is_not_pinned_goes_through_pinned_frames(baseline):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    found = run(
        split(name, kind), device="emulated", pin="64KiB", streaming=StreamingOptions(cache=expected.resident // 3)
    )
    same(found, expected)
    assert expected.resident > 4 * 2**16


def test_a_budget_too_small_is_refused_with_need_and_have():
    path = split("qwen3_moe_256", "q4_k")
    before = counters()["device_bytes"]
    with pytest.raises(BudgetError, match=r"vram: needs .* the budget is 100.00 KiB"):
        Model.load(path, device="emulated", vram="100KiB", n_ctx=64)
    assert counters()["device_bytes"] == before


def test_vram_holds_what_it_promises(baseline):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    options = StreamingOptions(staging=2**16)
    before = counters()["device_bytes"]
    for vram in (3 * 2**20, 4 * 2**20):
        with Model.load(
            split(name, kind), device="emulated", vram=vram, n_ctx=64, n_batch=64, streaming=options
        ) as model:
            model.logits(TOKENS)
            assert 0 < model.info.cache_bytes < expected.resident or vram > 3 * 2**20
            assert counters()["device_bytes"] - before <= vram + 2**16  # tables and a mailbox of the context
    assert counters()["device_bytes"] == before


def test_memory_that_somebody_else_took_shrinks_the_cache(baseline, caplog):
    """The arena is the last large allocation of a load: let it fail once."""
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    path = split(name, kind)
    for nth in range(1, 400):
        set_options(failing_allocation=nth)
        try:
            with Model.load(path, device="emulated", n_ctx=64) as model:
                shrunk = "shrinks" in caplog.text
                if shrunk:
                    assert model.info.cache_bytes < expected.resident
                    break
        except OutOfMemory:
            continue
    else:
        pytest.fail("no allocation of a load was the arena's")
    set_options()
    same(run(path, device="emulated", streaming=StreamingOptions(cache=expected.resident // 3)), expected)


@pytest.mark.parametrize("fault", ["failing_copy", "failing_launch"])
def test_a_device_that_fails_is_a_typed_error_and_the_process_goes_on(baseline, fault):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    with Model.load(split(name, kind), device="emulated", n_ctx=64, streaming=StreamingOptions(cache=0)) as model:
        set_options(**{fault: 40})
        with pytest.raises(DeviceError, match="asked for by a test"):
            [model.logits(TOKENS) for _ in range(20)]
    set_options()
    same(on("emulated", split(name, kind), cache=expected.resident // 3), expected)


@pytest.mark.threads
def test_contexts_take_turns(baseline):
    set_options(most_delay_us=100)
    name, kind = "qwen3_moe_256", "q4_k"
    path = split(name, kind)
    with Model.load(path, device="cpu", n_ctx=64) as model:
        expected = model.logits(TOKENS[:20])
    options = StreamingOptions(cache=2**18, cpu_bytes_s=1e8, adapt=False)
    with Model.load(path, device="emulated", n_ctx=64, n_threads=2, streaming=options) as model:
        contexts = [model.new_context() for _ in range(3)]

        def work(context):
            context.logits(TOKENS[:20])
            return context.logits(TOKENS[:20]).tobytes()

        assert on_threads(contexts, work) == [expected.tobytes()] * len(contexts)
        assert model.stream_stats is not None
        assert model.stream_stats.total("n_link", prefill=True) > 0


@pytest.mark.threads
def test_a_context_waits_for_what_another_one_brought():
    """A granule that was fetched ahead and stays is copied into its slot behind the kernels of the context that took it over."""
    path = split("qwen3_moe_256", "q4_k")
    with Model.load(path, device="cpu", n_ctx=64) as model:
        expected = [model.logits([token]).tobytes() for token in TOKENS[:3]]
        cache = model.info.expert_bytes // 2
    options = StreamingOptions(cache=cache, predictor="previous_token", adapt=False)
    useful = 0.0
    for seed in range(10):
        set_options(most_delay_us=1500, seed=seed)
        with Model.load(path, device="emulated", n_ctx=64, n_threads=1, streaming=options) as model:
            contexts = [model.new_context() for _ in range(2)]
            together = threading.Barrier(len(contexts), timeout=60)
            found: list[list[bytes]] = [[] for _ in contexts]

            def work(i, contexts=contexts, together=together, found=found):
                for turn in range(12):
                    together.wait()
                    found[i].append(contexts[i].logits([TOKENS[turn % 3]]).tobytes())
                    contexts[i].native.truncate(0)

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(contexts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [[expected[turn % 3] for turn in range(12)]] * len(contexts), f"seed {seed}"
            assert model.stream_stats is not None
            useful += model.stream_stats.total("useful_bytes")
    assert useful > 0


def test_a_cancelled_pass_leaves_everything_usable(baseline):
    name, kind = "qwen3_moe_256", "q4_k"
    with Model.load(split(name, kind), device="emulated", n_ctx=64, streaming=StreamingOptions(cache=2**18)) as model:
        expected = model.logits(TOKENS)
        model.context.native.truncate(0)
        model.context.native.cancel()
        with pytest.raises(CancelledError):
            model.context.native.eval(TOKENS[:PROMPT], all_logits=True)
        assert model.logits(TOKENS).tobytes() == expected.tobytes()


def test_a_warm_start_fills_the_cache(baseline):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    with Model.load(split(name, kind), device="cpu", n_ctx=64) as model:
        n_expert = sum(layer.n_expert for layer in model.info.layers)
    options = StreamingOptions(cache=expected.resident // 2, profile=[float(i % 7) for i in range(n_expert)])
    with Model.load(split(name, kind), device="emulated", n_ctx=64, streaming=options) as model:
        assert model.stream_stats is not None
        assert model.stream_stats.resident_bytes > expected.resident // 3
    same(run(split(name, kind), device="emulated", streaming=options), expected)


def test_a_model_whose_experts_all_fit_starts_with_all_of_them(baseline):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    stats = same(
        run(split(name, kind), device="emulated", streaming=replace(StreamingOptions(), predictor="none")), expected
    )
    assert stats.total("n_miss") == stats.total("n_partial") == 0
    assert stats.total("demand_bytes", prefill=True) == 0


@pytest.mark.parametrize("plan", ["auto", "paper", "uniform", 0.5])
def test_a_plan_divides_the_cache_of_a_device(baseline, plan):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    options: dict[str, Any] = {
        "device": "emulated",
        "streaming": StreamingOptions(cache=expected.resident // 2),
        "plan": plan,
        "machine": Machine(link_bytes_s=1e10, device_bytes_s=1e11),
    }
    same(run(split(name, kind), **options), expected)
    with Model.load(split(name, kind), n_ctx=64, **options) as model:
        assert model.forecast is not None
        assert 0.0 < model.stats.predicted_tpot_s == model.forecast.tpot.mean_s
        chosen = model.config.streaming
        if plan == "auto":
            assert chosen.policy == "auto"
        else:
            assert 0 < sum(chosen.layer_budget) <= model.info.cache_bytes == expected.resident // 2


def test_what_a_device_will_be_asked_for_is_known_before_loading():
    path, context = split("qwen3_moe_256", "q4_k"), ContextOptions(n_ctx=64)

    def needs(vram):
        return memory_needs(path, LoadOptions(device="emulated", vram=vram), context)

    least, half = needs("1GiB").least, needs("1GiB").least + needs("1GiB").experts // 2
    assert needs(least).cache == 0
    assert needs(half).cache == half - least
    with Model.load(path, device="emulated", vram=half, n_ctx=64) as model:
        assert model.info.cache_bytes == half - least
    with pytest.raises(BudgetError, match=rf"vram: needs .*{least} bytes"):
        needs(least - 1)
