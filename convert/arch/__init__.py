"""The Hugging Face families this converter reads: one row each, found by `model_type`. Names and shapes only, no
bytes.
"""

from __future__ import annotations

from .family import Experts, Family, Shared
from .gpt_oss import GPT_OSS
from .llama import LLAMA, MISTRAL, MIXTRAL
from .olmoe import OLMOE
from .qwen2 import QWEN2, QWEN2_MOE
from .qwen3 import QWEN3, QWEN3_MOE

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (GPT_OSS, LLAMA, MISTRAL, MIXTRAL, OLMOE, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE)
}
# GGUF architectures the engine runs, for inputs that are already GGUF.
GGUF_ARCHITECTURES = frozenset(family.arch for family in FAMILIES.values())

__all__ = ["FAMILIES", "GGUF_ARCHITECTURES", "Experts", "Family", "Shared"]
