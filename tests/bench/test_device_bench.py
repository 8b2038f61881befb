"""The benchmark of a GPU, on the emulation: it runs, goes on where it stopped, ends in time, and says "not measured" of what it did not measure.

Verdicts on targets are tried on rows made by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moepic_gguf.trace import DECODE, Trace, write_trace

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

pytest.importorskip("gguf")

import device_findings  # noqa: E402
import device_peer  # noqa: E402
from device_process import finish  # noqa: E402

CALL = [sys.executable, str(BENCH / "device.py"), "--device", "emulated", "--quick"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(BENCH.parent)}  # as bench/README.md has it


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Routing of two layers with 16 experts, 4 a token."""
    draw = np.random.default_rng(0)
    ids = np.array([[draw.choice(16, 4, replace=False) for _ in range(2)] for _ in range(16)], np.int32)
    sizes = {name: np.full(2, size) for name, size in (("n_expert", 16), ("n_granule", 1), ("granule_bytes", 1))}
    path = tmp_path_factory.mktemp("traces") / "recorded.trace"
    phase, sequence = np.full(len(ids), DECODE, np.uint8), np.zeros(len(ids), np.int32)
    write_trace(path, Trace(ids, np.ones(ids.shape, np.float32), sequence, phase, **sizes))
    return path


def call(folder: Path, recording: Path, *arguments: str) -> str:
    places = ["--files", str(folder / "files"), "--out", str(folder / "record"), "--trace", str(recording)]
    done = subprocess.run(
        [*CALL, *places, *arguments], capture_output=True, env=ENVIRONMENT, text=True, check=True, timeout=300
    )
    return done.stdout.splitlines()[-1]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "record" / "rows.jsonl").read_text().splitlines()]


PARTS = ["--part", "machine", "--part", "kernels", "--part", "decode"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recording) -> Path:
    """Files and the record of a first call."""
    folder = tmp_path_factory.mktemp("device")
    assert "all done" in call(folder, recording, *PARTS)
    return folder


def test_a_record_holds_what_was_asked_for_and_says_that_no_gpu_was_there(folder):
    rows = [row for row in rows_of(folder) if row.get("repeat", 0) == 0]
    assert [row for row in rows if "error" in row] == []
    assert {row["part"] for row in rows} == {"machine", "kernels", "decode"}
    machine = next(row for row in rows if row["part"] == "machine")
    assert all(machine[name] > 0.0 for name in ("copy_bytes_s", "to_device_bytes_s", "cpu_together_bytes_s"))
    assert all(row["bytes_s"] > 0.0 for row in rows if row["part"] == "kernels")
    decode = {row["share"]: row for row in rows if row["part"] == "decode"}
    assert set(decode) == {0.0, 0.25, 1.0}
    assert len({row["digest"] for row in decode.values()}) == 1
    # 3 tokens of 4 experts in 2 layers: none found without a cache, all with everything resident.
    assert (decode[0.0]["n_hit"], decode[0.0]["n_miss"]) == (0, 24)
    assert (decode[1.0]["n_hit"], decode[1.0]["link_bytes_per_token"]) == (24, 0.0)
    assert 0 < decode[0.25]["cache_bytes"] < decode[1.0]["cache_bytes"] <= decode[1.0]["peak_vram_bytes"]
    env = json.loads((folder / "record" / "env.json").read_text())
    assert env[0]["device"]["kind"] == "emulated"
    text = (folder / "record" / "findings.md").read_text()
    assert "No GPU was here" in text
    assert text.count("| not measured | no GPU |") == 5


def test_a_second_call_goes_on_where_the_first_stopped(folder, recording):
    before = len(rows_of(folder))
    assert "0 new rows" in call(folder, recording, *PARTS)
    assert "3 new rows" in call(folder, recording, *PARTS, "--repeats", "2")  # decode, once more
    assert len(rows_of(folder)) == before + 3


def test_a_record_is_not_gone_on_with_by_a_run_of_other_sizes(folder, recording):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        call(folder, recording, *PARTS, "--layers", "1")
    assert "was begun with another tiny" in failed.value.stderr


