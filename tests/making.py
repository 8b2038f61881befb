"""From a tiny random transformers model to a GGUF file, once per test run and kind. Shared by the family tests and the gates."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from convert import cut
from convert.plan import Cut, make_plan
from convert.sources.gguf_source import open_gguf
from convert.tensors import Tensor
from convert.writer import write
from tests.tiny import models

_FOLDER = tempfile.TemporaryDirectory(prefix="moepic-tests-")


def convert(source: Path, target: Path, *options: str) -> Path:
    """Run the converter as its command line does."""
    from convert.to_gguf import main

    main([str(source), str(target), "--force", *options], standalone_mode=False)
    return target


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    """(config, model) of a variant of `tests.tiny.models.MODELS`."""
    return models.make(name)


@functools.cache
def saved(name: str, layout: str = "hub") -> Path:
    """A Hugging Face folder of that variant."""
    folder = Path(_FOLDER.name) / f"{name}-{layout}"
    models.save(built(name)[1], folder, layout=layout)
    return folder


@functools.cache
def gguf_file(name: str, *options: str, layout: str = "hub") -> Path:
    """A GGUF of that variant, made with the given converter options."""
    label = "_".join(option.strip("-").replace(".", "").replace("/", "") for option in options) or "plain"
    return convert(saved(name, layout), Path(_FOLDER.name) / f"{name}-{layout}-{label}.gguf", *options)


# Mixes of types without an encoder: of gate and up, of down, of all other matrices.
_CODEBOOKS = {"iq2": ("IQ2_XXS", "IQ2_S", "IQ2_XS"), "iq3": ("IQ3_XXS", "IQ3_S", "IQ3_S")}


@functools.cache
def ordinary(name: str, kind: str) -> Path:
    """A GGUF as llama.cpp has it: converted to an outtype, or with random blocks of a mix of codebook types for matrices. What the weights
    are does not matter to a comparison of one file's logits with another's.
    """
    if kind not in _CODEBOOKS:
        return gguf_file(name, "--outtype", kind, "--no-split")
    rng = np.random.default_rng(11)

    def of_codebook(tensor: Tensor) -> Tensor:
        if len(tensor.shape) < 2 or tensor.shape[-1] % 256 or tensor.role == "router":
            return tensor
        part = 0 if "gate_exps" in tensor.name or "up_exps" in tensor.name else 1 if "down_exps" in tensor.name else 2
        made = GGMLQuantizationType[_CODEBOOKS[kind][part]]
        blocks = rng.integers(0, 256, (tensor.n_weights // 256, GGML_QUANT_SIZES[made][1]), dtype=np.uint8)
        # Sums of 256 weights between some 0.3 and 1.5 in size: sub-block scales and magnitudes multiply d by 34 to 144.
        blocks[:, :2] = rng.uniform(0.0006, 0.001, (len(blocks), 1)).astype("<f2").view(np.uint8)
        return Tensor(tensor.name, tensor.shape, made, tensor.role, lambda: [blocks.reshape(-1)])

    content = open_gguf(gguf_file(name, "--outtype", "f32", "--no-split"))
    content.head, content.tail = ([of_codebook(t) for t in part] for part in (content.head, content.tail))
    content.layers = [
        ([of_codebook(t) for t in plain + (cut.whole(experts, None) if experts else [])], None)
        for plain, experts in content.layers
    ]
    plan = make_plan(content, Path(_FOLDER.name) / f"{name}-{kind}.gguf", Cut(split=False))
    write(plan.shards)
    return plan.shards[0].path


@functools.cache
def resplit(source: Path, *options: str) -> Path:
    """A GGUF re-cut from another."""
    label = "_".join(option.strip("-").replace(".", "") for option in options) or "plain"
    return convert(source, source.with_name(f"{source.stem}--{label}.gguf"), *options)
