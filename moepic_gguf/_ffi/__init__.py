"""The native library: ``ffi`` (cffi, ABI mode) and ``lib``. Knows nothing of models.

The library and its declarations are looked for in this order: the folder named by ``MOEPIC_LIBRARY_DIR`` (developer builds), beside this
package, then beside the installed one (when this package is a source tree's, as in tests run from a checkout).
"""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import MoepicError

_LIBRARY = "libmoepic.so"
_MODULE = "_moepic_cffi"


def _folder() -> Path:
    given = os.environ.get("MOEPIC_LIBRARY_DIR")
    if given:
        folder = Path(given)
        if not (folder / _LIBRARY).is_file():
            raise MoepicError(f"MOEPIC_LIBRARY_DIR: no {_LIBRARY} in '{given}' (build it there, or unset the variable)")
        return folder
    folder = Path(__file__).resolve().parents[1] / "_lib"
    if (folder / _LIBRARY).is_file():
        return folder
    try:
        installed = Path(str(metadata.distribution("moepic-gguf").locate_file("moepic_gguf/_lib")))
    except metadata.PackageNotFoundError:
        installed = folder
    if (installed / _LIBRARY).is_file():
        return installed
    raise MoepicError(
        f"the native library {_LIBRARY} is not installed; run 'pip install .' in the source tree, or './dev build'"
    )


def _load() -> tuple[Any, Any]:
    folder = _folder()
    spec = importlib.util.spec_from_file_location(_MODULE, folder / f"{_MODULE}.py")
    if spec is None or spec.loader is None:
        raise MoepicError(f"'{folder}' has no {_MODULE}.py beside {_LIBRARY}; build again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, module.ffi.dlopen(str(folder / _LIBRARY))


ffi, lib = _load()

__all__ = ["ffi", "lib"]
