"""Recorded routing, mapped onto the layers and experts of a model that was not recorded; and guesses of a stated recall. No model, no clock.

Random weights route almost evenly, trained routers do not, and an expert cache lives by the difference. So benchmarks let a model of real shape follow a
recording of another model. What is taken over, and what is made up:

  layers    picked evenly from the recorded ones, first and last among them.
  experts   as many as recorded: the same ids. Fewer: id modulo their number, so that what folds together is unrelated, and popularity gets flatter.
            More than recorded is refused.
  top-k     wanted more than recorded (or two folded into one): the missing ones are drawn by how often the layer uses each expert, without
            replacement. These draws have the recording's popularity, but not its tendency to stay with the last token's experts. Wanted fewer:
            the first of the recording, which are in order of weight.
  tokens    all, the prompt's too, in their order; a benchmark feeds every one alone, as decode does.
  guesses   right with probability `recall`, else another expert: mistakes are unrelated to popularity, which real ones are not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moepic_gguf.errors import ArgumentError
from moepic_gguf.planner import with_guesses
from moepic_gguf.trace import DECODE, Trace, read_trace

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Target:
    """The MoE layers of a model: experts of each, used per token, granules of an expert, bytes of a granule per layer."""

    n_expert: int
    n_used: int
    n_granule: int
    granule_bytes: tuple[int, ...]

    @property
    def n_layer(self) -> int:
        return len(self.granule_bytes)


def find_trace(name: str) -> Path:
    """A path, or the name of a file in the folder MOEPIC_TRACES."""
    folder = os.environ.get("MOEPIC_TRACES")
    path = Path(name)
    if not path.exists() and folder:
        path = Path(folder) / name
    if not path.exists():
        raise ArgumentError(f"trace: '{name}' is no file, nor in MOEPIC_TRACES ({folder or 'not set'})")
    return path


def map_trace(path: Path, target: Target, *, recall: float | None = None, seed: int = 0) -> Trace:
    """The recording in `path` as routing of `target`, ids ascending inside a token and layer; with guesses where `recall` is given.

    Raises ArgumentError where the recording has fewer layers or experts than the model.
    """
    recorded = read_trace(path, expert_bytes=1)
    n_expert = int(recorded.n_expert[0])
    if recorded.n_layer < target.n_layer or n_expert < target.n_expert:
        raise ArgumentError(
            f"trace: '{path.name}' has {recorded.n_layer} layers of {n_expert} experts, the model {target.n_layer} of {target.n_expert}"
        )
    rng = np.random.default_rng(seed)
    layers = np.linspace(0, recorded.n_layer - 1, target.n_layer).round().astype(int)
    ids = _choose(recorded.ids[:, layers, : target.n_used], target, rng)
    n_token, n_layer = len(ids), target.n_layer
    mapped = Trace(
        ids=ids,
        weights=np.full(ids.shape, 1.0 / target.n_used, np.float32),
        sequence=np.zeros(n_token, np.int32),
        phase=np.full(n_token, DECODE, np.uint8),
        n_expert=np.full(n_layer, target.n_expert, np.int32),
        n_granule=np.full(n_layer, target.n_granule, np.int32),
        granule_bytes=np.array(target.granule_bytes, np.int64),
        info={"source": path.name, "layers": layers.tolist(), "top_k_recorded": recorded.n_used},
    )
    return mapped if recall is None else with_guesses(mapped, recall, seed=seed)


def _choose(recorded: Ids, target: Target, rng: np.random.Generator) -> Ids:
    """[n_token, n_layer, n_used] distinct experts: those recorded, then draws by use."""
    n_token, n_layer, _ = recorded.shape
    is_used = np.zeros((n_token, n_layer, target.n_expert), bool)
    token, layer, slot = np.nonzero(recorded >= 0)
    is_used[token, layer, recorded[token, layer, slot] % target.n_expert] = True
    # The largest of log weight + Gumbel noise are a draw without replacement in proportion to the weights. A half use for an expert never seen.
    score = np.log(is_used.sum(axis=0) + 0.5)[None] + rng.gumbel(size=is_used.shape)
    score[is_used] = np.inf
    return np.sort(np.argsort(-score, axis=-1)[..., : target.n_used], axis=-1).astype(np.int32)
