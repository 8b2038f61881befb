"""Orders the neurons of every expert by how much they matter on a calibration text, so that a top segment holds the
ones that do most.

The score of neuron i is mean |act(gate_i) * up_i| over the tokens routed to its expert, times the length of its
column of `down`: the size of what it adds to the residual. The runtime computes the activations (its probe), from a
file in the natural order. An order changes no result but in the last bits of the sums over neurons; it is written to
the file and needs no support from a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from moepic_gguf.errors import ConversionError

from .sources import Content
from .tensors import Bytes, Experts, Floats

Scores = npt.NDArray[np.float64]  # [n_expert, n_ff]
# Enough for every expert of a layer to see tokens, little enough for minutes on a CPU.
MAX_TOKENS = 16384
_WINDOW = 512


def orders(content: Content, scores: dict[int, Scores]) -> dict[int, npt.NDArray[np.int64]]:
    """Neurons of each expert by descending score, `[n_expert, n_ff]` per layer; equal scores keep the natural order.

    Where the input is quantized already, neurons move in whole blocks of `down` (by the sum of a block's scores),
    which keeps it bit-exact.
    """
    found: dict[int, npt.NDArray[np.int64]] = {}
    for il, (_, experts) in enumerate(content.layers):
        if experts is None:
            continue
        unit = experts.order_unit
        blocks = scores[il].reshape(experts.n_expert, -1, unit).sum(axis=2)
        ranked = np.argsort(-blocks, axis=1, kind="stable")
        found[il] = (ranked[:, :, None] * unit + np.arange(unit)).reshape(experts.n_expert, experts.n_ff)
    return found


def measure(
    path: Path,
    content: Content,
    calibration: Path,
    warnings: list[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Scores]:
    """Scores per layer from running the GGUF at `path`, whose tensors are `content`, over the text in `calibration`.

    calibration  UTF-8 text; token ids separated by white space where the file has no tokenizer. At most MAX_TOKENS
                 are used.
    warnings     gets a sentence about experts that no token reached.
    progress     called with tokens done and in all.
    Raises       ConversionError for an empty text; whatever loading and running the model raises.
    """
    from moepic_gguf.model import Model

    with Model.load(path, n_ctx=_WINDOW) as model:
        tokens = _tokens(model, calibration)
        sums = {
            il: np.zeros((experts.n_expert, experts.n_ff))
            for il, (_, experts) in enumerate(content.layers)
            if experts is not None
        }
        seen = {il: np.zeros(len(values), np.int64) for il, values in sums.items()}
        native = model.context.native
        window = min(_WINDOW, model.info.n_ctx_train)
        with _probe(native, sums, seen):
            for first in range(0, len(tokens), window):
                native.truncate(0)
                native.eval(tokens[first : first + window])
                progress(min(first + window, len(tokens)), len(tokens))
    unreached = sum(int((counts == 0).sum()) for counts in seen.values())
    if unreached:
        total = sum(len(counts) for counts in seen.values())
        warnings.append(
            f"{unreached} of {total} experts saw no token of the calibration text and keep their natural order (a "
            f"longer text reaches more)"
        )
    for il, (_, experts) in enumerate(content.layers):
        if experts is not None:
            sums[il] /= np.maximum(seen[il], 1)[:, None]
            for e in range(experts.n_expert):
                sums[il][e] *= _column_lengths(experts, e)
    return sums


def _tokens(model: Any, calibration: Path) -> list[int]:
    try:
        text = calibration.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"calibration text '{calibration}' cannot be read as UTF-8: {error}") from None
    if model.has_tokenizer:
        ids = [int(i) for i in model.tokenize(text)]
    else:
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise ConversionError(
                f"the model has no tokenizer, so '{calibration}' must hold token ids separated by white space"
            ) from None
    if not ids:
        raise ConversionError(f"calibration text '{calibration}' holds no token")
    return ids[:MAX_TOKENS]


class _probe:
    """While open, adds up |activation| and counts tokens. The engine serialises calls and gives each (expert,
    granule) once per batch, so the
    sums do not depend on its threads.
    """

    def __init__(self, native: Any, sums: dict[int, Scores], seen: dict[int, npt.NDArray[np.int64]]) -> None:
        from moepic_gguf._ffi import ffi, lib

        self._lib, self._ffi, self._native = lib, ffi, native
        self._failures: list[BaseException] = []

        def keep(_kind: object, error: BaseException, _trace: object) -> int:
            self._failures.append(error)
            return 1

        def see(event: Any, _user: Any) -> int:
            if event.kind != lib.MOEPIC_PROBE_EXPERT_ACT or event.expert < 0 or event.layer not in sums:
                return 0
            n, width = int(event.n_tokens), int(event.width)
            raw = ffi.buffer(event.values, n * width * 4)
            values = np.frombuffer(raw, np.float32).reshape(n, width)
            first = int(event.granule) * width
            sums[event.layer][event.expert, first : first + width] += np.abs(values).sum(axis=0, dtype=np.float64)
            if event.granule == 0:
                seen[event.layer][event.expert] += n
            return 0

        self._callback = ffi.callback("moepic_probe_fn", see, error=1, onerror=keep)

    def __enter__(self) -> None:
        with self._native.exclusive() as pointer:
            self._lib.moepic_context_set_probe(pointer, self._callback, self._ffi.NULL)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._native.exclusive() as pointer:
            self._lib.moepic_context_set_probe(pointer, self._ffi.NULL, self._ffi.NULL)
        if self._failures:
            raise self._failures[0] from error


def _column_lengths(experts: Experts, expert: int) -> npt.NDArray[np.float64]:
    """Euclidean length of each column of `down`, `[n_ff]`."""
    columns = _decode(experts.columns(expert, slice(0, experts.n_ff)), experts.kinds["down"], experts.n_ff)
    return np.asarray(np.sqrt(np.square(columns, dtype=np.float64).sum(axis=0)))


def _decode(rows: Bytes, kind: GGMLQuantizationType, cols: int) -> Floats:
    from moepic_gguf._ffi import ffi, lib
    from moepic_gguf.metadata import checked

    out = np.empty((len(rows), cols), np.float32)
    packed = np.ascontiguousarray(rows)
    checked(
        lib.moepic_dequantize(
            ffi.from_buffer("float[]", out, require_writable=True), int(kind), ffi.from_buffer(packed), out.size
        )
    )
    return out