def test_a_call_without_time_begins_nothing_and_says_so(tmp_path, recording):
    assert "0 new rows" in (said := call(tmp_path, recording, *PARTS, "--minutes", "0.1"))
    assert "out of time" in said
    assert (tmp_path / "record" / "findings.md").exists()


@pytest.mark.slow
def test_every_mode_of_the_ablation_runs_on_a_device(folder, recording):
    assert "all done" in call(folder, recording, *PARTS, "--part", "ablation")
    modes = {row["mode"]: row for row in rows_of(folder) if row["part"] == "ablation"}
    assert "error" not in {name for row in modes.values() for name in row}
    assert modes["on demand"]["n_hit"] == 0 < modes["whole, lru"]["n_hit"]
    assert {"theta 0.50, lcp, prefetch", "auto", "auto, CPU lane"} <= set(modes)


LLAMA_BENCH = """#!/bin/sh
# Answers as llama-bench does; layers on the CPU cost time.
while [ $# -gt 1 ]; do [ "$1" = -ncmoe ] && n=$2; shift; done
cat <<JSON
[{"n_prompt": 12, "n_gen": 0, "avg_ts": 40.0, "samples_ts": [40.0, 40.0]},
 {"n_prompt": 0, "n_gen": 3, "avg_ts": $((10 - n)), "samples_ts": [$((10 - n))], "build_commit": "abc", "backends": "CUDA"}]
JSON
"""


def test_llama_bench_is_swept_over_layers_left_to_the_cpu(tmp_path, recording):
    binary = tmp_path / "llama-bench"
    binary.write_text(LLAMA_BENCH)
    binary.chmod(0o755)
    assert "3 new rows" in call(tmp_path, recording, "--part", "llama", "--llama", str(binary))
    rows = rows_of(tmp_path)
    assert [(row["n_cpu_moe"], row["tpot_s"], row["prefill_s"]) for row in rows] == [
        (0, 0.1, [0.3, 0.3]),
        (1, 1 / 9, [0.3, 0.3]),
        (2, 1 / 8, [0.3, 0.3]),
    ]


def test_the_sweep_has_all_and_none() -> None:
    assert device_peer.sweep(2) == [0, 1, 2]
    assert device_peer.sweep(40) == [*range(0, 40, 2), 40]


def test_what_a_command_started_ends_with_its_time(tmp_path) -> None:
    pid = tmp_path / "pid"
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        finish(["sh", "-c", f"sleep 60 & echo $! >{pid}; wait"], 1.0, stdout=subprocess.PIPE)
    assert time.monotonic() - begun < 30.0  # it holds the pipe open, so an orphan would be waited for
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    for _ in range(100):  # a kill is carried out when its target next runs
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the orphan lives")


GB = 10**9
CUDA = {
    "device": {"kind": "cuda", "name": "NVIDIA X"},
    "driver": {"nvidia_smi": {"driver_version": "600.1", "pcie.link.gen.max": "5", "pcie.link.width.current": "16"}},
    "layers": {"s": 4},
    **{"when": "2026-01-02T03:04:05", "commit": "abc", "cpu": "CPU", "cores": 16},
}


def row(part: str, **more: Any) -> dict[str, Any]:
    return {"key": f"{part} {sorted(more.items(), key=str)}", "part": part, **more}


def ours(share: float, tpot_s: float, peak: int, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("n_hit", "n_partial", "n_miss"), 1)
    bytes_of = {"link_bytes_per_token": 0.1 * GB, "in_place_bytes_per_token": 0.0, "stall_s_per_token": 0.0}
    about = {"shape": "s", "share": share, "prefill_s": [0.5], "n_prefill": 512, "digest": "d", "peak_vram_bytes": peak}
    return row("decode", tpot_s=tpot_s, smi_peak_bytes=peak, **about, **counts, **bytes_of, **more)


def theirs(n_cpu_moe: int, tpot_s: float, peak: int | None) -> dict[str, Any]:
    about = {"shape": "s", "n_cpu_moe": n_cpu_moe, "options": "", "prefill_s": [0.6], "n_prefill": 512}
    return row("llama", tpot_s=tpot_s, smi_peak_bytes=peak, **about)


