"""Recordings of a context: routing (docs/trace-format.md) and a timeline, drained from the engine after every eval and written beside their
target until they are whole. Records; looks at nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .errors import IoError
from .timeline import EVENT, write_timeline
from .trace import HAS_FOUND, HAS_OUTCOME, HAS_PREDICTED, header_bytes

if TYPE_CHECKING:
    from .native_context import NativeContext
    from .weights import Weights


class Recorder:
    """Owns the recording of one context from start to `close()`, which names the files as asked; what was recorded until then is kept even when
    an answer failed. Raises `IoError` where a file cannot be written; `UnsupportedModelError` comes from a model without experts.
    """

    def __init__(
        self,
        native: NativeContext,
        weights: Weights,
        *,
        trace: str | os.PathLike[str] | None = None,
        timeline: str | os.PathLike[str] | None = None,
    ) -> None:
        self._native, self._weights = native, weights
        self._trace = None if trace is None else Path(trace)
        self._timeline = None if timeline is None else Path(timeline)
        self._events: list[Any] = []
        self._sequence = -1
        self._file: BinaryIO | None = None
        if self._trace is not None:
            try:
                self._file = self._part.open("wb")
                self._file.write(self._header())
            except OSError as error:
                raise IoError(f"trace: cannot write '{self._part}': {error.strerror}") from error
        native.record(trace=trace is not None, timeline=timeline is not None, drain=self.drain)

    @property
    def _part(self) -> Path:
        assert self._trace is not None
        return self._trace.with_name(self._trace.name + ".part")

    def _header(self) -> bytes:
        from .profile import model_hash

        info = self._weights.info
        layers = [(il, layer) for il, layer in enumerate(info.layers) if layer.n_expert]
        return header_bytes(
            flags=HAS_PREDICTED | HAS_OUTCOME | HAS_FOUND,
            n_used=max((layer.n_expert_used for _, layer in layers), default=0),
            info={
                "n_expert": [layer.n_expert for _, layer in layers],
                "n_granule": [layer.n_granules for _, layer in layers],
                "granule_bytes": [layer.expert_bytes // layer.n_granules for _, layer in layers],
                "layers": [il for il, _ in layers],
                "model": info.name or self._weights.path.name,
                "model_hash": model_hash(self._weights.path),
                "id_order": "ascending",
            },
        )

    def drain(self, is_new_sequence: bool) -> None:
        """Take what the engine recorded; called under the context's own lock."""
        if is_new_sequence:
            self._sequence += 1
            return
        if self._file is not None:
            records, record_bytes = self._native.take_trace()
            if records:
                rows = np.frombuffer(bytearray(records), np.uint8).reshape(-1, record_bytes)
                rows[:, :4] = np.frombuffer(np.uint32(max(0, self._sequence)).tobytes(), np.uint8)
                try:
                    self._file.write(rows.tobytes())
                except OSError as error:
                    raise IoError(f"trace: cannot write '{self._part}': {error.strerror}") from error
        if self._timeline is not None:
            self._events.append(np.frombuffer(self._native.take_timeline(), EVENT))

    def close(self) -> None:
        """Stop recording and put the files in their places; again is harmless."""
        self._native.record(trace=False, timeline=False, drain=None)
        file, self._file = self._file, None
        if file is not None and self._trace is not None:
            try:
                file.close()
                os.replace(self._part, self._trace)
            except OSError as error:
                raise IoError(f"trace: cannot write '{self._trace}': {error.strerror}") from error
        timeline, self._timeline = self._timeline, None
        if timeline is not None:
            stats = None if self._weights.is_closed else self._weights.stream_stats
            events = np.concatenate(self._events) if self._events else np.empty(0, EVENT)
            part = timeline.with_name(timeline.name + ".part")
            write_timeline(
                part,
                events,
                lane_names=(stats.lane,) if stats else (),
                info={"model": self._weights.path.name},
            )
            os.replace(part, timeline)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
