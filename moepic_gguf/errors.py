"""The exceptions of MoEpic-GGUF, and the one place where native codes become exceptions.

Every error raised on purpose derives from `MoepicError`, and from the builtin that a caller would naturally catch as
well (`ValueError` for a bad argument, `MemoryError` where memory ran out). This module knows no native library: it is
given a code and a text.
"""

from __future__ import annotations


class MoepicError(Exception):
    """Base of everything this package raises on purpose."""


class ArgumentError(MoepicError, ValueError):
    """An argument is out of range, of the wrong kind, or contradicts another one."""


class IoError(MoepicError, OSError):
    """A file could not be opened, read, written or renamed."""


class ModelFormatError(MoepicError, ValueError):
    """The bytes or the keys of a model file break the format; the text names the tensor, key or offset."""


class UnsupportedModelError(MoepicError, ValueError):
    """A well-formed file asks for something this build cannot do: an architecture, a block type, a tokenizer."""


class OutOfMemory(MoepicError, MemoryError):
    """The system refused memory; the text names what was being allocated and how many bytes."""


class BudgetError(MoepicError, ValueError):
    """A memory budget cannot be parsed, or is smaller than what the model needs at least."""


class DeviceError(MoepicError, RuntimeError):
    """A device or its driver is absent or failed."""


class ContextOverflowError(MoepicError, ValueError):
    """The tokens do not fit the context; raised before anything is computed, with the counts in the text."""


class CancelledError(MoepicError):
    """Work was stopped because the caller asked for it."""


class InternalError(MoepicError, RuntimeError):
    """A promise inside the library was broken: a defect of ours, not of the caller. Please report the text."""


class TemplateError(MoepicError, ValueError):
    """A chat template does not parse or failed while rendering.

    `line` is the 1-based line of the template, None where none is known. The text names it and the reason.
    """

    def __init__(self, text: str, *, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


class ConversionError(MoepicError, RuntimeError):
    """A model could not be converted; the target file was not touched."""


# Codes of native/include/moepic.h.
_BY_CODE: dict[int, type[MoepicError]] = {
    -1: ArgumentError,
    -2: IoError,
    -3: ModelFormatError,
    -4: UnsupportedModelError,
    -5: OutOfMemory,
    -6: BudgetError,
    -7: DeviceError,
    -8: ContextOverflowError,
    -9: CancelledError,
    -10: InternalError,
}


def check(code: int, text: str) -> None:
    """Return if the native `code` is 0 or positive, else raise its exception with `text`, the thread's last error.

    A code outside the table is an `InternalError` that shows the code: header and bindings have drifted apart.
    """
    if code >= 0:
        return
    kind = _BY_CODE.get(code)
    if kind is None:
        raise InternalError(f"unknown native code {code}: {text}")
    raise kind(text)
