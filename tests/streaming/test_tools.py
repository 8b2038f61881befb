"""What surrounds streaming: recordings, profiles, plans at load, statistics, and the command line, on a file of a megabyte."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from moepic_gguf import Model, StreamingOptions
from moepic_gguf.errors import ArgumentError, IoError, ModelFormatError
from moepic_gguf.trace import read_trace
from tests.python import tiny_gguf

SHAPE = tiny_gguf.Shape(n_layer=3, n_expert=16, n_expert_used=4, n_ff=128)
GRANULE = 3 * 64 * 128 * 4  # an expert of this shape is one granule
EXPERTS = 3 * 16 * GRANULE
RATES = {"link_bytes_s": 1e9, "device_bytes_s": 2e10}
PROMPT = list(range(20))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("tools") / "tiny.gguf", SHAPE)


@pytest.fixture
def machine(tmp_path):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(RATES))
    return file


def streamed(path, **options):
    return Model.load(path, n_ctx=128, streaming=StreamingOptions(always=True, cache=EXPERTS // 3, **options))


def test_a_trace_holds_what_the_probe_saw_and_what_the_counters_say(path, tmp_path):
    from tests.probing import routing_of

    with streamed(path) as model:
        with model.record(trace=tmp_path / "run.trace"):
            tokens = list(model.generate(PROMPT, max_tokens=12, stop_tokens=[]).tokens)
            model.generate([5, 6], max_tokens=3, stop_tokens=[])
        assert not (tmp_path / "run.trace.part").exists()
        stats = model.stream_stats
    trace = read_trace(tmp_path / "run.trace")
    assert trace.phase.tolist() == [0] * 20 + [1] * 11 + [0] * 2 + [1] * 2
    assert trace.sequence.tolist() == [0] * 31 + [1] * 4
    expected = routing_of(path, PROMPT + tokens[:-1])  # [token][layer][k]
    first = trace.ids[:31]
    run = first[:, :, 0] >= 0  # the last layer of a prompt runs its last token only
    assert run.all(axis=0).tolist() == [True, True, False]
    assert run[19:].all()
    np.testing.assert_array_equal(first[run], expected[run])
    decode = trace.phase == 1
    assert trace.outcome is not None
    served = sum(trace.outcome[name][decode].sum() for name in ("resident", "link", "cpu", "prefetched"))
    assert served == decode.sum() * 3 * 4
    assert trace.outcome["resident"][decode].sum() == stats.total("n_resident")
    assert trace.outcome["prefetched"][decode].sum() == stats.total("n_prefetched")
    assert trace.found[decode].sum() == stats.total("n_resident")
    assert trace.outcome["stall_s"][decode].sum() == pytest.approx(stats.total("stall_s"), rel=1e-3)
    assert (trace.predicted[decode][:, 1:] >= 0).all()  # layer 0 has no layer before it
    assert (trace.predicted[:, 0] == -1).all()


def test_a_resident_model_records_its_routing_too(path, tmp_path):
    with Model.load(path, n_ctx=128) as model, model.record(trace=tmp_path / "run.trace"):
        model.generate(PROMPT, max_tokens=4, stop_tokens=[])
    trace = read_trace(tmp_path / "run.trace")
    assert trace.n_token == 23
    assert (trace.found[trace.phase == 1] == 1).all()


def test_a_timeline_shows_every_granule_and_transfer(path, tmp_path):
    with streamed(path) as model:
        model.generate(PROMPT, max_tokens=2, stop_tokens=[])
        model.reset_stats()
        with model.record(timeline=tmp_path / "run.json"):
            for token in (7, 8, 9):
                model.context.native.eval([token])
        stats = model.stream_stats
    spans = [e for e in json.loads((tmp_path / "run.json").read_text())["traceEvents"] if e["ph"] == "X"]
    count = {name: sum(e["name"] == name for e in spans) for name in ("attention", "granule", "experts", "demand")}
    assert count["attention"] == count["experts"] == 3 * 3
    assert count["granule"] == 3 * 3 * 4
    assert count["demand"] == stats.total("n_link")
    assert all(e["dur"] >= 0 for e in spans)


def test_a_profile_starts_the_same_model_warm_and_no_other(path, tmp_path):
    with streamed(path) as model:
        model.generate(PROMPT, max_tokens=20, stop_tokens=[])
        model.save_profile(tmp_path / "run.profile")
        brought = model.stream_stats.lane_bytes
    with streamed(path, profile=tmp_path / "run.profile") as model:
        assert model.stream_stats.resident_bytes == model.stream_stats.cache_bytes  # more was used than fits
        model.reset_stats()
        model.generate(PROMPT, max_tokens=20, stop_tokens=[])
        assert model.stream_stats.lane_bytes < brought
    other = tiny_gguf.write(tmp_path / "other.gguf", tiny_gguf.Shape(n_layer=3, n_expert=8, n_expert_used=4, n_ff=128))
    with pytest.raises(ModelFormatError, match="belongs to model"):
        streamed(other, profile=tmp_path / "run.profile")
    with Model.load(path, n_ctx=128) as model, pytest.raises(ArgumentError, match="resident"):
        model.save_profile(tmp_path / "no.profile")


@pytest.mark.parametrize("mode", ["auto", "paper", "uniform", 1.0])
def test_a_plan_at_load_is_what_runs_and_changes_no_token(path, machine, mode):
    with Model.load(path, n_ctx=128) as model:
        plain = list(model.generate(PROMPT, max_tokens=12, stop_tokens=[]).tokens)
    options = StreamingOptions(always=True, cache=EXPERTS // 3)
    with Model.load(path, n_ctx=128, plan=mode, machine=machine, streaming=options) as model:
        forecast = model.forecast
        assert forecast.plan.bytes <= model.info.cache_bytes
        assert forecast.tpot.low_s <= forecast.tpot.mean_s <= forecast.tpot.high_s
        assert list(model.generate(PROMPT, max_tokens=12, stop_tokens=[]).tokens) == plain
        stats = model.stats
        assert stats.predicted_tpot_s == forecast.tpot.mean_s
        assert "predicted" in str(stats)
        assert stats.stream.cache_bytes <= model.info.cache_bytes
        assert stats.stream.policy == forecast.options.policy


def test_a_plan_needs_rates_and_a_mode_that_exists(path, machine):
    with pytest.raises(ArgumentError, match="machine=FILE"):
        Model.load(path, plan="auto")
    options = StreamingOptions(always=True, cache=EXPERTS // 3)
    for mode in ("best", 1.5):
        with pytest.raises(ArgumentError, match="plan"):
            Model.load(path, plan=mode, machine=machine, streaming=options)
    with Model.load(path, plan="auto", machine=machine) as model:  # everything fits
        assert model.forecast is None


def test_a_recording_that_cannot_be_written_is_named(path, tmp_path):
    with streamed(path) as model:
        with pytest.raises(IoError, match="missing"):
            model.record(trace=tmp_path / "missing" / "run.trace")
        model.generate(PROMPT, max_tokens=2)


def chat(*arguments, text="hello\n"):
    return subprocess.run(
        [sys.executable, "-m", "moepic_gguf.cli.chat", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.no_sanitizer
def test_chat_streams_records_and_says_the_same(path, tmp_path, machine):
    common = (path, "-n", 8, "--temp", 0, "--ignore-eos")
    plain = chat(*common)
    assert plain.returncode == 0, plain.stderr
    options = ("--cache", EXPERTS // 3, "--policy", "lru", "--plan", "paper", "--machine", machine)
    files = ("--trace-out", tmp_path / "t", "--timeline", tmp_path / "j", "--save-profile", tmp_path / "p")
    found = chat(*common, *options, *files)
    assert found.returncode == 0, found.stderr
    assert found.stdout == plain.stdout
    assert read_trace(tmp_path / "t").n_token > 8
    assert json.loads((tmp_path / "j").read_text())["traceEvents"]
    assert json.loads((tmp_path / "p").read_text())["format"] == "moepic-profile"
    emulated = chat(*common, "--cache", EXPERTS // 3, "--emulate-link", 2, "-v")
    assert emulated.stdout == plain.stdout
    assert "emulated" in emulated.stderr
    refused = chat(*common, "--ram", "200KiB")
    assert refused.returncode == 2
    assert "smallest budget that works" in refused.stderr
