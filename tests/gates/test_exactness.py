"""The exactness contract (docs/design.md, section 8): one model, the same bits, whatever the cut, layout, threads, batches or kernels.

Every gate compares bytes of logits, and checks by counters or by the file that what it varies really varied.
"""

from __future__ import annotations

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from tests.making import ordinary, resplit

RNG = np.random.default_rng(3)
TOKENS = RNG.integers(3, 320, 50).tolist()

# (variant, type): floats, 32-blocks with and without mins, k-quants, codebooks, MXFP4 experts; shared expert, one granule, many experts.
KINDS = [
    ("mixtral", "f32"),
    ("mixtral", "q8_0"),
    ("qwen3_moe", "f16"),
    ("qwen3_moe_256", "q4_k_m"),
    ("qwen3_moe_256", "q4_k"),
    ("qwen3_moe_256", "q6_k"),
    ("qwen3_moe_256", "iq2"),
    ("qwen3_moe_256", "iq3"),
    ("qwen2_moe", "q4_0"),
    ("qwen2_moe_1408", "q8_0"),
    ("mixtral", "mxfp4"),
    ("olmoe", "q8_0"),
    ("gpt_oss", "mxfp4"),
    ("gpt_oss", "f32"),
    ("glm4_moe_groups", "q8_0"),
    ("granitemoe", "q4_0"),
    ("deepseek_v3", "q8_0"),
    ("deepseek_v2", "f32"),
    ("phimoe", "q8_0"),
    ("gemma4", "q4_0"),
    ("gemma4", "f32"),
    ("llama4_chunks", "q8_0"),
    ("minimax_m2", "q8_0"),
    ("ernie4_5_moe", "f32"),
    ("hunyuan", "q4_0"),
    ("glm4_moe_lite", "q8_0"),
    ("qwen3_next", "q8_0"),
    ("qwen3_next_mixed", "f32"),
    ("qwen3_5_moe_256", "q4_k_m"),
    ("lfm2_moe", "q4_0"),
    ("llama", "bf16"),
    ("qwen2", "f16"),
    ("qwen3", "q8_0"),
    ("gemma3", "q8_0"),
    ("qwen3_5", "q8_0"),
    ("lfm2", "q4_0"),
]
DENSE = {"llama", "qwen2", "qwen3", "gemma3", "qwen3_5", "lfm2"}
KIND_IDS = [f"{name}-{kind}" for name, kind in KINDS]


def logits(path, **load) -> bytes:
    with Model.load(path, n_ctx=64, **load) as model:
        return model.logits(TOKENS).tobytes()


def same(a: bytes, b: bytes) -> None:
    if a != b:
        x, y = np.frombuffer(a, np.float32), np.frombuffer(b, np.float32)
        assert x.shape == y.shape
        wrong = np.flatnonzero(x.view(np.uint32) != y.view(np.uint32))
        pytest.fail(f"{len(wrong)} of {len(x)} logits differ, first at {wrong[0]}: {x[wrong[0]]!r} and {y[wrong[0]]!r}")


@pytest.fixture(scope="module")
def baseline():
    known: dict[tuple[str, str], bytes] = {}

    def get(name, kind):
        if (name, kind) not in known:
            known[name, kind] = logits(ordinary(name, kind), n_threads=1)
        return known[name, kind]

    return get


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=KIND_IDS)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(baseline, name, kind, threads):
    same(logits(ordinary(name, kind), n_threads=threads), baseline(name, kind))


@pytest.mark.parametrize(
    ("name", "kind"), [("qwen3_moe", "f16"), ("gpt_oss", "f32"), ("llama4_chunks", "q8_0"), ("deepseek_v3", "q8_0")]
)
def test_spreading_a_tokens_attention_over_threads_does_not_matter(name, kind):
    """Token by token past position 256; with more threads than groups of heads, every chunk of 256 is a task."""
    tokens = np.random.default_rng(4).integers(3, 320, 290).tolist()
    found = []
    for n_threads in (1, 9):
        with Model.load(ordinary(name, kind), n_ctx=320, n_batch=1, n_threads=n_threads) as model:
            found.append(model.logits(tokens).tobytes())
    same(found[1], found[0])


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=KIND_IDS)
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_kernel_sets_do_not_matter(baseline, name, kind, isa):
    from moepic_gguf.errors import UnsupportedModelError

    try:
        found = logits(ordinary(name, kind), isa=isa)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    same(found, baseline(name, kind))


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=KIND_IDS)
@pytest.mark.parametrize("n_batch", [1, 3, 8, 9, 17])
def test_batch_size_does_not_matter(baseline, name, kind, n_batch):
    """n_batch 1 is decode, up to 8 the schedule of partials, beyond it tokens grouped by expert: all three give one result."""
    with Model.load(ordinary(name, kind), n_ctx=64, n_batch=n_batch) as model:
        found = model.logits(TOKENS).tobytes()
        tasks = model.context.native.counters()["expert_tasks"]
    assert (tasks > 0) == (n_batch <= 8 or len(TOKENS) % n_batch <= 8)
    same(found, baseline(name, kind))


