"""Tokens that a device is given as one graph (docs/cuda.md): the bits of the CPU's engine, whatever came between two of them, and figures as if each step
had been launched. Every gate checks by counters that graphs really ran, or did not.

With -m gpu the same runs on a GPU.
"""

from __future__ import annotations

import pytest

from moepic_gguf import Model
from moepic_gguf.errors import CancelledError, DeviceError
from moepic_gguf.streaming import StreamingOptions
from tests.cuda.devices import counters, set_options
from tests.gates.running import (
    IDS,
    KINDS,
    STEPS,
    TOKENS,
    logits_of,
    on_threads,
    read_logits,
    run,
    same,
    split,
    stats_of,
)
from tests.making import ordinary

DEVICES = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]
ALONE = sum(len(step) == 1 for step in STEPS)  # tokens of a run that are decoded alone
CHUNK = 256  # positions that one graph serves: ops::kKvChunk


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_options()


def evaluate(context, tokens) -> bytes:
    """The logits of the last token."""
    context.native.eval(tokens)
    return read_logits(context)


def decode(context, tokens=TOKENS[:20]) -> list[bytes]:
    """The logits after each token, alone, from the beginning."""
    context.native.truncate(0)
    return [evaluate(context, [token]) for token in tokens]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
def test_a_graph_gives_the_bits_of_its_steps(device, name, kind):
    """Prompts come between, and states go back to where they were."""
    expected = run(ordinary(name, kind), device="cpu", n_threads=2)
    stats = same(run(split(name, kind), device=device, graphs="on", passes=2), expected)
    assert stats.n_graph_tokens == 2 * ALONE - 1  # the first is launched step by step
    assert stats.n_graphs == 1
    assert stats.n_device_routed == 2 * (len(STEPS) - 1) * len(stats.decode)
    assert stats.n_round_trips == 0


@pytest.mark.parametrize(("name", "kind"), [("qwen2_moe_1408", "q8_0"), ("qwen3_next", "q8_0")])
def test_figures_are_those_of_steps(name, kind):
    figures = []
    for graphs in ("off", "on"):
        with Model.load(split(name, kind), device="emulated", graphs=graphs, n_ctx=64) as model:
            logits_of(model)
            stats, counted = stats_of(model), model.context.native.counters()
            uses = model._weights.expert_uses()
            assert (stats.n_graph_tokens, stats.n_graphs) == ((ALONE - 1, 1) if graphs == "on" else (0, 0))
            model.reset_stats()
            assert stats_of(model).n_graph_tokens == stats_of(model).n_graphs == 0
        figures.append((counted["experts_used"], counted["expert_tasks"], uses, [row.n_hit for row in stats.decode]))
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("name", "kind"), [("qwen3_moe_256", "q4_k"), ("gpt_oss", "mxfp4"), ("gemma4", "q4_0"), ("qwen3_next", "q8_0")]
)
def test_a_graph_ends_with_its_positions(name, kind):
    """Keys of all positions, of windows, and states; there and back again."""
    path, prompt = split(name, kind), (TOKENS * 5)[: CHUNK - 4]

    def answer(model):
        found = []
        for turn in range(2):
            model.context.native.truncate(0)
            found.append(evaluate(model.context, prompt))
            found += [evaluate(model.context, [token]) for token in TOKENS[turn : turn + 10]]
        return found

    options = {"n_ctx": 2 * CHUNK, "n_batch": CHUNK, "n_threads": 2}
    with Model.load(path, device="cpu", **options) as model:
        expected = answer(model)
    with Model.load(path, device="emulated", graphs="on", **options) as model:
        assert answer(model) == expected
        stats = stats_of(model)
        assert (stats.n_graph_tokens, stats.n_graphs) == (19, 4)


@pytest.mark.threads
def test_contexts_take_turns():
    set_options(most_delay_us=100)
    path = split("qwen2_moe_1408", "q8_0")
    with Model.load(path, device="cpu", n_ctx=64) as model:
        expected = decode(model.context)
    with Model.load(path, device="emulated", graphs="on", n_ctx=64, n_threads=1) as model:
        contexts = [model.new_context() for _ in range(3)]
        assert on_threads(contexts, decode) == [expected] * len(contexts)
        stats = stats_of(model)
        assert (stats.n_graph_tokens, stats.n_graphs) == (len(contexts) * (len(expected) - 1), len(contexts))
        n_used = len(contexts) * len(expected) * model.info.n_moe_layer * model.info.n_expert_used
        assert stats.total("n_hit") == sum(model._weights.expert_uses()) == n_used


def test_a_cache_that_gave_memory_back_has_no_graphs():
    path = split("qwen2_moe_1408", "q8_0")
    expected = run(path, device="cpu").logits
    options = StreamingOptions(predictor="none", staging=2**16)
    with Model.load(path, device="emulated", graphs="on", cpu_lane=False, n_ctx=64, streaming=options) as model:
        assert logits_of(model) == expected
        assert stats_of(model).n_graph_tokens == ALONE - 1
        set_options(memory_bytes=counters()["device_bytes"])
        model.new_context()
        assert stats_of(model).given_back_bytes > 0
        assert logits_of(model) == expected
        assert stats_of(model).n_graph_tokens == ALONE - 1


