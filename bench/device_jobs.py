"""What device.py measures: shapes and their recordings, sizes of a run, and one Job per row of the record. No clock, no process, no device.

A job is run by device_worker.py from `work` alone. Its key tells it from all others, so a record that was begun can be gone on with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ablation import Tier, modes_of
from gguf import GGMLQuantizationType as Type
from make_shapes import SHAPES, Shape
from measuring import Subject, alternating
from traces import find_trace, map_trace

from moepic_gguf.planner import Machine
from moepic_gguf.streaming import StreamingOptions

RECALL = 0.8  # of the guesses that a trace hands to the predictor
NO_CACHE = 0.0  # as a share of the experts
# For the emulation: two granules an expert, and sizes that a CPU imitates in seconds.
TINY = Shape("qwen3moe", 2, 64, 2, 1, 16, 4, 512, 1e6, "head", 320, 2, 32, "Q4_0", "Q8_0")


@dataclass(frozen=True)
class Model:
    """A file to make and the recording its routing follows; layers in a full and in a quick run, the same for every layer's share of the time."""

    shape: Shape
    trace: str
    n_layer: int
    n_layer_quick: int


MODELS = {
    "qwen3-30b": Model(SHAPES["qwen3-30b"], "qwen3-30b-a3b-top6.csv", 16, 4),
    "qwen3.6": Model(SHAPES["qwen3.6"], "qwen3.6-35b-a3b-128steps.json", 16, 4),
    "gpt-oss-120b": Model(SHAPES["gpt-oss-120b"], "gpt-oss-120b-top2.csv", 6, 2),
    "mixtral": Model(SHAPES["mixtral"], "gpt-oss-120b-top2.csv", 6, 2),
}
EMULATED_MODELS = {"tiny": Model(TINY, "qwen3-30b-a3b-top6.csv", 2, 2)}


@dataclass(frozen=True)
class Sizes:
    """Tokens and repeats of every run; bytes and seconds of every kernel's measurement; cold_bytes exceeds the GPU's caches."""

    prefill: int = 512
    warm: int = 64
    tokens: int = 64
    prefills: int = 2
    repeats: int = 3
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0)
    ablation_shares: tuple[float, ...] = (0.25,)
    cold_bytes: int = 1 << 30
    copy_bytes: int = 1 << 29
    seconds: float = 1.0


FULL = Sizes()
QUICK = replace(
    FULL, prefill=128, warm=32, tokens=32, prefills=1, repeats=1, shares=(0.25, 0.5, 0.75, 1.0), seconds=0.3
)
EMULATED = replace(
    QUICK, prefill=12, warm=3, tokens=3, shares=(0.25, 1.0), cold_bytes=1 << 16, copy_bytes=1 << 20, seconds=0.02
)


@dataclass(frozen=True)
class Job:
    """A row of the record: `about` are its columns beside what was measured, `work` is what the worker does, `repeat` its turn."""

    part: str
    about: dict[str, Any]
    work: dict[str, Any] = field(compare=False)
    repeat: int = 0

    @property
    def key(self) -> str:
        return "/".join([self.part, *(f"{name}={value}" for name, value in self.about.items()), str(self.repeat)])


@dataclass(frozen=True)
class Bench:
    """What all jobs have in common."""

    device: str
    sizes: Sizes
    threads: int
    trace: str | None  # instead of each model's own

    def recording(self, model: Model) -> str:
        return str(find_trace(self.trace or model.trace).resolve())


def shape_file(folder: Path, name: str, model: Model, n_layer: int) -> Path:
    return folder / f"{name}-L{n_layer}-{model.shape.expert_type}.gguf"


def run_work(
    bench: Bench, subject: Subject, recording: str, options: StreamingOptions, *, cpu_lane: bool
) -> dict[str, Any]:
    """Prefill and decode in one load."""
    sizes = {name: getattr(bench.sizes, name) for name in ("prefill", "warm", "tokens", "prefills")}
    lanes = {"device": bench.device, "cpu_lane": cpu_lane, "threads": bench.threads, "options": asdict(options)}
    return {
        "what": "run",
        "path": str(subject.path),
        "target": asdict(subject.target),
        "trace": recording,
        "recall": RECALL,
        **sizes,
        **lanes,
    }


def decode_jobs(bench: Bench, name: str, subject: Subject, recording: str) -> Iterator[Job]:
    """What Model.load does unless told otherwise, at every share of the experts, and with no cache at all."""
    for repeat in range(bench.sizes.repeats):
        for share in alternating((NO_CACHE, *bench.sizes.shares), repeat):
            # All resident from the beginning, where all fit: what the device takes alone.
            profile = [1.0] * subject.n_experts if share >= 1.0 else None
            options = StreamingOptions(cache=int(share * subject.expert_bytes), profile=profile)
            work = run_work(bench, subject, recording, options, cpu_lane=True)
            yield Job("decode", {"shape": name, "share": share}, work, repeat)


def ablation_jobs(bench: Bench, name: str, subject: Subject, recording: str, machine: Machine) -> Iterator[Job]:
    """ablation.py's modes on the device, without the CPU lane; and those that a user may choose with it."""
    trace = map_trace(find_trace(recording), subject.target, recall=RECALL)
    seen = trace.tokens(slice(0, bench.sizes.warm))
    for share in bench.sizes.ablation_shares:
        budget = int(share * subject.expert_bytes)
        modes = modes_of(subject, seen, budget, Tier("device", machine), RECALL)
        ahead = modes["granules, lrfu, prefetch"]
        cells = [(mode, options, False) for mode, options in modes.items()]
        cells.append(("granules, lrfu", replace(ahead, predictor="none"), False))
        for mode in ("on demand", "granules, lrfu, prefetch", "auto"):
            cells.append((f"{mode}, CPU lane", modes[mode], True))
        for repeat in range(bench.sizes.repeats):
            for mode, options, cpu_lane in alternating(cells, repeat):
                work = run_work(bench, subject, recording, options, cpu_lane=cpu_lane)
                yield Job("ablation", {"shape": name, "share": share, "mode": mode}, work, repeat)


def rates_job(bench: Bench) -> Job:
    sizes = {
        "bytes": bench.sizes.copy_bytes,
        "piece_bytes": min(1 << 20, bench.sizes.copy_bytes),
        "seconds": bench.sizes.seconds,
    }
    return Job("machine", {}, {"what": "rates", "device": bench.device, "threads": bench.threads, **sizes})


def kernel_jobs(bench: Bench, name: str, subject: Subject, shape: Shape) -> Iterator[Job]:
    """The products of a decoded token, and one of a prompt: attention's, the output head, and the token's experts, by the types the file has."""
    times = {"device": bench.device, "cold_bytes": bench.sizes.cold_bytes, "seconds": bench.sizes.seconds}
    dense = Type[shape.dense_type or shape.expert_type]
    head = dense if shape.dense_type else Type.Q6_K
    q = shape.n_head * shape.head_dim
    for what, kind, rows, cols, n_tokens in (
        ("attn_q, decode", dense, q, shape.n_embd, 1),
        ("attn_output, decode", dense, shape.n_embd, q, 1),
        ("output, decode", head, shape.n_vocab, shape.n_embd, 1),
        ("attn_q, prompt", dense, q, shape.n_embd, bench.sizes.prefill),
    ):
        sizes = {"type": int(kind), "rows": rows, "cols": cols, "n_tokens": n_tokens}
        about = {"shape": name, "kernel": what, "type": kind.name}
        yield Job("kernels", about, {"what": "matmul", **sizes, **times})
    layer = next(layer for layer in subject.info.layers if layer.n_expert)
    for down in sorted({layer.down_type for layer in subject.info.layers if layer.n_expert}):
        sizes = {"gate_up_type": int(Type[layer.gate_type]), "down_type": int(Type[down]), "n_embd": shape.n_embd}
        sizes |= {"granule": layer.granule, "n_tasks": shape.n_used * layer.n_granules}
        about = {"shape": name, "kernel": "experts, decode", "type": f"{layer.gate_type}, {down}"}
        yield Job("kernels", about, {"what": "experts", **sizes, **times})


def machine_of(rates: dict[str, Any], device_bytes_s: float) -> Machine:
    """For plans. device_bytes_s: of the kernels of resident experts. Costs on top of bytes (a layer's, the CPU lane's) are not measured here, and 0."""
    return Machine(
        link_bytes_s=rates["to_device_bytes_s"],
        device_bytes_s=device_bytes_s,
        cpu_bytes_s=rates["cpu_bytes_s"],
        together_bytes_s=rates["to_device_together_bytes_s"] + rates["cpu_together_bytes_s"],
        n_threads=rates["n_threads"],
    )
