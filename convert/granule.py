"""Where an expert may be cut: the granule rule and the split ratio. Pure arithmetic; `native/src/expert/granule.cpp`
has the same rule.
"""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from moepic_gguf.errors import ConversionError

# Big enough that a granule's partial result is a few percent of its bytes, small enough that real experts have several.
_SMALLEST = 256


def granule_unit(down: GGMLQuantizationType) -> int:
    """Neurons a cut must be a multiple of: the block length of `down`, whose rows are cut."""
    return int(GGML_QUANT_SIZES[down][0])


def default_granule(n_ff: int, down: GGMLQuantizationType) -> int:
    """The smallest divisor of `n_ff` that is a multiple of the unit and at least 256 neurons; `n_ff` itself where
    there is none.
    """
    unit = granule_unit(down)
    if unit == 1 and n_ff % 32 == 0:
        unit = 32
    for granule in range(unit, n_ff // 2 + 1, unit):
        if granule >= _SMALLEST and n_ff % granule == 0:
            return granule
    return n_ff


def check_granule(granule: int, n_ff: int, down: GGMLQuantizationType, where: str) -> None:
    """Raise ConversionError, with the legal values, unless `granule` cuts `n_ff` without a block of `down`
    straddling a border.
    """
    unit = granule_unit(down)
    if 0 < granule <= n_ff and n_ff % granule == 0 and granule % unit == 0:
        return
    legal = [g for g in range(unit, n_ff + 1, unit) if n_ff % g == 0]
    raise ConversionError(
        f"{where}: granules of {granule} neurons do not cut a width of {n_ff} with {down.name} down projections: "
        f"a border would fall inside a "
        f"block of {unit}, whose weights share a scale; legal: {', '.join(map(str, legal)) or 'none'}"
    )


def top_granules(ratio: float, n_granules: int) -> int:
    """Granules of the top segment for a split ratio in [0, 1], rounded to the nearest (half goes up)."""
    return min(n_granules, int(ratio * n_granules + 0.5))
