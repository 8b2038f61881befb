"""llama.cpp on the same file: llama-bench, found or built, and what it says. Experts of the first n layers are left to the CPU (--n-cpu-moe), n is swept.

It routes for itself (no recording), and its options besides stay at their defaults unless --llama-options says otherwise.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from device_process import finish

from moepic_gguf.errors import ArgumentError


def find_bench(given: Path, build: Path, timeout_s: float) -> Path:
    """The binary llama-bench: `given` itself, or built in `build` from the source of llama.cpp or of llama-cpp-python. Building goes on where it stopped.

    Raises subprocess.TimeoutExpired, ArgumentError where it doesn't build.
    """
    if given.is_file():
        return given
    source = given / "vendor" / "llama.cpp" if (given / "vendor" / "llama.cpp").is_dir() else given
    if not (source / "tools" / "llama-bench").is_dir():
        raise ArgumentError(f"--llama: '{given}' is no llama-bench, nor the source of llama.cpp or llama-cpp-python")
    options = ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DLLAMA_CURL=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    until = time.monotonic() + timeout_s
    for command in (
        ["-G", "Ninja", "-S", str(source), "-B", str(build), *options],
        ["--build", str(build), "--target", "llama-bench"],
    ):
        if finish(["cmake", *command], until - time.monotonic()).returncode:
            raise ArgumentError(f"--llama: 'cmake {' '.join(command)}' failed")
    return build / "bin" / "llama-bench"


def sweep(n_layer: int) -> list[int]:
    """Layers whose experts the CPU computes: none, all, and between them each number, or every n-th where there are many."""
    return sorted({*range(0, n_layer, max(1, n_layer // 16)), n_layer})


def command(binary: str, job: dict[str, Any]) -> list[str]:
    sizes = [
        "-p",
        str(job["prefill"]),
        "-n",
        str(job["tokens"]),
        "-r",
        "2",
        "-t",
        str(job["threads"] or len(os.sched_getaffinity(0))),
    ]
    return [
        binary,
        "-m",
        job["path"],
        *sizes,
        "-ngl",
        "999",
        "-ncmoe",
        str(job["n_cpu_moe"]),
        "-o",
        "json",
        *job["options"],
    ]


def read(text: str) -> dict[str, Any]:
    """From llama-bench's JSON: its prompt test and its generation test."""
    tests = json.loads(text)
    prompt = next(test for test in tests if test["n_prompt"] and not test["n_gen"])
    decode = next(test for test in tests if test["n_gen"] and not test["n_prompt"])
    return {
        "prefill_s": [prompt["n_prompt"] / rate for rate in prompt["samples_ts"]],
        "n_prefill": prompt["n_prompt"],
        "tpot_s": 1.0 / decode["avg_ts"],
        "decode_tok_s": decode["samples_ts"],
        "llama_commit": decode.get("build_commit"),
        "backends": decode.get("backends"),
    }
