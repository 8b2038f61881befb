"""Real weights against llama.cpp, on the original SmolLM2 file. Both engines round activations to int8, each its own way, so both are judged by
their distance from the float32 truth (transformers with the file's dequantized weights): ours may not be farther than llama.cpp's, with
10 % for the finite sample; and the two engines differ by at most the sum of two independent draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moepic_gguf import Model
from moepic_gguf.demo import build
from tests.demo.dense import load_dense
from tests.demo.test_demo import TEXT, demo  # noqa: F401  (a fixture)

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def sides():
    """Token ids, and logits of the truth and of llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the 'peer' extra: pip install 'moepic-gguf[peer]'")
    path = build.source_path()
    peer = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=2)
    ids = peer.tokenize(TEXT.encode(), add_bos=False, special=False)
    peer.eval(ids)
    theirs = np.array(peer.scores[: len(ids)])
    with torch.no_grad():
        truth = load_dense(path)(torch.tensor([ids])).logits[0].numpy()
    return ids, truth, theirs


def distance(a, b) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


@pytest.mark.parametrize("which", ["dense", "demo"])
def test_logits_are_as_near_to_the_truth_as_those_of_llama_cpp(sides, which, request):
    ids, truth, theirs = sides
    path = build.source_path() if which == "dense" else request.getfixturevalue("demo")
    with Model.load(path, n_ctx=512) as model:
        assert model.tokenize(TEXT) == ids
        ours = model.logits(ids)
    noise = distance(theirs, truth)
    assert distance(ours, truth) < 1.1 * noise
    assert distance(ours, theirs) < 1.1 * np.sqrt(2) * max(noise, distance(ours, truth))
    agree = [(a.argmax(1) == truth.argmax(1)).mean() for a in (ours, theirs)]
    assert agree[0] > agree[1] - 0.03
