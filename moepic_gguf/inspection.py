"""What a GGUF file holds, read from its keys and tensor table alone; no weights are loaded. Feeds moepic-info and
nothing of the engine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from .errors import MoepicError
from .metadata import GgufFile, Metadata, TensorInfo

# First match wins. Names are GGUF's.
_CLASSES = (
    ("routed experts", re.compile(r"^blk\.\d+\..*_exps(_top|_bot)?\.")),
    ("router", re.compile(r"ffn_gate_inp|exp_probs_b")),
    ("shared expert", re.compile(r"_shexp\.")),
    ("embedding", re.compile(r"^token_embd")),
    ("output", re.compile(r"^output\.")),
    ("norms", re.compile(r"norm")),
    ("state mixers", re.compile(r"\.ssm_|\.shortconv\.|\.attn_(qkv|gate)\.")),
    ("attention", re.compile(r"\.attn_")),
    ("dense feed-forward", re.compile(r"\.ffn_")),
)


@dataclass(frozen=True)
class TensorClass:
    """One row of the quant mix."""

    name: str
    n_tensors: int
    n_weights: int
    n_bytes: int
    types: dict[str, int]  # GGUF letters -> tensors

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True)
class FileReport:
    """Everything moepic-info prints. Sizes in bytes; None where the file does not say."""

    path: str
    name: str
    architecture: str
    file_bytes: int
    shards: int
    n_weights: int
    n_layer: int | None
    n_embd: int | None
    n_ctx_train: int | None
    n_head: int | None
    n_head_kv: int | None
    head_dim: int | None
    n_vocab: int | None
    n_expert: int
    n_expert_used: int
    n_ff_exp: int | None
    n_ff_shared: int | None
    expert_bytes: int | None  # one expert of one layer, mean over layers
    moe_layers: int
    granule: int | None  # None: an ordinary file, cut when it is loaded
    top_share: float | None
    neuron_order: str | None
    kv_layers: int | None  # layers with keys and values
    kv_bytes_per_token: int | None  # keys and values in F16, of layers that see every position
    kv_window_bytes: int  # the same of layers with a window: what the windows hold, whatever the context
    kv_window: int  # positions of a window; 0: there are none
    state_bytes: int | None  # of one sequence, whatever its length; None: every layer has keys and values
    classes: tuple[TensorClass, ...]
    tokenizer: str
    has_chat_template: bool
    problems: tuple[str, ...]  # why this build cannot run it; what loading would say
    remarks: tuple[str, ...]

    @property
    def is_supported(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record["supported"] = self.is_supported
        for row, item in zip(record["classes"], self.classes, strict=True):
            row["bits_per_weight"] = round(item.bits_per_weight, 3)
        return record


def inspect_file(file: GgufFile) -> FileReport:
    """Read keys and table of `file`."""
    meta, tensors = file.metadata, file.tensors
    arch = str(meta.get("general.architecture", ""))
    keys = _Keys(meta, arch)
    experts = [tensor for tensor in tensors if _class_of(tensor.name) == "routed experts"]
    n_expert = keys.number("expert_count") or 0
    moe_layers = len({tensor.name.split(".")[1] for tensor in experts})
    n_layer, n_head, n_embd = (
        keys.number("block_count"),
        keys.number("attention.head_count"),
        keys.number("embedding_length"),
    )
    n_head_kv = keys.number("attention.head_count_kv") or n_head
    head_dim = keys.number("attention.key_length") or (n_embd // n_head if n_embd and n_head else None)
    value_dim = keys.number("attention.value_length") or head_dim
    kv_layers, state = _mixers(keys, tensors, n_layer, n_embd)
    kv: int | None
    windows = window = 0
    if need := file.kv_need():
        kv, windows, window = need
    else:  # not a file of ours: by the keys that every architecture has
        kv = (
            kv_layers * n_head_kv * (head_dim + value_dim) * 2
            if kv_layers and n_head_kv and head_dim and value_dim
            else None
        )
    tokenizer, remarks = _tokenizer(meta)
    problem = file.problem()
    if n_expert and moe_layers and n_layer and moe_layers < n_layer:
        remarks.append(f"{n_layer - moe_layers} of {n_layer} layers are dense")
    return FileReport(
        path=str(file.path),
        name=str(meta.get("general.name", "")),
        architecture=arch,
        file_bytes=file.n_bytes,
        shards=len(file.shards),
        n_weights=sum(tensor.n_weights for tensor in tensors),
        n_layer=n_layer,
        n_embd=n_embd,
        n_ctx_train=keys.number("context_length"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_vocab=_n_vocab(meta, tensors),
        n_expert=n_expert,
        n_expert_used=keys.number("expert_used_count") or 0,
        n_ff_exp=_expert_width(experts) if n_expert else None,
        n_ff_shared=next((t.shape[0] for t in tensors if "ffn_up_shexp.weight" in t.name), None),
        expert_bytes=sum(t.n_bytes for t in experts) // (n_expert * moe_layers) if n_expert and moe_layers else None,
        moe_layers=moe_layers,
        granule=_first(meta.get("moepic.granule")),
        top_share=_top_share(experts) if "moepic.version" in meta else None,
        neuron_order=str(meta["moepic.neuron_order"]) if "moepic.neuron_order" in meta else None,
        kv_layers=kv_layers,
        kv_bytes_per_token=kv,
        kv_window_bytes=windows,
        kv_window=window,
        state_bytes=state,
        classes=_classes(tensors),
        tokenizer=tokenizer,
        has_chat_template="tokenizer.chat_template" in meta,
        problems=(problem,) if problem else (),
        remarks=tuple(remarks),
    )


class _Keys:
    """Numbers under the architecture's prefix; of a per-layer array, the largest."""

    def __init__(self, meta: Metadata, arch: str) -> None:
        self._meta, self._arch = meta, arch

    def number(self, name: str) -> int | None:
        value = self._meta.get(f"{self._arch}.{name}")
        if isinstance(value, list):
            value = max((item for item in value if isinstance(item, int)), default=None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mixers(
    keys: _Keys, tensors: tuple[TensorInfo, ...], n_layer: int | None, n_embd: int | None
) -> tuple[int | None, int | None]:
    """Layers with keys and values, and bytes of the states of the others, as the tensors tell; None: cannot be told.

    A delta net keeps its convolution's last inputs and a matrix per value head (rows of whole vectors of 16), a short
    convolution its last inputs; floats.
    """
    taps = [t for t in tensors if t.name.endswith((".ssm_conv1d.weight", ".shortconv.conv.weight"))]
    if n_layer is None or not taps:
        return n_layer, None
    floats = sum((t.shape[1] - 1) * t.shape[0] for t in taps)
    heads, inner, rows = (keys.number(f"ssm.{name}") for name in ("time_step_rank", "inner_size", "state_size"))
    nets = sum(t.name.endswith(".ssm_conv1d.weight") for t in taps)
    if nets and heads and inner and rows:
        floats += nets * heads * rows * ((inner // heads + 15) // 16 * 16)
    return n_layer - len(taps), 4 * floats


def _class_of(name: str) -> str:
    return next((label for label, pattern in _CLASSES if pattern.search(name)), "other")


def _classes(tensors: tuple[TensorInfo, ...]) -> tuple[TensorClass, ...]:
    groups: dict[str, list[TensorInfo]] = defaultdict(list)
    for tensor in tensors:
        groups[_class_of(tensor.name)].append(tensor)
    rows = []
    for label in [*(label for label, _ in _CLASSES), "other"]:
        members = groups.get(label, [])
        types: dict[str, int] = {}
        for tensor in members:
            types[tensor.type] = types.get(tensor.type, 0) + 1
        if members:
            n_weights, n_bytes = sum(t.n_weights for t in members), sum(t.n_bytes for t in members)
            rows.append(TensorClass(label, len(members), n_weights, n_bytes, types))
    return tuple(rows)


def _expert_width(experts: list[TensorInfo]) -> int | None:
    """Neurons of one expert: rows of `up` (or half of a fused gate_up), summed over top and bottom."""
    first = min((int(t.name.split(".")[1]) for t in experts), default=None)
    parts = [
        t for t in experts if t.name.startswith(f"blk.{first}.") and len(t.shape) == 3 and t.name.endswith(".weight")
    ]
    for stem, share in (("ffn_up_exps", 1), ("ffn_gate_up_exps", 2)):
        width = sum(t.shape[1] for t in parts if f".{stem}" in t.name)
        if width:
            return width // share
    return None


def _top_share(experts: list[TensorInfo]) -> float | None:
    total = sum(t.n_bytes for t in experts)
    return sum(t.n_bytes for t in experts if "_top." in t.name) / total if total else None


def _first(value: object) -> int | None:
    if isinstance(value, list):
        value = next((item for item in value if item), None)
    return value if isinstance(value, int) else None


def _n_vocab(meta: Metadata, tensors: tuple[TensorInfo, ...]) -> int | None:
    rows = next((t.shape[0] for t in tensors if t.name == "token_embd.weight"), None)
    return (
        rows if rows is not None else meta.count("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in meta else None
    )


def _tokenizer(meta: Metadata) -> tuple[str, list[str]]:
    model = meta.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        return "none", ["no tokenizer: it takes and gives token ids"]
    label = f"{model}/{meta['tokenizer.ggml.pre']}" if "tokenizer.ggml.pre" in meta else model
    from .tokenizer import Tokenizer

    try:
        Tokenizer.from_metadata(meta)
    except MoepicError as error:
        return label, [f"text cannot be used, token ids can: {error}"]
    return label, [] if "tokenizer.chat_template" in meta else [
        "no chat template: moepic-chat needs --chat-template-file"
    ]
