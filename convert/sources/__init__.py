"""Inputs of the converter. A source is opened from a path and answers with keys, tensors and sets of experts; it
writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGMLQuantizationType

from ..keys import Keys
from ..tensors import Experts, Tensor


@dataclass
class Content:
    """What an input holds, in the order it is to be written.

    keys        metadata, without those of the split and the alignment.
    head, tail  tensors before the layers and after them.
    layers      per layer: its tensors that are not routed experts, and its experts or None.
    inputs      every file read.
    fallbacks   (tensor, wanted type, given type) where a shape did not allow the wish.
    warnings    sentences for the user.
    """

    arch: str
    keys: Keys
    head: list[Tensor]
    layers: list[tuple[list[Tensor], Experts | None]]
    tail: list[Tensor]
    inputs: Sequence[Path]
    fallbacks: list[tuple[str, GGMLQuantizationType, GGMLQuantizationType]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