@pytest.mark.parametrize(
    ("name", "kind"), [k for k in KINDS if k[0] not in DENSE], ids=["-".join(k) for k in KINDS if k[0] not in DENSE]
)
@pytest.mark.parametrize("ratio", ["0", "0.34", "0.5", "1"])
def test_the_cut_of_the_file_does_not_matter(baseline, name, kind, ratio):
    path = resplit(ordinary(name, kind), "--split-ratio", ratio)
    with Model.load(path, n_ctx=64) as model:
        layer = model.info.layers[-1]
        assert layer.top_granules == int(float(ratio) * layer.n_granules + 0.5)
        found = model.logits(TOKENS).tobytes()
    same(found, baseline(name, kind))


@pytest.mark.parametrize(
    ("name", "kind", "granule"),
    [
        ("mixtral", "f32", 64),
        ("mixtral", "f32", 512),
        ("mixtral", "q8_0", 32),
        ("qwen2_moe_1408", "q8_0", 704),
        ("gpt_oss", "mxfp4", 64),
    ],
)
def test_the_granule_of_the_file_does_not_matter(baseline, name, kind, granule):
    """`down` is stored by other granules than the runtime's: each of its granules is joined from pieces, or is a part of one."""
    path = resplit(ordinary(name, kind), "--granule", str(granule))
    with Model.load(path, n_ctx=64) as model:
        assert model.info.layers[0].granule != granule
        found = model.logits(TOKENS).tobytes()
    same(found, baseline(name, kind))


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=KIND_IDS)
def test_a_token_alone_equals_a_token_in_a_prompt(baseline, name, kind):
    vocab = len(np.frombuffer(baseline(name, kind), np.float32)) // len(TOKENS)
    expected = np.frombuffer(baseline(name, kind), np.float32).reshape(len(TOKENS), vocab)
    with Model.load(ordinary(name, kind), n_ctx=64) as model:
        native = model.context.native
        out = ffi.new("const float**")
        native.eval(TOKENS[:20])
        for i in range(20, 30):
            native.eval(TOKENS[i : i + 1])
            assert lib.moepic_context_logits(out, ffi.NULL, ffi.NULL, native.pointer) == 0
            same(bytes(ffi.buffer(out[0], vocab * 4)), expected[i].tobytes())


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_reusing_a_prefix_equals_starting_afresh(kv_type):
    path = ordinary("qwen3_moe", "f16")
    with Model.load(path, n_ctx=64, kv_type=kv_type) as model:
        fresh = model.generate(TOKENS[:30], max_tokens=12, stop_tokens=[]).tokens
        other = model.generate(TOKENS[:10] + TOKENS[40:50], max_tokens=5, stop_tokens=[]).tokens
        again = model.generate(TOKENS[:30], max_tokens=12, stop_tokens=[]).tokens
        assert model.context.native.counters()["reused_tokens"] >= 10
    assert list(fresh) == list(again)
    with Model.load(path, n_ctx=64, kv_type=kv_type) as model:
        assert list(model.generate(TOKENS[:10] + TOKENS[40:50], max_tokens=5, stop_tokens=[]).tokens) == list(other)


def test_contexts_do_not_disturb_each_other():
    with Model.load(ordinary("qwen3_moe", "f16"), n_ctx=64) as model:
        alone = model.logits(TOKENS).tobytes()
        with model.new_context() as first, model.new_context(kv_type="q8_0") as second:
            first.native.eval(TOKENS[:13])
            second.native.eval(TOKENS[30:])
            first.native.eval(TOKENS[13:30])
            same(first.logits(TOKENS).tobytes(), alone)
            assert second.logits(TOKENS).tobytes() != alone


def test_the_granule_of_the_runtime_is_an_explicit_choice():
    path = ordinary("mixtral", "f32")
    with Model.load(path, n_ctx=64, granule=128) as model:
        assert model.info.layers[0].granule == 128
        found = np.frombuffer(model.logits(TOKENS).tobytes(), np.float32)
    expected = np.frombuffer(logits(path), np.float32)
    # Other partial sums: close, and only that.
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    from moepic_gguf import errors

    with pytest.raises(errors.ArgumentError, match="legal"):
        Model.load(path, granule=100)
    assert lib.moepic_version() >= 100
