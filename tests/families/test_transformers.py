"""Every family against transformers, on tiny random models in float32: logits, greedy text, file layouts.

Where the tolerance comes from. Weights and activations are float32 on both sides, but keys and values are kept in float16 here. So the
reference is transformers in float64 with its cache rounded to float16 in the same place. What remains is
  - float32 rounding of ours, which transformers in float32 has too: its own error against float64, `f32`, is the scale;
  - a key or value that lies near a rounding border of float16 and falls on the other side of it: a fraction of what rounding all of them
    does, `f16` = |float64 with rounded cache - float64|.
The bound is 16 f32 + f16: a wrong pairing, norm, bias, order of experts or scale is orders of magnitude beyond it (checked below).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from moepic_gguf import Model
from tests.making import built, gguf_file
from tests.tiny.models import MODELS

TOKENS = np.random.default_rng(0).integers(3, 320, 40).tolist()


class HalfCache(DynamicCache):
    """Keys and values rounded to float16, as the engine keeps them."""

    def update(self, key_states, value_states, *args, **kwargs):
        half = [states.to(torch.float16).to(states.dtype) for states in (key_states, value_states)]
        return super().update(*half, *args, **kwargs)


def logits_of(model, tokens, dtype, half_cache) -> np.ndarray:
    before = model.dtype
    model.to(dtype)
    model.set_experts_implementation("eager")  # the fused one has no float64
    with torch.no_grad():
        cache = (HalfCache if half_cache else DynamicCache)(config=model.config)
        out = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0]
    model.to(before)
    return out.to(torch.float64).numpy()


def reference(name: str) -> tuple[np.ndarray, float]:
    """Float64 logits with a float16 cache, and the tolerance derived above."""
    model = built(name)[1]
    exact = logits_of(model, TOKENS, torch.float64, half_cache=False)
    rounded = logits_of(model, TOKENS, torch.float64, half_cache=True)
    single = logits_of(model, TOKENS, torch.float32, half_cache=True)
    f32, f16 = np.abs(single - rounded).max(), np.abs(rounded - exact).max()
    return rounded, 16 * f32 + f16


def check(path, name: str, **load) -> None:
    expected, tolerance = reference(name)
    with Model.load(path, n_ctx=128, **load) as model:
        found = model.logits(TOKENS)
    error = np.abs(found - expected)
    worst = np.unravel_index(np.argmax(error), error.shape)
    assert error.max() <= tolerance, (
        f"worst at token {worst[0]}, id {worst[1]}: {found[worst]} for {expected[worst]}, tolerance {tolerance:.2e}"
    )
    # The bound must be able to fail: it is far below what logits differ by from one token to the next.
    assert tolerance < 0.05 * expected.std()


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_equal_transformers(name):
    check(gguf_file(name, "--outtype", "f32", "--no-split"), name)


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "gpt_oss",
        "glm4_moe",
        "minimax_m2",
        "ernie4_5_moe",
        "granitemoe",
        "hunyuan",
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "phimoe",
        "gemma4",
        "llama4",
        "qwen3_next",
        "qwen3_5_moe",
        "lfm2_moe",
    ],
)
def test_the_fused_layout_and_the_pre_split_file_give_the_same_logits(name):
    check(gguf_file(name, "--outtype", "f32", layout="fused"), name)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "qwen2",
        "qwen3",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "qwen3_moe_yarn",
        "gpt_oss",
        "glm4_moe",
        "minimax_m2",
        "ernie4_5_moe",
        "granitemoe",
        "hunyuan",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v2_groups",
        "glm4_moe_lite",
        "phimoe",
        "gemma3",
        "gemma4",
        "llama4",
        "llama4_chunks",
        "qwen3_next",
        "qwen3_next_mixed",
        "qwen3_5_moe",
        "qwen3_5",
        "lfm2_moe",
        "lfm2",
    ],
)
def test_greedy_text_equals_transformers_until_a_near_tie(name):
    """64 greedy steps from each of four prompts. A step whose two best logits are closer than twice the tolerance may go either way: the
    comparison of that prompt ends there."""
    _, tolerance = reference(name)
    hf = built(name)[1]
    hf.set_experts_implementation("eager")
    hf.to(torch.float64)
    compared = 0
    with Model.load(gguf_file(name, "--outtype", "f32", "--no-split"), n_ctx=128) as model:
        for start in range(0, 32, 8):
            tokens = TOKENS[start : start + 8]
            answer = list(model.generate(tokens, max_tokens=64, temperature=0.0, stop_tokens=[]).tokens)
            with torch.no_grad():  # all steps at once: up to the first that differs, both have seen the same tokens
                rows = hf(torch.tensor([tokens + answer])).logits[0].numpy()
            for i, token in enumerate(answer):
                row = rows[len(tokens) - 1 + i]
                second, first = np.sort(row)[-2:]
                if first - second <= 2 * tolerance:
                    break
                assert token == int(np.argmax(row)), f"{i} tokens into the answer to {tokens}"
                compared += 1
    hf.to(torch.float32)
    assert compared >= 64


def test_a_nextn_block_of_a_file_changes_nothing(tmp_path):
    """Files of GLM carry blocks for multi-token prediction after the layers: they are counted by block_count and not run."""
    from convert import keys
    from convert.plan import Cut, make_plan
    from convert.sources.gguf_source import open_gguf
    from convert.sources.hf import _vector
    from convert.writer import write

    plain = gguf_file("glm4_moe", "--outtype", "f32", "--no-split")
    content = open_gguf(plain)
    content.keys |= {"glm4moe.block_count": keys.u32(4), "glm4moe.nextn_predict_layers": keys.u32(1)}
    content.tail.append(_vector("blk.3.nextn.enorm.weight", "norm", np.ones(96, np.float32)))
    write(make_plan(content, tmp_path / "nextn.gguf", Cut(split=False)).shards, lambda n: None)
    with Model.load(plain, n_ctx=64) as one, Model.load(tmp_path / "nextn.gguf", n_ctx=64) as other:
        assert other.info.n_layer == 3
        assert np.array_equal(one.logits(TOKENS), other.logits(TOKENS))


def test_a_delta_net_in_the_layout_of_2025_is_refused_by_name(tmp_path):
    from convert.plan import Cut, make_plan
    from convert.sources.gguf_source import open_gguf
    from convert.sources.hf import _vector
    from convert.writer import write
    from moepic_gguf.errors import UnsupportedModelError

    content = open_gguf(gguf_file("qwen3_next", "--outtype", "f32", "--no-split"))
    content.tail.append(_vector("blk.0.ssm_in.weight", "mixer", np.ones(96, np.float32)))
    write(make_plan(content, tmp_path / "m.gguf", Cut(split=False)).shards, lambda n: None)
    with pytest.raises(UnsupportedModelError, match=r"'blk\.0\.ssm_in\.weight': q, k, v and the gate in one tensor"):
        Model.load(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deepseek_v2", {"attention.head_count_kv": 5}, "head_count_kv' is 5, expected 1"),
        ("deepseek_v2", {"attention.key_length": 48}, "key_length' and 'value_length' are 48 and 48"),
        ("deepseek_v3", {"expert_group_used_count": 0, "expert_group_count": 5}, "expert_group_count' is 5"),
        ("gpt_oss", {"expert_gating_func": 4}, "expert_gating_func' is 4"),
        ("granitemoe", {"logit_scale": 0}, "logit_scale' is 0"),
        ("qwen3_next", {"ssm.group_count": 4}, "'time_step_rank' and 'inner_size' are 4, 6 and 96"),
        ("qwen3_next", {"ssm.conv_kernel": 9}, "conv_kernel' is 9, expected 2 to 8"),
        ("qwen3_next", {"ssm.state_size": 32}, "attn_qkv.weight' has shape"),
        ("qwen3_next", {"full_attention_interval": 2}, "attn_q.weight' is missing"),
        ("lfm2_moe", {"shortconv.l_cache": 4}, "shortconv.conv.weight' has shape"),
    ],
)
def test_sizes_that_do_not_fit_together_are_named(name, changes, message, tmp_path):
    from convert import keys
    from convert.plan import Cut, make_plan
    from convert.sources.gguf_source import open_gguf
    from convert.writer import write
    from moepic_gguf.errors import MoepicError

    content = open_gguf(gguf_file(name, "--outtype", "f32", "--no-split"))
    content.keys |= {f"{content.arch}.{key}": keys.u32(value) for key, value in changes.items()}
    write(make_plan(content, tmp_path / "m.gguf", Cut(split=False)).shards, lambda n: None)
    with pytest.raises(MoepicError, match=message):
        Model.load(tmp_path / "m.gguf")
