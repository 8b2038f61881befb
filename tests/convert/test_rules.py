"""Pure rules: granules, ratios, types of tensors, sizes; and what a configuration may not say."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize as gguf_quantize

from convert.granule import check_granule, default_granule, top_granules
from convert.plan import Cut, parse_ratios, parse_size
from convert.quantize import OUTTYPES, Chooser, encode
from convert.to_gguf import convert
from moepic_gguf.errors import ConversionError
from tests.convert.reading import File
from tests.making import built, saved


@pytest.mark.parametrize(
    ("n_ff", "down", "granule"),
    [
        (14336, T.Q4_K, 256), (768, T.Q4_K, 256), (1536, T.Q6_K, 256), (512, T.Q4_K, 256), (256, T.Q4_K, 256),
        (1408, T.Q5_0, 352), (1408, T.F16, 352), (2880, T.MXFP4, 288), (640, T.Q8_0, 320), (704, T.Q8_0, 352),
        (96, T.Q8_0, 96), (96, T.F32, 96), (1000, T.F32, 500), (7 * 37, T.F32, 259), (1280, T.Q4_K, 256),
    ],
)  # fmt: skip
def test_the_granule_is_the_smallest_legal_one_of_at_least_256(n_ff: int, down: T, granule: int) -> None:
    assert default_granule(n_ff, down) == granule
    check_granule(granule, n_ff, down, "here")


def test_illegal_granules_are_refused_with_the_legal_ones() -> None:
    with pytest.raises(ConversionError, match=r"here: granules of 300 .* legal: 256, 512"):
        check_granule(300, 512, T.Q4_K, "here")
    for granule in (0, -32, 64, 1024):
        with pytest.raises(ConversionError):
            check_granule(granule, 96, T.Q8_0, "here")


def test_ratios_round_to_whole_granules() -> None:
    assert [top_granules(r, 3) for r in (0.0, 0.16, 0.17, 0.5, 0.84, 1.0)] == [0, 0, 1, 2, 3, 3]
    assert [top_granules(r, 1) for r in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]


def test_ratios_are_parsed_from_text_and_files(tmp_path: Path) -> None:
    assert parse_ratios("0.5") == [0.5]
    assert parse_ratios("0, 0.25,1") == [0.0, 0.25, 1.0]
    (tmp_path / "r").write_text("0.1\n0.2\n")
    assert parse_ratios(str(tmp_path / "r")) == [0.1, 0.2]
    for bad in ("x", "1.5", "-0.1", "nan", "", "0.5,,1"):
        with pytest.raises(ConversionError):
            parse_ratios(bad)
    with pytest.raises(ConversionError, match="5 numbers; expected 1, 2"):
        convert(saved("mixtral"), tmp_path / "m.gguf", how=Cut(ratios=[0.5] * 5))


def test_sizes_are_parsed() -> None:
    assert [parse_size(s) for s in ("1000", "1K", "1KB", "2MiB", "1.5G", "3 GB")] == [
        1000,
        1024,
        1000,
        2 << 20,
        3 << 29,
        3 * 10**9,
    ]
    for bad in ("", "x", "0", "5X", "-1G"):
        with pytest.raises(ConversionError):
            parse_size(bad)


def test_q4_k_m_is_the_mix_people_know() -> None:
    chooser = Chooser("q4_k_m", n_layer=16, n_expert=64, tied=False)
    more = [il for il in range(16) if chooser.choose(f"blk.{il}.ffn_down_exps.weight", (64, 2048, 1024)) is T.Q6_K]
    # First eighth, last eighth, every third between.
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [il for il in range(16) if chooser.choose(f"blk.{il}.attn_v.weight", (512, 2048)) is T.Q6_K] == more
    for name, shape, kind in (
        ("blk.0.ffn_gate_exps.weight", (64, 1024, 2048), T.Q4_K),
        ("blk.0.attn_q.weight", (2048, 2048), T.Q4_K),
        ("blk.0.ffn_gate_inp.weight", (64, 2048), T.F32),
        ("blk.0.ffn_gate_inp_shexp.weight", (2048,), T.F32),
        ("blk.0.attn_norm.weight", (2048,), T.F32),
        ("token_embd.weight", (1000, 2048), T.Q4_K),
        ("output.weight", (1000, 2048), T.Q6_K),
    ):
        assert chooser.choose(name, shape) is kind, name
    assert chooser.fallbacks == []
    assert Chooser("q4_k_m", 16, 64, tied=True).choose("token_embd.weight", (1000, 2048)) is T.Q6_K


def test_rows_that_blocks_do_not_divide_fall_back_aloud() -> None:
    for outtype, cols, kind in (
        ("q4_k", 1408, T.Q5_0),
        ("q5_k", 96, T.Q5_1),
        ("q6_k", 2880, T.Q8_0),
        ("q8_0", 80, T.F16),
        ("q4_k", 80, T.F16),
        ("q4_0", 72, T.F16),
    ):
        chooser = Chooser(outtype, 2, 8, tied=False)
        assert chooser.choose("blk.0.ffn_up.weight", (4, cols)) is kind
        assert [(wanted, given) for _, wanted, given in chooser.fallbacks] == [(OUTTYPES[outtype][0], kind)]


def test_mxfp4_is_for_experts_alone() -> None:
    chooser = Chooser("mxfp4", 2, 8, tied=False)
    assert chooser.choose("blk.0.ffn_up_exps.weight", (8, 64, 64)) is T.MXFP4
    assert chooser.choose("blk.0.ffn_up_shexp.weight", (64, 64)) is T.Q8_0
    assert chooser.choose("output.weight", (64, 64)) is T.Q8_0


# Largest error of a weight, as a share of the largest weight of its row: a step of the type's grid (half of one for rounding, the rest for the
# scales' own rounding); two for q4_0, whose grid is lopsided (-8 to 7), so that one extreme may be clipped.
STEPS = {"q8_0": 1 / 127, "q6_k": 1 / 31, "q5_k": 1 / 15, "q4_k": 1 / 7, "q4_k_m": 1 / 7, "q4_0": 2 / 8, "mxfp4": 1 / 3}


@pytest.mark.parametrize("outtype", STEPS)
def test_quantized_weights_are_near_the_originals_and_in_their_place(outtype: str, tmp_path: Path) -> None:
    plan = convert(saved("qwen3_moe_256"), tmp_path / "m.gguf", outtype=outtype)
    file, model = File(tmp_path / "m.gguf"), built("qwen3_moe_256")[1]
    assert file.keys["general.file_type"] == OUTTYPES[outtype][1]
    experts = model.model.layers[1].mlp.experts
    gate, up = experts.gate_up_proj.detach().numpy().reshape(4, 2, -1, 256).swapaxes(0, 1)
    for which, want in (("gate", gate), ("up", up), ("down", experts.down_proj.detach().numpy())):
        got = file.experts(1, which)
        bound = np.abs(want).max(axis=-1, keepdims=True) * STEPS[outtype]
        worst = np.unravel_index(np.argmax(np.abs(got - want) / bound), want.shape)
        assert np.all(np.abs(got - want) <= bound), (which, worst, got[worst], want[worst])
        kind = file.tensors[f"blk.1.ffn_{which}_exps_top.weight"].kind
        assert kind is (OUTTYPES[outtype][0] if outtype != "q4_k_m" or which != "down" else T.Q6_K)
    if outtype == "mxfp4":
        assert plan.content.fallbacks == []


def test_bfloat16_rounds_as_gguf_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32).reshape(16, 256)
    values = np.where(np.isnan(values), np.float32("nan"), values)
    assert np.array_equal(encode(values, T.BF16, "x"), gguf_quantize(values, T.BF16).view(np.uint8))


def test_values_without_a_code_are_refused() -> None:
    values = np.zeros((2, 32), np.float32)
    values[1, 3] = 70000
    with pytest.raises(ConversionError, match=r"'x'.*does not fit F16"):
        encode(values, T.F16, "x")
    values[1, 3] = np.nan
    with pytest.raises(ConversionError, match="'x' holds NaN"):
        encode(values, T.Q8_0, "x")


def folder_with(tmp_path: Path, name: str, **changes: Any) -> Path:
    source = tmp_path / "hf"
    shutil.copytree(saved(name), source, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return source


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("olmoe", {"clip_qkv": 8.0}, "'clip_qkv' is 8.0"),
        ("llama", {"hidden_act": "gelu"}, "'hidden_act' is \"gelu\""),
        ("llama", {"mlp_bias": True}, "'mlp_bias' is true"),
        ("llama", {"model_type": "mamba"}, "'model_type' is \"mamba\"; supported: .*llama"),
        ("llama", {"model_type": ["llama"]}, "'model_type'"),
        ("mixtral", {"sliding_window": 64}, "'sliding_window' is 64"),
        ("qwen2", {"use_sliding_window": True}, "'use_sliding_window' is true"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' holds \"sliding_attention\""),
        ("qwen3_moe", {"attention_bias": True}, "'attention_bias' is true"),
        ("llama", {"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 'rope type is "dynamic"'),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'factor' is null"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "'truncate' is false"),
        ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
        ("llama", {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": None}, "'hidden_size' 96 is not a multiple of 'num_attention_heads' 7"),
        ("llama", {"num_key_value_heads": 4}, "not a multiple of 'num_key_value_heads' 4"),
        ("llama", {"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ("llama", {"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight' .*missing"),
        ("llama", {"num_hidden_layers": 1}, "'model.layers.1.* has no place"),
        ("llama", {"rms_norm_eps": "absent"}, "'rms_norm_eps' is null"),
        ("llama", {"intermediate_size": 128}, r"mlp.gate_proj.weight' has shape \[160, 96\], config.json implies \[128, 96\]"),
        ("mixtral", {"num_local_experts": 5}, "gate.weight' has shape"),
        ("llama", {"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is \"yes\""),
    ],
)  # fmt: skip
def test_what_the_engine_cannot_run_is_named(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(folder_with(tmp_path, name, **changes), tmp_path / "m.gguf")
    assert not list(tmp_path.glob("m.gguf*"))


def test_broken_checkpoints_are_named(tmp_path: Path) -> None:
    source = folder_with(tmp_path, "llama")
    weights = source / "model.safetensors"
    whole = weights.read_bytes()

    def refused(data: bytes, message: str) -> None:
        weights.write_bytes(data)
        with pytest.raises(ConversionError, match=message):
            convert(source, tmp_path / "m.gguf")

    refused(whole[:-100], "truncated download")
    refused(whole[:5], "too few")
    refused(struct.pack("<Q", 1 << 60) + whole[8:], "declares a header of")
    refused(whole[:8] + b"x" + whole[9:], "not JSON")
    refused(whole.replace(b'"F32"', b'"I64"', 1), "stored as I64")
    refused(whole.replace(b"[160,96]", b"[161,96]", 1), "does not fill")
    weights.unlink()
    with pytest.raises(ConversionError, match=r"has no \*\.safetensors"):
        convert(source, tmp_path / "m.gguf")
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match="pickle"):
        convert(source, tmp_path / "m.gguf")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ConversionError, match="outside the folder"):
        convert(source, tmp_path / "m.gguf")
    (source / "config.json").write_text("{")
    with pytest.raises(ConversionError, match="not JSON"):
        convert(source, tmp_path / "m.gguf")
