"""One native context: exclusive use, calls that Ctrl-C can stop, errors as exceptions. Knows tokens and logits; no
text, no sampling rules.

Threads: every native call is made under `exclusive`, so that `close` on another thread waits for it; `cancel` alone may
come from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .config import ContextOptions, SamplingOptions
from .errors import ArgumentError, CancelledError, InternalError, MoepicError, check
from .metadata import checked, last_error
from .progress import NativeProgress

if TYPE_CHECKING:
    from .weights import Weights

# Python runs its Ctrl-C handler only between bytecodes, so a native call on the main thread would delay it. Calls
# expected to last longer than this run on a helper thread while the main thread waits in a way that Ctrl-C interrupts;
# shorter ones are not worth the two thread switches (some 50 us).
_NOTICEABLE_S = 0.05


class NativeContext:
    """Owns a `moepic_context`. Raises `MoepicError` when used after `close()`."""

    def __init__(self, weights: Weights, options: ContextOptions) -> None:
        from ._ffi import lib

        options.validate()
        self._weights = weights
        self._pointer: Any = None
        self._lock = threading.Lock()
        self._last_call_s = 0.0
        self._drain: Callable[[bool], None] | None = None
        self._pointer = weights.create_context(options.to_native())
        self.n_ctx = int(lib.moepic_context_n_ctx(self._pointer))
        self.n_batch = options.n_batch or 512

    @property
    def pointer(self) -> Any:
        if self._pointer is None:
            raise MoepicError("this context (or its model) is closed")
        self._weights.require_open()
        return self._pointer

    @property
    def is_closed(self) -> bool:
        return self._pointer is None or self._weights.is_closed

    def close(self) -> None:
        """Stop what runs, wait for it (at most one layer), and free. Again is harmless."""
        if self._pointer is None:
            return
        self._weights.cancel_context(self._pointer)
        with self._lock:
            pointer, self._pointer = self._pointer, None
            if pointer is not None:
                self._weights.free_context(pointer)

    @contextmanager
    def exclusive(self) -> Iterator[Any]:
        """The native pointer, for one thread at a time; a second thread gets a `MoepicError` instead of waiting."""
        if not self._lock.acquire(blocking=False):
            raise MoepicError(
                "this context is computing on another thread; use one context per thread (model.new_context())"
            )
        try:
            yield self.pointer
        finally:
            self._lock.release()

    # ---- computing ---------------------------------------------------------------------------------------------------

    def eval(
        self,
        tokens: Sequence[int],
        *,
        all_logits: bool = False,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Append tokens and compute logits of the last one, or of all. Ctrl-C stops within a layer and keeps the
        context usable.

        on_progress   called with (done, total) of `tokens` before each batch and at the end, on the thread that
                      computes; returning False stops (`CancelledError`), what it raises reaches the caller.
        """
        from ._ffi import ffi, lib

        ids = self._ids(tokens)
        report = None if on_progress is None else NativeProgress(lambda _stage, done, total: on_progress(done, total))
        with self.exclusive() as pointer:
            slow = len(tokens) > 1 or self._last_call_s > _NOTICEABLE_S
            start = time.perf_counter()
            if report is not None:
                lib.moepic_context_set_progress(pointer, report.callback, ffi.NULL)
            try:
                self._interruptible(
                    lambda: lib.moepic_context_eval(pointer, ids, len(tokens), int(all_logits)), pointer, slow
                )
            except CancelledError:
                if report is not None:
                    report.reraise()
                raise
            finally:
                if report is not None:
                    lib.moepic_context_set_progress(pointer, ffi.NULL, ffi.NULL)
            self._last_call_s = time.perf_counter() - start
            if self._drain is not None:
                self._drain(False)

    # ---- recording ---------------------------------------------------------------------------------------------------

    def record(self, *, trace: bool, timeline: bool, drain: Callable[[bool], None] | None) -> None:
        """Have the engine record routing or spans; `drain(False)` is called after every eval and `drain(True)` when a new
        sequence starts, both with this context held.
        """
        from ._ffi import lib

        if self.is_closed:
            return
        with self.exclusive() as pointer:
            lib.moepic_context_set_trace(pointer, int(trace))
            lib.moepic_context_set_timeline(pointer, int(timeline))
            self._drain = drain

    def take_trace(self) -> tuple[bytes, int]:
        """Records since the last call, and the bytes of one. For a drain alone."""
        from ._ffi import ffi, lib

        data, size = ffi.new("const void**"), ffi.new("int64_t*")
        n = lib.moepic_context_trace(data, size, self._pointer)
        return bytes(ffi.buffer(data[0], n * size[0])) if n else b"", int(size[0])

    def take_timeline(self) -> bytes:
        """Events since the last call, as `moepic_event`s. For a drain alone."""
        from ._ffi import ffi, lib

        data = ffi.new("const moepic_event**")
        n = lib.moepic_context_timeline(data, self._pointer)
        return bytes(ffi.buffer(data[0], n * ffi.sizeof("moepic_event"))) if n else b""

    def _interruptible(self, call: Callable[[], int], pointer: Any, slow: bool) -> None:
        if not slow or threading.current_thread() is not threading.main_thread():
            checked(call())
            return
        from ._ffi import lib

        outcome: list[tuple[int, str]] = []
        done = threading.Event()

        turn = threading.Lock()  # whoever takes it first decides whether the call is made at all

        def work() -> None:
            if turn.acquire(blocking=False):
                code = call()
                outcome.append((code, last_error() if code < 0 else ""))  # the text belongs to this thread
                done.set()

        try:
            threading.Thread(target=work, name="moepic-eval", daemon=True).start()
            done.wait()
        except BaseException:  # KeyboardInterrupt, or whatever a signal handler of the caller raises
            if not turn.acquire(blocking=False):
                lib.moepic_context_cancel(pointer)
                while not done.is_set():
                    try:
                        done.wait()
                    except KeyboardInterrupt:  # already stopping; at most one layer remains
                        continue
                lib.moepic_context_clear_cancel(pointer)
            raise
        check(*outcome[0])

    def _ids(self, tokens: Sequence[int]) -> Any:
        from ._ffi import ffi

        try:
            return ffi.new("int32_t[]", list(tokens))
        except (TypeError, OverflowError) as error:
            raise ArgumentError(f"tokens: expected whole numbers that fit int32 ({error})") from None

    def cancel(self) -> None:
        """Stop the running eval at the next layer, or the next eval. Any thread."""
        pointer = self._pointer
        if pointer is not None:
            self._weights.cancel_context(pointer)

    def clear_cancel(self) -> None:
        """Forget a cancel that hit nothing."""
        from ._ffi import lib

        with self.exclusive() as pointer:
            lib.moepic_context_clear_cancel(pointer)

    # ---- the sequence ------------------------------------------------------------------------------------------------

    def reuse(self, tokens: Sequence[int]) -> int:
        """Keep the common prefix with `tokens`, at most all but the last; returns how many were kept."""
        from ._ffi import lib

        with self.exclusive() as pointer:
            if self._drain is not None:
                self._drain(True)
            return checked(lib.moepic_context_reuse(pointer, self._ids(tokens), len(tokens)))

    def truncate(self, n_tokens: int) -> None:
        from ._ffi import lib

        with self.exclusive() as pointer:
            checked(lib.moepic_context_truncate(pointer, n_tokens))

    def copy_logits(self, out: Any) -> None:
        """Copy the last eval's logits into a float32 array [rows, n_vocab] of just that shape."""
        from ._ffi import ffi, lib

        data, rows, vocab = ffi.new("const float**"), ffi.new("int64_t*"), ffi.new("int64_t*")
        with self.exclusive() as pointer:
            checked(lib.moepic_context_logits(data, rows, vocab, pointer))
            if (rows[0], vocab[0]) != out.shape:
                raise InternalError(f"logits: [{rows[0]}, {vocab[0]}] came back, {list(out.shape)} were expected")
            ffi.memmove(ffi.from_buffer(out), data[0], rows[0] * vocab[0] * 4)

    def logprobs(self, row: int, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """log softmax of a row of the last logits: of `token`, and the `top` most likely (id, value), descending."""
        from ._ffi import ffi, lib

        one, ids, values = ffi.new("float*"), ffi.new("int32_t[]", max(top, 1)), ffi.new("float[]", max(top, 1))
        with self.exclusive() as pointer:
            checked(lib.moepic_context_logprobs(one, ids, values, pointer, row, token, top))
        return one[0], [(ids[i], values[i]) for i in range(top)]

    # ---- counters ----------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, float]:
        """The native `moepic_stats` as a dict."""
        from ._ffi import ffi, lib

        out = ffi.new("moepic_stats*")
        out.size = ffi.sizeof("moepic_stats")
        with self.exclusive() as pointer:
            checked(lib.moepic_context_stats(out, pointer))
        return {name: getattr(out, name) for name, _ in ffi.typeof("moepic_stats").fields if name != "size"}

    def reset_counters(self) -> None:
        from ._ffi import lib

        with self.exclusive() as pointer:
            lib.moepic_context_reset_stats(pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.close()


class NativeSampler:
    """Draws tokens from a context's last logits."""

    def __init__(self, options: SamplingOptions, seed: int) -> None:
        from ._ffi import ffi, lib

        native = ffi.new("moepic_sampler_options*")
        lib.moepic_sampler_options_init(native)
        for name in vars(options):
            if name not in ("seed", "logit_bias"):  # the rest has the same names on both sides
                setattr(native, name, getattr(options, name))
        native.seed = seed
        bias_ids = ffi.new("int32_t[]", list(options.logit_bias.keys()))
        bias_values = ffi.new("float[]", [float(value) for value in options.logit_bias.values()])
        native.n_bias, native.bias_ids, native.bias_values = len(options.logit_bias), bias_ids, bias_values
        out = ffi.new("moepic_sampler**")
        checked(lib.moepic_sampler_create(out, native))
        self._pointer = ffi.gc(out[0], lib.moepic_sampler_free)
        self._token = ffi.new("int32_t*")
        self._keep = (bias_ids, bias_values)

    def accept(self, tokens: Sequence[int]) -> None:
        from ._ffi import ffi, lib

        checked(lib.moepic_sampler_accept(self._pointer, ffi.new("int32_t[]", list(tokens)), len(tokens)))

    def sample(self, context: NativeContext) -> int:
        from ._ffi import lib

        with context.exclusive() as pointer:
            checked(lib.moepic_sampler_sample(self._token, self._pointer, pointer))
        return int(self._token[0])
