"""llama.cpp loads an uncut conversion of every family and computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convert.plan import Cut
from convert.to_gguf import convert
from moepic_gguf import Model
from tests.convert.reading import File
from tests.making import built, ordinary, saved
from tests.tiny import MODELS

pytestmark = pytest.mark.peer
# What llama.cpp cannot express: its own fixed answer to renormalising, dense layers in qwen2moe, fewer key heads in olmoe, ERNIE without
# shared experts, DeepSeek without compressed queries unless it has 26 or 27 layers, YaRN's ramp between whole dimensions (gpt-oss is
# trained so: `truncate` is false; llama.cpp rounds it), groups of experts by their best one, Gemma 3's scale of q . k and windows in other
# places than all but every sixth, chunks of Llama 4 other than 8192, dense layers or two head sizes in qwen3next, LFM2 without selection
# bias. Phi-3.5-MoE runs there with RMS instead of LayerNorm and softmax over the selected instead of its own router.
BEYOND = {
    "qwen2_moe_norm",
    "qwen3_moe_plain_topk",
    "olmoe_norm",
    "qwen2_moe_mixed",
    "olmoe_gqa",
    "ernie4_5_moe_mixed",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v2_groups",
    "gemma3",
    "gemma3_linear",
    "lfm2_moe_free",
    "llama4_chunks",
    "phimoe",
    "phimoe_plain",
    "qwen3_next_mixed",
}
# Delta nets add 1e-6 to the squared length of q and k; llama.cpp adds nothing and bounds the length instead. Of a head whose channels are
# all near zero that is more than rounding: 5e-7 over the squared length, which the tiny models draw down to some 1e-3.
SHORT_HEADS = ("qwen3_next", "qwen3_5")


@pytest.mark.parametrize("name", sorted(MODELS.keys() - BEYOND))
def test_llama_cpp_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the 'peer' extra has it")
    convert(saved(name), tmp_path / "m.gguf", how=Cut(split=False), outtype="f32")
    tokens = np.random.default_rng(0).integers(3, 300, 40).tolist()
    with torch.no_grad():
        want = built(name)[1](torch.tensor([tokens])).logits[0].numpy()
    peer = llama_cpp.Llama(
        str(tmp_path / "m.gguf"),
        n_ctx=128,
        logits_all=True,
        verbose=False,
        n_threads=2,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    peer.eval(tokens)
    # Float32 on both sides, sums of at most 1408 terms in another order: measured 3e-6 to 1.4e-5 on logits of size 3 to 10 (7.6e-5 for
    # GLM-4.7-Flash). llama.cpp looks GELU up in a table of halves, 2^-11 of each activation: measured 2.9e-3 for the Gemmas, whose logits
    # a wrong norm, rope or window moves by 0.5 and more.
    tolerance = 6e-3 if name.startswith("gemma") else 5e-4 if name.startswith(SHORT_HEADS) else 1e-4
    np.testing.assert_allclose(np.array(peer.scores[: len(tokens)]), want, atol=tolerance)


@pytest.mark.parametrize("kind", ["iq2", "iq3"])
def test_llama_cpp_gives_our_logits_over_codebook_types(kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the 'peer' extra has it")
    path = ordinary("qwen3_moe_256", kind)
    tokens = np.random.default_rng(0).integers(3, 300, 40).tolist()
    with Model.load(path, n_ctx=64) as model:
        found = np.asarray(model.logits(tokens))
    peer = llama_cpp.Llama(
        str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=2, type_k=0, type_v=0, flash_attn=False
    )
    peer.eval(tokens)
    want = np.array(peer.scores[: len(tokens)])
    # Both round activations to 8 bits, by other scales: measured 0.02 of the logits' spread (0.03 for Q4_K). Another entry of a codebook,
    # or signs of the neighbouring group, would make them strangers (1.4).
    assert np.sqrt(np.mean((found - want) ** 2)) < 0.05 * want.std()


@pytest.mark.parametrize(
    ("outtype", "ftype"),
    [("q4_k_m", 15), ("q4_k", 14), ("q5_k", 16), ("q6_k", 18), ("q8_0", 7), ("q4_0", 2), ("mxfp4", 38)],
)
@pytest.mark.parametrize(
    "name", ["qwen3_moe_256", "qwen2_moe", "mixtral_tied", "olmoe", "qwen3_5_moe_256", "lfm2_moe_256"]
)
def test_tensors_get_the_types_that_llama_quantize_gives(name: str, outtype: str, ftype: int, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the 'peer' extra has it")
    convert(saved(name), tmp_path / "in.gguf", how=Cut(split=False), outtype="f32")
    convert(saved(name), tmp_path / "ours.gguf", how=Cut(split=False), outtype=outtype)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 2
    assert (
        llama_cpp.llama_model_quantize(
            str(tmp_path / "in.gguf").encode(), str(tmp_path / "theirs.gguf").encode(), params
        )
        == 0
    )
    ours, theirs = (
        {n: t.kind.name for n, t in File(tmp_path / f"{which}.gguf").tensors.items()} for which in ("ours", "theirs")
    )
    assert {n: (kind, theirs[n]) for n, kind in ours.items() if kind != theirs[n]} == {}
    keys = [File(tmp_path / f"{which}.gguf").keys["general.file_type"] for which in ("ours", "theirs")]
    assert keys[0] == keys[1]
