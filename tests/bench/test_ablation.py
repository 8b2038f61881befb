"""What the ablation says about `auto`, from rows made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from ablation import verdicts


def rows(tier: str, mode: str, times: list[float], cost: float = 0.0) -> list[dict[str, object]]:
    row = {"tier": tier, "share": 0.5, "mode": mode, "prefetch_cost": cost, "cpu_lane_cost": 0.0}
    return [row | {"repeat": repeat, "tpot_s": time} for repeat, time in enumerate(times)]


def test_auto_stands_against_the_best_other_mode_of_its_cell_by_medians_and_repeat_by_repeat() -> None:
    measured = [
        *rows("file", "whole, lru", [3.0, 3.0, 3.0]),
        *rows("file", "whole, lfu", [2.0, 1.0, 2.2]),
        *rows("file", "auto", [2.0, 2.1, 2.2], cost=0.031),
        *rows("25", "whole, lfu", [1.0]),
        *rows("25", "auto", [0.5]),
    ]
    # Modes and repeats may have run in any order.
    _, _, link, file = verdicts(measured[::-1]).splitlines()
    assert file == "| file | 50 % | auto | whole, lfu | 1.050 | 1.000-2.100 | 2.200 | prefetch +3.1 % |"
    assert link == "| 25 | 50 % | auto | whole, lfu | 0.500 | 0.500-0.500 | 1.000 | - |"