def test_experts_that_came_one_by_one_are_found():
    """Half of them are there at first; a prompt brings the others, wherever there is room."""
    path = split("qwen3_moe_256", "q4_k")
    expected = run(path, device="cpu").logits
    with Model.load(path, device="cpu", n_ctx=64) as model:
        profile = [float(i % 2) for i in range(sum(layer.n_expert for layer in model.info.layers))]
    options = StreamingOptions(predictor="none", profile=profile)
    with Model.load(path, device="emulated", graphs="on", n_ctx=64, streaming=options) as model:
        assert 0 < stats_of(model).resident_bytes < stats_of(model).cache_bytes
        assert logits_of(model) == expected
        stats = stats_of(model)
        assert stats.total("n_link", prefill=True) > 0
        assert stats.resident_bytes == model.info.expert_bytes
        assert stats.n_graph_tokens == ALONE - 1


def test_where_somebody_looks_there_are_no_graphs(tmp_path):
    with Model.load(split("qwen3_moe_256", "q4_k"), device="emulated", graphs="on", n_ctx=64) as model:
        expected = logits_of(model)
        with model.record(trace=tmp_path / "trace"):
            assert logits_of(model) == expected
        assert stats_of(model).n_graph_tokens == ALONE - 1
        with model.record(timeline=tmp_path / "timeline.json"):
            assert logits_of(model) == expected
        assert stats_of(model).n_graph_tokens == ALONE - 1
        assert logits_of(model) == expected
        assert stats_of(model).n_graph_tokens == 2 * ALONE - 1


def test_a_cancelled_token_leaves_everything_usable():
    with Model.load(split("qwen3_next", "q8_0"), device="emulated", graphs="on", n_ctx=64) as model:
        context = model.context
        expected = decode(context)
        for n_before in (0, 1, 12):  # before the first token of a sequence, and in the middle
            found = decode(context, TOKENS[:n_before])
            context.native.cancel()
            with pytest.raises(CancelledError):
                context.native.eval([TOKENS[n_before]])
            assert found + [evaluate(context, [token]) for token in TOKENS[n_before:20]] == expected
        assert stats_of(model).n_graph_tokens == 4 * 20 - 1


@pytest.mark.parametrize(("fault", "counter"), [("failing_copy", "n_copies"), ("failing_launch", "n_launches")])
def test_a_graph_that_fails_leaves_its_accounts_right(fault, counter):
    """Faults in steps, in a capture, and in the launch of a graph."""
    path = split("qwen3_moe_256", "q4_k")
    with Model.load(path, device="emulated", graphs="on", n_ctx=64) as model:
        n_failed = 0
        set_options()
        evaluate(model.context, TOKENS[:1])
        n = counters()[counter]  # of a token's steps
        for nth in (1, n // 2, n + 1, 3 * n // 2, 2 * n + 1, 2 * n + 2):
            context = model.new_context()
            set_options(**{fault: nth})
            try:
                for token in TOKENS[:4]:
                    context.native.eval([token])
            except DeviceError:
                n_failed += 1
            set_options()
            context.close()
        assert n_failed >= 5
        stats, k = stats_of(model), model.info.n_expert_used
        assert stats.n_graph_tokens > 0
        assert stats.total("n_hit") == stats.n_device_routed * k
        expected = decode(model.context)
    with Model.load(path, device="cpu", n_ctx=64) as model:
        assert decode(model.context) == expected


@pytest.mark.parametrize("fault", ["failing_allocation", "starving_launch", "failing_launch"])
def test_where_a_graph_fails_steps_are_launched_and_that_is_said(caplog, fault):
    """When it is made, while it is captured, and when it is launched."""
    with Model.load(split("qwen3_moe_256", "q4_k"), device="emulated", graphs="auto", n_ctx=64) as model:
        set_options()
        evaluate(model.context, TOKENS[:1])
        set_options(**{fault: counters()["n_launches"] + 1 if fault == "failing_launch" else 1})
        found = decode(model.context)
        assert "could not be made a graph" in caplog.text
        stats = stats_of(model)
        assert stats.n_graph_tokens == stats.graphs_on == 0
        assert stats.given_back_bytes == 0
    with Model.load(split("qwen3_moe_256", "q4_k"), device="cpu", n_ctx=64) as model:
        assert decode(model.context) == found


def test_graphs_are_tried_against_steps():
    with Model.load(split("qwen3_moe_256", "q4_k"), device="emulated", n_ctx=64) as model:
        expected, n_tokens = decode(model.context), 20
        while stats_of(model).graphs_cost == 0.0:
            assert n_tokens < 32 * 8 + 20, "a trial decides within 32 blocks of 8 tokens"
            assert decode(model.context) == expected
            n_tokens += len(expected)
        stats = stats_of(model)
        assert 0 < stats.n_graph_tokens < n_tokens
        assert stats.n_graphs == 1
        assert bool(stats.graphs_on) == (stats.graphs_cost < 0.0)
        assert stats.n_graphs_off == (stats.graphs_cost > 0.0)
        assert "graphs: " in str(stats)
        assert decode(model.context) == expected
        assert stats_of(model).n_graph_tokens - stats.n_graph_tokens in (0, 20)
