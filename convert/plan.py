"""What will be written, decided before a byte is: cuts per layer, tensors in order, shards, sizes, peak memory.
Reads no weights.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moepic_gguf.errors import ConversionError

from . import cut
from . import keys as k
from .granule import check_granule, default_granule, top_granules
from .sources import Content
from .tensors import Tensor
from .writer import DEFAULT_ALIGNMENT, SPLIT_ALIGNMENT, Shard, lay_out

# Interpreter, numpy and the metadata of a large vocabulary, measured; added to the work of the largest tensor.
_BASE_BYTES = 160 << 20


# Per layer with experts, the order of each expert's neurons, `[n_expert, n_ff]`.
Orders = dict[int, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Cut:
    """How to cut.

    ratios              top share per layer, or one for all.
    granule             neurons; None follows the rule.
    split               False writes ordinary tensors.
    separate_segments   tops and bottoms go to different shards.
    orders              of the neurons; None is natural.
    """

    ratios: Sequence[float] = (0.5,)
    granule: int | None = None
    split: bool = True
    separate_segments: bool = False
    max_shard_bytes: int | None = None
    orders: Orders | None = None


@dataclass
class Plan:
    """Shards to write, and what to say about them."""

    shards: list[Shard]
    granules: list[int]
    tops: list[int]
    widths: list[int]
    content: Content
    sizes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def n_bytes(self) -> int:
        return sum(shard.n_bytes() for shard in self.shards)

    @property
    def peak_bytes(self) -> int:
        """An estimate of the memory the run will need."""
        return _BASE_BYTES + max((t.work_bytes for shard in self.shards for t in shard.tensors), default=0)


def make_plan(content: Content, target: Path, how: Cut) -> Plan:
    """Decide everything. Raises ConversionError for a ratio or granule that does not fit."""
    n_layer = len(content.layers)
    ratios = _per_layer(how.ratios, n_layer, [experts is not None for _, experts in content.layers])
    granules, tops, widths = [0] * n_layer, [0] * n_layer, [0] * n_layer
    main: list[Tensor] = list(content.head)
    bottoms: list[Tensor] = []
    for il, (plain, experts) in enumerate(content.layers):
        main += plain
        if experts is None:
            continue
        order = how.orders[il] if how.orders else None
        if not how.split:
            main += cut.whole(experts, order)
            continue
        granule = how.granule or default_granule(experts.n_ff, experts.kinds["down"])
        check_granule(granule, experts.n_ff, experts.kinds["down"], f"layer {il}")
        granules[il], tops[il], widths[il] = granule, top_granules(ratios[il], experts.n_ff // granule), experts.n_ff
        for tensor in cut.split(experts, granule, tops[il], order):
            (bottoms if how.separate_segments and tensor.role == "expert bottom" else main).append(tensor)
    main += content.tail
    keys = dict(content.keys)
    if how.orders:
        keys["moepic.neuron_order"] = k.string("importance")
    if how.split and any(granules):
        keys.setdefault("moepic.neuron_order", k.string("natural"))
        keys |= {"moepic.version": k.u32(1), "moepic.granule": k.i32s(granules), "moepic.top_granules": k.i32s(tops)}
    groups = [group for group in (main, bottoms) if group]
    alignment = SPLIT_ALIGNMENT if any(granules) else DEFAULT_ALIGNMENT
    shards = lay_out(target, keys, groups, how.max_shard_bytes, alignment)
    plan = Plan(shards, granules, tops, widths, content)
    for shard in plan.shards:
        for tensor in shard.tensors:
            plan.sizes[tensor.role] += tensor.n_bytes
            plan.kinds[tensor.kind.name] += tensor.n_bytes
    return plan


def _per_layer(ratios: Sequence[float], n_layer: int, is_moe: Sequence[bool]) -> list[float]:
    if len(ratios) == 1:
        return list(ratios) * n_layer
    if len(ratios) == n_layer:
        return list(ratios)
    if len(ratios) == sum(is_moe):
        given = iter(ratios)
        return [next(given) if moe else 0.0 for moe in is_moe]
    raise ConversionError(
        f"--split-ratio has {len(ratios)} numbers; expected 1, {n_layer} (layers) or {sum(is_moe)} (layers with "
        f"experts)"
    )


def parse_ratios(text: str) -> list[float]:
    """`0.5`, `0.5,0.25,...`, or the path of a file with such numbers. Raises ConversionError."""
    path = Path(text)
    if path.is_file():
        text = path.read_text("utf-8")
    try:
        values = [float(word) for word in re.split(r"\s*,\s*|\s+", text.strip())]
    except ValueError:
        raise ConversionError(
            f"--split-ratio '{text[:60]}' is neither numbers nor the path of a file with numbers"
        ) from None
    if not all(0.0 <= value <= 1.0 and math.isfinite(value) for value in values):
        raise ConversionError(f"--split-ratio {text.strip()[:60]}: every number must lie in 0 to 1")
    return values


def parse_size(text: str) -> int:
    """Bytes of `500M`, `2GiB`, `4.5G`, `1000000`. K, M, G with or without iB are binary; KB, MB, GB are decimal.
    Raises ConversionError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B)?\s*", text)
    if not match:
        raise ConversionError(f"size '{text}' is not understood; write for example 500MiB or 4G")
    base = 1000 if match[3] == "B" and match[2] else 1024
    size = int(float(match[1]) * base ** " KMGT".index(match[2] or " "))
    if size < 1:
        raise ConversionError(f"size '{text}' must be more than 0")
    return size


