"""Keys and tensor tables against the gguf package's reader."""

from __future__ import annotations

import os

import gguf
import pytest
from tiny_gguf import TEMPLATE, vocabulary

from moepic_gguf import ArgumentError, GgufFile, IoError, ModelFormatError, MoepicError


def test_keys_and_tensors_equal_the_gguf_package(tiny_file):
    path = tiny_file()
    reader = gguf.GGUFReader(path)
    with GgufFile(path) as file:
        names = [name for name in reader.fields if not name.startswith("GGUF.")]
        assert list(file.metadata) == names
        for name in names:
            assert file.metadata[name] == pytest.approx(reader.fields[name].contents()), name
        rows = [(t.name, t.shape, t.type, t.n_bytes, t.offset) for t in file.tensors]
        assert rows == [
            (t.name, tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, t.n_bytes, t.data_offset)
            for t in reader.tensors
        ]
        assert file.n_bytes == path.stat().st_size
        assert [shard.resolve() for shard in file.shards] == [path.resolve()]


def test_values_have_their_python_types(tiny_file, tmp_path):
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", -1e300)
    writer.add_bool("yes", True)
    writer.add_int64("i64", -(2**62))
    writer.add_array("bools", [True, False])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("texts", ["a", "\U0001f600", ""])
    writer.add_key_value("raw", b"\xff\xfe", gguf.GGUFValueType.STRING)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(path) as file:
        meta = file.metadata
        assert (meta["u8"], meta["i8"], meta["f32"], meta["f64"], meta["i64"]) == (255, -128, 0.5, -1e300, -(2**62))
        assert meta["yes"] is True
        assert meta["bools"] == [True, False]
        assert type(meta["bools"][0]) is bool
        assert meta["ints"] == [1, -2, 3]
        assert meta["texts"] == ["a", "\U0001f600", ""]
        assert meta["raw"] == b"\xff\xfe", "a string that is not UTF-8 stays bytes"
        assert meta.count("ints") == 3
        assert "nothing" not in meta
        with pytest.raises(KeyError):
            meta["nothing"]


def test_the_vocabulary_comes_back_whole(tiny_file):
    with GgufFile(tiny_file()) as file:
        assert file.metadata["tokenizer.ggml.tokens"] == vocabulary()[0]
        assert file.metadata["tokenizer.chat_template"] == TEMPLATE


def test_a_closed_file_is_refused_not_read(tiny_file):
    file = GgufFile(tiny_file())
    meta = file.metadata
    file.close()
    file.close()
    with pytest.raises(MoepicError, match="closed"):
        meta["general.name"]
    with pytest.raises(MoepicError, match="closed"):
        _ = file.tensors


def test_errors_name_the_file(tiny_file, tmp_path):
    with pytest.raises(IoError, match=r"absent\.gguf"):
        GgufFile(tmp_path / "absent.gguf")
    with pytest.raises(IoError, match="folder"):
        GgufFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IoError, match="no ordinary file"):  # and does not wait for a writer
        GgufFile(tmp_path / "pipe")
    with pytest.raises(IoError, match="File name too long"):
        GgufFile(tmp_path / ("a" * 5000))
    for nothing in ("", None, 5):
        with pytest.raises(ArgumentError, match="path: "):
            GgufFile(nothing)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_file().read_bytes()[:1000])
    with pytest.raises(ModelFormatError, match=r"broken\.gguf"):
        GgufFile(broken)
