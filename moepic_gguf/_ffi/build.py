"""Make the cffi out-of-line ABI module ``_moepic_cffi.py`` from the C headers; run by CMake and by the tests.

The text between ``cdef: begin`` and ``cdef: end`` of each header is the declaration, so the header is the only source.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MODULE = "_moepic_cffi"


def read_cdef(header: Path) -> str:
    """Declarations of one header, as cffi wants them (no MOEPIC_API, no preprocessor)."""
    text = header.read_text(encoding="utf-8")
    found = re.search(r"/\* cdef: begin \*/\n(.*?)/\* cdef: end \*/", text, re.DOTALL)
    if not found:
        raise SystemExit(f"{header}: no 'cdef: begin' .. 'cdef: end' section")
    return found.group(1).replace("MOEPIC_API ", "")


def headers(native: Path) -> list[Path]:
    """The contract first, then the test-only headers."""
    return [native / "include" / "moepic.h", *sorted((native / "src" / "capi" / "testing").glob("*.h"))]


def make_source(native: Path) -> str:
    """All declarations of this source tree."""
    return "\n".join(read_cdef(header) for header in headers(native))


def write_module(native: Path, folder: Path) -> None:
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(make_source(native))
    ffi.set_source(MODULE, None)
    folder.mkdir(parents=True, exist_ok=True)
    ffi.emit_python_code(str(folder / f"{MODULE}.py"))


if __name__ == "__main__":
    write_module(Path(sys.argv[1]), Path(sys.argv[2]))
