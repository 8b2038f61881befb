"""What a caller may choose, as plain data with a pure `validate()`. Reads no environment; see docs/architecture.md.

Each group prints itself (`str(options)`), and `Model.config` prints what is in force.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .budgets import Budget, parse_budget, physical_ram_bytes, show_bytes
from .errors import ArgumentError, DeviceError

ISA_NAMES = ("scalar", "avx2", "avx512")  # position: number in the C API; "auto" is -1
DEVICE_KINDS = {"cpu": 0, "cuda": 1, "emulated": 2}  # numbers in the C API
GRAPHS = {"auto": -1, "off": 0, "on": 1}  # the same
KV_TYPES = {"f16": 1, "q8_0": 8}  # GGUF type ids


class _Printable:
    def __str__(self) -> str:
        return "\n".join(f"{item.name:18} {getattr(self, item.name)}" for item in fields(self))  # type: ignore[arg-type]


# Numbers of numpy are numbers too. Raise `ArgumentError` where one is not what is expected.


def need(condition: bool, text: str) -> None:
    if not condition:
        raise ArgumentError(text)


def need_int(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        raise ArgumentError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")


def need_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (low <= float(value) <= high):
        raise ArgumentError(f"{name}: expected a number from {low:g} to {high:g}, found {value!r}")


@dataclass(frozen=True)
class LoadOptions(_Printable):
    """How weights are brought in. Budgets are totals: `ram` covers weights, keys and values, scratch, staging and the
    expert cache. The interpreter and its libraries come on top (docs/streaming.md).
    """

    device: str = "auto"  # auto, cpu, cuda; emulated: CUDA kernels on the CPU, for tests
    vram: Budget = None  # weights, one context, frames and the expert cache; None: what is free, less a margin
    ram: Budget = None
    n_threads: int = 0  # 0: all cores this process may use
    isa: str = "auto"
    granule: int = 0  # neurons; 0: the engine's rule. Results depend on it in the last bits
    strict: bool = False  # a downgrade is an error instead of a warning
    cpu_lane: bool = True  # on a device: the CPU computes granules beside it where that ends a layer sooner
    graphs: str = "auto"  # on a device: a token's launches as one graph; auto: where a trial finds that faster
    pin: Budget = None  # RAM pinned for a device's link at most; None: all experts

    def validate(self) -> None:
        """Raise `ArgumentError` or `BudgetError` for a value that no machine could honour."""
        kind, _, number = str(self.device).partition(":")
        known = kind in ("auto", *DEVICE_KINDS) and (not number or (kind == "cuda" and number.isdigit()))
        need(known, f"device: expected 'auto', 'cpu' or 'cuda', found {self.device!r}")
        need(self.graphs in GRAPHS, f"graphs: expected {', '.join(GRAPHS)}, found {self.graphs!r}")
        need(
            number in ("", "0"),
            f"device: {self.device!r} names another GPU than the first; one is driven now, choose it by CUDA_VISIBLE_DEVICES",
        )
        need(
            self.isa == "auto" or self.isa in ISA_NAMES,
            f"isa: expected auto, {', '.join(ISA_NAMES)}, found {self.isa!r}",
        )
        need_int("n_threads", self.n_threads, 0, 4096)
        need_int("granule", self.granule, 0)
        _ = self.ram_bytes, self.vram_bytes, self.pin_bytes

    @property
    def ram_bytes(self) -> int | None:
        """The RAM budget in bytes; None is no limit."""
        return parse_budget(self.ram, name="ram", whole_bytes=physical_ram_bytes())

    @property
    def vram_bytes(self) -> int | None:
        """The VRAM budget in bytes; None is what is free. A share is of the device's memory, which `choose_device` knows."""
        if isinstance(self.vram, str) and self.vram.strip().endswith("%"):
            parse_budget(self.vram, name="vram", whole_bytes=100)
            return None
        return parse_budget(self.vram, name="vram")

    @property
    def pin_bytes(self) -> int | None:
        return parse_budget(self.pin, name="pin", whole_bytes=physical_ram_bytes())


@dataclass(frozen=True)
class ContextOptions(_Printable):
    """One sequence of tokens: its length and how it is computed."""

    n_ctx: int = 0  # positions; 0: what the model was trained for, at most 4096
    n_batch: int = 0  # tokens computed together in prefill; 0: 512
    n_threads: int = 0
    kv_type: str = "f16"

    def validate(self) -> None:
        """Raise `ArgumentError` for the option that is out of range."""
        need_int("n_ctx", self.n_ctx, 0)
        need_int("n_batch", self.n_batch, 0, 2**20)
        need_int("n_threads", self.n_threads, 0, 4096)
        need(self.kv_type in KV_TYPES, f"kv_type: expected {' or '.join(KV_TYPES)}, found {self.kv_type!r}")

    def to_native(self) -> Any:
        """The C struct."""
        from ._ffi import ffi, lib

        native = ffi.new("moepic_context_options*")
        lib.moepic_context_options_init(native)
        native.n_ctx, native.n_batch, native.n_threads = self.n_ctx, self.n_batch, self.n_threads
        native.kv_type = KV_TYPES[self.kv_type]
        return native


