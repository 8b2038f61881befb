"""Write the seed corpus of gguf_fuzz: every good and hostile file of tests/gguf, and the good ones cut short.

    python tests/fuzz/make_corpus.py FOLDER

The corpus is made from code so that no binary is committed; running it again gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "gguf"))

from hostile import good_files, hostile_files

MAX_SEED_BYTES = 16384  # a fuzzer spends its time best on small inputs


def main(folder: Path) -> int:
    """Fill ``folder``; returns how many seeds were written."""
    seeds = {f"good_{name}": data for name, data in good_files().items()}
    seeds |= {f"hostile_{name}": hostile.data for name, hostile in hostile_files().items()}
    for name, data in good_files().items():
        seeds |= {f"cut_{name}_{part}": data[: len(data) * part // 8] for part in range(1, 8)}
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, data in seeds.items():
        if 0 < len(data) <= MAX_SEED_BYTES:
            (folder / name).write_bytes(data)
            written += 1
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_corpus.py FOLDER")
    print(f"{main(Path(sys.argv[1]))} seeds in {sys.argv[1]}")
