"""Quantized files of real MoE shapes with random weights, for benchmarks where no checkpoint is in reach.

    python bench/make_shapes.py OUT_DIR [--tokenizer ANY.gguf] [--shapes olmoe,qwen3-30b] [--layers N] [--experts-type Q4_0]

Blocks are written directly, from a pool of random ones that each expert reads at its own place: no floats, no quantizer, so the disk is what takes the time.
Scales are such that weights have a standard deviation near 0.02 and a mean near 0, so that activations stay finite and sane; embeddings one of 1, because
beside smaller ones what attention adds, the same for all tokens, would route every token to the same experts. The text is noise, and routing flatter than any
trained model's (bench/traces.py puts a recording in its place). Without --tokenizer a file takes and gives token ids. Two files per shape: NAME.gguf is ordinary,
and loads in llama.cpp; NAME.split.gguf is the same weights pre-split by the converter.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from convert.to_gguf import convert

Bytes = NDArray[np.uint8]
STD, EMBEDDING_STD = 0.02, 1.0
POOL_BLOCKS = 1 << 18  # 37 to 55 MB a type: many times the processor's cache
LEGAL_EXPERT_TYPES = ("Q4_K", "Q6_K", "Q8_0", "Q4_0", "MXFP4")


@dataclass(frozen=True)
class Shape:
    """A model of `arch` with `n_layer` of its `n_layer_whole` layers; qk_norm: width of the norms of query and key, 'head', 'all' or ''.

    expert_type   of the experts, unless asked for otherwise.
    dense_type    of the other matrices; '': as Q4_K_M mixes them, where the experts are Q4_K, else the experts' type.
    window        positions that every second layer sees; 0: all. gpt-oss alone has one, and biases, attention sinks and its own name of a norm besides.
    """

    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_expert: int
    n_used: int
    n_ff: int
    rope: float
    qk_norm: str
    n_vocab: int
    n_layer_whole: int
    head_dim: int = 128
    expert_type: str = "Q4_K"
    dense_type: str = ""
    window: int = 0


SHAPES = {
    "mixtral": Shape("llama", 3, 4096, 32, 8, 8, 2, 14336, 1e6, "", 32000, 32),
    "olmoe": Shape("olmoe", 8, 2048, 16, 16, 64, 8, 1024, 1e4, "all", 50304, 16),
    "qwen3-30b": Shape("qwen3moe", 8, 2048, 32, 4, 128, 8, 768, 1e6, "head", 151936, 48),
    # Qwen3.6-35B-A3B's experts; its mixers are others
    "qwen3.6": Shape("qwen3moe", 8, 2048, 16, 2, 256, 8, 512, 1e7, "head", 248320, 40),
    "gpt-oss-120b": Shape("gpt-oss", 4, 2880, 64, 8, 128, 4, 2880, 150000.0, "", 201088, 36, 64, "MXFP4", "Q8_0", 128),
}
# Made where nobody says which: 12 GB.
DEFAULT_SHAPES = ("mixtral", "olmoe", "qwen3-30b", "qwen3.6")


def random_blocks(kind: Type, std: float, rng: np.random.Generator) -> Bytes:
    """[POOL_BLOCKS, bytes of a block]: random codes, scales set so that weights have deviation `std` and a mean of 0, or half a code below.

    Standard deviations of code times scale, from the formats (native/src/quant/blocks.h):
      Q4_0  d (q - 8), q uniform in 0..15             4.6
      Q8_0  d q, q uniform in -128..127               73.9
      Q4_K  d s q - dmin m, s and m uniform in 0..63  258 with dmin = 7.5 d: s (q - 7.5) has 168, 7.5 (s - m) has 196
      Q6_K  d s (q - 32), q in 0..63, s in -16..15    170 (scales of all 8 bits would want a subnormal d)
      MXFP4 2^(e - 127) v, v of FP4's 16 values       2.93; scales are powers of two: the two around, so many of each that the variance is right
    """
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (POOL_BLOCKS, block_bytes), np.uint8)

    def put(at: int, scale: float) -> None:
        varied = scale * rng.uniform(0.8, 1.25, POOL_BLOCKS)
        blocks[:, at : at + 2] = varied.astype("<f2").view(np.uint8).reshape(-1, 2)

    if kind == Type.Q4_0:
        put(0, std / 4.6)
    elif kind == Type.Q8_0:
        put(0, std / 73.9)
    elif kind == Type.Q4_K:
        put(0, std / 258)
        put(2, 7.5 * std / 258)
    elif kind == Type.Q6_K:
        put(208, STD / 170)
        blocks[:, 192:208] = rng.integers(-16, 16, (POOL_BLOCKS, 16), np.int8).view(np.uint8)
    elif kind == Type.MXFP4:
        wanted = std / 8.5625**0.5
        low = math.floor(math.log2(wanted))
        share = ((wanted / 2.0**low) ** 2 - 1) / 3  # of the larger scale, four times the variance
        blocks[:, 0] = 127 + low + (rng.random(POOL_BLOCKS) < share)
    else:
        raise ValueError(f"{kind.name}: no random blocks for this type")
    return blocks


class Pool:
    """Weights by the row, each call from another place."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._blocks: dict[tuple[Type, float], Bytes] = {}

    def matrix(self, kind: Type, shape: tuple[int, ...], std: float = STD) -> NDArray[np.generic]:
        """Row-major [.., cols]; a quantized one as bytes. Experts (the first of three dims) start at places of their own."""
        if kind == Type.F32:
            return self._rng.normal(0, std, shape).astype(np.float32)
        if (kind, std) not in self._blocks:
            self._blocks[kind, std] = random_blocks(kind, std, self._rng)
        blocks = self._blocks[kind, std]
        row_bytes = shape[-1] // gguf.GGML_QUANT_SIZES[kind][0] * blocks.shape[1]
        out = np.empty((*shape[:-1], row_bytes), np.uint8)
        for part in out.reshape(-1, *out.shape[-2:]):
            n = part.size // blocks.shape[1]
            start, flat = int(self._rng.integers(len(blocks))), part.reshape(n, -1)
            for at in range(0, n, len(blocks)):
                # np.take with wrap, without its index array
                piece = flat[at : at + len(blocks)]
                head = min(len(piece), len(blocks) - start)
                piece[:head], piece[head:] = blocks[start : start + head], blocks[: len(piece) - head]
        return out


