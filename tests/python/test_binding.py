"""The Python binding against the C header: what the compiler makes of `moepic.h` is what cffi was told."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cffi
import pytest

from moepic_gguf._ffi import build, ffi, lib

_NATIVE = Path(__file__).parents[2] / "native"
_HEADER = _NATIVE / "include" / "moepic.h"


@pytest.fixture(scope="module")
def declared():
    """cffi's own reading of the header as it stands in this tree."""
    fresh = cffi.FFI()
    fresh.cdef(build.read_cdef(_HEADER))
    return fresh


def structs(declared):
    """Names of the structs with fields; the handles are opaque, and cffi aborts when asked for the fields of those."""
    names = [name for name in declared.list_types()[0] if declared.typeof(name).kind == "struct"]
    return [name for name in names if declared.typeof(name).fields]


def layout(declarations, name):
    """(field, offset, bytes) of a struct, and its bytes."""
    fields = declarations.typeof(name).fields
    return [(field, s.offset, declarations.sizeof(s.type)) for field, s in fields], declarations.sizeof(name)


def test_the_built_module_declares_what_the_header_declares(declared):
    names = structs(declared)
    assert len(names) > 10
    for name in names:
        assert layout(ffi, name) == layout(declared, name), name


def test_every_declared_function_is_exported():
    functions = re.findall(r"^[a-z][^;()]*?(\w+)\(", build.read_cdef(_HEADER), re.MULTILINE)
    assert len(functions) >= 40
    absent = []
    for name in functions:
        try:
            getattr(lib, name)
        except AttributeError:
            absent.append(name)
    assert absent == []


@pytest.mark.no_sanitizer
def test_the_compiler_lays_structs_and_constants_out_as_cffi_does(declared, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    lines, expected = [], []
    for name in structs(declared):
        fields, size = layout(declared, name)
        for field, offset, n_bytes in fields:
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));'
            )
            expected.append(f"{name}.{field} {offset} {n_bytes}")
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {size}")
    for name in re.findall(r"^ +(MOEPIC_\w+) = ", _HEADER.read_text(encoding="utf-8"), re.MULTILINE):
        lines.append(f'printf("{name} %d\\n", (int){name});')
        expected.append(f"{name} {getattr(lib, name)}")
    source = tmp_path / "layout.c"
    head = '#include <stddef.h>\n#include <stdio.h>\n#include "moepic.h"\nint main(void) {\n'
    source.write_text(head + "\n".join(lines) + "\nreturn 0;\n}\n")
    command = [
        compiler,
        "-std=c11",
        "-Wall",
        "-Werror",
        "-I",
        str(_HEADER.parent),
        str(source),
        "-o",
        str(tmp_path / "layout"),
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected
