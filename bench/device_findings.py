"""findings.md of device.py's record, from its rows: each target with a verdict or "not measured", then the tables, then what the data can't say.

Pure: rows in, text out. Rows that failed have an `error`; the last row of a key counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from measuring import markdown, spread

from moepic_gguf.budgets import show_bytes

Row = dict[str, Any]
# Issue 4's.
FASTER, KERNEL_SHARE, SLOWER_THAN_LANE = 1.3, 0.8, 1.15
COMPARED_SHARES = (0.25, 0.5, 0.75)
# Two medians of a few runs each that differ by less are not told apart.
NOISE = 1.05
NOT_MEASURED = "not measured"


def findings(rows: list[Row], env: dict[str, Any]) -> str:
    is_emulated, not_measured = env["device"]["kind"] == "emulated", f"{NOT_MEASURED.capitalize()}.\n"
    good = latest(rows)
    name = env["device"]["name"]
    parts = [f"# MoEpic-GGUF on {name}\n\n{setting(env)}"]
    if is_emulated:
        parts.append(
            "**No GPU was here.** The device is the emulation: CUDA kernels imitated on the CPU, some thousand times slower, with a model of toy size. "
            "The numbers show that the benchmark runs, and nothing about a GPU.\n\n"
        )
    parts.append(targets(good, is_emulated))
    for title, text in (
        ("Tests", tests(good)),
        ("Bandwidth", bandwidth(good)),
        ("Kernels", kernels(good)),
        ("Decode and prefill", speeds(good)),
        ("Each part of the idea", ablation(good)),
        ("llama.cpp", peer(good)),
    ):
        parts.append(f"\n## {title}{', emulated' if is_emulated else ''}\n\n{text or not_measured}")
    if failed := [row for row in rows if "error" in row and row["key"] not in {one["key"] for one in good}]:
        lines = (f"- {row['key']}: {row['error']}\n" for row in {row["key"]: row for row in failed}.values())
        parts.append(f"\n## Failed\n\n{''.join(lines)}")
    return "".join(parts) + LIMITS


def setting(env: dict[str, Any]) -> str:
    """Where this comes from, in a line; env.json has the rest, for every call."""
    facts = env["driver"]["nvidia_smi"] or {}
    link = f"PCIe {facts['pcie.link.gen.max']} x{facts['pcie.link.width.current']}" if facts else "link not known"
    layers = ", ".join(f"{name} {n_layer}" for name, n_layer in env["layers"].items())
    driver = facts.get("driver_version", "not known")
    return f"{env['when'][:10]}, commit {env['commit']}, {env['cpu']} ({env['cores']} cores), driver {driver}, {link}. Layers: {layers}.\n\n"


LIMITS = """
## What this can't say

- Weights are random and layers few: a layer's time is real, the sum over layers is a small model's, and the output head weighs more than in the whole one.
- Routing follows recordings (bench/README.md says what is made up in each), guesses have a stated recall of 0.8. llama.cpp routes for itself; random weights
  route flatly, which does not change the bytes of its decode.
- Prompts repeat the tokens that warm the cache up until they are long enough: not those that decode is then timed on.
- Peak memory is sampled ten times a second, of the whole device, driver included.
- The slowest lane's own time is modelled: the run with all experts resident, and bytes divided by rates measured apart from the model.
- A kernel's launch that takes less than a launch costs the host is bound by the host; decode is, too.
"""


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every key that did not fail."""
    return list({row["key"]: row for row in rows if "error" not in row}.values())


def of(rows: list[Row], part: str, **about: Any) -> list[Row]:
    return [row for row in rows if row["part"] == part and all(row.get(name) == value for name, value in about.items())]


def median(rows: list[Row], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def prefill_s(rows: list[Row]) -> float:
    return statistics.median(seconds for row in rows for seconds in row["prefill_s"])


def distinct(rows: list[Row], *names: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


# ---- targets -------------------------------------------------------------------------------------------------------


def targets(rows: list[Row], is_emulated: bool) -> str:
    """Every target, with the numbers behind its verdict."""
    checks = (
        (
            f"decode at 25, 50, 75 % resident at least {FASTER:g} times llama.cpp's best at no more peak VRAM",
            against_peer(rows, "decode"),
        ),
        ("prefill no slower than llama.cpp's there", against_peer(rows, "prefill")),
        (f"kernels of decode at {KERNEL_SHARE:.0%} of copy bandwidth", kernel_shares(rows)),
        (f"a layer's time at most {SLOWER_THAN_LANE - 1:.0%} above the slowest lane's own", lane_ratios(rows)),
        ("no setting slower than its own run without a cache", against_no_cache(rows)),
    )
    lines = []
    for target, found in checks:
        if not found or is_emulated:
            lines.append([target, NOT_MEASURED, "no GPU" if is_emulated else "-"])
            continue
        met = sum(is_met for is_met, _ in found)
        verdict = "met" if met == len(found) else f"met in {met} of {len(found)}"
        lines.append([target, verdict, "; ".join(text for _, text in found)])
    return markdown(["target", "verdict", "measured"], lines)


Checks = list[tuple[bool, str]]


def against_peer(rows: list[Row], what: str) -> Checks:
    """llama.cpp's fastest setting that took no more memory, as nvidia-smi saw both. Its memory goes by whole layers, so the next one up is named beside it."""
    found = []
    for shape, share in distinct(of(rows, "decode"), "shape", "share"):
        ours = of(rows, "decode", shape=shape, share=share)
        peaks = [row["smi_peak_bytes"] for row in ours if row["smi_peak_bytes"]]
        if not peaks or share not in COMPARED_SHARES:
            continue
        ours_s = median(ours, "tpot_s") if what == "decode" else prefill_s(ours)
        settings = [row for row in of(rows, "llama", shape=shape) if row["smi_peak_bytes"]]
        fitting = [row for row in settings if row["smi_peak_bytes"] <= max(peaks)]
        if not fitting:
            continue
        theirs = min(fitting, key=lambda row: peer_s(row, what))
        ratio = peer_s(theirs, what) / ours_s
        text = f"{shape} {share:.0%}: {ratio:.2f} (n-cpu-moe {theirs['n_cpu_moe']}"
        if larger := [row for row in settings if row["smi_peak_bytes"] > max(peaks)]:
            above = min(larger, key=lambda row: row["smi_peak_bytes"])
            more = show_bytes(above["smi_peak_bytes"] - max(peaks))
            text += f"; {peer_s(above, what) / ours_s:.2f} with {more} more than ours"
        found.append((ratio >= (FASTER if what == "decode" else 1.0), f"{text})"))
    return found


def peer_s(row: Row, what: str) -> float:
    return float(row["tpot_s"] if what == "decode" else statistics.median(row["prefill_s"]))


def kernel_shares(rows: list[Row]) -> Checks:
    rates = of(rows, "machine")
    if not rates:
        return []
    ceiling = rates[0]["copy_bytes_s"]
    decode = [row for row in of(rows, "kernels") if row["kernel"].endswith("decode")]
    shares = ((row, row["bytes_s"] / ceiling) for row in decode)
    return [
        (share >= KERNEL_SHARE, f"{row['shape']} {row['kernel']} {row['type']}: {share:.0%}") for row, share in shares
    ]


def lane_times(rows: list[Row], shape: str, share: float) -> dict[str, float] | None:
    """Seconds per token that each lane would take alone; None where what they are made of was not measured."""
    rates, resident = of(rows, "machine"), of(rows, "decode", shape=shape, share=1.0)
    ours = of(rows, "decode", shape=shape, share=share)
    if not rates or not resident or not ours:
        return None
    return {
        "device": median(resident, "tpot_s"),
        "link": median(ours, "link_bytes_per_token") / rates[0]["to_device_bytes_s"],
        "CPU": median(ours, "in_place_bytes_per_token") / rates[0]["cpu_bytes_s"],
    }


def lane_ratios(rows: list[Row]) -> Checks:
    found = []
    for shape, share in distinct(of(rows, "decode"), "shape", "share"):
        lanes = lane_times(rows, shape, share)
        if share == 1.0 or lanes is None:
            continue
        slowest = max(lanes, key=lambda lane: lanes[lane])
        ratio = median(of(rows, "decode", shape=shape, share=share), "tpot_s") / lanes[slowest]
        found.append((ratio <= SLOWER_THAN_LANE, f"{shape} {share:.0%}: {ratio:.2f} of the {slowest}'s"))
    return found


def against_no_cache(rows: list[Row]) -> Checks:
    """decode's settings against share 0; ablation's against "on demand" with the same lanes. NOISE is allowed."""
    pairs = []
    for shape, share in distinct(of(rows, "decode"), "shape", "share"):
        if share > 0.0:
            pairs.append(
                (
                    f"{shape} {share:.0%}",
                    of(rows, "decode", shape=shape, share=share),
                    of(rows, "decode", shape=shape, share=0.0),
                )
            )
    for shape, share, mode in distinct(of(rows, "ablation"), "shape", "share", "mode"):
        lane = ", CPU lane" if mode.endswith(", CPU lane") else ""
        if mode != f"on demand{lane}":
            base = of(rows, "ablation", shape=shape, share=share, mode=f"on demand{lane}")
            pairs.append(
                (f"{shape} {share:.0%} {mode}", of(rows, "ablation", shape=shape, share=share, mode=mode), base)
            )
    ratios = ((name, median(ours, "tpot_s") / median(base, "tpot_s")) for name, ours, base in pairs if base)
    return [(ratio <= NOISE, f"{name}: {ratio:.2f}") for name, ratio in ratios]


# ---- tables --------------------------------------------------------------------------------------------------------


def tests(rows: list[Row]) -> str:
    """The test suite's words; and whether all runs of a shape ended in the same logits, whatever cache and lanes they had."""
    lines = [f"- `{row['command']}`: {row['summary']}" for row in of(rows, "tests")]
    runs = of(rows, "decode") + of(rows, "ablation")
    for (shape,) in distinct(runs, "shape"):
        digests = [row["digest"] for row in runs if row["shape"] == shape]
        said = "the same" if len(set(digests)) == 1 else f"{len(set(digests))} DIFFERENT"
        lines.append(f"- {shape}: {len(digests)} runs ended in {said} logits")
    return "".join(f"{line}\n" for line in lines)


def bandwidth(rows: list[Row]) -> str:
    names = {
        "copy_bytes_s": "inside the device's memory, reads and writes counted",
        "to_device_bytes_s": "to the device, pinned, alone",
        "to_host_bytes_s": "to the host, pinned, alone",
        "cpu_bytes_s": "granules on the CPU, alone",
        "to_device_together_bytes_s": "to the device, while the CPU computes",
        "cpu_together_bytes_s": "granules on the CPU, while the link is busy",
    }
    return "".join(
        markdown(["what", "GB/s"], ([what, f"{row[name] / 1e9:.1f}"] for name, what in names.items()))
        for row in of(rows, "machine")
    )


def kernels(rows: list[Row]) -> str:
    rates, found = of(rows, "machine"), of(rows, "kernels")
    if not found:
        return ""
    lines = [
        [
            row["shape"],
            row["kernel"],
            row["type"],
            f"{row['bytes_s'] / 1e9:.3g}",
            f"{100 * row['bytes_s'] / rates[0]['copy_bytes_s']:.3g} %" if rates else "-",
            " + ".join(f"{1e6 * row[name]:.1f}" for name in ("launch_s", "intermediate_s", "down_s") if name in row),
        ]
        for row in found
    ]
    return markdown(["shape", "kernel", "type", "weights GB/s", "of copy bandwidth", "us"], lines)


SPEED_HEADS = ["prefill tok/s", "TPOT ms", "hit / partial / miss %", "MB by link / in place", "stall ms", "VRAM peak"]


def speed_cells(rows: list[Row]) -> list[str]:
    routed = sum(median(rows, name) for name in ("n_hit", "n_partial", "n_miss"))
    return [
        spread([row["n_prefill"] / seconds for row in rows for seconds in row["prefill_s"]], 1, 0),
        spread([row["tpot_s"] for row in rows], 1e3, 2),
        " / ".join(f"{100 * median(rows, name) / routed:.0f}" for name in ("n_hit", "n_partial", "n_miss")),
        " / ".join(f"{median(rows, f'{name}_bytes_per_token') / 1e6:.1f}" for name in ("link", "in_place")),
        f"{1e3 * median(rows, 'stall_s_per_token'):.2f}",
        show_bytes(int(max(row["smi_peak_bytes"] or row["peak_vram_bytes"] for row in rows))),
    ]


def speeds(rows: list[Row]) -> str:
    lines = []
    for shape, share in sorted(distinct(of(rows, "decode"), "shape", "share")):
        lines.append(
            [shape, f"{share:.0%}" if share else "no cache", *speed_cells(of(rows, "decode", shape=shape, share=share))]
        )
    return (
        f"Median (smallest-largest).\n\n{markdown(['shape', 'experts resident', *SPEED_HEADS], lines)}" if lines else ""
    )


def ablation(rows: list[Row]) -> str:
    lines = []
    for shape, share, mode in distinct(of(rows, "ablation"), "shape", "share", "mode"):
        lines.append(
            [shape, f"{share:.0%}", mode, *speed_cells(of(rows, "ablation", shape=shape, share=share, mode=mode))]
        )
    return markdown(["shape", "budget", "mode", *SPEED_HEADS], lines) if lines else ""


def peer(rows: list[Row]) -> str:
    lines = [
        [
            row["shape"],
            str(row["n_cpu_moe"]),
            row["options"] or "defaults",
            spread([row["n_prefill"] / seconds for seconds in row["prefill_s"]], 1, 0),
            f"{1e3 * row['tpot_s']:.2f}",
            show_bytes(row["smi_peak_bytes"]) if row["smi_peak_bytes"] else NOT_MEASURED,
        ]
        for row in of(rows, "llama")
    ]
    return markdown(["shape", "n-cpu-moe", "options", "prefill tok/s", "TPOT ms", "VRAM peak"], lines) if lines else ""