def more_bits(il: int, n_layer: int) -> bool:
    """Layers whose `down` and `v` get Q6_K in the mix known as Q4_K_M."""
    return il < n_layer // 8 or il >= 7 * n_layer // 8 or (il - n_layer // 8) % 3 == 2


Tensors = Iterator[tuple[str, tuple[int, ...], Type | None]]


def tensors(shape: Shape, n_vocab: int, expert_type: Type) -> Tensors:
    """Name, shape as rows and columns, type; None is a norm's ones."""
    e, mixed = shape.n_embd, expert_type == Type.Q4_K and not shape.dense_type
    dense = Type[shape.dense_type] if shape.dense_type else expert_type
    q, kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    yield "token_embd.weight", (n_vocab, e), dense
    yield "output_norm.weight", (e,), None
    yield "output.weight", (n_vocab, e), Type[shape.dense_type] if shape.dense_type else Type.Q6_K
    for il in range(shape.n_layer):
        wide = mixed and more_bits(il, shape.n_layer)
        rows: list[tuple[str, tuple[int, ...], Type | None]] = [
            ("attn_norm.weight", (e,), None),
            ("attn_q.weight", (q, e), dense),
            ("attn_k.weight", (kv, e), dense),
            ("attn_v.weight", (kv, e), Type.Q6_K if wide else dense),
            ("attn_output.weight", (e, q), dense),
            ("post_attention_norm.weight" if shape.window else "ffn_norm.weight", (e,), None),
            ("ffn_gate_inp.weight", (shape.n_expert, e), Type.F32),
            ("ffn_gate_exps.weight", (shape.n_expert, shape.n_ff, e), expert_type),
            ("ffn_up_exps.weight", (shape.n_expert, shape.n_ff, e), expert_type),
            ("ffn_down_exps.weight", (shape.n_expert, e, shape.n_ff), Type.Q6_K if wide else expert_type),
        ]
        if shape.qk_norm:
            widths = (shape.head_dim,) * 2 if shape.qk_norm == "head" else (q, kv)
            rows += [("attn_q_norm.weight", (widths[0],), None), ("attn_k_norm.weight", (widths[1],), None)]
        if shape.window:
            biases: dict[str, tuple[int, ...]] = {"attn_q": (q,), "attn_k": (kv,), "attn_v": (kv,), "attn_output": (e,)}
            biases |= {"ffn_gate_inp": (shape.n_expert,), "ffn_down_exps": (shape.n_expert, e)}
            biases |= dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (shape.n_expert, shape.n_ff))
            rows += [(f"{name}.bias", dims, Type.F32) for name, dims in biases.items()]
            rows.append(("attn_sinks.weight", (shape.n_head,), Type.F32))
        yield from ((f"blk.{il}.{name}", dims, kind) for name, dims, kind in rows)


