"""What a probe sees of routing, token by token: the other witness for traces."""

from __future__ import annotations

import numpy as np

from moepic_gguf import Model
from moepic_gguf._ffi import ffi, lib


def routing_of(path, tokens) -> np.ndarray:
    """[token][MoE layer][k] expert ids of `tokens`, each decoded alone by the resident engine."""
    seen: list[list[list[int]]] = []

    @ffi.callback("moepic_probe_fn")
    def probe(event, _user):
        if event.kind == 1:
            seen[-1].append([event.ids[i] for i in range(event.width)])
        return 0

    with Model.load(path, n_ctx=128) as model:
        pointer = model.context.native.pointer
        lib.moepic_context_set_probe(pointer, probe, ffi.NULL)
        for token in tokens:
            seen.append([])
            model.context.native.eval([token])
        lib.moepic_context_set_probe(pointer, ffi.NULL, ffi.NULL)
    return np.array(seen, np.int32)
