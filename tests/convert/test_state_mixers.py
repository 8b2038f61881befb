"""Qwen3-Next, Qwen3.5 and LFM2 as they are published: settings a step further in, other spellings, parts that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.plan import Cut
from convert.to_gguf import convert
from moepic_gguf.errors import ConversionError
from moepic_gguf.inspection import inspect_file
from moepic_gguf.metadata import GgufFile
from tests.convert.reading import File
from tests.making import built, gguf_file, saved


def changed(name: str, folder: Path, config: Any = None, tensors: Any = None) -> Path:
    """A copy of a saved model with other settings or tensors."""
    folder.mkdir()
    settings = json.loads((saved(name, "fused") / "config.json").read_text())
    state = load_file(saved(name, "fused") / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(settings) if config else settings))
    save_file(tensors(state) if tensors else state, folder / "model.safetensors")
    return folder


def same_weights(path: Path, other: Path) -> bool:
    one, two = File(path), File(other)
    return {n: t.raw.tobytes() for n, t in one.tensors.items()} == {n: t.raw.tobytes() for n, t in two.tensors.items()}


def test_a_published_qwen3_5_gives_the_file_of_its_text_model(tmp_path: Path) -> None:
    """As on the hub: a model that also sees, whose text model is one step further in, with a block for further tokens."""

    def outer(inner: dict[str, Any]) -> dict[str, Any]:
        inner |= {"tie_word_embeddings": False}
        return {"model_type": "qwen3_5_moe", "text_config": inner, "vision_config": {"depth": 2}, "image_token_id": 3}

    def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inner = {name.replace("model.", "model.language_model.", 1): value for name, value in state.items()}
        seen = {
            "model.visual.blocks.0.attn.qkv.weight": torch.ones(4, 4),
            "model.visual.pos_embed.weight": torch.ones(2, 4),
        }
        return inner | seen | {"mtp.fc.weight": torch.ones(4, 8)}

    plan = convert(changed("qwen3_5_moe", tmp_path / "hf", outer, renamed), tmp_path / "m.gguf", how=Cut(split=False))
    assert [text.split(" of ")[0] for text in plan.content.warnings if "left out" in text] == ["1 tensors", "2 tensors"]
    convert(saved("qwen3_5_moe"), tmp_path / "text.gguf", how=Cut(split=False))
    assert same_weights(tmp_path / "m.gguf", tmp_path / "text.gguf")
    keys = File(tmp_path / "m.gguf").keys
    assert keys["general.architecture"] == "qwen35moe"
    assert "qwen35moe.feed_forward_length" not in keys
    assert keys["qwen35moe.rope.dimension_sections"] == [11, 11, 10, 0]
    assert keys["qwen35moe.rope.dimension_count"] == 8


def test_the_places_of_full_attention_become_keys(tmp_path: Path) -> None:
    for name, want in (
        ("qwen3_next_period", {"full_attention_interval": 4}),
        ("qwen3_next", {"full_attention_interval": 3}),
        ("qwen3_5_moe_heads", {"attention.recurrent_layers": [True, False, True, True]}),
        ("lfm2_moe", {"attention.head_count_kv": [0, 0, 2, 0, 2], "shortconv.l_cache": 3}),
    ):
        convert(saved(name), tmp_path / f"{name}.gguf")
        keys = File(tmp_path / f"{name}.gguf").keys
        arch = keys["general.architecture"]
        got = {key.removeprefix(f"{arch}."): value for key, value in keys.items()}
        assert {key: got.get(key) for key in want} == want
        assert ("full_attention_interval" in got) != ("attention.recurrent_layers" in got) or arch == "lfm2moe"


def test_older_configurations_name_the_layers_in_other_ways(tmp_path: Path) -> None:
    def interval(settings: dict[str, Any]) -> dict[str, Any]:
        del settings["layer_types"]
        return settings | {"full_attention_interval": 4}

    def indices(settings: dict[str, Any]) -> dict[str, Any]:
        del settings["layer_types"], settings["use_expert_bias"]
        return settings | {"full_attn_idxs": [2, 4]}

    for name, config in (("qwen3_next_period", interval), ("lfm2_moe", indices)):
        convert(changed(name, tmp_path / name, config), tmp_path / f"{name}.gguf")
        convert(saved(name), tmp_path / f"{name}-new.gguf")
        assert same_weights(tmp_path / f"{name}.gguf", tmp_path / f"{name}-new.gguf")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3_next", {"linear_num_value_heads": 5}, "'linear_num_value_heads' 5 is not a multiple"),
        ("qwen3_next", {"layer_types": ["full_attention"]}, "'layer_types' must name the kind of each of 4 layers"),
        ("qwen3_next", {"layer_types": ["conv"] * 4}, "'layer_types' holds \"conv\""),
        ("qwen3_5_moe", {"attn_output_gate": False}, "'attn_output_gate' is false"),
        ("lfm2_moe", {"conv_bias": True}, "'conv_bias' is true"),
    ],
)
def test_what_the_engine_cannot_run_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = changed(name, tmp_path / "hf", lambda settings: settings | changes)
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_next_mixed", "qwen3_5_moe", "lfm2_moe", "lfm2"])
def test_moepic_info_tells_keys_and_states_apart(name: str) -> None:
    config = built(name)[0]
    with GgufFile(gguf_file(name, "--outtype", "f32", "--no-split")) as file:
        report = inspect_file(file)
    full = config.layer_types.count("full_attention")
    others = config.num_hidden_layers - full
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if name.startswith("lfm2"):
        state = (config.conv_L_cache - 1) * config.hidden_size
    else:
        d_k, d_v = config.linear_key_head_dim, config.linear_value_head_dim
        n_k, n_v = config.linear_num_key_heads, config.linear_num_value_heads
        state = (config.linear_conv_kernel_dim - 1) * (2 * n_k * d_k + n_v * d_v) + n_v * d_k * (-(-d_v // 16) * 16)
    assert report.is_supported
    assert report.kv_layers == full
    assert report.kv_bytes_per_token == full * config.num_key_value_heads * 2 * head_dim * 2
    assert report.state_bytes == 4 * state * others
