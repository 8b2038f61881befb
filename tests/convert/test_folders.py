"""Hugging Face folders: every weight arrives, in the right place and order; keys say what config.json says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from convert.plan import Cut
from convert.to_gguf import convert
from moepic_gguf.errors import ConversionError
from tests.convert.reading import File
from tests.making import built, saved
from tests.tiny import MODELS, save

# GGUF name -> transformers name in memory, `{i}` the layer. Experts and q/k of `llama` are handled apart.
GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output_norm.bias": "model.norm.bias",
    "output.bias": "lm_head.bias",
    "token_embd_norm.weight": "model.embedding_norm.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_sinks.weight": "self_attn.sinks",
    "attn_output.bias": "self_attn.o_proj.bias",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}
# Where a family differs.
_LATENT = {
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    **{f"ffn_{w}_shexp.weight": f"mlp.shared_experts.{w}_proj.weight" for w in ("gate", "up", "down")},
}
_GEMMA = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
# Delta nets: what is stored as it is. The rest is put in order, see `delta_net`.
_DELTA = {"ssm_ba.weight": "linear_attn.in_proj_ba.weight", "ssm_norm.weight": "linear_attn.norm.weight"}
_LFM2 = {
    "attn_norm.weight": "operator_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn_output.weight": "self_attn.out_proj.weight",
    "attn_q_norm.weight": "self_attn.q_layernorm.weight",
    "attn_k_norm.weight": "self_attn.k_layernorm.weight",
    "ffn_gate.weight": "feed_forward.w1.weight",
    "ffn_up.weight": "feed_forward.w3.weight",
    "ffn_down.weight": "feed_forward.w2.weight",
    "ffn_gate_inp.weight": "feed_forward.gate.weight",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    **{f"shortconv.{w}.weight": f"conv.{w}.weight" for w in ("in_proj", "conv", "out_proj")},
}
OWN = {
    "glm4_moe_lite": _LATENT | {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
    "phimoe": {
        "ffn_gate_inp.weight": "mlp.router.weight",
        "attn_norm.bias": "input_layernorm.bias",
        "ffn_norm.bias": "post_attention_layernorm.bias",
    },
    "gemma3_text": _GEMMA,
    "gemma4_text": {
        **_GEMMA,
        "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
        "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
        "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
        "ffn_gate_inp.weight": "router.proj.weight",
        "ffn_gate_inp.scale": "router.scale",
        "ffn_down_exps.scale": "router.per_expert_scale",
        "layer_output_scale.weight": "layer_scalar",
    },
    "llama4_text": {
        "ffn_gate_inp.weight": "feed_forward.router.weight",
        **{f"ffn_{w}.weight": f"feed_forward.{w}_proj.weight" for w in ("gate", "up", "down")},
        **{f"ffn_{w}_shexp.weight": f"feed_forward.shared_expert.{w}_proj.weight" for w in ("gate", "up", "down")},
    },
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT | {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
    "glm4_moe": {
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        **{f"ffn_{w}_shexp.weight": f"mlp.shared_experts.{w}_proj.weight" for w in ("gate", "up", "down")},
    },
    "minimax_m2": {"exp_probs_b.bias": "mlp.e_score_correction_bias"},
    "ernie4_5_moe": {
        "exp_probs_b.bias": "mlp.gate.moe_statics.e_score_correction_bias",
        **{f"ffn_{w}_shexp.weight": f"mlp.shared_experts.{w}_proj.weight" for w in ("gate", "up", "down")},
    },
    "granitemoe": {"ffn_gate_inp.weight": "block_sparse_moe.router.weight"},
    "hunyuan_v1_moe": {
        "ffn_gate_inp.weight": "mlp.gate.wg.weight",
        "attn_q_norm.weight": "self_attn.query_layernorm.weight",
        "attn_k_norm.weight": "self_attn.key_layernorm.weight",
        **{f"ffn_{w}_shexp.weight": f"mlp.shared_mlp.{w}_proj.weight" for w in ("gate", "up", "down")},
    },
    "gpt_oss": {
        "ffn_gate_inp.weight": "mlp.router.weight",
        "ffn_gate_inp.bias": "mlp.router.bias",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    },
}
# Where the experts of a layer are, if not in `mlp`; and the rope factors, which are in config.json.
BLOCK = {
    "granitemoe": "block_sparse_moe.experts",
    "gemma4_text": "experts",
    "llama4_text": "feed_forward.experts",
    "lfm2_moe": "feed_forward.experts",
}
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
ARCH = {"gpt_oss": "gpt-oss", "mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def paired(weights: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Row 2j + h of a head in GGUF's `llama` is row h * d/2 + j in transformers; written out as a loop on purpose."""
    out, d = np.empty_like(weights), len(weights) // heads
    for head in range(heads):
        for j in range(d // 2):
            for half in range(2):
                out[head * d + 2 * j + half] = weights[head * d + half * (d // 2) + j]
    return out


def delta_net(rest: str, config: Any, net: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
    """A delta net's tensor in GGUF's order, written out head by head; None for those that are stored as they are."""
    n_k, n_v = config.linear_num_key_heads, config.linear_num_value_heads
    d_k, d_v, r = config.linear_key_head_dim, config.linear_value_head_dim, n_v // n_k
    tiled = config.model_type != "qwen3_next"
    # Place h of the file holds the value head that is number head_at[h] in transformers, where those of key head g are g r, g r + 1, ...
    head_at = [(h % n_k) * r + h // n_k for h in range(n_v)] if tiled else list(range(n_v))
    if "in_proj_qkvz.weight" in net:  # per key head: its q, k, values and gates
        blocks = np.split(net["in_proj_qkvz.weight"], n_k)
        q, k = (np.concatenate([block[i * d_k : (i + 1) * d_k] for block in blocks]) for i in (0, 1))
        v, z = (
            np.concatenate([block[2 * d_k + i * r * d_v : 2 * d_k + (i + 1) * r * d_v] for block in blocks])
            for i in (0, 1)
        )
    else:
        q, k, v = np.split(net["in_proj_qkv.weight"], [n_k * d_k, 2 * n_k * d_k])
        z = net["in_proj_z.weight"]

    def heads(values: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
        return np.concatenate([values[head * size : (head + 1) * size] for head in head_at])

    taps = net["conv1d.weight"][:, 0]
    made = {
        "attn_qkv.weight": lambda: np.concatenate([q, k, heads(v, d_v)]),
        "attn_gate.weight": lambda: heads(z, d_v),
        "ssm_conv1d.weight": lambda: np.concatenate([taps[: 2 * n_k * d_k], heads(taps[2 * n_k * d_k :], d_v)]),
        "ssm_beta.weight": lambda: heads(net["in_proj_b.weight"], 1),
        "ssm_alpha.weight": lambda: heads(net["in_proj_a.weight"], 1),
        "ssm_dt.bias": lambda: heads(net["dt_bias"], 1),
        "ssm_a": lambda: -np.exp(heads(net["A_log"], 1)),
        "ssm_out.weight": lambda: heads(net["out_proj.weight"].T, d_v).T,
    }
    return made[rest]() if rest in made else None


def expected(name: str, config: Any, state: dict[str, Any]) -> np.ndarray[Any, Any]:
    shifted = config.model_type.startswith(("gemma3", "qwen3_next", "qwen3_5")) and "norm" in name and "ssm" not in name
    shift = np.float32(shifted)  # GGUF holds what multiplies
    if name in GLOBAL:
        return state[GLOBAL[name]].numpy() + shift
    il, rest = name.split(".", 2)[1:]
    prefix = f"model.layers.{il}.linear_attn."
    net = {key.removeprefix(prefix): value.numpy() for key, value in state.items() if key.startswith(prefix)}
    if net and (found := delta_net(rest, config, net)) is not None:
        return found
    if rest in ("attn_k_b.weight", "attn_v_b.weight"):
        both = (
            state[f"model.layers.{il}.self_attn.kv_b_proj.weight"]
            .numpy()
            .reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        )
        plain = config.qk_nope_head_dim
        return both[:, :plain].swapaxes(1, 2) if "k_b" in rest else both[:, plain:]
    names = LAYER | OWN.get(config.model_type, {})
    value = state[f"model.layers.{il}.{names[rest]}"].numpy() + shift
    if config.model_type in ("llama", "mixtral", "granitemoe") and rest in ("attn_q.weight", "attn_k.weight"):
        return paired(value, config.num_attention_heads if "_q" in rest else config.num_key_value_heads)
    return value


@pytest.mark.parametrize("layout", ["hub", "fused"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_weight_arrives_unchanged_in_f32(name: str, layout: str, tmp_path: Path) -> None:
    config, model = built(name)
    convert(saved(name, layout), tmp_path / "m.gguf", outtype="f32", how=Cut(ratios=[0.4]))
    file, state = File(tmp_path / "m.gguf"), model.state_dict()
    seen = 0
    for tensor, stored in file.tensors.items():
        if tensor in FACTORS or ("_exps" in tensor and not tensor.endswith(("down_exps.bias", "down_exps.scale"))):
            continue
        want = expected(tensor, config, state)
        assert stored.shape == (want.squeeze().shape or (1,)), tensor
        assert np.array_equal(stored.floats(), want.reshape(stored.shape)), tensor
        seen += want.size
    for il in range(config.num_hidden_layers):
        block = BLOCK.get(config.model_type, "mlp.experts")
        fused = state.get(f"model.layers.{il}.{block}.gate_up_proj")
        if fused is None:
            continue
        down = state[f"model.layers.{il}.{block}.down_proj"].numpy()
        if config.model_type == "gpt_oss":  # inputs by outputs, gate and up in turn
            gate, up = (fused.numpy()[:, :, first::2].swapaxes(1, 2) for first in (0, 1))
            down = down.swapaxes(1, 2)
            biases = state[f"model.layers.{il}.mlp.experts.gate_up_proj_bias"].numpy()
            for which, want in (("gate", biases[:, 0::2]), ("up", biases[:, 1::2])):
                assert np.array_equal(file.expert_biases(il, which), want), (il, which)
                seen += want.size
        elif config.model_type == "llama4_text":  # inputs by outputs, gates before ups
            gate, up = np.split(fused.numpy().swapaxes(1, 2), 2, axis=1)
            down = down.swapaxes(1, 2)
        else:
            gate, up = fused.numpy().reshape(len(fused), 2, -1, fused.shape[-1]).swapaxes(0, 1)
        for which, want in (("gate", gate), ("up", up), ("down", down)):
            assert np.array_equal(file.experts(il, which), want), (il, which)
            seen += want.size
    tied = state["lm_head.weight"].numel() if config.tie_word_embeddings else 0
    assert seen == sum(value.numel() for value in state.values()) - tied, "some weight of the model is not in the file"


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen2_moe_1408", "qwen3_moe"])
def test_tensors_have_the_shapes_of_the_design(name: str, tmp_path: Path) -> None:
    config, _ = built(name)
    convert(saved(name), tmp_path / "m.gguf", how=Cut(ratios=[0.5]))
    file = File(tmp_path / "m.gguf")
    n_ff = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    n_expert = getattr(config, "num_experts", None) or config.num_local_experts
    granule = {512: 256, 96: 96, 1408: 352, 768: 256}[n_ff]
    n_granules, n_embd = n_ff // granule, config.hidden_size
    top = (n_granules + 1) // 2
    assert file.keys["moepic.version"] == 1
    assert file.keys["moepic.granule"] == [granule] * config.num_hidden_layers
    assert file.keys["moepic.top_granules"] == [top] * config.num_hidden_layers
    assert file.keys["moepic.neuron_order"] == "natural"
    assert file.keys["general.alignment"] == 4096
    assert all(stored.offset % 4096 == 0 for stored in file.tensors.values())
    for part, count in (("top", top), ("bot", n_granules - top)):
        for which in ("gate", "up", "down"):
            stored = file.tensors.get(f"blk.0.ffn_{which}_exps_{part}.weight")
            if count == 0:
                assert stored is None, "an empty part has no tensor"
                continue
            shape = (n_expert, count, n_embd, granule) if which == "down" else (n_expert, count * granule, n_embd)
            assert stored is not None
            assert stored.shape == shape


@pytest.mark.parametrize(
    "name", ["llama_tied", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe_plain_topk", "olmoe", "olmoe_norm"]
)
def test_keys_say_what_the_configuration_says(name: str, tmp_path: Path) -> None:
    config, _ = built(name)
    convert(saved(name), tmp_path / "m.gguf")
    keys = File(tmp_path / "m.gguf").keys
    arch = ARCH.get(config.model_type, config.model_type)
    assert keys["general.architecture"] == arch
    got = {key.removeprefix(arch + "."): value for key, value in keys.items() if key.startswith(arch + ".")}
    want = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "vocab_size": config.vocab_size,
    }
    want["attention.value_length"] = want["rope.dimension_count"] = want["attention.key_length"]
    assert got.pop("attention.layer_norm_rms_epsilon") == np.float32(config.rms_norm_eps)
    if name != "llama_tied":
        want["expert_count"] = getattr(config, "num_experts", None) or config.num_local_experts
        want["expert_used_count"] = config.num_experts_per_tok
        want["expert_weights_norm"] = getattr(config, "norm_topk_prob", True)
        if hasattr(config, "moe_intermediate_size"):
            want["expert_feed_forward_length"] = config.moe_intermediate_size
        if hasattr(config, "shared_expert_intermediate_size"):
            want["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    assert got == want


def test_yarn_settings_become_keys(tmp_path: Path) -> None:
    convert(saved("qwen3_moe_yarn"), tmp_path / "m.gguf")
    keys = File(tmp_path / "m.gguf").keys
    scaling = {k.rpartition("scaling.")[2]: v for k, v in keys.items() if "rope.scaling" in k}
    want = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
    assert scaling == want


def test_llama3_frequencies_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config, _ = built("llama_llama3")
    convert(saved("llama_llama3"), tmp_path / "m.gguf")
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, 16, 2) / 16)
    factors = File(tmp_path / "m.gguf").floats("rope_freqs.weight")
    assert len(set(factors.tolist())) > 2, "the blend is not exercised"
    # Two divisions and a power in float32: some units in the last place.
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "outtype"), [(torch.bfloat16, "bf16"), (torch.float16, "f16"), (torch.float32, "f32")]
)
def test_the_default_keeps_the_floats_of_the_checkpoint(dtype: Any, outtype: str, tmp_path: Path) -> None:
    _, model = built("qwen2_moe")
    save(model, tmp_path / "hf", dtype=dtype)
    plan = convert(tmp_path / "hf", tmp_path / "m.gguf")
    file = File(tmp_path / "m.gguf")
    assert file.tensors["blk.0.attn_q.weight"].kind.name == outtype.upper()
    want = model.state_dict()["model.layers.1.mlp.experts.down_proj"].to(dtype).float().numpy()
    assert np.array_equal(file.experts(1, "down"), want)
    assert plan.content.fallbacks == []


def test_shards_of_a_checkpoint_are_found_by_its_index(tmp_path: Path) -> None:
    _, model = built("mixtral")
    save(model, tmp_path / "hf", max_shard_size="600KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    convert(tmp_path / "hf", tmp_path / "m.gguf")
    convert(saved("mixtral"), tmp_path / "one.gguf")
    many, one = File(tmp_path / "m.gguf"), File(tmp_path / "one.gguf")
    assert {n: s.raw.tobytes() for n, s in many.tensors.items()} == {n: s.raw.tobytes() for n, s in one.tensors.items()}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(saved("qwen2_moe"), tmp_path / f"{name}.gguf", outtype="bf16")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_cut_moves_weights_and_changes_none(ratio: float, tmp_path: Path) -> None:
    convert(saved("qwen3_moe"), tmp_path / "cut.gguf", outtype="bf16", how=Cut(ratios=[ratio]))
    convert(saved("qwen3_moe"), tmp_path / "whole.gguf", outtype="bf16", how=Cut(split=False))
    cut, whole = File(tmp_path / "cut.gguf"), File(tmp_path / "whole.gguf")
    assert cut.keys["moepic.top_granules"] == [round(ratio * 3)] * 2
    for il in range(2):
        for which in ("gate", "up", "down"):
            assert np.array_equal(cut.expert_bytes(il, which), whole.expert_bytes(il, which)), (il, which)


def test_each_layer_has_its_own_ratio(tmp_path: Path) -> None:
    convert(saved("qwen3_moe"), tmp_path / "m.gguf", how=Cut(ratios=[0.0, 1.0]))
    assert File(tmp_path / "m.gguf").keys["moepic.top_granules"] == [0, 3]
    # Layers 0, 2 and 3 are dense: ratios may be given for the layers with experts alone.
    convert(saved("qwen2_moe_mixed"), tmp_path / "n.gguf", how=dataclasses.replace(Cut(), ratios=[1.0]))
    keys = File(tmp_path / "n.gguf").keys
    assert keys["moepic.granule"] == [0, 96, 0, 0]
    assert keys["moepic.top_granules"] == [0, 1, 0, 0]


def test_old_spellings_of_rope_settings_are_read(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for path in saved("qwen3_moe_yarn").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "old.gguf")
    convert(saved("qwen3_moe_yarn"), tmp_path / "new.gguf")
    old, new = File(tmp_path / "old.gguf").keys, File(tmp_path / "new.gguf").keys
    differing = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    assert differing == {"general.name", "moepic.source.name", "moepic.source.config_sha256"}


def test_mxfp4_of_gpt_oss_is_moved_not_rounded(tmp_path: Path) -> None:
    """Blocks and scales as the published checkpoints store them: the weights arrive exactly, natural or reordered."""
    from gguf.quants import dequantize, quantize
    from safetensors.torch import load_file, save_file

    source = tmp_path / "hf"
    source.mkdir()
    for path in saved("gpt_oss").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    state = load_file(source / "model.safetensors")
    wanted: dict[str, np.ndarray[Any, Any]] = {}
    for name in [n for n in state if n.endswith(("gate_up_proj", "down_proj"))]:
        raw = quantize(state.pop(name).numpy().swapaxes(1, 2).copy(), GGMLQuantizationType.MXFP4)
        wanted[name] = dequantize(raw, GGMLQuantizationType.MXFP4)
        blocks = raw.reshape(*raw.shape[:2], -1, 17)
        codes = np.concatenate((blocks[..., 1:] & 15, blocks[..., 1:] >> 4), axis=-1)  # weights in order
        state[name + "_blocks"] = torch.from_numpy(codes[..., 0::2] | (codes[..., 1::2] << 4))
        state[name + "_scales"] = torch.from_numpy(blocks[..., 0].copy())
    save_file(state, source / "model.safetensors")
    for outtype, kind in ((None, "MXFP4"), ("mxfp4", "MXFP4"), ("f32", "F32")):
        for ratio in (0.5, 1.0):
            convert(source, tmp_path / "m.gguf", outtype=outtype, how=Cut(ratios=[ratio]), force=True)
            file = File(tmp_path / "m.gguf")
            assert file.tensors["blk.1.ffn_down_exps_top.weight"].kind.name == kind
            for il in range(3):
                gate_up = wanted[f"model.layers.{il}.mlp.experts.gate_up_proj"]
                down = wanted[f"model.layers.{il}.mlp.experts.down_proj"]
                for which, want in (("gate", gate_up[:, 0::2]), ("up", gate_up[:, 1::2]), ("down", down)):
                    assert np.array_equal(file.experts(il, which), want), (outtype, il, which)


def test_windows_of_gpt_oss_become_keys(tmp_path: Path) -> None:
    for name, pattern in (("gpt_oss", None), ("gpt_oss_other_windows", [False, False, True])):
        convert(saved(name), tmp_path / f"{name}.gguf")
        keys = File(tmp_path / f"{name}.gguf").keys
        assert keys["gpt-oss.attention.sliding_window"] == 12
        assert keys.get("gpt-oss.attention.sliding_window_pattern") == pattern
        assert keys["gpt-oss.expert_feed_forward_length"] == 512


def test_blocks_for_multi_token_prediction_are_left_out_and_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tmp_path / "hf"
    source.mkdir()
    for path in saved("glm4_moe").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    state = load_file(source / "model.safetensors")
    extra = {"model.layers.3.eh_proj.weight": torch.ones(96, 192), "model.layers.3.enorm.weight": torch.ones(96)}
    save_file(state | extra, source / "model.safetensors")
    plan = convert(source, tmp_path / "m.gguf")
    assert any(text.startswith("2 tensors of blocks for multi-token prediction") for text in plan.content.warnings)
    convert(saved("glm4_moe"), tmp_path / "plain.gguf")
    assert File(tmp_path / "m.gguf").tensors.keys() == File(tmp_path / "plain.gguf").tensors.keys()
    save_file(state | {"model.layers.4.enorm.weight": torch.ones(96)}, source / "model.safetensors")
    with pytest.raises(ConversionError, match=r"'model\.layers\.4\.enorm\.weight' has no place"):
        convert(source, tmp_path / "m.gguf", force=True)


@pytest.mark.parametrize(
    ("name", "outer", "prefix"),
    [
        ("gemma3", "gemma3", "language_model.model."),
        ("gemma4", "gemma4", "model.language_model."),
        ("llama4", "llama4", "language_model.model."),
    ],
)
def test_the_text_of_a_model_that_sees_is_converted_alone(name: str, outer: str, prefix: str, tmp_path: Path) -> None:
    """As published: the text model's configuration inside another, its tensors behind a prefix, image towers beside them."""
    from safetensors.torch import load_file, save_file

    source = tmp_path / "hf"
    source.mkdir()
    config = json.loads((saved(name) / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({"model_type": outer, "text_config": config, "vision_config": {}}))
    state = load_file(saved(name) / "model.safetensors")
    renamed = {
        prefix + key.removeprefix("model.") if key.startswith("model.") else f"language_model.{key}": value
        for key, value in state.items()
    }
    tower = "vision_model" if outer == "llama4" else "vision_tower"
    renamed |= {f"{tower}.patch.weight": torch.ones(4, 4), "multi_modal_projector.weight": torch.ones(4)}
    save_file(renamed, source / "model.safetensors")
    plan = convert(source, tmp_path / "m.gguf")
    assert any(text.startswith("2 tensors of images") for text in plan.content.warnings)
    convert(saved(name), tmp_path / "plain.gguf")
    one, other = File(tmp_path / "m.gguf"), File(tmp_path / "plain.gguf")
    assert {n: s.raw.tobytes() for n, s in one.tensors.items()} == {
        n: s.raw.tobytes() for n, s in other.tensors.items()
    }
    skipped = ("general.name", "moepic.source")
    assert {k: v for k, v in one.keys.items() if not k.startswith(skipped)} == {
        k: v for k, v in other.keys.items() if not k.startswith(skipped)
    }


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama4", {"use_qk_norm": False}, "'use_qk_norm' is false"),
        ("llama4", {"no_rope_layers": [1, 0, 1, 1]}, "'no_rope_layers' is"),
        ("gemma4", {"num_kv_shared_layers": 2}, "'num_kv_shared_layers' is 2"),
        ("gemma4", {"hidden_size_per_layer_input": 64}, "'hidden_size_per_layer_input' is 64"),
        ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is true"),
        ("phimoe", {"router_jitter_noise": 0.1}, "'router_jitter_noise' is 0.1"),
    ],
)
def test_settings_that_the_engine_cannot_run_are_named(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    for path in saved(name).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "m.gguf")
