"""Files that lie, each with the code and words of its refusal. Shared by test_reader.py and the fuzzer's seeds."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from craft import (
    ARRAY,
    BOOL,
    I32,
    I64,
    STRING,
    TYPE_F32,
    TYPE_Q4_0,
    TYPE_Q4_K,
    TYPE_UNKNOWN,
    U8,
    U16,
    U32,
    U64,
    U64_MAX,
    Craft,
    TensorSpec,
    array,
    key,
    number,
    rich,
    scalar,
    text,
    words,
)

FORMAT, UNSUPPORTED = -3, -4


@dataclass
class Hostile:
    """``data`` must be refused with ``code`` and a text that holds every one of ``says``."""

    data: bytes
    says: list[str] = field(default_factory=list)
    code: int = FORMAT


def _with_keys(*keys: bytes) -> bytes:
    return Craft(keys=list(keys)).build()


def _with_tensors(*tensors: TensorSpec, **more: object) -> bytes:
    return Craft(tensors=list(tensors), **more).build()  # type: ignore[arg-type]


def _nested(depth: int) -> bytes:
    payload = array(U8, [b"\x07"])
    for _ in range(depth - 1):
        payload = array(ARRAY, [payload])
    return payload


def _not_gguf() -> dict[str, Hostile]:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return {
        "empty": Hostile(b"", ["empty"]),
        "magic_only": Hostile(b"GGUF", ["version", "byte 4", "truncated"]),
        "magic_half": Hostile(b"GG", ["truncated"]),
        "html": Hostile(b"<!DOCTYPE html><html><body>404", ["not a GGUF file", "web page"]),
        "html_after_space": Hostile(b"\n  <html lang='en'>", ["web page"]),
        "safetensors": Hostile(struct.pack("<Q", len(header)) + header + bytes(4), ["safetensors", "convert"]),
        "zip": Hostile(b"PK\x03\x04" + bytes(30), ["zip"]),
        "pickle": Hostile(b"\x80\x02}q\x00.", ["pickle"]),
        "gzip": Hostile(b"\x1f\x8b\x08" + bytes(9), ["gzip"]),
        "lfs_pointer": Hostile(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", ["git lfs pull"]),
        "ggjt": Hostile(b"tjgg" + struct.pack("<I", 3) + bytes(32), ["ggjt"]),
        "zeros": Hostile(bytes(4096), ["zero bytes"]),
        "json": Hostile(b'{"error": "Repository not found"}', ["JSON"]),
        "control_bytes": Hostile(b"\x01\xff\x02\x03", ["\\x01\\xff\\x02\\x03"]),
    }


def _header() -> dict[str, Hostile]:
    big = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    return {
        "version_0": Hostile(Craft(version=0).build(), ["version 0", "2 or 3"]),
        "version_1": Hostile(Craft(version=1).build(), ["version 1"], UNSUPPORTED),
        "version_4": Hostile(Craft(version=4).build(), ["version 4", "newer"], UNSUPPORTED),
        "big_endian": Hostile(big, ["big-endian", "version 3"], UNSUPPORTED),
        "key_count_huge": Hostile(Craft(n_keys=U64_MAX).build(), ["keys", str(U64_MAX)]),
        "key_count_one_more": Hostile(Craft(n_keys=2).build(), ["key"]),
        "tensor_count_huge": Hostile(Craft(n_tensors=U64_MAX).build(), ["tensors", str(U64_MAX)]),
        "tensor_count_wraps": Hostile(Craft(n_tensors=2**61).build(), ["tensors", str(2**61)]),
        "tensor_count_one_more": Hostile(_with_tensors(TensorSpec("a", [8]), n_tensors=2), ["tensor 1", "empty"]),
    }


def _keys() -> dict[str, Hostile]:
    huge_text = text("general.name") + struct.pack("<I", STRING) + text("x", U64_MAX)
    return {
        "key_name_empty": Hostile(_with_keys(number("", U32, 1)), ["key 0", "empty"]),
        "key_name_long": Hostile(_with_keys(number("k" * 65536, U32, 1)), ["65535", "65536"]),
        "key_name_not_utf8": Hostile(_with_keys(number(b"a\xc3(", U32, 1)), ["UTF-8", "a\\xc3("]),
        "key_name_surrogate": Hostile(_with_keys(number(b"\xed\xa0\x80", U32, 1)), ["UTF-8"]),
        "key_name_overlong": Hostile(_with_keys(number(b"\xc0\xaf", U32, 1)), ["UTF-8"]),
        "key_name_nul": Hostile(_with_keys(number(b"a\0b", U32, 1)), ["NUL", "a\\x00b"]),
        "key_name_length_huge": Hostile(
            Craft(keys=[struct.pack("<Q", U64_MAX) + b"abcdefgh"]).build(), ["key 0", str(U64_MAX)]
        ),
        "key_twice": Hostile(
            _with_keys(words("a", "x"), number("b", U8, 1), words("a", "y")), ["'a'", "key 0", "key 2"]
        ),
        "key_type_13": Hostile(_with_keys(key("a", 13, bytes(8))), ["'a'", "0 to 12", "13"]),
        "key_type_huge": Hostile(_with_keys(key("a", 0xFFFFFFFF, bytes(8))), ["'a'", "4294967295"]),
        "string_huge": Hostile(_with_keys(huge_text), ["'general.name'", str(U64_MAX)]),
        "bool_2": Hostile(_with_keys(number("flag", BOOL, 2)), ["'flag'", "0 or 1", "found 2"]),
        "array_type_unknown": Hostile(_with_keys(key("a", ARRAY, array(99, []))), ["'a'", "element type", "99"]),
        "array_count_huge": Hostile(_with_keys(key("a", ARRAY, array(U8, [], U64_MAX))), ["'a'", str(U64_MAX)]),
        "array_count_wraps": Hostile(_with_keys(key("a", ARRAY, array(U64, [bytes(8)], 2**61 + 1))), ["'a'"]),
        "array_of_text_huge": Hostile(
            _with_keys(key("a", ARRAY, array(STRING, [text("x")], 2**60))), ["'a'", "strings"]
        ),
        "array_of_text_torn": Hostile(
            _with_keys(key("a", ARRAY, array(STRING, [text("x"), text("y", 2**40)]))), ["'a'", str(2**40)]
        ),
        "array_bool_3": Hostile(_with_keys(key("a", ARRAY, array(BOOL, [b"\0\1\3"], 3))), ["'a'", "found 3"]),
        "nested_count_huge": Hostile(_with_keys(key("a", ARRAY, array(ARRAY, [], U64_MAX))), ["'a'", "nested arrays"]),
        "nested_inner_huge": Hostile(
            _with_keys(key("a", ARRAY, array(ARRAY, [array(U8, [b"\1"]), array(U16, [], 2**63)]))), ["'a'"]
        ),
        "nested_bool_2": Hostile(_with_keys(key("a", ARRAY, array(ARRAY, [array(BOOL, [b"\2"])]))), ["'a'", "found 2"]),
        "nested_9_deep": Hostile(_with_keys(key("a", ARRAY, _nested(9))), ["'a'", "deeper than 8"]),
        "nested_bomb": Hostile(_with_keys(key("a", ARRAY, _nested(20000))), ["'a'", "deeper than 8"]),
    }


def _alignment() -> dict[str, Hostile]:
    cases = {f"alignment_{value}": value for value in (0, 1, 4, 24, 2**27, 2**31, 2**32 - 1)}
    out = {
        name: Hostile(
            _with_keys(number("general.alignment", U32, value)), ["'general.alignment'", "power of two", str(value)]
        )
        for name, value in cases.items()
    }
    out["alignment_negative"] = Hostile(_with_keys(number("general.alignment", I32, -32)), ["'general.alignment'"])
    out["alignment_text"] = Hostile(_with_keys(words("general.alignment", "32")), ["'general.alignment'", "string"])
    out["alignment_bool"] = Hostile(_with_keys(number("general.alignment", BOOL, 1)), ["'general.alignment'", "bool"])
    out["alignment_array"] = Hostile(
        _with_keys(key("general.alignment", ARRAY, array(U32, [scalar(U32, 32)]))), ["'general.alignment'", "array"]
    )
    return out


def _tensors() -> dict[str, Hostile]:
    return {
        "tensor_name_empty": Hostile(_with_tensors(TensorSpec("", [8])), ["tensor 0", "empty"]),
        "tensor_name_not_utf8": Hostile(_with_tensors(TensorSpec(b"w\xff", [8])), ["tensor 0", "w\\xff"]),
        "tensor_twice": Hostile(_with_tensors(TensorSpec("w", [8]), TensorSpec("w", [8])), ["'w'", "twice"]),
        "dims_0": Hostile(_with_tensors(TensorSpec("w", []), data=bytes(64)), ["'w'", "1 to 4", "found 0"]),
        "dims_5": Hostile(_with_tensors(TensorSpec("w", [2, 2, 2, 2, 2])), ["'w'", "1 to 4", "found 5"]),
        "dims_huge_count": Hostile(
            _with_tensors(TensorSpec("w", [2], n_dims=0xFFFFFFFF)), ["'w'", "1 to 4", str(0xFFFFFFFF)]
        ),
        "dim_zero": Hostile(_with_tensors(TensorSpec("w", [8, 0], n_bytes=0)), ["'w'", "dimension 1", "[8, 0]"]),
        "dims_overflow": Hostile(_with_tensors(TensorSpec("w", [2**32, 2**32], n_bytes=32)), ["'w'", "2^63 - 1"]),
        "dims_wrap_small": Hostile(_with_tensors(TensorSpec("w", [2**33, 2**31, 3], n_bytes=32)), ["'w'", "2^63 - 1"]),
        "dims_sign": Hostile(_with_tensors(TensorSpec("w", [2**63], n_bytes=32)), ["'w'", "2^63 - 1"]),
        "bytes_overflow": Hostile(_with_tensors(TensorSpec("w", [2**63 - 1], n_bytes=32)), ["'w'", "2^64 bytes"]),
        "end_overflow": Hostile(
            _with_tensors(TensorSpec("w", [2**62 - 1], n_bytes=32)), ["'w'", str((2**62 - 1) * 4), "file has"]
        ),
        "dims_overflow_unknown_type": Hostile(
            _with_tensors(TensorSpec("w", [2**40, 2**40], TYPE_UNKNOWN)), ["'w'", "2^63 - 1"]
        ),
        "row_not_in_blocks": Hostile(
            _with_tensors(TensorSpec("w", [33, 32], TYPE_Q4_0)), ["'w'", "33", "32", "block length"]
        ),
        "row_half_superblock": Hostile(_with_tensors(TensorSpec("w", [128, 2], TYPE_Q4_K)), ["'w'", "128", "256"]),
        "offset_unaligned": Hostile(
            _with_tensors(TensorSpec("w", [8], offset=4), data=bytes(64)), ["'w'", "offset 4", "32"]
        ),
        "offset_past_end": Hostile(
            _with_tensors(TensorSpec("w", [8], offset=2**40), data=bytes(64)), ["'w'", str(2**40)]
        ),
        "offset_wraps": Hostile(
            _with_tensors(TensorSpec("w", [8], offset=2**64 - 32), data=bytes(64)), ["'w'", "begins"]
        ),
        "past_end_by_one": Hostile(
            _with_tensors(TensorSpec("w", [8]), data=bytes(31)),
            ["'w'", "ends at byte 160", "file has 159", "truncated"],
        ),
        "no_data": Hostile(_with_tensors(TensorSpec("w", [8]), data=b""), ["'w'", "truncated"]),
        "unknown_type_past_end": Hostile(
            _with_tensors(TensorSpec("w", [8], TYPE_UNKNOWN, offset=2**20), data=bytes(64)), ["'w'", str(2**20)]
        ),
        "overlap_same": Hostile(
            _with_tensors(TensorSpec("v", [8], offset=0), TensorSpec("w", [8], offset=0), data=bytes(64)),
            ["inside", "'v'"],
        ),
        "overlap_part": Hostile(
            _with_tensors(TensorSpec("v", [16], offset=0), TensorSpec("w", [8], offset=32), data=bytes(64)),
            ["'w'", "inside 'v'", "damaged"],
        ),
        "overlap_behind": Hostile(
            _with_tensors(TensorSpec("v", [8], offset=32), TensorSpec("w", [16], offset=0), data=bytes(64)),
            ["'v'", "inside 'w'"],
        ),
    }


def _split() -> dict[str, Hostile]:
    count, index = (lambda n: number("split.count", U16, n)), (lambda n: number("split.no", U16, n))
    return {
        "split_no_missing": Hostile(_with_keys(count(2)), ["'split.no'", "missing"]),
        "split_no_past_count": Hostile(
            _with_keys(count(2), index(2)), ["'split.no'", "below split.count 2", "found 2"]
        ),
        "split_no_negative": Hostile(_with_keys(count(2), number("split.no", I64, -1)), ["'split.no'", "non-negative"]),
        "split_count_text": Hostile(_with_keys(words("split.count", "2")), ["'split.count'", "string"]),
        "split_count_huge": Hostile(
            _with_keys(number("split.count", U64, U64_MAX), index(0)), ["'split.count'", str(U64_MAX)]
        ),
    }


def hostile_files() -> dict[str, Hostile]:
    """All of them, by name."""
    return _not_gguf() | _header() | _keys() | _alignment() | _tensors() | _split()


def good_files() -> dict[str, bytes]:
    """Well-formed files that must be read."""
    padding = Craft(tensors=[TensorSpec("w", [5])]).build()
    return {
        "minimal": Craft(keys=[]).build(),
        "one_key": Craft().build(),
        "rich": rich().build(),
        "rich_v2": Craft(**{**vars(rich()), "version": 2}).build(),
        "no_padding_at_end": Craft(tensors=[TensorSpec("w", [5])], data=bytes(20)).build(),
        "padded_end": padding,
        "out_of_order": _with_tensors(TensorSpec("v", [8], offset=32), TensorSpec("w", [8], offset=0), data=bytes(64)),
        "nested_8_deep": _with_keys(key("a", ARRAY, _nested(8))),
        "only_unknown_types": _with_tensors(TensorSpec("w", [8], TYPE_UNKNOWN)),
        "float_tensor_4d": _with_tensors(TensorSpec("w", [2, 3, 4, 5], TYPE_F32)),
        "split_alone": _with_keys(number("split.count", U16, 1), number("split.no", U16, 0)),
    }
