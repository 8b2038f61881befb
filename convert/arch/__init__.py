"""The Hugging Face families this converter reads: one row each, found by `model_type`. Names and shapes only, no
bytes.
"""

from __future__ import annotations

from .deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE
from .ernie import ERNIE4_5_MOE
from .family import NEXTN, Experts, Family, Shared
from .gemma import GEMMA3, GEMMA4
from .glm4_moe import GLM4_MOE
from .gpt_oss import GPT_OSS
from .granite import GRANITE_MOE
from .hunyuan import HUNYUAN_V1_MOE
from .lfm2 import LFM2, LFM2_MOE
from .llama import LLAMA, MISTRAL, MIXTRAL
from .llama4 import LLAMA4
from .minimax import MINIMAX_M2
from .olmoe import OLMOE
from .phimoe import PHIMOE
from .qwen2 import QWEN2, QWEN2_MOE
from .qwen3 import QWEN3, QWEN3_MOE
from .qwen3_next import QWEN3_5, QWEN3_5_MOE, QWEN3_5_MOE_TEXT, QWEN3_5_TEXT, QWEN3_NEXT

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        GLM4_MOE_LITE,
        ERNIE4_5_MOE,
        GEMMA3,
        GEMMA4,
        GLM4_MOE,
        GPT_OSS,
        GRANITE_MOE,
        HUNYUAN_V1_MOE,
        LFM2,
        LFM2_MOE,
        LLAMA,
        LLAMA4,
        MINIMAX_M2,
        MISTRAL,
        MIXTRAL,
        OLMOE,
        PHIMOE,
        QWEN2,
        QWEN2_MOE,
        QWEN3,
        QWEN3_5,
        QWEN3_5_MOE,
        QWEN3_5_MOE_TEXT,
        QWEN3_5_TEXT,
        QWEN3_MOE,
        QWEN3_NEXT,
    )
}
# GGUF architectures the engine runs, for inputs that are already GGUF.
GGUF_ARCHITECTURES = frozenset(family.arch for family in FAMILIES.values())

__all__ = ["FAMILIES", "GGUF_ARCHITECTURES", "NEXTN", "Experts", "Family", "Shared"]
