"""Layers whose experts are all resident are routed by the device itself (docs/cuda.md): the bits of the CPU's engine, no round trip, and figures as if
the host had routed them. Where somebody needs the host to know the routing, it does.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions, StreamStats
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
FEW = len(STEPS) - 1  # steps of up to 8 tokens


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_options()


def counted(stats: StreamStats) -> list[tuple[int, ...]]:
    names = ("n_hit", "n_partial", "n_miss", "n_resident", "n_link", "n_in_place", "demand_bytes")
    return [tuple(getattr(row, name) for name in names) for row in (*stats.decode, *stats.prefill)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
def test_the_device_routes_what_is_resident(device, name, kind):
    expected = run(ordinary(name, kind), device="cpu", n_threads=2)
    stats = same(run(split(name, kind), device=device), expected)
    assert stats.n_device_routed == FEW * len(stats.decode)
    assert stats.n_round_trips == 0
    assert stats.waited_s == stats.stall_s == 0.0


@pytest.mark.parametrize(("name", "kind"), [("qwen2_moe_1408", "q8_0"), ("gpt_oss", "mxfp4")])
def test_figures_are_those_of_a_host_that_routes(tmp_path, name, kind):
    """A trace makes the host route. Letters come late."""
    set_options(most_delay_us=300)
    path = split(name, kind)
    with Model.load(path, device="emulated", n_ctx=64) as model:
        with model.record(trace=tmp_path / "trace"):
            expected = logits_of(model)
        assert stats_of(model).n_device_routed == 0
        counts, uses = counted(stats_of(model)), model._weights.expert_uses()
        used = model.context.native.counters()["experts_used"]
    with Model.load(path, device="emulated", n_ctx=64) as model:
        assert logits_of(model) == expected
        assert model._weights.expert_uses() == uses
        assert counted(stats_of(model)) == counts
        assert model.context.native.counters()["experts_used"] == used
        assert stats_of(model).n_device_routed > 0
        model.reset_stats()
        assert stats_of(model).n_device_routed == 0
        assert not any(map(any, counted(stats_of(model))))


@contextmanager
def watched(native):
    """A probe that sees nothing."""

    @ffi.callback("moepic_probe_fn")
    def probe(_event, _user):
        return 0

    lib.moepic_context_set_probe(native.pointer, probe, ffi.NULL)
    yield
    lib.moepic_context_set_probe(native.pointer, ffi.NULL, ffi.NULL)


@contextmanager
def forced(native, info):
    """Routing that goes by a recording: the first experts, always."""
    ids = np.tile(np.arange(info.n_expert_used, dtype=np.int32), (1, info.n_moe_layer, 1))
    checked(lib.moepic_test_force_routing(native.pointer, ffi.from_buffer("int32_t[]", ids), ffi.NULL, 1))
    yield
    checked(lib.moepic_test_force_routing(native.pointer, ffi.NULL, ffi.NULL, 0))


@pytest.mark.parametrize("who", ["probe", "recording"])
def test_the_host_routes_where_somebody_looks_or_prescribes(who):
    with Model.load(split("qwen3_moe_256", "q4_k"), device="emulated", n_ctx=64) as model:
        expected, native = logits_of(model), model.context.native
        model.reset_stats()
        with watched(native) if who == "probe" else forced(native, model.info):
            assert (logits_of(model) == expected) == (who == "probe")
        assert stats_of(model).n_device_routed == 0
        assert stats_of(model).n_round_trips == (FEW - 1) * model.info.n_moe_layer
        assert logits_of(model) == expected
        assert stats_of(model).n_device_routed == FEW * model.info.n_moe_layer


@pytest.mark.parametrize(
    ("options", "n_routed"),
    [
        ({"predictor": "none"}, 3),
        ({"predictor": "next_layer"}, 2),  # one of them fetches ahead for the layer that lacks experts
        ({"predictor": "next_layer", "lookahead": 2}, 1),
        ({"predictor": "previous_token"}, 2),
        ({"predictor": "none", "policy": "auto"}, 0),
    ],
)
def test_layers_that_lack_experts_are_served_as_ever(options, n_routed):
    """Three layers of four have all their experts."""
    path = split("qwen3_next", "q8_0")
    expected = run(path, device="cpu")
    whole = expected.resident // 4
    with Model.load(path, device="cpu", n_ctx=64) as model:
        n_expert = sum(layer.n_expert for layer in model.info.layers)
    streaming = StreamingOptions(
        layer_budget=[whole, whole, whole, whole // 2],
        cache=whole * 7 // 2,
        profile=[1.0] * n_expert,
        adapt=False,
        **options,
    )
    stats = same(run(path, device="emulated", streaming=streaming), expected)
    assert stats.n_device_routed == FEW * n_routed
    assert stats.n_round_trips == (FEW - 1) * (4 - n_routed)
    assert stats.decode[3].n_miss + stats.decode[3].n_partial > 0
    assert [row.n_hit for row in stats.decode[:3]] == [(FEW - 1) * 3] * 3


def test_a_layer_is_routed_by_the_device_once_all_its_experts_have_come():
    """A cache for all of a layer that starts empty; the other layer's granules come and go."""
    path = split("qwen3_moe_256", "q4_k")
    expected = run(path, device="cpu")
    whole = expected.resident // 2
    streaming = StreamingOptions(layer_budget=[whole, whole // 4], cache=whole * 5 // 4, predictor="none")
    with Model.load(path, device="emulated", n_ctx=64, streaming=streaming) as model:
        assert logits_of(model) == expected.logits
        stats = stats_of(model)
        assert 0 < stats.n_device_routed <= FEW
        assert stats.evictions > 0


def test_a_layer_that_gave_memory_back_needs_the_host_again():
    path = split("qwen2_moe_1408", "q8_0")
    expected = run(path, device="cpu").logits
    options = StreamingOptions(predictor="none", staging=2**16)
    with Model.load(path, device="emulated", cpu_lane=False, n_ctx=64, streaming=options) as model:
        assert logits_of(model) == expected
        n_routed = stats_of(model).n_device_routed
        assert n_routed == FEW * model.info.n_moe_layer
        set_options(memory_bytes=counters()["device_bytes"])
        model.new_context()
        assert stats_of(model).given_back_bytes > 0
        assert logits_of(model) == expected
        assert stats_of(model).n_device_routed == n_routed
        assert stats_of(model).n_round_trips == (FEW - 1) * model.info.n_moe_layer


def test_auto_keeps_out_of_the_way_where_everything_fits():
    path = split("qwen3_moe_256", "q4_k")
    stats = same(run(path, device="emulated", streaming=StreamingOptions(policy="auto")), run(path, device="cpu"))
    assert stats.n_device_routed == FEW * len(stats.decode)


@pytest.mark.parametrize("fault", ["failing_copy", "failing_launch"])
def test_a_layer_that_fails_leaves_its_accounts_right(fault):
    path = split("qwen3_moe_256", "q4_k")
    with Model.load(path, device="emulated", n_ctx=64) as model:
        native, k = model.context.native, model.info.n_expert_used
        n_failed = 0
        for nth in range(1, 50, 2):
            native.truncate(0)
            set_options(**{fault: nth})
            try:
                native.eval(TOKENS[:1])
            except DeviceError:
                n_failed += 1
            set_options()
        assert n_failed > 2
        stats = stats_of(model)
        assert stats.n_device_routed > 0
        assert stats.total("n_hit") == stats.n_device_routed * k
        expected = logits_of(model)
    assert expected == run(path, device="cpu").logits


@pytest.mark.threads
def test_contexts_take_turns_without_the_host():
    """Prompts token by token: contexts run ahead of the device until letters are full."""
    set_options(most_delay_us=200)
    path = split("qwen3_moe_256", "q4_k")
    with Model.load(path, device="cpu", n_ctx=64) as model:
        expected = model.logits(TOKENS)[-1].tobytes()
    with Model.load(path, device="emulated", n_ctx=64, n_batch=1) as model:
        contexts = [model.new_context() for _ in range(4)]

        def work(context):
            context.native.eval(TOKENS)  # only the last token's are read back
            return read_logits(context)

        assert on_threads(contexts, work) == [expected] * len(contexts)
        # The last layer is run for the last token alone.
        n_layers = len(contexts) * (len(TOKENS) * (model.info.n_moe_layer - 1) + 1)
        stats = stats_of(model)
        assert stats.n_device_routed == n_layers
        n_used = n_layers * model.info.n_expert_used
        assert stats.total("n_hit", prefill=True) + stats.total("n_hit") == sum(model._weights.expert_uses()) == n_used
