"""GGUF in, GGUF out: every byte of every tensor and key is the same, only the experts' layout changes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from convert.plan import Cut
from convert.to_gguf import convert
from moepic_gguf.errors import ConversionError
from tests.convert.reading import File
from tests.making import saved


def random_moe(
    path: Path, layout: str, down: GGMLQuantizationType, n_ff: int = 768, shards: int = 1, biases: bool = False
) -> Path:
    """A llama MoE of random *bytes*, so that any requantization would show: 2 layers, 3 experts, n_embd 64, gate and
    up Q8_0.
    """
    rng = np.random.default_rng(7)
    writer = GGUFWriter(path, "llama", split_max_tensors=0 if shards == 1 else 6)
    for key, value in (("block_count", 2), ("expert_count", 3), ("expert_used_count", 2), ("embedding_length", 64)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_array("test.words", ["a", "\U0001f680", ""])
    writer.add_array("test.floats", [0.5, -1.5])
    writer.add_bool("test.flag", True)
    q8 = GGMLQuantizationType.Q8_0

    def add(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
        from gguf.quants import quant_shape_to_byte_shape

        data = rng.integers(0, 256, quant_shape_to_byte_shape(shape, kind), dtype=np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind)

    add("token_embd.weight", (32, 64), q8)
    for il in range(2):
        blk = f"blk.{il}."
        writer.add_tensor(f"{blk}ffn_gate_inp.weight", rng.standard_normal((3, 64), np.float32))
        if layout == "one by one":
            for e in range(3):
                add(f"{blk}ffn_gate.{e}.weight", (n_ff, 64), q8)
                add(f"{blk}ffn_up.{e}.weight", (n_ff, 64), q8)
                add(f"{blk}ffn_down.{e}.weight", (64, n_ff), down)
            continue
        if layout == "fused":
            add(f"{blk}ffn_gate_up_exps.weight", (3, 2 * n_ff, 64), q8)
        else:
            add(f"{blk}ffn_gate_exps.weight", (3, n_ff, 64), q8)
            add(f"{blk}ffn_up_exps.weight", (3, n_ff, 64), q8)
        add(f"{blk}ffn_down_exps.weight", (3, 64, n_ff), down)
        if biases:
            widths = {"gate_up": 2 * n_ff} if layout == "fused" else {"gate": n_ff, "up": n_ff}
            for which, width in (widths | {"down": 64}).items():
                writer.add_tensor(f"{blk}ffn_{which}_exps.bias", rng.standard_normal((3, width), np.float32))
    add("output.weight", (32, 64), q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if shards == 1 else sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]


def original(file: File, il: int, which: str) -> np.ndarray:
    """Experts of any input layout as uint8 `[E, rows, row bytes]`."""
    if f"blk.{il}.ffn_{which}.0.weight" in file.tensors:
        return np.stack([file.tensors[f"blk.{il}.ffn_{which}.{e}.weight"].raw for e in range(3)])
    fused = file.tensors.get(f"blk.{il}.ffn_gate_up_exps.weight")
    if fused and which != "down":
        half = fused.shape[1] // 2
        return fused.raw[:, :half] if which == "gate" else fused.raw[:, half:]
    return file.tensors[f"blk.{il}.ffn_{which}_exps.weight"].raw


KINDS = ["F32", "BF16", "Q4_0", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K", "Q6_K", "IQ4_XS"]
KINDS += ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_M"]  # the last is nothing the runtime knows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["stacked", "fused", "one by one"])
def test_a_resplit_moves_bytes_and_changes_none(layout: str, kind: str, tmp_path: Path) -> None:
    source = random_moe(tmp_path / "in.gguf", layout, GGMLQuantizationType[kind])
    convert(source, tmp_path / "out.gguf", how=Cut(ratios=[0.7]))
    before, after = File(source), File(tmp_path / "out.gguf")
    assert after.keys["moepic.granule"] == [256, 256]
    assert after.keys["moepic.top_granules"] == [2, 2]
    for il in range(2):
        for which in ("gate", "up", "down"):
            assert np.array_equal(after.expert_bytes(il, which), original(before, il, which)), (il, which)
    for name, stored in before.tensors.items():
        if not re.search(r"ffn_(gate|up|down|gate_up)(_exps|\.\d+)\.", name):
            assert np.array_equal(after.tensors[name].raw, stored.raw), name


@pytest.mark.parametrize("layout", ["stacked", "fused"])
def test_biases_of_experts_are_cut_like_their_rows(layout: str, tmp_path: Path) -> None:
    source = random_moe(tmp_path / "in.gguf", layout, GGMLQuantizationType.Q8_0, biases=True)
    convert(source, tmp_path / "cut.gguf", how=Cut(ratios=[0.7]))
    convert(tmp_path / "cut.gguf", tmp_path / "whole.gguf", how=Cut(split=False))
    before, cut, whole = (File(tmp_path / f"{name}.gguf") for name in ("in", "cut", "whole"))
    for il in range(2):
        if layout == "fused":
            gate, up = np.split(before.floats(f"blk.{il}.ffn_gate_up_exps.bias"), 2, axis=1)
        else:
            gate, up = (before.floats(f"blk.{il}.ffn_{which}_exps.bias") for which in ("gate", "up"))
        for which, want in (("gate", gate), ("up", up)):
            assert np.array_equal(cut.floats(f"blk.{il}.ffn_{which}_exps_top.bias"), want[:, :512])
            assert np.array_equal(cut.floats(f"blk.{il}.ffn_{which}_exps_bot.bias"), want[:, 512:])
            assert np.array_equal(whole.floats(f"blk.{il}.ffn_{which}_exps.bias"), want)
        down = f"blk.{il}.ffn_down_exps.bias"
        assert np.array_equal(cut.floats(down), before.floats(down)), (
            "the bias of down belongs to no neuron and stays whole"
        )


def test_keys_are_carried_over_byte_for_byte(tmp_path: Path) -> None:
    source = random_moe(tmp_path / "in.gguf", "stacked", GGMLQuantizationType.Q8_0)
    convert(source, tmp_path / "out.gguf")

    def raw_keys(path: Path) -> dict[str, bytes]:
        reader = GGUFReader(path)
        return {
            n: b"".join(part.tobytes() for part in f.parts)
            for n, f in reader.fields.items()
            if not n.startswith("GGUF.")
        }

    before, after = raw_keys(source), raw_keys(tmp_path / "out.gguf")
    assert {key: after.get(key) for key in before} == before
    ours = {"general.alignment", "moepic.version", "moepic.granule", "moepic.top_granules", "moepic.neuron_order"}
    assert after.keys() - before.keys() == ours | {
        "moepic.source.name",
        "moepic.source.format",
        "moepic.source.head_sha256",
    }


def test_cutting_again_and_joining_give_back_the_file(tmp_path: Path) -> None:
    """folder -> uncut; uncut -> cut -> cut elsewhere, sharded -> joined: the same bytes as the first uncut file."""
    convert(saved("qwen3_moe"), tmp_path / "whole.gguf", how=Cut(split=False), outtype="f16")
    convert(tmp_path / "whole.gguf", tmp_path / "a.gguf", how=Cut(ratios=[0.3]))
    how = Cut(ratios=[0.7, 0.0], granule=96, max_shard_bytes=2 << 20, separate_segments=True)
    plan = convert(tmp_path / "a.gguf", tmp_path / "b.gguf", how=how)
    assert len(plan.shards) > 2
    convert(plan.shards[-1].path, tmp_path / "c.gguf", how=Cut(split=False))
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_folder_converted_and_cut_equals_the_cut_of_its_conversion(tmp_path: Path) -> None:
    how = Cut(ratios=[0.6])
    convert(saved("mixtral"), tmp_path / "direct.gguf", how=how, outtype="bf16")
    convert(saved("mixtral"), tmp_path / "whole.gguf", how=Cut(split=False), outtype="bf16")
    convert(tmp_path / "whole.gguf", tmp_path / "twice.gguf", how=how)
    assert (tmp_path / "direct.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def test_shards_written_by_another_tool_are_read(tmp_path: Path) -> None:
    one = random_moe(tmp_path / "one.gguf", "stacked", GGMLQuantizationType.Q4_K)
    many = random_moe(tmp_path / "many.gguf", "stacked", GGMLQuantizationType.Q4_K, shards=2)
    assert many.name.endswith("of-00002.gguf")
    convert(one, tmp_path / "a.gguf")
    convert(many, tmp_path / "b.gguf")
    a, b = File(tmp_path / "a.gguf"), File(tmp_path / "b.gguf")
    assert {n: t.raw.tobytes() for n, t in a.tensors.items()} == {n: t.raw.tobytes() for n, t in b.tensors.items()}


def test_a_cut_through_a_block_is_refused_and_explained(tmp_path: Path) -> None:
    source = random_moe(tmp_path / "in.gguf", "stacked", GGMLQuantizationType.Q4_K)
    with pytest.raises(ConversionError, match=r"layer 0: granules of 128 .*Q4_K.*block of 256.*legal: 256, 768"):
        convert(source, tmp_path / "out.gguf", how=Cut(granule=128))


def test_requantizing_is_refused(tmp_path: Path) -> None:
    source = random_moe(tmp_path / "in.gguf", "stacked", GGMLQuantizationType.Q8_0)
    with pytest.raises(ConversionError, match="never requantized"):
        convert(source, tmp_path / "out.gguf", outtype="q4_0")


def test_damaged_inputs_are_named(tmp_path: Path) -> None:
    source = random_moe(tmp_path / "in.gguf", "stacked", GGMLQuantizationType.Q8_0)
    (tmp_path / "short.gguf").write_bytes(source.read_bytes()[:-5000])
    (tmp_path / "text.gguf").write_text("not a model at all, but long enough to be read as one")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(source.read_bytes())
    for name, message in (
        ("short.gguf", "truncated|not a readable"),
        ("text.gguf", "not a readable GGUF"),
        ("m-00001-of-00002.gguf", "missing: m-00002"),
        ("none.gguf", "does not exist"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / name, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))