def write_keys(writer: gguf.GGUFWriter, name: str, shape: Shape, tokenizer: gguf.GGUFReader | None) -> int:
    """The metadata, with the tokenizer of another file or none; returns the size of the vocabulary."""
    n_vocab = len(tokenizer.fields["tokenizer.ggml.tokens"].data) if tokenizer else shape.n_vocab
    writer.add_name(f"random weights in the shape of {name}, {shape.n_layer} layers")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_expert_count(shape.n_expert)
    writer.add_expert_used_count(shape.n_used)
    writer.add_vocab_size(n_vocab)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.arch in ("qwen3moe", "gpt-oss"):
        writer.add_expert_feed_forward_length(shape.n_ff)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return n_vocab
    for key, field in tokenizer.fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=of)
    return n_vocab


def write_shape(path: Path, name: str, shape: Shape, tokenizer: Path | None, expert_type: Type, seed: int) -> None:
    """The ordinary file; at most one tensor of it is in memory. Written aside: somebody may have an older one mapped."""
    aside = path.with_suffix(".part")
    writer, pool = gguf.GGUFWriter(aside, shape.arch), Pool(seed)
    rows = list(
        tensors(shape, write_keys(writer, name, shape, gguf.GGUFReader(tokenizer) if tokenizer else None), expert_type)
    )
    for tensor, dims, kind in rows:
        if kind is None or kind == Type.F32:
            writer.add_tensor_info(tensor, dims, np.dtype(np.float32), 4 * int(np.prod(dims)))
        else:
            stored = gguf.quant_shape_to_byte_shape(dims, kind)
            writer.add_tensor_info(tensor, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, dims, kind in rows:
        std = EMBEDDING_STD if tensor.startswith("token_embd") else STD
        writer.write_tensor_data(np.ones(dims, np.float32) if kind is None else pool.matrix(kind, dims, std))
    writer.close()
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a GGUF file whose tokenizer is copied")
    parser.add_argument("--shapes", default=",".join(DEFAULT_SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, help="instead of each shape's own number")
    parser.add_argument("--experts-type", choices=LEGAL_EXPERT_TYPES, help="instead of each shape's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-split", dest="splits", action="store_false", help="the ordinary file only")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.shapes.split(","):
        shape = SHAPES[name]
        if arguments.layers:
            shape = replace(shape, n_layer=arguments.layers)
        expert_type = arguments.experts_type or shape.expert_type
        path = arguments.out / f"{name}-L{shape.n_layer}-{expert_type}.gguf"
        write_shape(path, name, shape, arguments.tokenizer, Type[expert_type], arguments.seed)
        if not arguments.splits:
            print(f"{path} {path.stat().st_size / 1e9:.2f} GB", flush=True)
            continue
        split = path.with_suffix(".split.gguf")
        convert(path, split, force=True)
        print(
            f"{path} {path.stat().st_size / 1e9:.2f} GB, {split.name} {split.stat().st_size / 1e9:.2f} GB", flush=True
        )


if __name__ == "__main__":
    main()
