"""Prompts on a device with the CPU's help: whole experts from the queue's tail, by measured cost. The bits of the CPU's engine, whoever computes what;
counters prove that both sides took part where they should.
"""

from __future__ import annotations

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError
from moepic_gguf.metadata import checked
from moepic_gguf.streaming import StreamingOptions
from tests.cuda.devices import set_options
from tests.gates.running import IDS, KINDS, Run, same, split
from tests.making import ordinary

TOKENS = np.random.default_rng(11).integers(3, 320, 620).tolist()
DEVICES = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]
FASTER, SLOWER = 1e15, 1.0  # bytes per second of a CPU that beats any link, or loses to any


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_options()


def run(path, n, *, passes=1, streaming=None, **load) -> Run:
    """A prompt of n tokens in batches of 512, and four tokens decoded after it."""
    with Model.load(path, n_ctx=640, n_batch=512, streaming=streaming, **load) as model:
        native, vocab = model.context.native, model.info.n_vocab
        out, rows = ffi.new("const float**"), ffi.new("int64_t*")
        found = b""
        for _ in range(passes):
            native.truncate(0)
            found = b""
            for step in (TOKENS[:n], *([t] for t in TOKENS[n : n + 4])):
                native.eval(step, all_logits=len(step) < 512)
                checked(lib.moepic_context_logits(out, rows, ffi.NULL, native.pointer))
                found += bytes(ffi.buffer(out[0], rows[0] * vocab * 4))
        checked(lib.moepic_test_stream_check(model._weights._pointer))
        return Run(found, model.stream_stats, model.info.expert_bytes)


@pytest.fixture(scope="module")
def baseline():
    known: dict[tuple[str, str, int], Run] = {}

    def get(name, kind, n):
        if (name, kind, n) not in known:
            known[name, kind, n] = run(ordinary(name, kind), n, device="cpu")
        return known[name, kind, n]

    return get


def on(device, path, n, *, cpu_bytes_s=FASTER, cache=0, n_threads=2, pin=None, passes=1, **options):
    streaming = StreamingOptions(
        cache=cache, cpu_bytes_s=cpu_bytes_s, **{"predictor": "none", "adapt": False, **options}
    )
    return run(path, n, device=device, passes=passes, n_threads=n_threads, pin=pin, streaming=streaming)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_cpu_computes_the_same_experts(baseline, device, name, kind, share):
    expected = baseline(name, kind, 40)
    found = on(device, split(name, kind), 40, cache=int(share * expected.resident))
    stats = same(found, expected)
    assert (stats.total("n_in_place", prefill=True) > 0) == (share < 1.0)


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("n", [9, 130, 600])
@pytest.mark.parametrize(("name", "kind"), [("qwen3_moe_256", "q4_k"), ("qwen2_moe_1408", "q8_0")])
def test_neither_length_nor_threads_matter(baseline, name, kind, n, n_threads):
    stats = same(on("emulated", split(name, kind), n, n_threads=n_threads), baseline(name, kind, n))
    assert stats.total("n_in_place", prefill=True) > 0


def test_experts_without_room_for_their_sums_are_the_links(baseline):
    """Each has more than a hundred tokens, and sums go through an eighth of what the frames take."""
    name, kind, n = "qwen3_moe_256", "q4_k", 300
    stats = same(on("emulated", split(name, kind), n), baseline(name, kind, n))
    assert stats.total("n_in_place", prefill=True) > 0
    assert stats.total("n_link", prefill=True) > 0


@pytest.mark.parametrize("cpu_bytes_s", [SLOWER, FASTER])
def test_cost_decides(baseline, cpu_bytes_s):
    name, kind = "qwen3_moe_256", "q4_k"
    stats = same(on("emulated", split(name, kind), 40, cpu_bytes_s=cpu_bytes_s), baseline(name, kind, 40))
    in_place, linked = (stats.total(column, prefill=True) for column in ("n_in_place", "n_link"))
    assert (in_place > 0, linked > 0) == ((False, True) if cpu_bytes_s == SLOWER else (True, False))


def test_link_and_cpu_divide_a_layer(baseline):
    """Copies come late, so each has time to take some; who is the slower one depends on the machine."""
    name, kind, n = "qwen2_moe_1408", "q8_0", 130
    for delay_us in (300, 100, 1000, 30, 3000):
        set_options(most_delay_us=delay_us)
        stats = same(on("emulated", split(name, kind), n, cpu_bytes_s=1e11, passes=2), baseline(name, kind, n))
        if stats.total("n_in_place", prefill=True) > 0 and stats.total("n_link", prefill=True) > 0:
            return
    pytest.fail("one of the two took everything at every delay")


@pytest.mark.parametrize("pin", [None, "64KiB"])
def test_late_copies_and_what_is_not_pinned_do_not_matter(baseline, pin):
    name, kind, n = "qwen3_moe_256", "q4_k", 130
    expected = baseline(name, kind, n)
    set_options(most_delay_us=300)
    found = on("emulated", split(name, kind), n, cache=expected.resident // 3, pin=pin, staging=2**18, passes=2)
    stats = same(found, expected)
    assert stats.total("n_in_place", prefill=True) > 0
    assert stats.total("n_link", prefill=True) > 0


def test_the_next_layers_experts_are_fetched_beside_it(baseline):
    name, kind, n = "qwen3_next", "q8_0", 40
    expected = baseline(name, kind, n)
    stats = same(on("emulated", split(name, kind), n, cache=expected.resident // 3, passes=2), expected)
    assert stats.total("n_prefetched", prefill=True) > 0
    assert stats.total("n_in_place", prefill=True) > 0


def test_a_prompt_leaves_the_cache_warm(baseline):
    """However fast the CPU is, what is to stay comes."""
    name, kind = "qwen2_moe_1408", "q8_0"
    expected = baseline(name, kind, 40)
    options = StreamingOptions(cache=expected.resident // 3, cpu_bytes_s=FASTER, predictor="none", adapt=False)
    with Model.load(split(name, kind), device="emulated", n_ctx=640, streaming=options) as model:
        model.context.native.eval(TOKENS[:40], all_logits=True)  # else the last layer is run for one token
        stats = model.stream_stats
        assert stats is not None
        assert stats.total("n_in_place", prefill=True) > 0
        assert stats.resident_bytes == stats.cache_bytes > 0


@pytest.mark.parametrize("nth", [20, 60, 200])
def test_a_copy_that_fails_is_a_typed_error_and_the_process_goes_on(baseline, nth):
    name, kind, n = "qwen2_moe_1408", "q8_0", 40
    expected = baseline(name, kind, n)
    options = StreamingOptions(cache=expected.resident // 3, cpu_bytes_s=5e9)
    with Model.load(split(name, kind), device="emulated", n_ctx=640, n_threads=2, streaming=options) as model:
        set_options(failing_copy=nth)
        with pytest.raises(DeviceError, match="asked for by a test"):
            [model.logits(TOKENS[:n]) for _ in range(30)]
    set_options()
    same(on("emulated", split(name, kind), n, cache=expected.resident // 3), expected)
