"""Single-thread speed of the CPU kernels: decode (one token, weights from memory), small batches, prefill, re-tiling, quantization.

    python bench/kernels.py [--isa avx512] [--types Q4_K,Q8_0] [--csv rows.csv] [--repeats 15] [--quick]

Decode cycles through copies of a matrix, --cold MiB in all, so that no weight is in cache when it is needed, and re-tiling writes them. GB/s counts bytes of weights.
Prefill reads weights that stay in cache for the whole call; Gop/s counts 2 * rows * cols * tokens. The shortest of the repeats is kept:
other work on the machine only adds time. A copy and a read of memory by numpy are printed beside them, as the ceiling of the day.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "kernels"))

from matmul_native import (
    ISAS,
    TYPES,
    Bytes,
    Tiles,
    aligned,
    make_tiles,
    matmul,
    quantize,
    random_blocks,
    row_bytes,
    sizes,
    write_tiles,
)


def cold_copies(tiles: Tiles, cold_bytes: int) -> tuple[Tiles, int]:
    """The same tiles many times over, one copy after another; returns the bytes."""
    step = tiles.data.size
    copies = max(1, cold_bytes // step)
    data = aligned(copies * step)
    for i in range(copies):
        data[i * step : (i + 1) * step] = tiles.data
    return Tiles(tiles.name, tiles.rows, tiles.cols, data), copies * step


def tile_seconds(isa: str, tiles: Tiles, sources: Bytes) -> float:
    """The shortest time to re-tile one matrix, each source and target touched once: memory to memory."""
    step = sizes(tiles.name, tiles.rows, tiles.cols)[0]
    return min(
        write_tiles(isa, tiles.name, sources[i * tiles.rows : (i + 1) * tiles.rows], tiles.cols, tiles.data[i * step :])
        for i in range(len(sources) // tiles.rows)
    )


def read_ceiling(megabytes: int = 256, repeats: int = 5) -> float:
    """GB/s of summing a large array on one thread."""
    data = np.ones(megabytes << 17, dtype=np.uint64)
    best = min(_timed(data.max) for _ in range(repeats))
    return data.nbytes / best / 1e9


def _timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def bench_type(isa: str, name: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one type and instruction set."""
    rng = np.random.default_rng(1)
    rows, cols = args.rows, args.cols
    blocks = random_blocks(name, rows, cols, rng)
    tiles = make_tiles(isa, name, blocks, cols)
    weight_bytes = rows * row_bytes(name, cols)
    found: list[dict[str, object]] = []

    def add(what: str, tokens: int, seconds: float) -> None:
        found.append({
            "isa": isa, "type": name, "what": what, "rows": rows, "cols": cols, "tokens": tokens, "seconds": f"{seconds:.3e}",
            "weights_GB_s": round(weight_bytes / seconds / 1e9, 2), "Gop_s": round(2 * rows * cols * tokens / seconds / 1e9, 1),
        })  # fmt: skip

    cold, cold_bytes = cold_copies(tiles, args.cold << 20)
    sources = np.tile(blocks, (cold_bytes // tiles.data.size, 1))
    add("tile", 0, min(tile_seconds(isa, cold, sources) for _ in range(2)))
    x = rng.standard_normal((max(args.tokens), cols)).astype(np.float32)
    acts, act_s = quantize(isa, name, x, repeats=3)
    found.append({
        "isa": isa, "type": name, "what": "quantize", "rows": 0, "cols": cols, "tokens": len(x), "seconds": f"{act_s:.3e}",
        "weights_GB_s": round(x.nbytes / act_s / 1e9, 2), "Gop_s": 0,
    })  # fmt: skip
    assert sizes(name, rows, cols)[1] * len(x) == acts.size
    for n in args.tokens:
        repeats = max(3, args.repeats if n <= 8 else args.repeats // 3)
        y = np.empty((n, rows), dtype=np.float32)
        if n == 1:
            add(
                "decode",
                n,
                matmul(
                    isa,
                    cold,
                    acts,
                    n,
                    y=y,
                    repeats=max(repeats, 2 * cold_bytes // tiles.data.size),
                    cold_bytes=cold_bytes,
                )[1],
            )
        add("cached", n, matmul(isa, tiles, acts, n, y=y, repeats=repeats)[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="avx512,avx2,scalar")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--tokens", default="1,2,4,8,32,256", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--cold", type=int, default=192, help="MiB of weights that decode cycles through")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    print(f"memory read by numpy, one thread: {read_ceiling():.1f} GB/s")
    found = []
    for isa in args.isa.split(","):
        assert isa in ISAS
        for name in args.types.split(","):
            rows = bench_type(isa, name, args)
            found += rows
            values = {(r["what"], r["tokens"]): r for r in rows}
            batches = "  ".join(f"{n}: {values['cached', n]['Gop_s']:>6}" for n in args.tokens)
            decode = values.get(("decode", 1), {}).get("weights_GB_s", "-")
            tile, act = values["tile", 0]["weights_GB_s"], values["quantize", max(args.tokens)]["weights_GB_s"]
            print(
                f"{isa:7}{name:7} decode {decode:>6} GB/s | tile {tile:>5} GB/s | quantize {act:>5} GB/s | Gop/s at tokens {batches}",
                flush=True,
            )
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(found[0]))
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
