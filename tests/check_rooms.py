"""Includes of native/src follow the map of docs/architecture.md: each room may know only the rooms listed for it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOMS: dict[str, set[str]] = {
    "base": set(),
    "gguf": {"base"},
    "quant": {"base"},
    "ops": {"base", "quant"},
    "device": {"base", "quant", "ops"},
    "cuda": {"base", "quant", "ops", "device"},
    "model": {"base", "gguf", "quant", "ops"},
    "expert": {"base", "gguf", "quant", "ops", "model"},
    "cache": {"base"},
    "predict": {"base"},
    "transfer": {"base"},
    "plan": {"base"},
    "measure": {"base", "quant", "ops", "transfer"},
    "engine": {"base", "gguf", "quant", "ops", "model", "expert", "cache", "predict", "transfer", "plan", "device"},
    "capi": {
        "base",
        "gguf",
        "quant",
        "ops",
        "model",
        "expert",
        "cache",
        "predict",
        "transfer",
        "plan",
        "measure",
        "device",
        "engine",
    },
}


def main() -> int:
    root = Path(__file__).resolve().parent.parent / "native" / "src"
    wrong = []
    for path in sorted([file for kind in ("h", "cpp", "cu", "cuh") for file in root.rglob(f"*.{kind}")]):
        room = path.relative_to(root).parts[0]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = re.match(r'\s*#include "(\w+)/', line)
            if found and found.group(1) != room and found.group(1) in ROOMS and found.group(1) not in ROOMS[room]:
                wrong.append(
                    f"{path.relative_to(root.parent.parent)}:{number}: room '{room}' may not know '{found.group(1)}'"
                )
    print("\n".join(wrong) or "rooms: every include follows the map")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
