"""Neurons ordered by importance: the order is the one that torch's activations give, and it changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from convert.plan import Cut
from convert.to_gguf import convert, main
from moepic_gguf import Model
from moepic_gguf.errors import ConversionError
from tests.convert.reading import File
from tests.making import built, saved

TOKENS = np.random.default_rng(3).integers(3, 320, 700).tolist()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The tiny folders have no tokenizer, so the text is ids."""
    path = tmp_path / "calibration.txt"
    path.write_text(" ".join(map(str, TOKENS)))
    return path


def scores_by_torch(name: str) -> list[np.ndarray[Any, Any]]:
    """Per layer `[n_expert, n_ff]`: mean |silu(gate) * up| over an expert's tokens, times the length of its down
    column.
    """
    _, model = built(name)
    caught: dict[int, list[tuple[Any, Any]]] = {}
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, args, il=il: caught.setdefault(il, []).append(args[:2]))
        for il, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for first in range(0, len(TOKENS), 256):  # max_position_embeddings of the tiny models
            model(torch.tensor([TOKENS[first : first + 256]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    scores = []
    for il, layer in enumerate(model.model.layers):
        hidden = torch.cat([h.reshape(-1, h.shape[-1]) for h, _ in caught[il]]).double()
        chosen = torch.cat([ids for _, ids in caught[il]])
        down = layer.mlp.experts.down_proj.detach().double()
        gate, up = layer.mlp.experts.gate_up_proj.detach().double().chunk(2, dim=1)
        rows = []
        for e in range(len(down)):
            x = hidden[(chosen == e).any(dim=1)]
            act = torch.nn.functional.silu(x @ gate[e].T) * (x @ up[e].T)
            rows.append(act.abs().mean(dim=0) * down[e].norm(dim=0))
        scores.append(torch.stack(rows).numpy())
    return scores


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_the_order_follows_the_activations_that_torch_computes(name: str, text: Path, tmp_path: Path) -> None:
    _, model = built(name)
    convert(saved(name), tmp_path / "m.gguf", calibration=text, how=Cut(ratios=[0.4]))
    file = File(tmp_path / "m.gguf")
    assert file.keys["moepic.neuron_order"] == "importance"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calibration.txt", "m.gguf"]
    for il, scores in enumerate(scores_by_torch(name)):
        layer = model.model.layers[il].mlp.experts
        natural = layer.gate_up_proj.detach().numpy()
        n_ff = natural.shape[1] // 2
        gate, up, down = (file.experts(il, which) for which in ("gate", "up", "down"))
        moved = 0
        for e in range(len(scores)):
            # Rows are random floats, so the first column identifies a neuron.
            place = {value: i for i, value in enumerate(natural[e, :n_ff, 0].tolist())}
            order = np.array([place[value] for value in gate[e, :, 0].tolist()])
            assert sorted(order) == list(range(n_ff))
            assert np.array_equal(gate[e], natural[e, :n_ff][order])
            assert np.array_equal(up[e], natural[e, n_ff:][order])
            assert np.array_equal(down[e], layer.down_proj.detach().numpy()[e][:, order])
            # Without a routing tie the scores agree to 4e-4. F16 keys move a token at a tie to another expert
            # (measured: one, from 11 to 8 in qwen3_moe's layer 1), which moves a score by up to 6 %. Scores that
            # close may change places; they spread over a factor of 5.
            in_order = scores[e][order]
            assert np.all(in_order[1:] <= in_order[:-1] * 1.15), (il, e)
            moved += int((order != np.arange(n_ff)).sum())
        assert moved > n_ff, "the order is the natural one; the calibration did nothing"


def test_the_order_changes_no_result_but_in_the_last_bits(text: Path, tmp_path: Path) -> None:
    convert(saved("qwen3_moe"), tmp_path / "natural.gguf")
    convert(saved("qwen3_moe"), tmp_path / "ordered.gguf", calibration=text)
    logits = []
    for name in ("natural", "ordered"):
        with Model.load(tmp_path / f"{name}.gguf") as model:
            logits.append(np.array(model.logits(TOKENS[:40])))
    # Sums over 768 neurons in another order, in float32: some 1e-7 relative each, two layers, logits of size 1. A
    # neuron whose row and column went apart would change logits by about their size.
    assert np.abs(logits[0]).max() > 1
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-3)
    assert not np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize(("outtype", "unit"), [("q8_0", 32), ("q4_k", 256)])
def test_a_quantized_input_is_ordered_by_whole_blocks(outtype: str, unit: int, text: Path, tmp_path: Path) -> None:
    convert(saved("qwen3_moe_256"), tmp_path / "in.gguf", outtype=outtype)
    convert(tmp_path / "in.gguf", tmp_path / "out.gguf", calibration=text)
    before, after = File(tmp_path / "in.gguf"), File(tmp_path / "out.gguf")
    for il in range(2):
        old, new = before.expert_bytes(il, "gate"), after.expert_bytes(il, "gate")
        up_old, up_new = before.expert_bytes(il, "up"), after.expert_bytes(il, "up")
        blocks = before.expert_bytes(il, "down").shape[2] * unit // old.shape[1]
        for e in range(len(old)):
            place = {row.tobytes(): i for i, row in enumerate(old[e])}
            order = np.array([place[row.tobytes()] for row in new[e]])
            runs = order.reshape(-1, unit)
            assert np.array_equal(runs, runs[:, :1] + np.arange(unit)), "a block came apart"
            assert np.all(runs[:, 0] % unit == 0)
            assert np.array_equal(up_new[e], up_old[e][order])
            down_old = before.expert_bytes(il, "down")[e].reshape(old.shape[2] and 256, -1, blocks)
            down_new = after.expert_bytes(il, "down")[e].reshape(256, -1, blocks)
            assert np.array_equal(down_new, down_old[:, runs[:, 0] // unit])


def test_the_same_text_gives_the_same_bytes(text: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(saved("mixtral"), tmp_path / f"{name}.gguf", calibration=text, outtype="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_experts_without_a_token_are_said_and_kept(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("5 6")
    plan = convert(saved("qwen2_moe"), tmp_path / "m.gguf", calibration=short)
    assert any("saw no token" in warning for warning in plan.content.warnings)


def test_bad_calibrations_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    for content, message in (("words", "must hold token ids"), ("", "holds no token")):
        (tmp_path / "c.txt").write_text(content)
        with pytest.raises(ConversionError, match=message):
            convert(saved("mixtral"), tmp_path / "m.gguf", calibration=tmp_path / "c.txt")
    result = CliRunner().invoke(main, [str(saved("mixtral")), str(tmp_path / "m.gguf"), "--neuron-order", "importance"])
    assert result.exit_code == 1
    assert "go together" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]
