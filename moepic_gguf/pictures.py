"""What pictures share: matplotlib where it is installed, one look, one way to save. Knows nothing of what is drawn."""

from __future__ import annotations

import os
from typing import Any

from .errors import ArgumentError, IoError

BLUE, ORANGE, RED, GREEN, VIOLET, GREY = "#4c78a8", "#f2a541", "#d1605e", "#59a14f", "#8c6bb1", "#9d9d9d"

_LOOK: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#6b6b6b",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 110,
}


def pyplot() -> Any:
    """matplotlib.pyplot without a display, in our look. Raises `ArgumentError` that names the extra where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ArgumentError(
            "pictures need matplotlib, which is not installed: pip install 'moepic-gguf[plot]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plot

    plot.rcParams.update(_LOOK)
    return plot


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write `figure` and close it. Raises `IoError`; `ArgumentError` for a name whose ending is no picture's."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise IoError(f"picture: cannot write '{os.fspath(path)}': {error.strerror or error}") from error
    except ValueError as error:
        raise ArgumentError(f"picture '{os.fspath(path)}': {error}") from error
    finally:
        pyplot().close(figure)
