"""What surrounds a measurement: the machine, the file, the commit; and the folder a record is kept in. Measures nothing
but memory speed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..budgets import physical_ram_bytes


def memory_ceiling(n_threads: int, seconds: float = 0.5) -> float:
    """Bytes per second this machine reads from memory, best pass over 256 MiB."""
    from .._ffi import ffi, lib
    from ..metadata import checked

    best, median = ffi.new("double*"), ffi.new("double*")
    checked(lib.moepic_test_memory_bandwidth(best, median, 256 * 2**20, n_threads, seconds))
    return float(best[0])


def code_products(isa: str, n_threads: int, seconds: float = 0.3) -> float:
    """Multiplications and additions of 8-bit codes a second, best of many short runs: the peak of `isa` (scalar, avx2, avx512)."""
    from .._ffi import ffi, lib
    from ..metadata import checked

    best = ffi.new("double*")
    checked(lib.moepic_test_code_products(best, ("scalar", "avx2", "avx512").index(isa), n_threads, seconds))
    return float(best[0])


def environment(path: Path, *, with_hash: bool) -> dict[str, Any]:
    """Machine, build and model file, for env.json."""
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "moepic": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": physical_ram_bytes(),
        "load_average": os.getloadavg(),
        "file": {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": _sha256(path) if with_hash else None,
        },
        "command": [
            Path(word).name if "/" in word else word for word in sys.argv
        ],  # records travel; folders stay private
    }


def write_record(folder: Path, env: dict[str, Any], rows: list[dict[str, Any]], text: str) -> None:
    """env.json, rows.jsonl (one engine process per line, raw) and table.txt. A record is never overwritten."""
    folder.mkdir(parents=True, exist_ok=False)
    (folder / "env.json").write_text(json.dumps(env, indent=1) + "\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "table.txt").write_text(text, encoding="utf-8")


def _commit() -> str | None:
    """Commit of the source tree this runs from, with '+' when it has changes; None for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()
