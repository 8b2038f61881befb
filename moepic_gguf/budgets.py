"""Sizes people type: bytes, "8GiB", "50%". Pure; knows no device and no model."""

from __future__ import annotations

import os
import re

from .errors import BudgetError

Budget = int | str | None

_UNITS = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30, "t": 2**40, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[A-Za-z]*)\s*")


def parse_budget(value: Budget, *, name: str, whole_bytes: int | None = None) -> int | None:
    """`value` in bytes, or None for None.

    value        an int (bytes), or text: "123", "512MiB", "8GiB", "8g" (binary), "8GB" (10^9), "50%" of `whole_bytes`.
    name         the option's name, for the error text.
    whole_bytes  what 100% means; None where a share makes no sense.
    Raises       `BudgetError` that says what was read and what is accepted.
    """
    if value is None:
        return None
    accepted = "a number of bytes, or text such as '8GiB', '8GB', '512MiB'" + ("" if whole_bytes is None else ", '50%'")
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise BudgetError(f"{name}: {value!r} is not a size; give {accepted}")
    if isinstance(value, int):
        if value < 0:
            raise BudgetError(f"{name}: {value} bytes is negative; give {accepted}")
        return value
    found = _PATTERN.fullmatch(value)
    if not found:
        raise BudgetError(f"{name}: {value!r} is not a size; give {accepted}")
    number, unit = float(found[1]), found[2].lower()
    if unit == "%":
        if whole_bytes is None:
            raise BudgetError(f"{name}: {value!r} is a share, but the whole is unknown here; give {accepted}")
        if number > 100:
            raise BudgetError(f"{name}: {value!r} is more than all of it")
        return int(whole_bytes * number / 100)
    if unit not in _UNITS:
        raise BudgetError(
            f"{name}: {found[2]!r} in {value!r} is no unit; use KiB, MiB, GiB, TiB (binary) or KB, MB, GB, TB (decimal)"
        )
    return int(number * _UNITS[unit])


def physical_ram_bytes() -> int:
    """RAM of this machine, or of the control group this process lives in when that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return total


def show_bytes(n_bytes: int) -> str:
    """A size for a person: exact below 1 KiB, else three digits with a binary unit."""
    size, unit, units = float(n_bytes), "B", ["KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and units:
        size /= 1024
        unit = units.pop(0)
    if unit == "B":
        return f"{n_bytes} B"
    return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f} {unit}"
