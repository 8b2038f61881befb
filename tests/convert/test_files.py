"""What is on disk: shards, a killed run, Ctrl-C, a second run, refusals, memory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convert import writer
from convert.plan import Cut
from convert.to_gguf import convert, main
from moepic_gguf.errors import ConversionError
from tests.convert.reading import File
from tests.making import saved

ROOT = Path(__file__).resolve().parents[2]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_shards_follow_the_convention_of_llama_cpp(tmp_path: Path) -> None:
    plan = convert(saved("mixtral"), tmp_path / "m.gguf", how=Cut(max_shard_bytes=1 << 20))
    n = len(plan.shards)
    assert n > 2
    assert files(tmp_path) == [f"m-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    file = File(plan.shards[0].path)
    for i, keys in enumerate(file.shard_keys):
        assert (keys["split.no"], keys["split.count"], keys["split.tensors.count"]) == (i, n, len(file.tensors))
        assert keys["general.alignment"] == 4096
        assert ("general.architecture" in keys) == (i == 0)
        stored = [file.tensors[name] for name in file.shards[i]]
        assert sum(t.raw.nbytes for t in stored) <= 1 << 20 or len(stored) == 1


def test_bottoms_go_to_shards_of_their_own(tmp_path: Path) -> None:
    plan = convert(saved("mixtral"), tmp_path / "m.gguf", how=Cut(separate_segments=True))
    main_shard, bottoms = File(plan.shards[0].path).shards
    assert bottoms
    assert all("_exps_bot." in name for name in bottoms)
    assert not any("_exps_bot." in name for name in main_shard)


def test_a_dry_run_writes_nothing_and_tells_the_truth(tmp_path: Path) -> None:
    source, target = str(saved("qwen2_moe_1408")), str(tmp_path / "m.gguf")
    result = CliRunner().invoke(main, [source, target, "--outtype", "q8_0", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert files(tmp_path) == []
    promised = int(re.search(r"in all (\d+) bytes", result.stdout)[1])  # type: ignore[index]
    assert "4 granules of 352 neurons, top 2, bottom 2" in result.stdout
    for word in ("expert top", "expert bottom", "shared expert", "embedding", "Q8_0", "peak memory"):
        assert word in result.stdout
    result = CliRunner().invoke(main, [source, target, "--outtype", "bf16", "--dry-run"])
    assert CliRunner().invoke(main, [source, target, "--outtype", "bf16"]).exit_code == 0
    assert int(re.search(r"in all (\d+) bytes", result.stdout)[1]) == (tmp_path / "m.gguf").stat().st_size  # type: ignore[index]
    assert promised < (tmp_path / "m.gguf").stat().st_size


# Converts argv[1] to argv[2] in shards and kills itself, or raises SIGINT, when half is done.
DYING = """
import os, signal, sys
from pathlib import Path
from convert.plan import Cut
from convert.to_gguf import convert
def half(done, total):
    if done > total // 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
