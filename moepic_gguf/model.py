"""`Model`: weights with a context to talk to; loading, budgets and life. What a sequence does is in `context`."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .budgets import Budget, show_bytes
from .config import Configuration, ContextOptions, LoadOptions, need
from .context import AsyncGeneration, Context, Message, Stats
from .errors import BudgetError
from .generation import Generation
from .metadata import Metadata
from .progress import Progress
from .streaming import StreamingOptions, StreamStats
from .weights import ModelInfo, Weights

if TYPE_CHECKING:
    import numpy as np

    from .forecast import Forecast
    from .recording import Recorder


class Model:
    """Weights with a context to talk to. Close it (or use `with`) to free the memory at once.

    `generate`, `chat`, `agenerate`, `achat`, `logits`, `perplexity`, `tokenize`, `detokenize`, `stats` work on the
    model's own context; `new_context()` gives further sequences over the same weights, one per thread.
    """

    def __init__(self, weights: Weights, options: ContextOptions, chat_template: str | None) -> None:
        self._weights = weights
        self._chat_template = chat_template
        self.context = Context(weights, options, chat_template)
        self._more: weakref.WeakSet[Context] = weakref.WeakSet()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        vram: Budget = None,
        ram: Budget = None,
        n_ctx: int = 0,
        n_batch: int = 0,
        n_threads: int = 0,
        kv_type: str = "f16",
        isa: str = "auto",
        granule: int = 0,
        strict: bool = False,
        cpu_lane: bool = True,
        graphs: str = "auto",
        pin: Budget = None,
        policy: str | None = None,
        predictor: str | None = None,
        profile: str | os.PathLike[str] | Sequence[float] | None = None,
        plan: str | float | None = None,
        machine: str | os.PathLike[str] | None = None,
        trace: str | os.PathLike[str] | None = None,
        streaming: StreamingOptions | None = None,
        chat_template: str | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Load a GGUF file (or all shards when `path` is one of them).

        device         'auto' (a GPU if this machine and build have one, else the CPU; `config` says which and why), 'cpu', 'cuda'.
        ram            most RAM to use: bytes, '8GiB', '50%'. Where the experts do not fit, they are streamed from the
                       file through a cache that takes what the budget leaves.
        policy         which experts stay in the cache: lrfu, lru, lfu, lcp, static, auto.
        predictor      which are fetched before the router has spoken: next_layer, previous_token, none.
        profile        uses of experts for a warm start (`Model.save_profile`).
        plan           budgets and cuts per layer from measured rates: 'auto', 'paper' (MoEpic), 'uniform', or one split ratio
                       for all layers; needs `machine` (a file of `moepic-bench machine`) and is better with `trace`
                       (recorded routing of this model). `stats` then has the prediction beside what happened.
        streaming      everything else about it: `StreamingOptions`. The tokens never depend on any of these.
        vram           most of a device's memory to use: weights, one context, frames and the expert cache. None: what is free.
                       The experts lie in RAM and are divided between this cache, the link and the CPU.
        cpu_lane       on a device: the CPU computes granules beside it where that ends a layer sooner.
        graphs         on a device: launch a token whose experts are all resident as one graph; 'auto' (where that is measured to be faster),
                       'on', 'off'.
        pin            most RAM to pin for the device's link; None: all experts, as far as the system grants it.
        n_ctx          positions; 0: what the model was trained for, at most 4096. kv_type 'f16' or 'q8_0'.
        n_threads      0: all cores this process may use. The result does not depend on it.
        chat_template  which template `chat` uses: the name of one of the file's variants, or jinja source (told from a
                       name by a brace); None: the file's own.
        progress       called with (stage, done, total); return False to stop.
        Raises         `IoError`, `ModelFormatError`, `UnsupportedModelError` (names what is not supported),
                       `BudgetError` (need and have), `DeviceError`, `OutOfMemory`, `CancelledError`.
        """
        load = LoadOptions(device, vram, ram, n_threads, isa, granule, strict, cpu_lane, graphs, pin)
        options = ContextOptions(n_ctx, n_batch, n_threads, kv_type)
        options.validate()
        need(progress is None or callable(progress), f"progress: expected a function, found {progress!r}")
        streaming = streaming or StreamingOptions()
        given: dict[str, Any] = {"policy": policy, "predictor": predictor, "profile": profile}
        streaming = replace(streaming, **{name: value for name, value in given.items() if value is not None})
        forecast = None
        if plan is not None:
            from .planning import plan_load

            load.validate()
            forecast = plan_load(path, plan, load, options, streaming, machine=machine, trace=trace)
            if forecast is not None and forecast.options is not None:
                streaming = streaming.with_cache(forecast.options, learns=forecast.plan.mode == "auto")
                streaming = streaming if policy is None else replace(streaming, policy=policy)
        weights = Weights(path, load, progress, context=options, streaming=streaming)
        weights.forecast = forecast
        try:
            if chat_template is not None:
                weights.chat_template(chat_template)  # a wrong name is told now
            model = cls(weights, options, chat_template)
            model._check_ram()
        except BaseException:
            weights.close()
            raise
        return model

    def new_context(self, *, n_ctx: int | None = None, n_batch: int | None = None, n_threads: int | None = None,
                    kv_type: str | None = None) -> Context:  # fmt: skip
        """A further sequence over the same weights; options default to the model's own. `BudgetError` when it does not
        fit `ram`.
        """
        own = self.context.options
        options = ContextOptions(
            own.n_ctx if n_ctx is None else n_ctx,
            own.n_batch if n_batch is None else n_batch,
            own.n_threads if n_threads is None else n_threads,
            own.kv_type if kv_type is None else kv_type,
        )
        context = Context(self._weights, options, self._chat_template)
        self._more.add(context)
        try:
            self._check_ram()
        except BudgetError:
            context.close()
            raise
        return context

    def _check_ram(self) -> None:
        """Hold the RAM promise: weights, keys and values, and scratch of all contexts, as the engine reports them."""
        budget = self._weights.options.ram_bytes
        if budget is None:
            return
        weights = self.info.weight_bytes
        stats = [context.stats for context in (self.context, *self._more) if not context.is_closed]
        kv, scratch = sum(s.kv_bytes for s in stats), sum(s.scratch_bytes for s in stats)
        states = sum(s.state_bytes for s in stats)
        staging = self.info.staging_bytes
        need = weights + kv + states + scratch + staging
        if need > budget:
            raise BudgetError(
                f"ram: '{self._weights.path.name}' needs {show_bytes(need)} ({need} bytes: weights "
                f"{show_bytes(weights)}, keys and values "
                f"{show_bytes(kv)}, {f'states {show_bytes(states)}, ' if states else ''}scratch {show_bytes(scratch)}, "
                f"staging {show_bytes(staging)}), the budget is {show_bytes(budget)} ({budget} "
                f"bytes); lower n_ctx or "
                f"n_batch, use kv_type='q8_0', or raise ram"
            )

    # ---- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop and free all contexts, then the weights; again is harmless."""
        for context in (self.context, *self._more):
            context.close()
        self._weights.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model '{self._weights.path.name}'{' (closed)' if self._weights.is_closed else ''}>"

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """What the loaded model is: sizes, layers, kernels in use."""
        return self._weights.info

    @property
    def metadata(self) -> Metadata:
        """The file's keys, read on demand."""
        return self._weights.metadata

    @property
    def config(self) -> Configuration:
        """What is in force; print it."""
        context = replace(self.context.options, n_ctx=self.n_ctx, n_batch=self.context.native.n_batch)
        streaming = self._weights.streaming if self.info.streams else None
        return Configuration(self._weights.options, context, self._weights.device, streaming)

    @property
    def tokenizer(self) -> Any:
        """The file's tokenizer; `UnsupportedModelError` when it has none."""
        return self._weights.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file carries a tokenizer; without one it takes and gives token ids."""
        return self._weights.has_tokenizer

    @property
    def chat_template(self) -> str | None:
        """Jinja source in use; None when the file has none and none was given. `TemplateError` when it does not parse."""
        if self._chat_template is None and "default" not in self.chat_template_names:
            return None
        return self._weights.chat_template(self._chat_template).source

    @property
    def chat_template_names(self) -> list[str]:
        """Names of the file's chat templates: 'default' and its variants, if any."""
        return self._weights.chat_template_names

    @property
    def n_ctx(self) -> int:
        """Positions of the model's own context: prompt and answer together."""
        return self.context.n_ctx

    @property
    def stats(self) -> Stats:
        return self.context.stats

    @property
    def stream_stats(self) -> StreamStats | None:
        """What was streamed since load or `reset_stats()`, all contexts together; None where every expert is
        resident."""
        return self._weights.stream_stats

    @property
    def forecast(self) -> Forecast | None:
        """What the plan predicted; None without one, and where every expert is resident."""
        return self._weights.forecast

    def save_profile(self, path: str | os.PathLike[str]) -> None:
        """Write how often every expert was used since load, for a warm start of the same model (`profile=`).
        `ArgumentError` where nothing is streamed.
        """
        self._weights.save_profile(path)

    # ---- the model's own context -------------------------------------------------------------------------------------

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        return self.context.generate(prompt, **options)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        return self.context.chat(messages, **options)

    def agenerate(self, prompt: str | Sequence[int], **options: Any) -> AsyncGeneration:
        return self.context.agenerate(prompt, **options)

    def achat(self, messages: Sequence[Message], **options: Any) -> AsyncGeneration:
        return self.context.achat(messages, **options)

    def render_chat(self, messages: Sequence[Message], **options: Any) -> str:
        return self.context.render_chat(messages, **options)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self.context.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        return self.context.detokenize(tokens, skip_special=skip_special)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.context.logits(tokens)

    def perplexity(self, text: str | Sequence[int], **options: Any) -> float:
        return self.context.perplexity(text, **options)

    def record(
        self, *, trace: str | os.PathLike[str] | None = None, timeline: str | os.PathLike[str] | None = None
    ) -> Recorder:
        return self.context.record(trace=trace, timeline=timeline)

    def reset_stats(self) -> None:
        self.context.reset_stats()
        self._weights.reset_stream_stats()


def _share_documentation() -> None:
    """The model's methods are its context's; `help()` and editors say the same of both."""
    for name in (
        "generate",
        "chat",
        "agenerate",
        "achat",
        "render_chat",
        "tokenize",
        "detokenize",
        "logits",
        "perplexity",
        "record",
        "reset_stats",
        "stats",
    ):
        ours, theirs = vars(Model)[name], vars(Context)[name]
        if ours.__doc__ is None:
            ours.__doc__ = theirs.__doc__
        if callable(theirs):
            ours.__signature__ = inspect.signature(theirs)


_share_documentation()
