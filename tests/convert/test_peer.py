"""llama.cpp loads an uncut conversion of every family and computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convert.plan import Cut
from convert.to_gguf import convert
from tests.making import built, saved
from tests.tiny import MODELS

pytestmark = pytest.mark.peer
# What llama.cpp cannot express: its own fixed answer to renormalising, dense layers in qwen2moe, fewer key heads in olmoe.
BEYOND = {"qwen2_moe_norm", "qwen3_moe_plain_topk", "olmoe_norm", "qwen2_moe_mixed", "olmoe_gqa"}


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
    # Float32 on both sides, sums of at most 1408 terms in another order: measured 3e-6 to 1.4e-5 on logits of size 3 to 10.
    np.testing.assert_allclose(np.array(peer.scores[: len(tokens)]), want, atol=1e-4)
