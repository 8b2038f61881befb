"""A RAM budget is a promise: checked by the operating system's own figure for the whole process, not by our counters."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from moepic_gguf import Model
from moepic_gguf.errors import ArgumentError, BudgetError
from moepic_gguf.streaming import StreamingOptions
from tests.streaming import big

MIB = 1 << 20
# What the interpreter and its libraries may take beside the budget: the constant of docs/streaming.md.
CONSTANT = 256 * MIB

PROGRAM = """
import json, sys
from moepic_gguf import Model
from moepic_gguf.streaming import StreamingOptions
path, ram, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Model.load(path, ram=ram or None, n_ctx=256, n_batch=64, streaming=StreamingOptions(**json.loads(sys.argv[4]))) as model:
    tokens = []
    for i in range(repeats):
        prompt = [(7 * j + 13 * i) % 500 for j in range(100)]
        tokens.append(list(model.generate(prompt, max_tokens=40, stop_tokens=[]).tokens))
    info, stats = model.info, model.stream_stats
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"tokens": tokens, "peak": peak, "streams": info.streams, "cache": info.cache_bytes,
                  "evictions": stats.evictions if stats else 0, "lane": stats.lane if stats else ""}))
"""


def run(path, ram, repeats=4, **streaming):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(ram), str(repeats), json.dumps(streaming)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["ordinary", "pre-split"])
def path(request, tmp_path_factory):
    return big.write(tmp_path_factory.mktemp("big") / f"{request.param}.gguf", pre_split=request.param == "pre-split")


@pytest.mark.no_sanitizer
def test_the_process_stays_within_the_budget_and_says_the_same(path):
    whole = run(path, 0)
    assert not whole["streams"]
    assert whole["peak"] > big.EXPERT_BYTES  # so the bound below could not hold by accident
    for ram in (120 * MIB, 200 * MIB):
        assert ram + CONSTANT < whole["peak"]
        found = run(path, ram)
        assert found["streams"]
        assert found["cache"] < ram
        assert found["evictions"] > 0
        assert found["peak"] <= ram + CONSTANT
        assert found["tokens"] == whole["tokens"]


@pytest.mark.no_sanitizer
def test_the_smallest_budget_named_works_and_one_byte_less_does_not(path):
    with pytest.raises(BudgetError, match="smallest budget that works") as caught:
        Model.load(path, ram=8 * MIB, n_ctx=256, n_batch=64)
    least = int(re.search(r"these options is (\d+) bytes", str(caught.value)).group(1))
    assert "needs" in str(caught.value)
    assert "8.00 MiB" in str(caught.value)
    with pytest.raises(BudgetError):
        Model.load(path, ram=least - 1, n_ctx=256, n_batch=64)
    with Model.load(path, ram=least, n_ctx=256, n_batch=64) as model:
        assert model.info.cache_bytes < MIB * 2  # nothing to speak of is left for experts
        tokens = list(model.generate(list(range(40)), max_tokens=8, stop_tokens=[]).tokens)
    with Model.load(path, n_ctx=256, n_batch=64) as model:
        assert not model.info.streams
        assert list(model.generate(list(range(40)), max_tokens=8, stop_tokens=[]).tokens) == tokens


@pytest.mark.no_sanitizer
def test_a_budget_that_holds_everything_streams_nothing(path):
    with Model.load(path, ram="4GiB", n_ctx=256) as model:
        assert not model.info.streams
        assert model.stream_stats is None


@pytest.mark.no_sanitizer
def test_further_contexts_count(path):
    with Model.load(path, ram=160 * MIB, n_ctx=256, n_batch=64) as model:
        assert model.info.streams
        with pytest.raises(BudgetError, match="staging"):
            model.new_context(n_ctx=4096, n_batch=512)
        model.generate([1, 2, 3], max_tokens=2)


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2_moe", "gemma4"])
def test_the_budget_counts_states_and_windows(name):
    from moepic_gguf.config import ContextOptions, LoadOptions
    from moepic_gguf.weights import memory_needs
    from tests.making import gguf_file

    path = gguf_file(name, "--outtype", "q8_0", "--no-split")
    needs = memory_needs(path, LoadOptions(), ContextOptions(n_ctx=256))
    assert (needs.state > 0) == (name != "gemma4")
    with pytest.raises(BudgetError, match=f"needs .*{needs.least} bytes"):
        Model.load(path, ram=needs.least - 1, n_ctx=256)
    with Model.load(path, ram=needs.least, n_ctx=256) as model:
        info, stats = model.info, model.stats
        assert (stats.kv_bytes, stats.state_bytes, stats.scratch_bytes) == (needs.kv, needs.state, needs.scratch)
        held = info.weight_bytes + info.staging_bytes + stats.kv_bytes + stats.state_bytes + stats.scratch_bytes
        assert held <= needs.least


def test_a_dense_model_cannot_be_streamed(tmp_path):
    from tests.python import tiny_gguf

    dense = tiny_gguf.write(tmp_path / "dense.gguf", tiny_gguf.Shape(n_expert=0))
    with pytest.raises(BudgetError, match="smallest budget that works"):
        Model.load(dense, ram=200_000)
    from moepic_gguf.errors import UnsupportedModelError

    with pytest.raises(UnsupportedModelError, match="no routed experts"):
        Model.load(dense, streaming=StreamingOptions(always=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "best"}, "policy: expected lru"),
        ({"policy": "static"}, "needs a profile"),
        ({"lookahead": 3}, "lookahead"),
        ({"rho": 1.5}, "rho"),
        ({"half_life": 0.0}, "half-life"),
        ({"top": [1, 1, 1]}, "a plan for 3 MoE layers, the model has 2"),
        ({"profile": [1.0]}, "a profile of 1 experts, the model has 8"),
        ({"cpu_bytes_s": 1e9}, "emulated link"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(tmp_path, options, text):
    from tests.python import tiny_gguf

    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    with pytest.raises(ArgumentError, match=text):
        Model.load(path, streaming=StreamingOptions(always=True, **options))
