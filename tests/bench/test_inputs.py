"""What the benchmarks of streamed experts are fed: mapped recordings and random blocks. A benchmark of wrong inputs fails silently."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from moepic_gguf.errors import ArgumentError
from moepic_gguf.trace import DECODE, Trace, write_trace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

gguf = pytest.importorskip("gguf")

from make_shapes import LEGAL_EXPERT_TYPES, random_blocks  # noqa: E402
from traces import Target, find_trace, map_trace  # noqa: E402

N_TOKEN, N_LAYER, N_EXPERT, N_USED = 200, 6, 32, 3


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A file, and its ids: popularity falls with the id, layer l is shifted by l, so that layers can be told apart."""
    rng = np.random.default_rng(0)
    weight = 1.0 / (np.arange(N_EXPERT) + 1.0)
    ids = np.array(
        [
            [
                (rng.choice(N_EXPERT, N_USED, replace=False, p=weight / weight.sum()) + il) % N_EXPERT
                for il in range(N_LAYER)
            ]
            for _ in range(N_TOKEN)
        ],
        np.int32,
    )
    path = tmp_path_factory.mktemp("traces") / "recorded.trace"
    sizes = {
        name: np.full(N_LAYER, size) for name, size in (("n_expert", N_EXPERT), ("n_granule", 1), ("granule_bytes", 1))
    }
    weights, sequence = np.ones(ids.shape, np.float32), np.zeros(N_TOKEN, np.int32)
    write_trace(path, Trace(ids, weights, sequence, np.full(N_TOKEN, DECODE, np.uint8), **sizes))
    return path, ids


@pytest.mark.parametrize(("n_expert", "n_used", "n_layer"), [(32, 3, 6), (32, 5, 3), (8, 3, 2), (32, 2, 1)])
def test_mapped_routing_is_legal_for_the_model(recording, n_expert, n_used, n_layer):
    mapped = map_trace(recording[0], Target(n_expert, n_used, 2, (7,) * n_layer), recall=0.5)
    assert mapped.ids.shape == (N_TOKEN, n_layer, n_used)
    assert mapped.ids.min() >= 0
    assert mapped.ids.max() < n_expert
    assert (np.diff(mapped.ids, axis=2) > 0).all()  # ascending, so distinct: what the engine asks for
    assert mapped.predicted is not None
    assert mapped.predicted.min() >= 0
    assert mapped.total_bytes == n_layer * n_expert * 2 * 7


def test_a_model_of_the_recorded_shape_gets_the_recorded_ids(recording):
    path, ids = recording
    mapped = map_trace(path, Target(N_EXPERT, N_USED, 1, (1,) * N_LAYER))
    assert (mapped.ids == np.sort(ids, axis=2)).all()


def test_more_experts_per_token_hold_the_recorded_ones_and_draw_the_rest_by_use(recording):
    path, ids = recording
    mapped = map_trace(path, Target(N_EXPERT, N_USED + 2, 1, (1,) * 3))
    layers = [0, 2, 5]  # evenly out of six, rounded half to even as numpy does
    uses = np.zeros(N_EXPERT)
    for token in range(N_TOKEN):
        for at, il in enumerate(layers):
            assert set(ids[token, il]) <= set(mapped.ids[token, at])
        np.add.at(uses, list(set(mapped.ids[token, 0]) - set(ids[token, 0])), 1)
    # Layer 0's popularity falls with the id: the first half was recorded 3 times as often as the second, or more.
    assert uses[: N_EXPERT // 2].sum() > 2 * uses[N_EXPERT // 2 :].sum()


def test_folded_ids_are_recorded_ids_modulo_the_number_of_experts(recording):
    path, ids = recording
    mapped = map_trace(path, Target(8, N_USED, 1, (1,) * N_LAYER))
    for token in range(N_TOKEN):
        for il in range(N_LAYER):
            assert {int(one) % 8 for one in ids[token, il]} <= set(mapped.ids[token, il].tolist())


def test_guesses_have_the_recall_asked_for(recording):
    mapped = map_trace(recording[0], Target(N_EXPERT, N_USED, 1, (1,) * N_LAYER), recall=0.8)
    n = mapped.ids.size
    # A share of n independent draws: four standard deviations.
    assert abs(mapped.recall - 0.8) < 4 * (0.8 * 0.2 / n) ** 0.5


@pytest.mark.parametrize("target", [Target(64, 2, 1, (1,)), Target(32, 2, 1, (1,) * 7)])
def test_a_recording_of_a_smaller_model_is_refused(recording, target):
    with pytest.raises(ArgumentError, match=r"recorded\.trace"):
        map_trace(recording[0], target)


def test_a_recording_is_found_in_the_folder_of_the_environment(recording, monkeypatch):
    monkeypatch.setenv("MOEPIC_TRACES", str(recording[0].parent))
    assert find_trace("recorded.trace") == recording[0]
    with pytest.raises(ArgumentError, match="missing"):
        find_trace("missing")


@pytest.mark.parametrize("name", LEGAL_EXPERT_TYPES)
def test_random_blocks_decode_to_the_deviation_asked_for(name):
    kind = gguf.GGMLQuantizationType[name]
    blocks = random_blocks(kind, 0.02, np.random.default_rng(1))[:4096]
    values = gguf.quants.dequantize(blocks, kind)
    assert np.isfinite(values).all()
    # 4096 blocks of 32 or 256; scales vary by a quarter, uniformly, which adds less than 1 %. 10 % is far beyond sampling.
    assert values.std() == pytest.approx(0.02, rel=0.1)
    # The codes of Q4_0 are -8..7, so their mean is half a code of the 4.6 that make a deviation, 0.109; that of the others is below. A hundredth for
    # sampling: Q4_K's 4096 * 8 sub-blocks share an offset of up to a deviation each, 1 / 180 of one in their mean.
    assert abs(values.mean()) < (0.109 + 0.01) * 0.02