convert(Path(sys.argv[1]), Path(sys.argv[2]), how=Cut(max_shard_bytes=1 << 20), progress=half, force=True)
"""


def run_dying(target: Path, how: str) -> int:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", DYING, str(saved("mixtral")), str(target), how]
    return subprocess.run(command, env=environment, capture_output=True, cwd=target.parent).returncode


def test_a_killed_run_leaves_no_target_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    assert run_dying(target, "SIGKILL") == -signal.SIGKILL
    left = files(tmp_path)
    assert left
    assert all(name.endswith(".partial") for name in left), left
    # Other shards, so that names differ from the leftovers.
    convert(saved("mixtral"), target)
    assert files(tmp_path) == ["m.gguf"]
    convert(saved("mixtral"), tmp_path / "clean.gguf")
    assert target.read_bytes() == (tmp_path / "clean.gguf").read_bytes()


def test_ctrl_c_removes_what_was_begun_and_keeps_what_was_there(tmp_path: Path) -> None:
    plan = convert(saved("mixtral"), tmp_path / "m.gguf", how=Cut(max_shard_bytes=1 << 20))
    before = {shard.path: shard.path.read_bytes() for shard in plan.shards}
    assert run_dying(tmp_path / "m.gguf", "SIGINT") != 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_command_says_that_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.to_gguf._Bar.update", lambda self, done, total: os.kill(os.getpid(), signal.SIGTERM))
    result = CliRunner().invoke(main, [str(saved("mixtral")), str(tmp_path / "m.gguf")])
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert files(tmp_path) == []


def test_a_set_is_never_openable_while_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Cut(max_shard_bytes=1 << 20)
    plan = convert(saved("mixtral"), tmp_path / "m.gguf", how=how)
    really, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        really(source, target)

    monkeypatch.setattr(writer.os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        convert(saved("mixtral"), tmp_path / "m.gguf", how=how, force=True)
    assert not plan.shards[0].path.exists(), "old and new shards together would pass for a model"
    assert not [name for name in files(tmp_path) if name.endswith(".partial")]


def test_two_runs_do_not_write_the_same_target(tmp_path: Path) -> None:
    with open(tmp_path / "m.gguf.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="another conversion"):
            convert(saved("mixtral"), tmp_path / "m.gguf")


def test_outputs_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.gguf"
    convert(saved("mixtral"), target)
    whole = target.read_bytes()
    with pytest.raises(ConversionError, match="exists; pass --force"):
        convert(saved("mixtral"), target)
    (tmp_path / "link.gguf").symlink_to(target)
    for name in ("m.gguf", "link.gguf"):
        with pytest.raises(ConversionError, match="also an input"):
            convert(target, tmp_path / name, force=True)
    with pytest.raises(ConversionError, match="does not exist"):
        convert(saved("mixtral"), tmp_path / "nowhere" / "m.gguf")
    with pytest.raises(ConversionError, match="is a folder"):
        convert(saved("mixtral"), tmp_path, force=True)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(ConversionError, match=r"needs \d+ bytes.*short by"):
        convert(saved("mixtral"), tmp_path / "n.gguf")
    assert target.read_bytes() == whole
    assert files(tmp_path) == ["link.gguf", "m.gguf"]


def test_it_runs_as_a_file_of_the_source_tree(tmp_path: Path) -> None:
    """From another folder, as the README says it."""
    command = [sys.executable, str(ROOT / "convert" / "to_gguf.py"), str(saved("mixtral")), "m.gguf"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "m.gguf\n"
    assert files(tmp_path) == ["m.gguf"]


def hollow_checkpoint(folder: Path, n_layer: int, n_expert: int, n_embd: int, n_ff: int) -> Path:
    """A qwen3_moe folder of bf16 zeros; the data is a hole in the file, so it costs no disk."""
    folder.mkdir()
    config = json.loads((saved("qwen3_moe") / "config.json").read_text())
    config |= {
        "hidden_size": n_embd,
        "num_hidden_layers": n_layer,
        "moe_intermediate_size": n_ff,
        "vocab_size": 1000,
        "torch_dtype": "bfloat16",
    }
    config |= {"num_local_experts": n_expert, "num_experts": n_expert}
    (folder / "config.json").write_text(json.dumps(config))
    heads, kv, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    shapes = {
        "model.embed_tokens.weight": (1000, n_embd),
        "model.norm.weight": (n_embd,),
        "lm_head.weight": (1000, n_embd),
    }
    for il in range(n_layer):
        layer = {
            "input_layernorm.weight": (n_embd,),
            "post_attention_layernorm.weight": (n_embd,),
            "mlp.gate.weight": (n_expert, n_embd),
        }
        layer |= {
            "self_attn.q_proj.weight": (heads * width, n_embd),
            "self_attn.o_proj.weight": (n_embd, heads * width),
        }
        layer |= {f"self_attn.{x}_proj.weight": (kv * width, n_embd) for x in "kv"} | {
            f"self_attn.{x}_norm.weight": (width,) for x in "qk"
        }
        for e in range(n_expert):
            layer |= {f"mlp.experts.{e}.{w}_proj.weight": (n_ff, n_embd) for w in ("gate", "up")} | {
                f"mlp.experts.{e}.down_proj.weight": (n_embd, n_ff)
            }
        shapes |= {f"model.layers.{il}.{name}": shape for name, shape in layer.items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return folder


def test_memory_stays_below_what_the_dry_run_says(tmp_path: Path) -> None:
    """600 MB of experts; a layer is 75 MB."""
    source = hollow_checkpoint(tmp_path / "hf", 8, 16, 1024, 768)
    program = (
        "import re, sys; from pathlib import Path; from convert.to_gguf import convert\n"
        "plan = convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        # Not getrusage: its ru_maxrss starts with the parent's.
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "print(peak, plan.peak_bytes, plan.n_bytes)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "m.gguf")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    used, promised, written = map(int, result.stdout.split())
    assert written > 600e6
    assert used <= promised, f"used {used >> 20} MiB, the dry run says {promised >> 20}"
    assert promised < written / 3
