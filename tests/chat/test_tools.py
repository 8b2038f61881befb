"""moepic-info and moepic-bench."""

from __future__ import annotations

import json

import gguf
import pytest
from tiny_gguf import Shape, write

BENCH = ("-p", "8", "-n", "4", "-r", "2", "-t", "1")


def test_info_agrees_with_the_gguf_package(command, tiny):
    done = command("info", tiny, "--json", "--tensors", "--keys")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    reader = gguf.GGUFReader(tiny)
    assert report["n_weights"] == sum(int(t.n_elements) for t in reader.tensors)
    assert sum(row["n_bytes"] for row in report["classes"]) == sum(int(t.n_bytes) for t in reader.tensors)
    assert sum(row["n_tensors"] for row in report["classes"]) == len(reader.tensors) == len(report["tensors"])
    experts = next(row for row in report["classes"] if row["name"] == "routed experts")
    assert (experts["n_tensors"], experts["types"], experts["bits_per_weight"]) == (6, {"F32": 6}, 32.0)
    assert (report["n_expert"], report["n_expert_used"], report["n_ff_exp"], report["moe_layers"]) == (4, 2, 64, 2)
    assert report["expert_bytes"] == 3 * 64 * 64 * 4
    assert report["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2  # layers, key and value, heads, width, bytes
    assert report["keys"]["general.architecture"] == "llama"
    assert report["supported"] is True


def test_info_is_readable(command, tiny):
    say = command("info", tiny).stdout
    for text in (
        "4 in each of 2 layers, 2 used per token",
        "tokens per GiB",
        "routed experts",
        "supported: this build loads",
    ):
        assert text in say


def test_info_says_why_a_file_is_not_supported(command, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "mamba9")
    writer.add_name("evil \x1b[2J [red]name")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = command("info", tmp_path / "odd.gguf")
    assert done.returncode == 1
    assert "architecture 'mamba9' is not supported (supported: llama" in done.stdout
    assert "\x1b" not in done.stdout
    assert "[red]name" in done.stdout


def test_info_judges_a_file_as_loading_would(command, tmp_path):
    """A known architecture is not enough: keys and tensors are checked too."""
    writer = gguf.GGUFWriter(tmp_path / "hollow.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = command("info", tmp_path / "hollow.gguf")
    assert done.returncode == 1
    assert "not supported: model: key 'llama.block_count' is missing" in done.stdout


def test_info_of_something_else_is_one_line_and_code_2(command, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    done = command("info", tmp_path / "x.gguf")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")


def test_bench_measures_and_records(command, tiny, tmp_path):
    record = tmp_path / "record"
    done = command("bench", tiny, *BENCH, "--json", "--record", record)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (engine,) = result["engines"]
    assert engine["engine"] == "moepic"
    assert engine["prefill_tok_s"] == pytest.approx(8 / engine["ttft_s"][0])
    assert engine["decode_tok_s"] == pytest.approx(1 / engine["tpot_s"][0])
    assert engine["tpot_s"][1] <= engine["tpot_s"][0] <= engine["tpot_s"][2]
    assert 0 < result["active_bytes_per_token"] < tiny.stat().st_size
    assert result["memory_bytes_per_s"] > 1e8
    env = json.loads((record / "env.json").read_text())
    assert env["file"]["bytes"] == tiny.stat().st_size
    assert len(env["file"]["sha256"]) == 64
    rows = [json.loads(line) for line in (record / "rows.jsonl").read_text().splitlines()]
    assert [len(run["token_s"]) for row in rows for run in row["runs"]] == [3, 3]
    assert "tok/s" in (record / "table.txt").read_text()
    assert command("bench", tiny, *BENCH, "--record", record).returncode == 2, "records are not overwritten"


def test_bench_prints_a_table(command, tiny):
    done = command("bench", "run", tiny, *BENCH)
    assert done.returncode == 0, done.stderr
    for text in ("prefill 8", "decode 4", "MB of weights per token", "GB/s measured"):
        assert text in done.stdout


def test_bench_of_a_missing_file_is_one_line(command):
    done = command("bench", "absent.gguf")
    assert done.returncode == 2
    assert "does not exist" in done.stderr


@pytest.mark.peer
def test_bench_measures_llama_cpp_in_alternation(command, tmp_path):
    pytest.importorskip("llama_cpp")
    path = write(tmp_path / "peer.gguf", Shape())
    done = command("bench", path, "-p", "8", "-n", "4", "-r", "2", "-t", "1", "--peer", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {row["engine"] for row in result["engines"]} == {"moepic", "llama.cpp"}
    assert result["ratio"]["decode"] > 0
