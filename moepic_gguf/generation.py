"""One answer: tokens drawn, text cut at stop strings, timings. A `Generation` is both the stream and the result.

Knows a native context and a tokenizer's decoder; neither prompts, nor templates, nor how weights are kept.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import CancelledError, MoepicError
from .native_context import NativeContext, NativeSampler
from .stopping import StopScanner

if TYPE_CHECKING:
    from .config import SamplingOptions

OnToken = Callable[[str], object]
OnProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log of the model's probability, before sampling options: of the chosen token, and of the most likely (id,
    value).
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Request:
    """A checked order: everything `Generation` needs."""

    prompt: list[int]
    max_tokens: int
    sampling: SamplingOptions
    seed: int
    stop: Sequence[str] = ()
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    on_token: OnToken | None = None
    on_progress: OnProgress | None = None
    decoder: Any = None  # push(id) -> str, flush() -> str; None: the model serves ids only
    echo: str = ""
    finished: Callable[[Generation], None] | None = field(default=None, repr=False)


class Floor:
    """Who may continue on a context. A context holds one sequence, so a new answer ends an older one that was left
    unfinished.
    """

    def __init__(self) -> None:
        self._holder: weakref.ReferenceType[Generation] | None = None  # written under _lock
        self._lock = threading.Lock()

    def take(self, generation: Generation | None) -> None:
        """Give the floor to `generation`, or to other work (None), which replaces the sequence as well.

        `MoepicError` when an answer driven by another thread still has it.
        """
        with self._lock:
            holder = self._holder() if self._holder else None
            if holder is not None and holder is not generation and not holder.is_finished:
                if holder.thread != threading.get_ident():
                    raise MoepicError(
                        "this context is answering on another thread; use one context per thread "
                        "(model.new_context()), or close() that answer"
                    )
                holder.overtaken = True
            self._holder = None if generation is None else weakref.ref(generation)


class Generation:
    """The answer to one prompt. Iterating gives pieces of text as they come; afterwards the attributes hold the whole.

    tokens         ids that were generated, without the stop token; those of a stop string are included
    text           the answer, cut before a stop string; '' for a model without a tokenizer
    finish_reason  'stop' (stop token or string: `stop_reason`), 'length', 'cancelled'; None while it runs
    ttft_s, tpot_s wall seconds to the first token, and mean per later token (None with fewer than two)
    times_s        wall seconds from the start to each drawn token, the stop token's too
    logprobs       one `TokenLogprob` per token, when asked for
    prompt_tokens, reused_tokens, seed

    Leaving the loop early and dropping or closing the object stops the work; so does Ctrl-C, and the context stays
    usable.
    """

    def __init__(self, context: NativeContext, floor: Floor, request: Request) -> None:
        self._context = context
        self._floor = floor
        self._request = request
        self._steps: Iterator[str] | None = None
        self._cancelled = False
        self.overtaken = False
        self.thread = threading.get_ident()
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []
        self.prompt_tokens = len(request.prompt)
        self.reused_tokens = 0
        self.seed = request.seed
        self.times_s: list[float] = []

    # ---- the stream --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.is_finished:
            raise StopIteration
        self._require_floor()
        self.thread = threading.get_ident()
        if self._steps is None:
            self._floor.take(self)
            # Weakly: an answer dropped half-way lets go of the context, and so of the weights, at once.
            self._steps = Generation._run(weakref.proxy(self))
        try:
            return next(self._steps)
        except StopIteration:
            raise
        except BaseException:
            self._finish("cancelled")
            raise

    def finish(self) -> Generation:
        """Run to the end; returns itself."""
        for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """Stop within a layer; any thread. The iteration then ends with finish_reason 'cancelled'."""
        if not self.is_finished:
            self._cancelled = True
            if self._steps is not None and not self.overtaken:
                self._context.cancel()

    def close(self) -> None:
        """Stop. What was generated so far stays readable."""
        if not self.is_finished:
            self._finish("cancelled")

    @property
    def ttft_s(self) -> float | None:
        """Wall seconds to the first token; None before it."""
        return self.times_s[0] if self.times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean wall seconds per token after the first; None with fewer than two."""
        times = self.times_s
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

    @property
    def is_finished(self) -> bool:
        """Whether no more will come; `finish_reason` says why."""
        return self.finish_reason is not None

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Generation: {len(self.tokens)} tokens, {self.finish_reason or 'running'}>"

    # ---- the work ----------------------------------------------------------------------------------------------------

    def _require_floor(self) -> None:
        if self.overtaken:
            raise MoepicError(
                "another call on the same context ended this answer; use model.new_context() to hold two at once"
            )

    def _finish(self, reason: str, stop_reason: str | int | None = None) -> None:
        if self.finish_reason is None:
            self.finish_reason, self.stop_reason = reason, stop_reason
            finished, self._request.finished = self._request.finished, None  # it holds the context, which holds us
            if finished is not None and not self.overtaken:
                finished(self)

    def _emit(self, piece: str) -> bool:
        """Record a piece and show it; False when the listener wants no more."""
        self.text += piece
        return self._request.on_token is None or self._request.on_token(piece) is not False

    def _run(self) -> Iterator[str]:
        request, context = self._request, self._context
        scanner = StopScanner(request.stop)
        context.clear_cancel()  # one that came between two answers hit nothing
        start = time.perf_counter()
        if request.echo:
            if not self._emit(request.echo):
                return self._finish("cancelled")
            yield request.echo
        try:
            sampler = NativeSampler(request.sampling, request.seed)
            sampler.accept(request.prompt)
            self.reused_tokens = context.reuse(request.prompt)
            pending = request.prompt[self.reused_tokens :]
            reason, why = "length", None  # type: tuple[str, str | int | None]
            while len(self.tokens) < request.max_tokens:
                if self._cancelled:
                    reason = "cancelled"
                    break
                self._require_floor()  # a listener may have used the context
                context.eval(pending, on_progress=self._prefill_listener())
                token = sampler.sample(context)
                self.times_s.append(time.perf_counter() - start)
                if token in request.stop_ids:
                    reason, why = "stop", token
                    break
                self._note_logprobs(token)
                sampler.accept([token])
                self.tokens.append(token)
                pending = [token]
                if request.decoder is not None:
                    piece = scanner.push(request.decoder.push(token))
                    if piece:
                        if not self._emit(piece):
                            reason = "cancelled"
                            break
                        yield piece
                    if scanner.found is not None:
                        reason, why = "stop", scanner.found
                        break
                elif request.on_token is not None and request.on_token("") is False:
                    reason = "cancelled"
                    break
        except CancelledError:
            reason, why = "cancelled", None
        rest = ""
        if request.decoder is not None and scanner.found is None:
            rest = scanner.push(request.decoder.flush())
            if scanner.found is not None:
                reason, why = "stop", scanner.found
            else:
                rest += scanner.flush()
        if rest:
            self._emit(rest)
            yield rest
        self._finish(reason, why)

    def _prefill_listener(self) -> OnProgress | None:
        """The caller's listener, told positions of the whole prompt; None once the prompt is computed."""
        listener, reused, total = self._request.on_progress, self.reused_tokens, self.prompt_tokens
        if listener is None or self.times_s:
            return None
        return lambda done, _n: listener(reused + done, total)

    def _note_logprobs(self, token: int) -> None:
        if self.logprobs is None or self._request.logprobs is None:
            return
        chosen, top = self._context.logprobs(0, token, self._request.logprobs)
        self.logprobs.append(TokenLogprob(token, chosen, tuple(top)))
