"""Python listeners of native work: progress, and what they raise. Knows neither what is done nor how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], object]  # stage, done, total; False stops the work


class KeptErrors:
    """What Python raises inside native callbacks, Ctrl-C included: pass it as `onerror`, and call `reraise` after the
    native call. Without it cffi prints the traceback and goes on.
    """

    def __init__(self) -> None:
        self._raised: list[BaseException] = []

    def __call__(self, _kind: object, error: BaseException, _traceback: object) -> int:
        self._raised.append(error)
        return 1  # stops the native work

    def reraise(self) -> None:
        if self._raised:
            raise self._raised[0]


class NativeProgress:
    """A listener as a `moepic_progress_fn`. Keep this object alive as long as native code may call `callback`.

    What the listener raises stops the work and is kept for `reraise`.
    """

    def __init__(self, listener: Progress) -> None:
        from ._ffi import ffi

        def report(stage: Any, done: int, total: int, _user: Any) -> int:
            return int(listener(ffi.string(stage).decode("ascii"), done, total) is False)

        kept = KeptErrors()
        self.reraise = kept.reraise
        self.callback = ffi.callback("moepic_progress_fn", report, onerror=kept, error=1)
