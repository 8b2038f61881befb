"""Stop strings in streamed text. Knows text only: no tokens, no models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import ArgumentError


def checked_stops(stops: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as given to generate(): one, several, or none. `ArgumentError` for anything else."""
    if stops is None or isinstance(stops, str):
        stops = () if stops is None else (stops,)
    if not isinstance(stops, Iterable):
        raise ArgumentError(f"stop: expected text or a sequence of texts, found {stops!r}")
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise ArgumentError(f"stop: expected non-empty strings, found {stop!r}")
    return tuple(stops)


class StopScanner:
    """Passes text on until a stop string is complete, and never lets a part of one out.

    A stop string counts at the character that completes it, wherever the pieces were cut; of several completed by the
    same character the one that began first counts. The text before its first character is the answer; it and all that
    follows is dropped. What could still become a stop string is held back: at most the longest stop string less one
    character.
    """

    def __init__(self, stops: str | Sequence[str] | None) -> None:
        self._stops = checked_stops(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Text that is certainly part of the answer. After `found` is set, always empty."""
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        self._held += piece
        matches = []
        for stop in self._stops:
            start = self._held.find(stop)
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if matches:
            _, start, self.found = min(matches)
            answer, self._held = self._held[:start], ""
            return answer
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        answer, self._held = self._held[:cut], self._held[cut:]
        return answer

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
