"""Progress of native work shown to Python listeners. Knows neither what is done nor how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], object]  # stage, done, total; False stops the work


class NativeProgress:
    """A listener as a `moepic_progress_fn`. Keep this object alive as long as native code may call `callback`.

    What the listener raises (Ctrl-C included, on the main thread) stops the work and is kept for `reraise`.
    """

    def __init__(self, listener: Progress) -> None:
        from ._ffi import ffi

        raised: list[BaseException] = []

        def keep(_kind: object, error: BaseException, _traceback: object) -> int:
            raised.append(error)
            return 1

        def report(stage: Any, done: int, total: int, _user: Any) -> int:
            return int(listener(ffi.string(stage).decode("ascii"), done, total) is False)

        self._raised = raised
        self.callback = ffi.callback("moepic_progress_fn", report, onerror=keep, error=1)

    def reraise(self) -> None:
        """After the native call: raise what the listener raised, if it did."""
        if self._raised:
            raise self._raised[0]