@dataclass(frozen=True)
class SamplingOptions(_Printable):
    """How the next token is drawn.

    Applied in this order: logit bias, penalties, (temperature 0: arg max), top-k, typical, top-p, min-p, temperature,
    draw. Sources: top-p, Holtzman et al. 2020; min-p, Nguyen et al. 2024; typical, Meister et al. 2022; repetition,
    Keskar et al. 2019.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64  # tokens looked back, the prompt's too; -1: all
    seed: int | None = None  # None: a fresh one each time, kept in Generation.seed
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # -inf forbids a token

    def validate(self, n_vocab: int | None = None) -> None:
        """Raise `ArgumentError` for the option that is out of range; `n_vocab` checks the ids of `logit_bias`."""
        need_number("temperature", self.temperature, 0.0, 1e4)
        need_int("top_k", self.top_k, 0)
        need_number("top_p", self.top_p, 0.0, 1.0)
        need_number("min_p", self.min_p, 0.0, 1.0)
        need_number("typical_p", self.typical_p, 0.0, 1.0)
        need_number("repeat_penalty", self.repeat_penalty, 1e-3, 1e3)
        need_number("presence_penalty", self.presence_penalty, -1e3, 1e3)
        need_number("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        need_int("penalty_last_n", self.penalty_last_n, -1)
        if self.seed is not None:
            need_int("seed", self.seed, 0, 2**64 - 1)
        need(
            isinstance(self.logit_bias, Mapping),
            f"logit_bias: expected a mapping of token ids to numbers, found {self.logit_bias!r}",
        )
        for token, bias in self.logit_bias.items():
            need_int("logit_bias: token", token, 0, (n_vocab or 2**31) - 1)
            need(isinstance(bias, numbers.Real) and not math.isnan(bias) and bias != math.inf,
                  f"logit_bias: token {token} has the bias {bias!r}; expected a number or -inf")  # fmt: skip


@dataclass(frozen=True)
class DeviceChoice:
    """Where the work is done, and why there. `vram_bytes`: what may be used of the device's memory; None: what is free."""

    device: str
    reason: str
    vram_bytes: int | None = None

    @property
    def kind(self) -> int:
        """Its number in the C API."""
        return DEVICE_KINDS[self.device]


def choose_device(options: LoadOptions) -> DeviceChoice:
    """The device for `options`, or `DeviceError` that says what is missing for the one asked for: the CUDA library, a
    driver, a GPU. Nothing is chosen in silence.
    """
    wanted = options.device.partition(":")[0]
    uses_vram = options.vram is not None and options.vram_bytes != 0
    if wanted == "cpu":
        if uses_vram:
            raise DeviceError(
                f"vram: {options.vram!r} was given, but device='cpu' uses none; leave vram out, or use 'cuda'"
            )
        return DeviceChoice("cpu", "it was asked for")
    try:
        found = find_device("cuda" if wanted == "auto" else wanted)
    except DeviceError as error:
        if wanted != "auto":
            raise DeviceError(
                f"device: '{options.device}' was asked for: {error}; use device='cpu' or 'auto'"
            ) from None
        if uses_vram:
            raise DeviceError(
                f"vram: {options.vram!r} was given, but there is no device to use it on: {error}; leave vram out, or use 0"
            ) from None
        return DeviceChoice("cpu", str(error))
    if options.vram is not None and options.vram_bytes == 0:
        return DeviceChoice("cpu", "vram=0 leaves nothing for the device")
    return DeviceChoice(
        "cuda" if wanted == "auto" else wanted,
        f"{found.name}, {show_bytes(found.free_bytes)} of {show_bytes(found.total_bytes)} free",
        parse_budget(options.vram, name="vram", whole_bytes=found.total_bytes),
    )


@dataclass(frozen=True)
class FoundDevice:
    """A device as its driver describes it. Bytes."""

    name: str
    major: int  # compute capability
    minor: int
    n_sm: int
    total_bytes: int
    free_bytes: int


def find_device(kind: str) -> FoundDevice:
    """The device of a kind, opened. `DeviceError` says what is missing."""
    from ._ffi import ffi, lib
    from .metadata import checked

    out = ffi.new("moepic_device_info*")
    out.size = ffi.sizeof("moepic_device_info")
    checked(lib.moepic_device_find(out, DEVICE_KINDS[kind], 0, ffi.NULL))
    name = ffi.string(out.name).decode("utf-8", "replace")
    return FoundDevice(name, out.major, out.minor, out.n_sm, out.total_bytes, out.free_bytes)


@dataclass(frozen=True)
class Configuration(_Printable):
    """What is in force, printable: options as given, and what was made of them."""

    load: LoadOptions
    context: ContextOptions
    device: DeviceChoice
    streaming: object | None = None  # StreamingOptions; None where every expert is resident

    def __str__(self) -> str:
        rows = [f"{'device':18} {self.device.device} ({self.device.reason})"]
        rows += [row for row in str(self.load).splitlines() if not row.startswith("device ")]
        rows += [row for row in str(self.context).splitlines() if not row.startswith("n_threads ")]
        rows += str(self.streaming).splitlines() if self.streaming is not None else ["experts            all resident"]
        return "\n".join(rows)
