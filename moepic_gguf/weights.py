"""The weights of one model and what its file says: shared by contexts, immutable after load. Generates nothing."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .budgets import show_bytes
from .config import GRAPHS, ISA_NAMES, ContextOptions, DeviceChoice, LoadOptions, choose_device
from .errors import MoepicError, TemplateError, UnsupportedModelError
from .metadata import Metadata, checked, resolve_path, text_of, type_name
from .progress import NativeProgress, Progress
from .streaming import StreamingOptions, StreamStats, read_stream_stats

if TYPE_CHECKING:
    from .forecast import Forecast
    from .template import ChatTemplate

log = logging.getLogger("moepic_gguf")
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


@dataclass(frozen=True)
class LayerInfo:
    """One layer's feed-forward. Sizes as in the GGUF; `granule` and `top_granules` say how its experts are cut."""

    n_expert: int  # 0: dense
    n_expert_used: int
    n_ff: int
    granule: int
    n_granules: int
    top_granules: int
    n_ff_shared: int
    gate_type: str
    up_type: str
    down_type: str
    expert_bytes: int
    device: int  # -1: CPU


@dataclass(frozen=True)
class ModelInfo:
    """What a loaded model is. Bytes unless the name says otherwise."""

    path: str
    name: str
    architecture: str
    n_layer: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_head: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    n_expert: int
    n_expert_used: int
    n_params: int
    file_bytes: int
    weight_bytes: int
    expert_bytes: int
    active_bytes: int
    kv_bytes_per_token_f16: int
    kv_window_bytes_f16: int
    isa: str
    streams: bool  # experts are streamed through an expert cache
    n_moe_layer: int
    cache_bytes: int
    staging_bytes: int
    layers: tuple[LayerInfo, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        experts = f"{self.n_expert} experts, {self.n_expert_used} used per token" if self.n_expert else "dense"
        return (
            f"{self.name or Path(self.path).name}: {self.architecture}, {self.n_layer} layers, {experts}, "
            f"{self.n_params / 1e6:,.1f} M weights\n"
            f"weights {show_bytes(self.weight_bytes)} ({show_bytes(self.expert_bytes)} in routed experts), read per "
            f"token "
            f"{show_bytes(self.active_bytes)}, keys and values {show_bytes(self.kv_bytes_per_token_f16)} per token"
            f"{f' and {show_bytes(self.kv_window_bytes_f16)} in windows' if self.kv_window_bytes_f16 else ''}, "
            f"kernels {self.isa}"
            + (
                f"\nstreamed: expert cache {show_bytes(self.cache_bytes)}, staging {show_bytes(self.staging_bytes)}"
                if self.streams
                else ""
            )
        )


class Weights:
    """Owns the `moepic_model` and frees its contexts before it, whatever the order in which Python lets go of them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: LoadOptions,
        progress: Progress | None = None,
        *,
        context: ContextOptions | None = None,
        streaming: StreamingOptions | None = None,
    ) -> None:
        from ._ffi import lib

        self._lib = lib  # kept, because nothing can be imported any more when the interpreter ends
        self._pointer: Any = None
        self._contexts: set[Any] = set()  # native pointers that are not freed yet
        # Of _contexts and _pointer. Re-entrant, because the garbage collector may free a context while this thread
        # holds it.
        self._lock = threading.RLock()
        options.validate()
        streaming = streaming or StreamingOptions()
        streaming.validate()
        self.options = options
        self.streaming = streaming
        self.path = resolve_path(path)
        self.device = choose_device(options)
        _log_to_python()
        if options.device == "auto":
            log.info("device: took %s: %s", self.device.device, self.device.reason)
        start = time.perf_counter()
        self._pointer = _load(self.path, options, self.device, context or ContextOptions(), streaming, progress)
        self.load_s = time.perf_counter() - start
        self.metadata = Metadata(_file_of(weakref.ref(self)))
        self.forecast: Forecast | None = None  # what a plan predicted
        self._tokenizer: Any = None
        self._templates: dict[str | None, ChatTemplate] = {}

    # ---- life --------------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._pointer is None

    def require_open(self) -> None:
        if self._pointer is None:
            raise MoepicError(f"the model '{self.path.name}' is closed")

    def create_context(self, options: Any) -> Any:
        from ._ffi import ffi, lib

        self.require_open()
        out = ffi.new("moepic_context**")
        checked(lib.moepic_context_create(out, self._pointer, options))
        with self._lock:
            self._contexts.add(out[0])
        return out[0]

    def cancel_context(self, pointer: Any) -> None:
        """Stop its running or next eval, if it was not freed. Any thread."""
        with self._lock:
            if pointer in self._contexts:
                self._lib.moepic_context_cancel(pointer)

    def free_context(self, pointer: Any) -> None:
        with self._lock:
            if pointer in self._contexts:
                self._contexts.remove(pointer)
                self._lib.moepic_context_free(pointer)

    def close(self) -> None:
        """Free contexts, then weights. Nothing may be computing on them; again is harmless."""
        with self._lock:
            contexts, self._contexts = self._contexts, set()
            pointer, self._pointer = self._pointer, None
        for context in contexts:
            self._lib.moepic_context_free(context)
        if pointer is not None:
            self._lib.moepic_model_free(pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            self.close()

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        from ._ffi import ffi, lib

        self.require_open()
        raw = ffi.new("moepic_model_info*")
        raw.size = ffi.sizeof("moepic_model_info")
        checked(lib.moepic_model_get_info(raw, self._pointer))
        numbers = {
            name: getattr(raw, name)
            for name, _ in ffi.typeof("moepic_model_info").fields
            if name not in ("size", "architecture", "isa", "streams")
        }
        return ModelInfo(
            path=str(self.path),
            name=str(self.metadata.get("general.name", "")),
            architecture=text_of(raw.architecture),
            isa=ffi.string(raw.isa).decode("ascii"),
            streams=bool(raw.streams),
            layers=tuple(self._layer(il) for il in range(raw.n_layer)),
            **numbers,
        )

    def _layer(self, il: int) -> LayerInfo:
        from ._ffi import ffi, lib

        raw = ffi.new("moepic_layer_info*")
        raw.size = ffi.sizeof("moepic_layer_info")
        checked(lib.moepic_model_get_layer(raw, self._pointer, il))
        row: dict[str, Any] = {
            name: getattr(raw, name) for name, _ in ffi.typeof("moepic_layer_info").fields if name != "size"
        }
        row.update({name: type_name(value) for name, value in row.items() if name.endswith("_type")})
        return LayerInfo(**row)

    @property
    def stream_stats(self) -> StreamStats | None:
        """What was streamed so far; None where every expert is resident."""
        info = self.info
        return read_stream_stats(self._pointer, info.n_moe_layer) if info.streams else None

    def reset_stream_stats(self) -> None:
        self.require_open()
        self._lib.moepic_model_reset_stream_stats(self._pointer)

    def expert_uses(self) -> list[float]:
        """Uses of every expert since load, all MoE layers in order; a model that streams only."""
        from ._ffi import ffi, lib

        n = sum(layer.n_expert for layer in self.info.layers)
        out = ffi.new("double[]", max(n, 1))
        checked(lib.moepic_model_expert_uses(out, n, self._pointer))
        return list(out)[:n]

    def save_profile(self, path: str | os.PathLike[str]) -> None:
        """Write how often every expert was used since load, for a warm start of the same model (`profile=`)."""
        from .profile import Profile, model_hash

        uses, layers = iter(self.expert_uses()), [layer.n_expert for layer in self.info.layers if layer.n_expert]
        counts = [[next(uses) for _ in range(n)] for n in layers]
        n_used = max((layer.n_expert_used for layer in self.info.layers), default=1)
        n_token = int(sum(counts[0]) / max(1, n_used)) if counts else 0
        Profile.from_counts(model_hash(self.path), counts, n_token=n_token, source="run").save(path)

    @property
    def n_vocab(self) -> int:
        return self.info.n_vocab

    @property
    def has_tokenizer(self) -> bool:
        return "tokenizer.ggml.model" in self.metadata and self.metadata["tokenizer.ggml.model"] not in (
            "none",
            "no_vocab",
        )

    @property
    def tokenizer(self) -> Any:
        """The file's tokenizer; `UnsupportedModelError` when it has none, because then it serves token ids only."""
        if self._tokenizer is None:
            if not self.has_tokenizer:
                raise UnsupportedModelError(
                    f"'{self.path.name}' carries no tokenizer, so it takes and gives token ids: pass a list of ids "
                    f"instead of text"
                )
            from .tokenizer import Tokenizer

            self._tokenizer = Tokenizer.from_metadata(self.metadata)
        return self._tokenizer

    @property
    def chat_template_names(self) -> list[str]:
        """Names of the file's chat templates: 'default' and its variants, if any."""
        from .template import template_names

        return template_names(self.metadata)

    def chat_template(self, choice: str | None = None) -> ChatTemplate:
        """The file's chat template, its variant of that name, or jinja source given in its place, compiled once.
        `TemplateError` when there is none. No other template is ever used instead.
        """
        if choice not in self._templates:
            from .template import ChatTemplate

            try:
                self._templates[choice] = ChatTemplate.from_metadata(self.metadata, choice)
            except TemplateError as error:
                raise TemplateError(f"'{self.path.name}': {error}", line=error.line) from None
        return self._templates[choice]


def _file_of(weights: weakref.ReferenceType[Weights]) -> Callable[[], Any]:
    """What `Metadata` borrows its file by. Weak, because `weights` holds the metadata: a cycle would keep gigabytes
    until Python looks for it.
    """
    from ._ffi import lib

    def borrow() -> Any:
        alive = weights()
        if alive is None:
            raise MoepicError("the model of these keys is closed")
        alive.require_open()
        return lib.moepic_model_file(alive._pointer)

    return borrow


@dataclass(frozen=True)
class MemoryNeeds:
    """What loading a model would take, in bytes: `weights` have to be in memory anyway, `cache` is left for experts, `least`
    is the smallest `ram` that works. staging and cache are 0 where nothing would be streamed.

    On a device all are of its memory: `staging` are frames for experts under way, and `least` is the smallest `vram` that works.
    """

    streams: bool
    weights: int
    experts: int
    kv: int
    state: int
    scratch: int
    staging: int
    cache: int
    least: int


def memory_needs(
    path: str | os.PathLike[str],
    options: LoadOptions,
    context: ContextOptions,
    streaming: StreamingOptions | None = None,
) -> MemoryNeeds:
    """The decisions of loading without reading a weight. A budget of RAM below `least` is not an error here; one of a device's memory
    is the `BudgetError` that loading would raise, and its memory is taken for the moment.
    """
    from ._ffi import ffi, lib

    path = resolve_path(path)
    native, keep = _native_options(path, options, choose_device(options), context, streaming or StreamingOptions())
    out = ffi.new("moepic_memory*")
    out.size = ffi.sizeof("moepic_memory")
    code = lib.moepic_model_memory(out, os.fsencode(path), native)
    del keep
    checked(code)
    values = {item.name: getattr(out, item.name) for item in fields(MemoryNeeds)}
    return MemoryNeeds(**{**values, "streams": bool(out.streams)})


def _native_options(
    path: Path, options: LoadOptions, device: DeviceChoice, context: ContextOptions, streaming: StreamingOptions
) -> tuple[Any, list[Any]]:
    """The C struct, and what has to live as long."""
    from ._ffi import ffi, lib

    native = ffi.new("moepic_model_options*")
    lib.moepic_model_options_init(native)
    native.n_threads, native.granule, native.strict = options.n_threads, options.granule, int(options.strict)
    native.isa = -1 if options.isa == "auto" else ISA_NAMES.index(options.isa)
    native.ram_bytes = options.ram_bytes or 0
    native_device = ffi.new("moepic_device_options*")
    lib.moepic_device_options_init(native_device)
    native_device.kind, native_device.cpu_lane = device.kind, int(options.cpu_lane)
    native_device.graphs = GRAPHS[options.graphs]
    native_device.vram_bytes, native_device.pin_bytes = device.vram_bytes or 0, options.pin_bytes or 0
    native_context = context.to_native()
    native_streaming, arrays = streaming.to_native(_read_profile(path, streaming))
    native.context, native.streaming, native.device = native_context, native_streaming, native_device
    return native, [native_context, native_streaming, native_device, arrays]


def _load(
    path: Path,
    options: LoadOptions,
    device: DeviceChoice,
    context: ContextOptions,
    streaming: StreamingOptions,
    progress: Progress | None,
) -> Any:
    from ._ffi import ffi, lib

    # Present even when nobody listens: entering Python is what lets Ctrl-C stop a long load.
    report = NativeProgress(progress if progress is not None else lambda *_: None)
    native, keep = _native_options(path, options, device, context, streaming)
    native.progress = report.callback
    out = ffi.new("moepic_model**")
    code = lib.moepic_model_load(out, os.fsencode(path), native)
    del keep  # it had to live until here
    report.reraise()
    checked(code)
    return out[0]


def _read_profile(path: Path, streaming: StreamingOptions) -> Sequence[float] | None:
    if streaming.profile is None or not isinstance(streaming.profile, (str, os.PathLike)):
        return streaming.profile
    from .profile import Profile, model_hash

    return [float(value) for value in Profile.load(streaming.profile, model_hash=model_hash(path)).weights]


_sink: list[Any] = []  # keeps the callback alive; filled once, under _sink_lock
_sink_lock = threading.Lock()


def _log_to_python() -> None:
    """Send the core's messages to the logger 'moepic_gguf'."""
    from ._ffi import ffi, lib

    with _sink_lock:
        if _sink:
            return

        @ffi.callback("moepic_log_fn")  # type: ignore[untyped-decorator]
        def sink(level: int, text: Any, _user: Any) -> None:
            log.log(_LEVELS[min(max(level, 0), 3)], "%s", ffi.string(text).decode("utf-8", "replace"))

        _sink.append(sink)
        lib.moepic_log_set(sink, ffi.NULL)
        # A native thread must not call into an interpreter that is going away.
        atexit.register(lambda: lib.moepic_log_set(ffi.NULL, ffi.NULL))
