"""Warm-start profiles: what is saved comes back, and only for the model it was made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moepic_gguf.errors import ArgumentError, IoError, ModelFormatError
from moepic_gguf.profile import Profile, model_hash
from moepic_gguf.replay import profile_of

from ..python.tiny_gguf import Shape, write
from .routings import make_trace, random_ids


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("profile")
    return write(folder / "a.gguf"), write(folder / "b.gguf", Shape(n_expert=8))


def test_the_hash_names_the_model_and_not_the_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = files
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(first.read_bytes())
    assert model_hash(first) == model_hash(copy) != model_hash(second)
    with copy.open("ab") as file:
        file.write(b"\0")
    assert model_hash(copy) != model_hash(first)


def test_weights_are_not_read_for_the_hash(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 0xFF
    (tmp_path / "other.gguf").write_bytes(data)
    assert model_hash(tmp_path / "other.gguf") == model_hash(files[0])


def test_a_profile_of_a_trace_is_saved_and_loaded(tmp_path: Path) -> None:
    trace = make_trace(random_ids(np.random.default_rng(0), 50, 3, 9, 2), 9)
    made = Profile.from_trace(trace, "ab" * 32)
    np.testing.assert_array_equal(made.weights, profile_of(trace))
    made.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json", model_hash="ab" * 32, n_expert=[9, 9, 9])
    np.testing.assert_array_equal(again.weights, made.weights)
    assert (again.n_token, again.source) == (50, "trace")
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_late_tokens_weigh_more_with_a_half_life() -> None:
    trace = make_trace(np.array([[[0]], [[1]], [[1]], [[0]]]), 3)
    made = Profile.from_trace(trace, "x", half_life=1.0)
    np.testing.assert_allclose(made.weights, [1 + 1 / 8, 1 / 2 + 1 / 4, 0.0])


def test_another_models_profile_is_refused_by_name(tmp_path: Path) -> None:
    Profile.from_counts("ab" * 32, [[1, 2], [0, 4.5]]).save(tmp_path / "p.json")
    with pytest.raises(ModelFormatError, match=r"'p.json' belongs to model abababababab\.\.\., not to cdcdcdcdcdcd"):
        Profile.load(tmp_path / "p.json", model_hash="cd" * 32)
    with pytest.raises(ModelFormatError, match="expected 3"):
        Profile.load(tmp_path / "p.json", model_hash="ab" * 32, n_expert=[2, 2, 2])
    trace = replace(make_trace(np.zeros((1, 1, 1), int), 2), info={"model_hash": "ef" * 32})
    with pytest.raises(ArgumentError, match="recorded from model efef"):
        Profile.from_trace(trace, "ab" * 32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "x"}, "expected an object"),
        ({"version": 2}, "version 2"),
        ({"uses": [[-1.0]]}, "at least 0"),
        ({"uses": []}, "no layers"),
        ({"uses": 5}, "p.json"),
        ({"n_token": None}, "p.json"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, change: dict, text: str) -> None:
    path = tmp_path / "p.json"
    Profile.from_counts("h", [[1, 2]]).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFormatError, match=text):
        Profile.load(path, model_hash="h")
    path.write_text("{")
    with pytest.raises(ModelFormatError, match="no JSON"):
        Profile.load(path, model_hash="h")
    with pytest.raises(IoError):
        Profile.load(tmp_path / "absent.json", model_hash="h")
