"""What NVIDIA's driver says of the GPU, through nvidia-smi where it is there: versions and link for a record, and how much memory was in use at most.

`FreeMemory` asks the driver through the library instead, from inside the process that computes: it needs no tool, and works for the emulation too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from moepic_gguf.config import find_device

FACTS = (
    "name",
    "driver_version",
    "memory.total",
    "pcie.link.gen.max",
    "pcie.link.gen.current",
    "pcie.link.width.current",
    "power.limit",
    "clocks.max.sm",
    "clocks.max.memory",
    "persistence_mode",
)


def smi(*arguments: str) -> list[str] | None:
    """nvidia-smi's command line for the first visible GPU; None where there is no such tool."""
    if not shutil.which("nvidia-smi"):
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    return ["nvidia-smi", "-i", first, *arguments]


def describe() -> dict[str, Any]:
    """For env.json; what can't be found out is None."""
    command = smi(f"--query-gpu={','.join(FACTS)}", "--format=csv,noheader")
    said = _output(command).split(", ") if command else []
    facts: dict[str, Any] = dict(zip(FACTS, (part.strip() for part in said), strict=False)) if said != [""] else {}
    nvcc = _output(["nvcc", "--version"]).splitlines() if shutil.which("nvcc") else []
    return {"nvidia_smi": facts or None, "nvcc": nvcc[-1] if nvcc else None}


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Peak:
    """Most bytes in use on the whole device, whoever used them; None: nothing was sampled."""

    bytes: int | None = None

    def note(self, found: int) -> None:
        self.bytes = max(found, self.bytes or 0)


@contextlib.contextmanager
def smi_memory(every_ms: int = 100) -> Iterator[Peak]:
    """Samples nvidia-smi beside whatever runs meanwhile, in any process."""
    peak = Peak()
    command = smi("--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", str(every_ms))
    if command is None:
        yield peak
        return
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                peak.note(int(line) * 2**20)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield peak
    finally:
        process.terminate()
        process.wait()
        thread.join()


class FreeMemory:
    """Samples the driver's free memory from a thread of this process, until stop()."""

    def __init__(self, device: str, every_s: float = 0.1) -> None:
        self.peak = Peak()
        self._device, self._every_s = device, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def look(self) -> None:
        found = find_device(self._device)
        self.peak.note(found.total_bytes - found.free_bytes)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every_s)

    def stop(self) -> None:
        """Looking takes the driver's time: what is timed comes after this."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> FreeMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
