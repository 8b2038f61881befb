"""Measuring a machine, with tiny sizes: the numbers are shapes here and no speeds, except where an oracle of any speed exists."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moepic_gguf.cli.bench import main
from moepic_gguf.errors import ArgumentError, CancelledError, IoError
from moepic_gguf.machine import (
    RATES,
    TIMES,
    Measured,
    Spread,
    file_machine,
    link_machine,
    machine_file,
    measure_machine,
)
from moepic_gguf.planner import Machine

TINY = {"seconds": 0.02, "memory_bytes": 1 << 20, "n_threads": 2}
TINY_ARGS = ["--seconds", "0.02", "--memory", "1MiB", "--temporary", "4MiB", "-t", "2"]


@pytest.fixture(scope="module")
def some_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machine") / "some.bin"
    path.write_bytes(np.random.default_rng(0).bytes(4 << 20))
    return path


def run(*args: str) -> tuple[int, str, str]:
    shown = CliRunner().invoke(main, ["machine", *args])
    return shown.exit_code, shown.stdout, shown.stderr


@pytest.mark.threads
def test_every_rate_is_a_median_of_nine_windows_between_its_extremes(some_file: Path) -> None:
    measured = measure_machine(some_file, **TINY)
    for name in (*RATES, *TIMES):
        spread = getattr(measured, name)
        assert spread.repeats == 9, name
        assert 0 <= spread.min <= spread.median <= spread.max < (1e13 if name in RATES else 10.0), name
    assert measured.memory.min > 0
    assert measured.compute.min > 0
    assert measured.landing.min > 0
    assert all(getattr(measured, name).min > 0 for name in TIMES)
    assert measured.n_threads == 2
    assert measured.file_lane.startswith("file: ")
    # gate or up of a granule of Qwen3-30B-A3B: 256 rows of 2048 weights, 144 bytes per 256.
    assert measured.small_bytes == 256 * 2048 // 256 * 144


def test_progress_counts_to_the_end_and_can_stop_the_work(some_file: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    measure_machine(some_file, **TINY, progress=lambda *step: seen.append(step))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[0] == ("file, small pieces", 0, 80)
    assert seen[-1] == ("threads", 80, 80)
    assert {stage for stage, _, _ in seen} == {
        "file, small pieces",
        "file, large pieces",
        "file, one at a time",
        "memory",
        "compute",
        "file and compute",
        "landing",
        "threads",
    }
    for stage in sorted({stage for stage, _, _ in seen}):
        with pytest.raises(CancelledError):
            measure_machine(some_file, **TINY, progress=lambda now, done, total, until=stage: now != until)


def test_what_a_listener_raises_comes_out(some_file: Path) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_machine(some_file, **TINY, progress=interrupt)


def test_arguments_that_make_no_sense_are_refused_by_name(some_file: Path, tmp_path: Path) -> None:
    with pytest.raises(IoError, match="absent"):
        measure_machine(tmp_path / "absent", **TINY)
    (tmp_path / "small").write_bytes(bytes(1000))
    with pytest.raises(ArgumentError, match="has 1000 bytes"):
        measure_machine(tmp_path / "small", **TINY)
    with pytest.raises(ArgumentError, match="seconds"):
        measure_machine(some_file, seconds=-1.0)
    with pytest.raises(ArgumentError, match="n_threads"):
        measure_machine(some_file, n_threads=-1)
    with pytest.raises(ArgumentError, match="isa"):
        measure_machine(some_file, isa="sse")


def spread(rate: float) -> Spread:
    return Spread(rate, rate / 2, rate * 2, 9)


def test_a_machine_file_holds_what_the_planner_reads_and_how_it_came_about(tmp_path: Path) -> None:
    """By hand: the file tier is read while granules are computed and has no CPU lane; behind a link the CPU is one, bounded by memory. A lone transfer of 3 MB takes
    2 ms, of which 1.5 ms are its bytes at the rate of many.
    """
    rates = dict(zip(RATES, map(spread, (50e9, 20e9, 2e9, 3e9, 1e9, 15e9, 6e9)), strict=True))
    rates |= dict(zip(TIMES, map(spread, (2e-3, 5e-6, 40e-6)), strict=True))
    measured = Measured(n_threads=2, isa="avx2", small_bytes=1e6, large_bytes=2, file_lane="file: 4 threads", **rates)
    file = file_machine(measured)
    assert replace(file, miss_latency_s=0.0, layer_s=0.0) == Machine(
        link_bytes_s=1e9, device_bytes_s=20e9, landing_bytes_s=6e9, n_threads=2
    )
    assert (file.miss_latency_s, file.layer_s) == (pytest.approx(0.5e-3), pytest.approx(6 * 5e-6))
    behind = link_machine(measured, 25e9, 1000e9)
    assert behind == Machine(25e9, 1000e9, cpu_bytes_s=20e9, together_bytes_s=50e9, cpu_sync_s=40e-6, n_threads=2)
    assert behind.miss_bytes_s == 45e9
    content = machine_file(behind, measured, slow_tier="link")
    (tmp_path / "machine.json").write_text(json.dumps(content))
    assert "spread" not in content  # it is read off the measurements: the CPU's here, between half and twice its median
    assert Machine.read(tmp_path / "machine.json") == replace(behind, spread=(0.5, 2.0))
    assert content["measured_bytes_s"]["memory"] == {"median": 50e9, "min": 25e9, "max": 100e9, "repeats": 9}
    assert content["measured_s"]["handoff_s"] == {"median": 40e-6, "min": 20e-6, "max": 80e-6, "repeats": 9}
    assert (content["file_lane"], content["slow_tier"]) == ("file: 4 threads", "link")


def test_the_command_writes_a_machine_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    code, table, said = run("--out", str(out), *TINY_ARGS)
    assert code == 0, said
    assert os.listdir(tmp_path) == ["machine.json"]
    assert "making a temporary file of 4.00 MiB" in said
    content = json.loads(out.read_text())
    read = Machine.read(out)
    assert 0.1 <= read.spread[0] <= 1.0 <= read.spread[1]
    rates, times = content["measured_bytes_s"], content["measured_s"]
    assert read.link_bytes_s == rates["file_together"]["median"]
    assert read.device_bytes_s == rates["compute"]["median"]
    assert read.landing_bytes_s == rates["landing"]["median"]
    assert read.layer_s == 6 * times["job_s"]["median"]
    assert read.miss_latency_s >= 0.0
    assert read.n_threads == 2
    assert (content["cpu_bytes_s"], content["together_bytes_s"], content["slow_tier"]) == (0, 0, "file")
    environment = content["environment"]
    assert environment["file"]["name"] == "temporary"
    assert environment["file"]["bytes"] == 4 << 20
    assert environment["file"]["file_system"] != "unknown"
    assert str(tmp_path) not in out.read_text(), "records travel; folders stay private"
    assert "2 threads" in table
    assert "granules, while the file is read" in table


def test_a_named_file_is_read_and_given_rates_are_said_to_be_given(some_file: Path, tmp_path: Path) -> None:
    rates = ["--link-rate", "25", "--device-rate", "900"]
    code, output, said = run("--file", str(some_file), "--json", *rates, *TINY_ARGS)
    assert code == 0, said
    content = json.loads(output)
    assert content["environment"]["file"]["name"] == "some.bin"
    assert content["given"] == ["link_bytes_s", "device_bytes_s"]
    assert (content["link_bytes_s"], content["device_bytes_s"]) == (25e9, 900e9)
    assert content["cpu_bytes_s"] == content["measured_bytes_s"]["compute"]["median"]
    code, output, _ = run("--file", str(some_file), *rates, *TINY_ARGS)
    assert "slow tier: link at 25.00 GB/s (given)" in output


def test_mistakes_are_one_line_before_anything_is_measured(some_file: Path, tmp_path: Path) -> None:
    for args, complaint in [
        (["--link-rate", "25"], "--link-rate and --device-rate"),
        (["--out", str(tmp_path)], "is a folder"),
        (["--out", str(tmp_path / "absent" / "machine.json")], "does not exist"),
        (["--file", str(tmp_path / "absent.gguf")], "absent.gguf"),
        (["--out", str(tmp_path / "machine.json"), "--temporary", "1000TiB"], "do not fit"),
    ]:
        code, _, said = run(*TINY_ARGS, *args)
        assert code == 2
        assert complaint in said
    assert os.listdir(tmp_path) == []


@pytest.mark.no_sanitizer
def test_ctrl_c_ends_it_within_a_window_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moepic_gguf.cli.bench", "machine", "--out", str(tmp_path / "machine.json")]
    command += ["--seconds", "20", "--memory", "1MiB", "--temporary", "4MiB"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "temporary file" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    # A window of 20 s / 10 is under way at most.
    assert process.wait(timeout=30) == 130
    assert "Traceback" not in process.stderr.read()
    assert os.listdir(tmp_path) == []
