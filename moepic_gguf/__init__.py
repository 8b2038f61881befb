"""MoEpic-GGUF: Mixture-of-Experts models in GGUF, run by a native engine.

    from moepic_gguf import Model
    with Model.load("model.gguf") as model:
        for piece in model.generate("Once upon a time", max_tokens=64, stream=True):
            print(piece, end="", flush=True)

Importing this package is cheap: the native library is opened by the first thing that needs it.
"""

from __future__ import annotations

from .config import ContextOptions, LoadOptions, SamplingOptions
from .context import Context
from .errors import (
    ArgumentError,
    BudgetError,
    CancelledError,
    ContextOverflowError,
    ConversionError,
    DeviceError,
    InternalError,
    IoError,
    ModelFormatError,
    MoepicError,
    OutOfMemory,
    TemplateError,
    UnsupportedModelError,
)
from .generation import Generation
from .metadata import GgufFile
from .model import Model
from .streaming import StreamingOptions, StreamStats

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BudgetError",
    "CancelledError",
    "Context",
    "ContextOptions",
    "ContextOverflowError",
    "ConversionError",
    "DeviceError",
    "Generation",
    "GgufFile",
    "InternalError",
    "IoError",
    "LoadOptions",
    "Model",
    "ModelFormatError",
    "MoepicError",
    "OutOfMemory",
    "SamplingOptions",
    "StreamStats",
    "StreamingOptions",
    "TemplateError",
    "UnsupportedModelError",
    "__version__",
]
