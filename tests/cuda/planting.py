"""Builds planted.cu with the emulation under a sanitizer, once for all workers of a test run, and runs its scenarios."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "native" / "src"
EMULATION = SOURCE / "cuda" / "emulation"
FILES = [
    Path(__file__).with_name("planted.cu"),
    SOURCE / "cuda" / "runtime.cu",
    *sorted(EMULATION.glob("*.cpp")),
    SOURCE / "base" / "error.cpp",
    SOURCE / "base" / "thread_pool.cpp",
]
# As in emulation/CMakeLists.txt.
UNWATCHED = {"fiber.cpp", "block.cpp", "access.cpp"}
CHECKED = [
    "-fsanitize=kernel-address",
    *(f"--param=asan-{name}=0" for name in ("instrumentation-with-call-threshold", "stack", "globals")),
]


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """Without what ./dev asan and ./dev tsan preload: these programs bring their own runtime."""
    return {
        key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "ASAN_OPTIONS", "TSAN_OPTIONS")
    }


def compile_file(source: Path, sanitizer: str, folder: Path) -> Path:
    flags = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", f"-fsanitize={sanitizer}", f"-I{SOURCE}", f"-I{EMULATION}"]
    if sanitizer == "thread" and source.name in UNWATCHED:
        flags += ["-fno-sanitize=thread", "-DMOEPIC_TSAN=1"]
    if sanitizer == "address" and source.suffix == ".cu":
        flags += ["-fno-sanitize=address", *CHECKED]
    target = folder / f"{source.name}.o"
    compiler = [tool for tool in ("ccache",) if shutil.which(tool)] + ["g++"]
    subprocess.run([*compiler, *flags, "-x", "c++", "-c", source, "-o", target], check=True, env=environment())
    return target


def build(sanitizer: str, folder: Path) -> Path:
    """The program, built by whichever worker comes first; the others wait for its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "planted"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(lambda source: compile_file(source, sanitizer, folder), FILES))
            subprocess.run(
                ["g++", f"-fsanitize={sanitizer}", *objects, "-o", program, "-pthread"], check=True, env=environment()
            )
    return program


def run(program: Path, scenario: str, *arguments: int) -> Run:
    # Without randomised addresses, because ThreadSanitizer's runtime refuses some random layouts.
    command = ["setarch", "-R", program] if shutil.which("setarch") else [program]
    done = subprocess.run(
        [*command, scenario, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), "ASAN_OPTIONS": "detect_leaks=0"},
    )
    return Run(done.returncode, done.stdout.strip(), done.stderr)
