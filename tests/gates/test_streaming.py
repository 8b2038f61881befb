"""The exactness contract where experts are streamed (docs/design.md, sections 4 and 8): the same bits as the resident engine, whatever the
budget, cut, policy, predictor, lane or file. Every gate checks by counters that the feature it varies really fired.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGUFReader

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions
from tests.gates.running import IDS, KINDS, TOKENS, Run, run, same, split
from tests.making import ordinary, resplit


@pytest.fixture(scope="module")
def baseline():
    known: dict[tuple[str, str], Run] = {}

    def get(name, kind):
        if (name, kind) not in known:
            known[name, kind] = run(ordinary(name, kind), n_threads=1)
            assert known[name, kind].stats is None
        return known[name, kind]

    return get


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_the_budget_does_not_matter(baseline, name, kind, share):
    expected = baseline(name, kind)
    cache = int(share * expected.resident)
    options = StreamingOptions(always=True, cache=cache, predictor="none" if share == 1.0 else "next_layer")
    stats = same(run(split(name, kind), streaming=options, passes=2), expected)
    assert stats.cache_bytes <= cache
    hits = stats.total("n_hit")
    if share == 0.0:
        assert hits == 0
        assert stats.total("n_miss") > 0
    elif share == 1.0:  # what is used was brought once, in the first pass, but for what a prompt fetched ahead in vain
        assert stats.evictions == 0
        assert stats.total("demand_bytes") + stats.total("demand_bytes", prefill=True) <= stats.resident_bytes
        assert stats.resident_bytes <= expected.resident
    else:
        assert stats.total("demand_bytes") + stats.total("useful_bytes") > 0


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
@pytest.mark.parametrize("ratio", ["0", "0.34", "1", "ordinary"])
def test_the_cut_and_the_kind_of_the_file_do_not_matter(baseline, name, kind, ratio):
    expected = baseline(name, kind)
    path = ordinary(name, kind) if ratio == "ordinary" else split(name, kind, ratio)
    stats = same(run(path, streaming=StreamingOptions(always=True, cache=expected.resident // 3)), expected)
    assert stats.lane_bytes > expected.resident // 3


@pytest.mark.parametrize(
    ("name", "kind", "granule"),
    [("mixtral", "f32", 64), ("mixtral", "q8_0", 32), ("qwen2_moe_1408", "q8_0", 704), ("gpt_oss", "mxfp4", 64)],
)
def test_the_granule_of_the_file_does_not_matter(baseline, name, kind, granule):
    """Granules joined from pieces of the file, or parts of one of its matrices, which then is read whole."""
    expected = baseline(name, kind)
    path = resplit(ordinary(name, kind), "--granule", str(granule))
    same(run(path, streaming=StreamingOptions(always=True, cache=expected.resident // 3)), expected)


@pytest.mark.parametrize("policy", ["lru", "lfu", "lcp", "lrfu", "static", "auto"])
@pytest.mark.parametrize("eviction", ["whole", "granules"])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_the_policy_does_not_matter(baseline, policy, eviction, scope):
    name, kind = "qwen2_moe_1408", "q8_0"
    expected = baseline(name, kind)
    with Model.load(ordinary(name, kind), n_ctx=64) as model:
        n = sum(layer.n_expert for layer in model.info.layers)
    options = StreamingOptions(
        always=True,
        cache=expected.resident // 2,
        policy=policy,
        eviction=eviction,
        scope=scope,
        bypass=policy == "lfu",
        profile=[float(i % 3) for i in range(n)] if policy == "static" else None,
    )
    stats = same(run(split(name, kind), streaming=options, passes=2), expected)
    assert stats.policy == ("lrfu" if policy == "auto" else policy)
    assert stats.loads > 0
    assert (stats.evictions == 0) == (policy == "static")


@pytest.mark.parametrize("start", ["lru", "lfu", "lcp", "lrfu"])
def test_the_policy_auto_starts_with_does_not_matter(baseline, start):
    name, kind = "qwen2_moe_1408", "q8_0"
    expected = baseline(name, kind)
    options = StreamingOptions(always=True, cache=expected.resident // 2, policy="auto", policy_start=start)
    stats = same(run(split(name, kind), streaming=options), expected)
    assert (stats.policy, stats.n_policy_changes) == (start, 0)


@pytest.mark.parametrize("top", [1, 2, 3, 4])
def test_the_split_ratio_does_not_matter(baseline, top):
    """MoEpic's mode: tops of hot experts stay, bottoms always come."""
    name, kind = "qwen2_moe_1408", "q8_0"
    expected = baseline(name, kind)
    with Model.load(ordinary(name, kind), n_ctx=64) as model:
        layers = [layer for layer in model.info.layers if layer.n_expert]
        assert layers[0].n_granules == 4
    options = StreamingOptions(always=True, cache=expected.resident // 2, eviction="whole", top=[top] * len(layers))
    stats = same(run(split(name, kind), streaming=options, passes=2), expected)
    assert (stats.total("n_hit") > 0) == (top == 4)
    assert (stats.total("n_partial") > 0) == (top < 4)


@pytest.mark.parametrize(
    ("predictor", "lookahead"), [("none", 1), ("previous_token", 1), ("next_layer", 1), ("next_layer", 2)]
)
def test_prefetching_does_not_matter(baseline, predictor, lookahead):
    name, kind = "qwen3_moe_256", "q4_k"
    options = StreamingOptions(always=True, cache=0, predictor=predictor, lookahead=lookahead)
    stats = same(run(split(name, kind), streaming=options), baseline(name, kind))
    assert (stats.total("n_guessed") > 0) == (predictor != "none")
    assert (stats.total("useful_bytes") + stats.total("wasted_bytes") > 0) == (predictor != "none")


# What adds to the residual, in every family.
ADDING = ("attn_output.", "ssm_out.", "shortconv.out_proj.", "ffn_down")


@pytest.mark.parametrize(
    "name",
    ["qwen3_moe", "gpt_oss", "glm4_moe_lite", "phimoe", "gemma4", "llama4", "qwen3_next", "qwen3_5_moe", "lfm2_moe"],
)
def test_a_guess_is_what_the_router_says_where_the_layers_between_add_nothing(name, tmp_path):
    """With every output projection zero the residual stays what it was, so a guess that is normed, weighted and chosen as
    the layer does it is always right; in gemma4 each layer still scales the residual, which its router's norm undoes.
    """
    path = tmp_path / "still.gguf"
    shutil.copy(ordinary(name, "f32"), path)
    for tensor in GGUFReader(path, "r+").tensors:
        if any(part in tensor.name for part in ADDING) and not tensor.name.endswith(".scale"):
            tensor.data[:] = 0
    with Model.load(path, n_ctx=64, streaming=StreamingOptions(always=True, cache=0)) as model:
        for token in TOKENS[:20]:
            model.context.native.eval([token])
        layers = model.stream_stats.decode[1:]  # nothing is guessed for the first
    assert layers
    for layer in layers:
        assert layer.n_right == layer.n_used == layer.n_guessed > 0, layer


@pytest.mark.parametrize("right", [True, False])
def test_right_and_wrong_guesses_do_not_matter(right):
    """Guesses by hand: always right, or always an expert that is not used."""
    path = split("qwen3_moe_256", "q4_k")

    def forced(options):
        with Model.load(path, n_ctx=64, streaming=options) as model:
            info, native = model.info, model.context.native
            n_layer, k, n_expert = info.n_moe_layer, info.n_expert_used, info.n_expert
            draw = np.random.default_rng(5)
            ids = np.sort(
                draw.permuted(np.tile(np.arange(n_expert), (len(TOKENS), n_layer, 1)), axis=2)[..., :k], axis=2
            )
            ids = ids.astype(np.int32)
            other = np.array(
                [[sorted(set(range(n_expert)) - set(row))[:k] for row in token] for token in ids], np.int32
            )
            guesses = ids if right else other
            checked(
                lib.moepic_test_force_routing(
                    native.pointer,
                    ffi.from_buffer("int32_t[]", ids),
                    ffi.from_buffer("int32_t[]", np.ascontiguousarray(guesses)),
                    len(TOKENS),
                )
            )
            found = b""
            out = ffi.new("const float**")
            for token in TOKENS:
                native.eval([token])
                checked(lib.moepic_context_logits(out, ffi.NULL, ffi.NULL, native.pointer))
                found += bytes(ffi.buffer(out[0], info.n_vocab * 4))
            return Run(found, model.stream_stats, 0)

    expected = forced(None)
    stats = same(forced(StreamingOptions(always=True, cache=0, adapt=False)), expected)
    last = stats.decode[-1]
    if right:
        assert last.useful_bytes > 0
        assert last.wasted_bytes == 0
        assert last.n_right == last.n_used == len(TOKENS) * 2
    else:
        assert last.useful_bytes == 0
        assert last.wasted_bytes > 0
        assert last.n_right == 0
        assert last.n_switched_off > 0  # a layer that only loses stops


@pytest.mark.parametrize("io", ["io_uring", "threads"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ways_of_reading_and_threads_do_not_matter(baseline, io, direct, threads):
    name, kind = "gpt_oss", "mxfp4"
    expected = baseline(name, kind)
    options = StreamingOptions(always=True, cache=expected.resident // 4, io=io, direct=direct)
    stats = same(run(split(name, kind), streaming=options, n_threads=threads), expected)
    assert ("io_uring" in stats.lane) == (
        io == "io_uring"
    ) or io == "io_uring"  # a kernel may refuse it, and then it is said
    assert stats.lane_bytes > 0


@pytest.mark.parametrize("cpu_lane", [False, True])
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
def test_an_emulated_link_and_a_cpu_lane_do_not_matter(baseline, name, kind, cpu_lane):
    expected = baseline(name, kind)
    options = StreamingOptions(
        always=True,
        cache=expected.resident // 3,
        link_bytes_s=1e8,
        link_latency_s=5e-6,
        cpu_bytes_s=1e8 if cpu_lane else 0.0,
        predictor="none",
    )
    stats = same(run(ordinary(name, kind), streaming=options), expected)
    assert "emulated" in stats.lane
    assert stats.total("n_link") > 0
    assert (stats.total("n_in_place") > 0) == cpu_lane


def test_trying_out_what_pays_does_not_matter(baseline):
    """Tokens with and without the CPU lane, then with and without prefetch, until both trials have decided."""
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    options = StreamingOptions(always=True, cache=expected.resident // 3, link_bytes_s=1e8, cpu_bytes_s=1e8)
    stats = same(run(ordinary(name, kind), streaming=options, passes=2 * 256 // 12 + 1), expected)
    assert stats.cpu_lane_cost != 0.0
    assert stats.prefetch_cost != 0.0
    assert bool(stats.cpu_lane_on) == (stats.cpu_lane_cost < 0.0)
    assert stats.n_cpu_lane_off == (stats.cpu_lane_cost > 0.0)
    assert stats.total("n_in_place") > 0
    assert "tried         CPU lane: " in str(stats)
    without = same(run(ordinary(name, kind), streaming=replace(options, adapt=False), passes=5), expected)
    assert (without.prefetch_on, without.cpu_lane_on) == (1, 1)
    assert without.prefetch_cost == without.cpu_lane_cost == 0.0


def test_the_smallest_staging_is_enough(baseline):
    name, kind = "qwen2_moe_1408", "q8_0"
    options = StreamingOptions(always=True, cache=0, staging=1)
    stats = same(run(split(name, kind), streaming=options), baseline(name, kind))
    assert stats.lane_bytes > 0


@pytest.mark.parametrize("granule", [32, 64, 128])
def test_granules_of_the_runtime_stream_like_they_compute(granule):
    path = split("mixtral", "f32")
    expected = run(path, granule=granule)
    found = run(path, granule=granule, streaming=StreamingOptions(always=True, cache=expected.resident // 3))
    same(found, expected)


def test_a_warm_start_only_saves_reads(baseline):
    name, kind = "qwen3_moe_256", "q4_k"
    expected = baseline(name, kind)
    path = split(name, kind)
    with Model.load(path, n_ctx=64, streaming=StreamingOptions(always=True, cache=expected.resident)) as model:
        model.logits(TOKENS)
        uses = model._weights.expert_uses()
        brought = model.stream_stats.lane_bytes
    assert sum(uses) > 0
    options = StreamingOptions(always=True, cache=expected.resident, profile=uses)
    with Model.load(path, n_ctx=64, streaming=options) as model:
        assert 0 < model.stream_stats.resident_bytes <= brought  # all that was used lies there before the first token
        model.reset_stats()
        model.logits(TOKENS)
        assert model.stream_stats.total("demand_bytes", prefill=True) == 0
    same(run(path, streaming=options), expected)
