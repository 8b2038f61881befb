"""The layouts of routed experts in llama.cpp's files: gates and ups apart or in one tensor, one file or shards. Every family gives the same
bytes from each of them, held in memory and streamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convert.arch import FAMILIES
from convert.plan import Cut, Plan, make_plan
from convert.sources.gguf_source import open_gguf
from convert.tensors import Bytes, Experts, Tensor, flat
from convert.writer import write
from moepic_gguf import Model
from moepic_gguf.streaming import StreamingOptions
from tests.gates.test_exactness import TOKENS, logits, same
from tests.making import built, gguf_file, ordinary

# One variant of each family with routed experts, in types that between them cover floats, 32-blocks, k-quants, codebooks and MXFP4.
KINDS = [
    ("mixtral", "q8_0"),
    ("qwen2_moe", "q4_0"),
    ("qwen3_moe_256", "q4_k_m"),
    ("qwen3_moe_256", "iq2"),
    ("qwen3_moe_256", "iq3"),
    ("olmoe", "q8_0"),
    ("gpt_oss", "mxfp4"),
    ("glm4_moe", "q8_0"),
    ("minimax_m2", "f16"),
    ("ernie4_5_moe", "q4_0"),
    ("granitemoe", "q8_0"),
    ("hunyuan", "q4_0"),
    ("deepseek_v2", "f32"),
    ("deepseek_v3", "q8_0"),
    ("glm4_moe_lite", "q8_0"),
    ("phimoe", "q8_0"),
    ("gemma4", "q4_0"),
    ("llama4", "f32"),
    ("qwen3_next", "q8_0"),
    ("qwen3_5_moe_256", "q4_k_m"),
    ("lfm2_moe", "bf16"),
]
IDS = [f"{name}-{kind}" for name, kind in KINDS]


def fused(experts: Experts) -> list[Tensor]:
    """The tensors of a layer's experts as newer converters write them: gate rows, then up rows of an expert in one matrix."""
    blk, n, n_embd, n_ff = f"blk.{experts.layer}.", experts.n_expert, experts.n_embd, experts.n_ff
    whole = slice(0, n_ff)
    assert experts.kinds["gate"] == experts.kinds["up"]

    def gate_up() -> Iterator[Bytes]:
        for e in range(n):
            yield from (flat(experts.rows(which, e, whole)) for which in ("gate", "up"))

    def down() -> Iterator[Bytes]:
        yield from (flat(experts.columns(e, whole)) for e in range(n))

    def biases() -> Iterable[Bytes]:
        return [flat(np.concatenate([experts.biases("gate"), experts.biases("up")], axis=1))]

    made = [
        Tensor(f"{blk}ffn_gate_up_exps.weight", (n, 2 * n_ff, n_embd), experts.kinds["gate"], "expert", gate_up),
        Tensor(f"{blk}ffn_down_exps.weight", (n, n_embd, n_ff), experts.kinds["down"], "expert", down),
    ]
    if (kind := experts.bias_kind("gate")) is not None:
        made.append(Tensor(f"{blk}ffn_gate_up_exps.bias", (n, 2 * n_ff), kind, "expert", biases))
    return made


def rewritten(source: Path, layout: str, folder: Path) -> Plan:
    """Write an ordinary file anew; `layout` has the words `fused` and `shards`, or not."""
    content = open_gguf(source)
    if "fused" in layout:
        content.layers = [(plain + (fused(experts) if experts else []), None) for plain, experts in content.layers]
    plan = make_plan(content, folder / "m.gguf", Cut(split=False))
    if "shards" in layout:
        # No shard holds more than the largest tensor, so the tensors of one layer's experts lie apart.
        limit = max(tensor.n_bytes for tensor in plan.shards[0].tensors)
        plan = make_plan(content, folder / "m.gguf", Cut(split=False, max_shard_bytes=limit))
    write(plan.shards)
    return plan


def check_written(plan: Plan, layout: str) -> None:
    """What the gate varies really varies."""
    places: dict[str, set[int]] = {}  # layer -> shards with parts of its experts
    names = set()
    for number, shard in enumerate(plan.shards):
        for tensor in shard.tensors:
            names.add(tensor.name.split(".")[2] if tensor.name.startswith("blk.") else tensor.name)
            if tensor.role == "expert":
                places.setdefault(tensor.name.split(".")[1], set()).add(number)
    assert ("ffn_gate_up_exps" in names) == ("fused" in layout)
    assert ("ffn_gate_exps" in names) == ("fused" not in layout)
    assert all(len(found) > 1 for found in places.values()) == ("shards" in layout)


@pytest.fixture(scope="module")
def baseline():
    known: dict[tuple[str, str], bytes] = {}

    def get(name, kind):
        if (name, kind) not in known:
            known[name, kind] = logits(ordinary(name, kind), n_threads=1)
        return known[name, kind]

    return get


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
@pytest.mark.parametrize("layout", ["shards", "fused", "fused shards"])
def test_the_layout_of_an_ordinary_file_does_not_matter(baseline, name, kind, layout, tmp_path):
    plan = rewritten(ordinary(name, kind), layout, tmp_path)
    check_written(plan, layout)
    # Any shard stands for the set.
    same(logits(plan.shards[-1].path), baseline(name, kind))


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=IDS)
def test_fused_experts_in_shards_are_streamed_to_the_same_bytes(baseline, name, kind, tmp_path):
    plan = rewritten(ordinary(name, kind), "fused shards", tmp_path)
    with Model.load(ordinary(name, kind), n_ctx=64) as model:
        cache = model.info.expert_bytes // 3
    options = StreamingOptions(always=True, cache=cache)
    with Model.load(plan.shards[0].path, n_ctx=64, streaming=options) as model:
        same(model.logits(TOKENS).tobytes(), baseline(name, kind))
        assert model.stream_stats.lane_bytes > cache


def test_every_family_with_experts_is_held_to_it():
    covered = {FAMILIES[built(name)[0].model_type].title for name, _ in KINDS}
    assert covered == {family.title for family in FAMILIES.values() if family.experts}


@pytest.mark.peer
@pytest.mark.parametrize("name", ["gemma4", "qwen3_next", "qwen3_5_moe", "deepseek_v3"])
def test_llama_cpp_reads_the_fused_layout_as_these_tests_write_it(name, tmp_path):
    """llama.cpp against itself, on the same weights in both layouts: so `fused` is its layout and not ours. Other families it reads apart only
    (tried: Qwen3-MoE and GLM-4.5, whose pair of tensors it then misses)."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the 'peer' extra has it")

    def scores(path: Path) -> np.ndarray:
        peer = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=2)
        peer.eval(TOKENS)
        return np.array(peer.scores[: len(TOKENS)])

    source = gguf_file(name, "--outtype", "f32", "--no-split")
    apart, together = scores(source), scores(rewritten(source, "fused", tmp_path).shards[0].path)
    # The same float32 products, added in the same order of columns; a matrix of twice the rows may be cut into other tiles.
    np.testing.assert_allclose(together, apart, atol=1e-4)
    assert apart.std() > 0.1
