"""`Context`: one sequence of tokens over a model's weights, and what can be asked of it: answers, logits, perplexity, counters.

Arguments are checked here, answers are made in `generation`, numbers in the native library.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import os
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .budgets import show_bytes
from .config import ContextOptions, SamplingOptions, need, need_int
from .errors import ArgumentError, ContextOverflowError, UnsupportedModelError
from .generation import Floor, Generation, OnProgress, OnToken, Request
from .native_context import NativeContext
from .stopping import checked_stops
from .streaming import StreamStats
from .weights import Weights

if TYPE_CHECKING:
    import numpy as np

    from .recording import Recorder

Message = Mapping[str, Any]
log = logging.getLogger("moepic_gguf")


@dataclass(frozen=True)
class Stats:
    """Speeds of the last answer and counters of one context since it was made (or `reset_stats()`).

    ttft_s and tpot_s are wall seconds of the last answer: to its first token, and mean per later token. prefill_s and
    decode_s are seconds in the engine; a token computed alone is decode. expert_tasks counts (expert, granule) tasks of
    decode, experts_used counts (token, layer, expert) triples.
    """

    ttft_s: float | None
    tpot_s: float | None
    prompt_tokens: int
    generated_tokens: int
    prefill_tokens: int
    decode_tokens: int
    reused_tokens: int
    prefill_s: float
    decode_s: float
    expert_tasks: int
    experts_used: int
    kv_bytes: int
    scratch_bytes: int
    state_bytes: int
    load_s: float
    predicted_ttft_s: float | None = None  # by the plan, for its prompt length
    predicted_tpot_s: float | None = None
    stream: StreamStats | None = None  # hits, bytes per lane and stalls; None where every expert is resident

    @property
    def prefill_tokens_per_s(self) -> float | None:
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 and self.prefill_tokens else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        return self.decode_tokens / self.decode_s if self.decode_s > 0 and self.decode_tokens else None

    def __str__(self) -> str:
        def seconds(value: float | None) -> str:
            return "-" if value is None else f"{value * 1000:.1f} ms"

        def speed(value: float | None) -> str:
            return "-" if value is None else f"{value:.1f} tok/s"

        return (
            f"last answer   ttft {seconds(self.ttft_s)}, tpot {seconds(self.tpot_s)}, "
            f"{self.prompt_tokens} prompt tokens, {self.generated_tokens} generated\n"
            f"prefill       {self.prefill_tokens} tokens in {self.prefill_s:.2f} s "
            f"({speed(self.prefill_tokens_per_s)}), "
            f"{self.reused_tokens} more were reused\n"
            f"decode        {self.decode_tokens} tokens in {self.decode_s:.2f} s ({speed(self.decode_tokens_per_s)})\n"
            f"experts       {self.experts_used} used, {self.expert_tasks} granule tasks in decode\n"
            f"memory        keys and values {show_bytes(self.kv_bytes)}, "
            + (f"states {show_bytes(self.state_bytes)}, " if self.state_bytes else "")
            + f"scratch {show_bytes(self.scratch_bytes)}; "
            f"loaded in {self.load_s:.2f} s"
            + (
                f"\npredicted     ttft {seconds(self.predicted_ttft_s)}, tpot {seconds(self.predicted_tpot_s)}"
                if self.predicted_tpot_s is not None
                else ""
            )
            + (f"\n{self.stream}" if self.stream else "")
        )


class Context:
    """One sequence of tokens over a model's weights: keys, values, counters. Made by `Model.new_context`; used by one
    thread at a time.
    """

    def __init__(self, weights: Weights, options: ContextOptions, chat_template: str | None = None) -> None:
        self.native = NativeContext(weights, options)
        self._weights = weights
        self._floor = Floor()
        self._template = chat_template
        self._last: Generation | None = None
        self.options = options
        self._n_vocab = weights.n_vocab

    # ---- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what runs and free keys and values; again is harmless."""
        self.native.close()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether this context or its model was closed."""
        return self.native.is_closed

    @property
    def n_ctx(self) -> int:
        """Positions: prompt and answer together."""
        return self.native.n_ctx

    @property
    def stats(self) -> Stats:
        """Speeds of the last answer, and this context's counters."""
        counters = self.native.counters()
        last, forecast = self._last, self._weights.forecast
        return Stats(
            ttft_s=last.ttft_s if last else None,
            tpot_s=last.tpot_s if last else None,
            prompt_tokens=last.prompt_tokens if last else 0,
            generated_tokens=len(last.tokens) if last else 0,
            load_s=self._weights.load_s,
            predicted_ttft_s=forecast.ttft.mean_s if forecast else None,
            predicted_tpot_s=forecast.tpot.mean_s if forecast else None,
            stream=self._weights.stream_stats,
            **counters,  # type: ignore[arg-type]
        )

    def reset_stats(self) -> None:
        """Set the counters to zero and forget the last answer's times."""
        self.native.reset_counters()
        self._last = None

    def record(
        self, *, trace: str | os.PathLike[str] | None = None, timeline: str | os.PathLike[str] | None = None
    ) -> Recorder:
        """Record from now on, until the recorder is closed (use `with`): routing with what was predicted, found and waited for
        (docs/trace-format.md), and a timeline of threads and lanes for ui.perfetto.dev. Files appear when it is closed.
        """
        from .recording import Recorder

        return Recorder(self.native, self._weights, trace=trace, timeline=timeline)

    def clear(self) -> None:
        """Forget the sequence; the next prompt is computed from its beginning."""
        self._floor.take(None)
        self.native.truncate(0)

    # ---- text and tokens ---------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of `text`. `add_special` adds what the model wants around a text (often a first token); `parse_special`
        reads '<|...|>' as such.
        """
        return list(self._weights.tokenizer.encode(text, add_special=add_special, parse_special=parse_special))

    def detokenize(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of `tokens`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves out control tokens."""
        return str(self._weights.tokenizer.decode(_whole_numbers("tokens", tokens), skip_special=skip_special))

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of `messages` by the chat template chosen at load. Where none was, `tools` choose the file's variant
        'tool_use' if it has one, as in transformers.

        chat_template  another one for this call: the name of one of the file's variants, or jinja source.
        variables      what the template may use: `tools`, `enable_thinking`, ...
        Raises         `TemplateError` when there is no such template or it fails.
        """
        choice = self._template if chat_template is None else chat_template
        if choice is None and variables.get("tools") is not None and "tool_use" in self._weights.chat_template_names:
            choice = "tool_use"
        template = self._weights.chat_template(choice)
        return template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    # ---- generating --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_last_n: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_tokens: Sequence[int] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        stream: bool = False,
        on_token: OnToken | None = None,
        on_progress: OnProgress | None = None,
        echo: bool = False,
        parse_special: bool = False,
        add_special: bool = True,
    ) -> Generation:
        """Continue `prompt`; returns a `Generation`: finished, or with stream=True to be iterated piece by piece.

        prompt         text, or token ids. Keys and values of a common beginning with the previous sequence are reused.
        max_tokens     None: until the model stops or the context is full (finish_reason 'length'). A number must fit
                       behind the prompt.
        temperature    0 is greedy: the same build and prompt give the same tokens. The other options are described in
                       `SamplingOptions`.
        stop           strings that end the answer and are not part of it, even when they straddle tokens; held back
                       while streaming.
        stop_tokens    ids that end the answer, beside the model's own end tokens (which `ignore_eos` turns off).
        logprobs       k: keep each token's log probability and the k most likely.
        on_token       called with each piece of text ('' per token for a model without tokenizer); return False to
                       stop. Its exceptions reach you.
        on_progress    called with (done, total) prompt tokens before each batch of the prompt and at its end, maybe on
                       another thread, unless only one token is to be computed; return False to stop. Its exceptions
                       reach you.
        echo           begin the text with the prompt's.
        parse_special  read special tokens in a text prompt as such; add_special adds the model's first token to a text
                       prompt.
        Raises         `ContextOverflowError` with counts before anything is computed; `ArgumentError` naming the
                       argument; `UnsupportedModelError` for text when the file has no tokenizer; `KeyboardInterrupt` on
                       Ctrl-C, promptly.
        """
        sampling = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            penalty_last_n=penalty_last_n,
            seed=seed,
            logit_bias={} if logit_bias is None else logit_bias,
        )
        sampling.validate(self._n_vocab)
        stops = checked_stops(stop)
        stop_ids = frozenset(self._checked_ids("stop_tokens", stop_tokens or ()))
        if logprobs is not None:
            need_int("logprobs", logprobs, 0, self._n_vocab)
        for name, listener in (("on_token", on_token), ("on_progress", on_progress)):
            need(listener is None or callable(listener), f"{name}: expected a function, found {listener!r}")
        ids = self._prompt_ids(prompt, add_special, parse_special)
        room = self._room(len(ids), max_tokens)
        tokenizer = self._tokenizer_for(prompt, stops)
        decoder = None
        if tokenizer is not None:
            from .tokenizer import StreamDecoder

            # After a control token ("<|assistant|>", a first token) the answer begins a text; else it continues one.
            decoder = StreamDecoder(tokenizer, at_start=tokenizer.is_control(ids[-1]))
            if not ignore_eos:
                stop_ids |= tokenizer.stop_ids
        request = Request(
            prompt=ids,
            max_tokens=room,
            sampling=sampling,
            seed=random.SystemRandom().getrandbits(63) if seed is None else seed,
            stop=stops,
            stop_ids=stop_ids,
            logprobs=logprobs,
            on_token=on_token,
            on_progress=on_progress,
            decoder=decoder,
            echo=(prompt if isinstance(prompt, str) else self.detokenize(ids)) if echo else "",
            finished=self._remember,
        )
        generation = Generation(self.native, self._floor, request)
        return generation if stream else generation.finish()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        stream: bool = False,
        chat_template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation:
        """Answer a conversation: [{"role": "system"|"user"|"assistant", "content": text}, ...].

        The model's own chat template, or the `chat_template` of `render_chat`, is rendered as transformers renders it
        (with `template_variables`, e.g. tools), special tokens in it are read as such, and the answer ends at the
        model's end tokens. `options` are those of `generate`. Raises `TemplateError` as well.
        """
        text = self.render_chat(messages, chat_template=chat_template, **dict(template_variables or {}))
        options.setdefault("parse_special", True)
        # The template writes the first token itself where the model wants one, as in transformers.
        options.setdefault("add_special", False)
        return self.generate(text, max_tokens=max_tokens, stream=stream, **options)

    def agenerate(self, prompt: str | Sequence[int], **options: Any) -> AsyncGeneration:
        """`generate` for asyncio: `async for piece in model.agenerate(...)`. Cancelling the task stops the work within
        a layer.
        """
        options.pop("stream", None)
        return AsyncGeneration(self.generate(prompt, stream=True, **options))

    def achat(self, messages: Sequence[Message], **options: Any) -> AsyncGeneration:
        """`chat` for asyncio."""
        options.pop("stream", None)
        return AsyncGeneration(self.chat(messages, stream=True, **options))

    # ---- measuring the model -----------------------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after each token: float32 [n_tokens, n_vocab], row i for the token that follows tokens[i]. Replaces the
        context's sequence. Raises `ContextOverflowError`, `ArgumentError`.
        """
        import numpy as np

        ids = self._sequence("tokens", tokens)
        self._room(len(ids), None)
        out = np.empty((len(ids), self._n_vocab), dtype=np.float32)
        self._floor.take(None)
        self.native.clear_cancel()
        self.native.truncate(0)
        for first in range(0, len(ids), self.native.n_batch):
            part = ids[first : first + self.native.n_batch]
            self.native.eval(part, all_logits=True)
            self.native.copy_logits(out[first : first + len(part)])
        return out

    def perplexity(self, text: str | Sequence[int], *, n_ctx: int | None = None, on_window: Any = None) -> float:
        """exp of the mean negative log probability of `text`, as llama.cpp's llama-perplexity defines it.

        The tokens are cut into windows of `n_ctx` (None: the smaller of 512, the context, and the text); an incomplete
        last window is dropped; each window begins with the model's first token in place of its own, where the model
        wants one; the second half of each window is scored, so every scored token has at least n_ctx / 2 tokens before
        it. `on_window(i, n, so_far)` is called after each window. Replaces the context's sequence. Raises
        `ContextOverflowError` for windows longer than the context, `ArgumentError` for a text shorter than one.
        """
        ids = self.tokenize(text) if isinstance(text, str) else self._sequence("text", text)
        if n_ctx is not None:
            need_int("n_ctx", n_ctx, 4)
        window = n_ctx or min(512, self.n_ctx, len(ids))
        if window > self.n_ctx:
            raise ContextOverflowError(f"perplexity: windows of {window} tokens do not fit a context of {self.n_ctx}")
        if window < 4 or len(ids) < window:
            raise ArgumentError(
                f"perplexity: the text has {len(ids)} tokens; expected at least one window of {max(window, 4)}"
            )
        begin = (
            [self._weights.tokenizer.bos_id] if self._weights.has_tokenizer and self._weights.tokenizer.add_bos else []
        )
        n_windows = len(ids) // window
        half = window // 2
        total, count = 0.0, 0
        self._floor.take(None)
        self.native.clear_cancel()
        for i in range(n_windows):
            part = ids[i * window : (i + 1) * window]
            part[: len(begin)] = begin
            self.native.truncate(0)
            self.native.eval(part[:half])
            for first in range(half, window - 1, self.native.n_batch):
                last = min(first + self.native.n_batch, window - 1)
                self.native.eval(part[first:last], all_logits=True)
                for row in range(last - first):
                    total -= self.native.logprobs(row, part[first + row + 1], 0)[0]
                    count += 1
            if on_window is not None:
                on_window(i + 1, n_windows, math.exp(total / count))
        return math.exp(total / count)

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _remember(self, generation: Generation) -> None:
        self._last = generation

    def _tokenizer_for(self, prompt: str | Sequence[int], stops: Sequence[str]) -> Any:
        """The tokenizer, or None where token ids can be served without one."""
        if isinstance(prompt, str) or stops:
            return self._weights.tokenizer
        if not self._weights.has_tokenizer:
            return None
        try:
            return self._weights.tokenizer
        except UnsupportedModelError as error:
            log.warning("serving token ids only: %s", error)
            return None

    def _checked_ids(self, name: str, tokens: Iterable[int]) -> list[int]:
        ids = _whole_numbers(name, tokens)
        for position, token in enumerate(ids):
            if not 0 <= token < self._n_vocab:
                raise ArgumentError(
                    f"{name}: {token} at position {position} is outside the vocabulary of {self._n_vocab}"
                )
        return ids

    def _sequence(self, name: str, tokens: Iterable[int]) -> list[int]:
        ids = self._checked_ids(name, tokens)
        need(bool(ids), f"{name}: at least one token is needed")
        return ids

    def _prompt_ids(self, prompt: str | Sequence[int], add_special: bool, parse_special: bool) -> list[int]:
        if not isinstance(prompt, str):
            return self._sequence("prompt", prompt)
        ids = self.tokenize(prompt, add_special=add_special, parse_special=parse_special)
        need(bool(ids), "prompt: it is empty, and this model wants no first token; give at least one character")
        return ids

    def _room(self, n_prompt: int, max_tokens: int | None) -> int:
        """Tokens that may be generated: prompt and answer share the positions."""
        room = self.n_ctx - n_prompt
        if n_prompt > self.n_ctx:
            raise ContextOverflowError(
                f"context: the prompt has {n_prompt} tokens, the context holds {self.n_ctx}; shorten it, or load with "
                f"a larger n_ctx"
            )
        if max_tokens is None:
            return room
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, Integral) or max_tokens < 0:
            raise ArgumentError(f"max_tokens: expected None or a number of tokens, found {max_tokens!r}")
        if max_tokens > room:
            raise ContextOverflowError(
                f"context: {n_prompt} prompt tokens + {max_tokens} max_tokens = {n_prompt + max_tokens}, the context "
                f"holds {self.n_ctx}; lower "
                f"max_tokens to {room}, or pass None for as many as fit"
            )
        return max_tokens


def _whole_numbers(name: str, values: Iterable[int]) -> list[int]:
    """`values` as plain ints: numpy's and torch's integers too; no text, no floats."""
    if not isinstance(values, (str, bytes, Mapping)):
        with contextlib.suppress(TypeError):
            return [operator.index(value) for value in values]
    raise ArgumentError(f"{name}: expected a sequence of token ids (whole numbers), found {repr(values)[:80]}")


class AsyncGeneration:
    """A `Generation` driven from asyncio; `result` is the Generation itself."""

    def __init__(self, result: Generation) -> None:
        self.result = result

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        import asyncio  # here, because it costs more than all the rest of `import moepic_gguf`

        step = asyncio.ensure_future(asyncio.to_thread(next, self.result, None))
        try:
            piece = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.result.cancel()
            await asyncio.wait([step])  # at most one layer
            self.result.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self.result.cancel()
        self.result.close()

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
