"""A pass whose steps run on an emulated device gives the CPU's logits, byte for byte: every family's order of steps, weights of every kind,
prompts in batches and token by token. The feed-forward is the CPU's here; keys, values and states are the device's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib
from moepic_gguf.errors import DeviceError, OutOfMemory
from tests.gates.test_exactness import KIND_IDS, KINDS
from tests.making import gguf_file

from .devices import EMULATED, call, counters, open_device, set_options

TOKENS = np.random.default_rng(5).integers(3, 320, 40).tolist()
N_CTX = 64  # of both sides: the frequencies of rope may depend on it
KV_TYPES = {"f16": 0, "q8_0": 1}


@pytest.fixture(autouse=True)
def clean_emulation():
    open_device(EMULATED)
    set_options()
    yield
    set_options()


def load(name: str, kind: str, kv_type: str = "f16") -> Model:
    return Model.load(gguf_file(name, "--outtype", kind, "--no-split"), n_ctx=N_CTX, kv_type=kv_type)


def device_logits(
    model: Model, tokens: Sequence[int], n_batch: int, kv_type: str = "f16", n_logits: int | None = None
) -> np.ndarray:
    """Of the last n_logits tokens; None: of all."""
    n = len(tokens)
    out = np.full((n if n_logits is None else n_logits, model.info.n_vocab), np.nan, np.float32)
    logits = ffi.cast("float *", out.ctypes.data)
    pointer = model._weights._pointer
    call(lib.moepic_test_device_pass(pointer, KV_TYPES[kv_type], N_CTX, n_batch, tokens, n, len(out), logits))
    return out


@pytest.mark.parametrize(("name", "kind"), KINDS, ids=KIND_IDS)
def test_a_pass_on_a_device_gives_the_bytes_of_the_cpu(name, kind):
    with load(name, kind) as model:
        expected = model.logits(TOKENS)
        before = counters()["n_launches"]
        np.testing.assert_array_equal(device_logits(model, TOKENS, 17), expected)
        np.testing.assert_array_equal(device_logits(model, TOKENS[:6], 1), expected[:6])
        # Norms, matrices, heads or states, sums: no layer of a batch takes fewer.
        assert counters()["n_launches"] - before >= 5 * model.info.n_layer * 9


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "gemma3", "qwen3_next"])
def test_quantized_keys_and_values_give_the_bytes_of_the_cpu(name):
    with load(name, "q8_0", "q8_0") as model:
        np.testing.assert_array_equal(device_logits(model, TOKENS, 17, "q8_0"), model.logits(TOKENS))


@pytest.mark.threads
@pytest.mark.parametrize("name", ["gemma4", "deepseek_v2", "qwen3_5"])
@pytest.mark.parametrize("seed", range(2))
def test_late_copies_and_kernels_change_nothing(name, seed):
    """What the host stages for one batch must not be overwritten by the next, for whose end nobody has waited."""
    with load(name, "f32") as model:
        expected = model.logits(TOKENS)[-1:]
        set_options(most_delay_us=300, seed=seed)
        np.testing.assert_array_equal(device_logits(model, TOKENS, 8, n_logits=1), expected)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
@pytest.mark.parametrize("option", ["failing_allocation", "failing_copy", "failing_launch"])
def test_a_failure_of_the_device_is_said_and_leaves_nothing_behind(option, n):
    with load("qwen3_5", "f32") as model:
        before = counters()
        set_options(**{option: n})
        with pytest.raises(OutOfMemory if option == "failing_allocation" else DeviceError, match="device: "):
            device_logits(model, TOKENS, 17)
        after = counters()
        assert (after["device_bytes"], after["pinned_bytes"]) == (before["device_bytes"], before["pinned_bytes"])
