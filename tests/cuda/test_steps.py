"""A pass on an emulated device gives the CPU's logits, byte for byte: every family's order of steps, weights of every kind, prompts in
batches and token by token, copies and kernels that are late. What fails on the device is said and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError, OutOfMemory
from tests.gates.test_exactness import KIND_IDS, KINDS
from tests.making import ordinary

from .devices import EMULATED, call, counters, open_device, set_options

TOKENS = np.random.default_rng(5).integers(3, 320, 40).tolist()
N_CTX = 64
KV_TYPES = {"f16": 1, "q8_0": 8}


@pytest.fixture(autouse=True)
def clean_emulation():
    open_device(EMULATED)
    set_options()
    yield
    set_options()


def cpu_logits(path: Path, kv_type: str = "f16") -> tuple[np.ndarray, int]:
    """Of all tokens, and the number of layers."""
    with Model.load(path, n_ctx=N_CTX, kv_type=kv_type) as model:
        return model.logits(TOKENS), model.info.n_layer


@contextmanager
def on_device(path: Path, n_batch: int, kv_type: str = "f16") -> Iterator[Any]:
    """A context on the emulated device."""
    context_options, options = ffi.new("moepic_context_options *"), ffi.new("moepic_model_options *")
    device = ffi.new("moepic_device_options *")
    lib.moepic_context_options_init(context_options)
    lib.moepic_model_options_init(options)
    lib.moepic_device_options_init(device)
    context_options.n_ctx, context_options.n_batch, context_options.kv_type = N_CTX, n_batch, KV_TYPES[kv_type]
    device.kind = lib.MOEPIC_DEVICE_EMULATED
    options.context, options.device = context_options, device
    model, context = ffi.new("moepic_model **"), ffi.new("moepic_context **")
    try:
        call(lib.moepic_model_load(model, str(path).encode(), options))
        call(lib.moepic_context_create(context, model[0], context_options))
        yield context[0]
    finally:
        lib.moepic_context_free(context[0])
        lib.moepic_model_free(model[0])


def evaluate(context: Any, tokens: list[int], *, all_logits: bool = True) -> np.ndarray:
    """Logits of all tokens, or of the last."""
    call(lib.moepic_context_eval(context, tokens, len(tokens), all_logits))
    out, rows, width = ffi.new("const float **"), ffi.new("int64_t *"), ffi.new("int64_t *")
    call(lib.moepic_context_logits(out, rows, width, context))
    return np.frombuffer(ffi.buffer(out[0], rows[0] * width[0] * 4), np.float32).reshape(rows[0], width[0]).copy()


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=KIND_IDS)
def test_a_pass_on_a_device_gives_the_bytes_of_the_cpu(name, kind):
    path = ordinary(name, kind)
    expected, n_layer = cpu_logits(path)
    with on_device(path, 17) as context:
        before = counters()["n_launches"]
        np.testing.assert_array_equal(evaluate(context, TOKENS[:34]), expected[:34])
        for i in range(34, 37):
            np.testing.assert_array_equal(evaluate(context, TOKENS[i : i + 1]), expected[i : i + 1])
        # Norms, matrices, heads or states, sums: no layer of a batch takes fewer, and there were 5 batches.
        assert counters()["n_launches"] - before >= 5 * n_layer * 5


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "gemma3", "qwen3_next"])
def test_quantized_keys_and_values_give_the_bytes_of_the_cpu(name):
    path = ordinary(name, "q8_0")
    with on_device(path, 17, "q8_0") as context:
        np.testing.assert_array_equal(evaluate(context, TOKENS), cpu_logits(path, "q8_0")[0])


@pytest.mark.threads
@pytest.mark.parametrize("name", ["gemma3", "deepseek_v2", "qwen3_5"])
@pytest.mark.parametrize("seed", range(2))
def test_late_copies_and_kernels_change_nothing(name, seed):
    """What the host stages for one batch must not be overwritten by the next, for whose end nobody has waited."""
    path = ordinary(name, "f32")
    expected = cpu_logits(path)[0][-1:]
    with on_device(path, 4) as context:
        set_options(most_delay_us=300, seed=seed)
        np.testing.assert_array_equal(evaluate(context, TOKENS, all_logits=False), expected)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("option", ["failing_allocation", "failing_copy", "failing_launch"])
def test_a_failure_of_the_device_is_said_and_leaves_nothing_behind(option, n):
    path = ordinary("qwen3_5", "f32")

    def run() -> None:
        # Loading allocates; what is copied and launched is to fail in the pass.
        set_options(failing_allocation=n if option == "failing_allocation" else 0)
        with on_device(path, 17) as context:
            set_options(**{option: n})
            evaluate(context, TOKENS)

    before = counters()
    with pytest.raises(OutOfMemory if option == "failing_allocation" else DeviceError, match="device: "):
        run()
    after = counters()
    assert (after["device_bytes"], after["pinned_bytes"]) == (before["device_bytes"], before["pinned_bytes"])