RATES = row(
    "machine",
    copy_bytes_s=1000.0 * GB,
    to_device_bytes_s=20.0 * GB,
    to_host_bytes_s=20.0 * GB,
    cpu_bytes_s=40.0 * GB,
    to_device_together_bytes_s=18.0 * GB,
    cpu_together_bytes_s=30.0 * GB,
)


def verdicts(*rows: dict[str, Any]) -> list[tuple[str, str]]:
    """Verdict and numbers of each target, in the order of findings.md."""
    text = device_findings.findings(list(rows), CUDA)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:7]
    return [(line[1], line[2].removesuffix(" |")) for line in lines]


def test_of_nothing_every_target_is_not_measured() -> None:
    assert verdicts() == [("not measured", "-")] * 5


def test_llama_cpp_counts_only_where_it_takes_no_more_memory() -> None:
    rows = [ours(0.25, 0.010, 5 * GB), theirs(0, 0.005, 6 * GB), theirs(4, 0.014, 5 * GB), theirs(8, 0.020, 4 * GB)]
    decode, prefill, *_ = verdicts(*rows)
    more = "with 954 MiB more than ours"
    assert decode == ("met", f"s 25%: 1.40 (n-cpu-moe 4; 0.50 {more})")
    assert prefill == ("met", f"s 25%: 1.20 (n-cpu-moe 4; 1.20 {more})")
    slower = verdicts(ours(0.25, 0.012, 5 * GB), *rows[2:])
    assert slower[0] == ("met in 0 of 1", "s 25%: 1.17 (n-cpu-moe 4)")
    # No setting fits, or nobody saw how much memory it took; and 10 % resident is not a target.
    assert verdicts(ours(0.25, 0.010, 3 * GB), *rows[1:])[0][0] == "not measured"
    assert verdicts(rows[0], theirs(4, 0.014, None))[0][0] == "not measured"
    assert verdicts(ours(0.1, 0.010, 5 * GB), *rows[1:])[0][0] == "not measured"


def test_kernels_are_held_against_the_copy_bandwidth() -> None:
    about = {"shape": "s", "type": "Q4_K", "launch_s": 1e-5}
    rows = [
        row("kernels", kernel=f"{name}, decode", bytes_s=rate * GB, **about) for name, rate in (("a", 850), ("b", 500))
    ]
    prompt = row("kernels", kernel="a, prompt", bytes_s=1.0, **about)  # is bound by arithmetic
    assert verdicts(RATES, *rows, prompt)[2] == ("met in 1 of 2", "s a, decode Q4_K: 85%; s b, decode Q4_K: 50%")
    assert verdicts(*rows)[2][0] == "not measured"


def test_a_layer_is_held_against_its_slowest_lane() -> None:
    # The link's 0.1 GB take 5 ms at 20 GB/s; the device alone takes 4 ms.
    rows = [RATES, ours(1.0, 0.004, GB), ours(0.5, 0.0055, GB)]
    assert verdicts(*rows)[3] == ("met", "s 50%: 1.10 of the link's")
    assert verdicts(*rows[:2], ours(0.5, 0.006, GB))[3] == ("met in 0 of 1", "s 50%: 1.20 of the link's")


def test_a_cache_that_loses_is_named() -> None:
    rows = [ours(0.0, 0.010, GB), ours(0.25, 0.0102, GB), ours(0.5, 0.012, GB)]
    assert verdicts(*rows)[4] == ("met in 1 of 2", "s 25%: 1.02; s 50%: 1.20")


def test_a_row_that_failed_is_listed_until_it_succeeds() -> None:
    failed = {"key": "decode/x/0", "part": "decode", "error": "no memory"}
    assert "- decode/x/0: no memory" in device_findings.findings([failed], CUDA)
    assert "no memory" not in device_findings.findings([failed, ours(0.5, 0.1, GB) | {"key": "decode/x/0"}], CUDA)