def human(n: float) -> str:
    """Bytes in a unit people read."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.2f} {unit}"
        n /= 1024
    return f"{n:.2f} TiB"


def describe(plan: Plan) -> str:
    """A report for people: sizes by class, types, cuts, fallbacks, shards, peak memory."""
    total = sum(plan.sizes.values())
    lines = [f"architecture {plan.content.arch}, {len(plan.content.layers)} layers", "", "tensor data by class:"]
    lines += [
        f"  {role:<14} {human(size):>12}  {100 * size / max(total, 1):5.1f} %" for role, size in plan.sizes.items()
    ]
    lines += ["", "by type:"]
    lines += [
        f"  {kind:<14} {human(size):>12}  {100 * size / max(total, 1):5.1f} %"
        for kind, size in sorted(plan.kinds.items(), key=lambda x: -x[1])
    ]
    cuts: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for il, granule in enumerate(plan.granules):
        if granule:
            cuts[(granule, plan.widths[il] // granule, plan.tops[il])].append(il)
    if cuts:
        lines += ["", "experts:"]
        for (granule, count, top), layers in cuts.items():
            lines.append(
                f"  layers {_runs(layers)}: {count} granules of {granule} neurons, top {top}, bottom {count - top}"
            )
    if plan.content.fallbacks:
        lines += ["", "types the shapes did not allow:"]
        grouped: dict[tuple[str, str, str], int] = defaultdict(int)
        for name, wanted, given in plan.content.fallbacks:
            grouped[(re.sub(r"blk\.\d+\.", "blk.*.", name), wanted.name, given.name)] += 1
        lines += [
            f"  {name}: {given} instead of {wanted} ({n} tensors)" for (name, wanted, given), n in grouped.items()
        ]
    lines += ["", "files:"]
    lines += [f"  {shard.path.name}  {human(shard.n_bytes())}, {len(shard.tensors)} tensors" for shard in plan.shards]
    lines += [f"  in all {plan.n_bytes} bytes", "", f"peak memory about {human(plan.peak_bytes)}"]
    return "\n".join(lines)


def _runs(layers: list[int]) -> str:
    runs: list[list[int]] = []
    for il in layers:
        if runs and il == runs[-1][1] + 1:
            runs[-1][1] = il
        else:
            runs.append([il, il])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
