"""The CUDA device library as nvcc builds it: it compiles, exports one symbol, and says what is wrong on a machine without a driver."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from moepic_gguf.errors import DeviceError

from .devices import CUDA, open_device
from .planting import ROOT, environment

ARCHITECTURE = "80-real"  # one of the targets: all of them take minutes

pytestmark = [
    pytest.mark.no_sanitizer,
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"needs {tool} to build the CUDA device library")
        for tool in ("nvcc", "cmake", "ninja", "g++")
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where libmoepic_cuda.so was built."""
    build = tmp_path_factory.mktemp("cuda")
    options = ["-DMOEPIC_CUDA=ON", f"-DMOEPIC_CUDA_ARCHITECTURES={ARCHITECTURE}", "-DMOEPIC_SIMT=OFF"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, *options], check=True, env=environment())
    subprocess.run(["ninja", "-C", build, "-j2", "moepic_cuda"], check=True, env=environment())
    return build / "lib"


# One test, because two workers would build twice.
@pytest.mark.timeout(900)
def test_the_library_exports_only_its_table_and_says_when_there_is_no_driver(folder):
    listing = ["nm", "-D", "--defined-only", folder / "libmoepic_cuda.so"]
    symbols = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    assert [line.split()[-1] for line in symbols.splitlines()] == ["moepic_device_api"]
    if not os.path.exists("/proc/driver/nvidia/version"):
        with pytest.raises(DeviceError, match="no NVIDIA driver"):
            open_device(CUDA, str(folder))
