"""Tiny random models of every supported family, made on the spot with transformers. Only tests import this; it knows
nothing of GGUF.

    from tests.tiny import MODELS, make, save
    config, model = make("qwen2_moe")
    save(model, folder, layout="fused")
"""

from .models import (
    MODELS,
    ernie4_5_moe,
    glm4_moe,
    gpt_oss,
    granitemoe,
    hunyuan,
    llama,
    make,
    minimax_m2,
    mixtral,
    olmoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    save,
)
from .vocabularies import TEXTS, byte_level, sentencepiece_like

__all__ = [
    "MODELS",
    "TEXTS",
    "byte_level",
    "ernie4_5_moe",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "hunyuan",
    "llama",
    "make",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "save",
    "sentencepiece_like",
]
