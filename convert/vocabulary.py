"""Tokenizer and chat template of a Hugging Face folder to `tokenizer.*` keys. Reads the JSON files; runs no tokenizer.

Two kinds have a counterpart in GGUF: byte-level BPE (`gpt2`: tokens, merges, a named pre-tokenizer) and BPE over
characters with byte fallback, which is how Llama's SentencePiece models look in tokenizer.json (`llama`: tokens,
scores). A bare tokenizer.model is read with the sentencepiece package. Anything else is an error; nothing is
approximated in silence.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moepic_gguf.errors import ConversionError

from . import keys as k
from .pretokenizer import pre_name

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
# Gemma 4's marks of channels and tools: shown, so that a reader of chats can see them.
_SHOWN = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")


@dataclass
class _Tokens:
    """The table of tokens. `scores` is None for byte-level BPE."""

    texts: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    ids: dict[str, int] = field(default_factory=dict)


def vocabulary_keys(
    folder: Path, config: dict[str, Any], n_vocab: int, warnings: list[str], *, pre: str | None, wanted: bool
) -> k.Keys:
    """The `tokenizer.*` keys of a folder.

    n_vocab    rows of the embedding; tokens are padded to it with unused ones.
    warnings   gets a sentence when the file will serve token ids only.
    pre        the pre-tokenizer's name, instead of finding it out.
    wanted     False: leave the tokenizer out.
    Raises     ConversionError for a tokenizer without a counterpart in GGUF.
    """
    settings = _json(folder / "tokenizer_config.json") or {}
    generation = _json(folder / "generation_config.json") or {}
    tokenizer = _json(folder / "tokenizer.json")
    has_model = (folder / "tokenizer.model").is_file()
    if not wanted or (tokenizer is None and not has_model):
        why = "--no-vocab" if not wanted else "the folder has no tokenizer.json or tokenizer.model"
        warnings.append(f"no tokenizer was carried over ({why}): the file serves token ids only")
        return {"tokenizer.ggml.model": k.string("none")}
    if tokenizer is None:
        tokens = _read_sentencepiece(folder / "tokenizer.model", settings)
        keys: k.Keys = {"tokenizer.ggml.model": k.string("llama"), "tokenizer.ggml.pre": k.string("default")}
        keys["tokenizer.ggml.add_space_prefix"] = k.boolean(bool(settings.get("add_prefix_space", True)))
        add_bos, add_eos = settings.get("add_bos_token", True), settings.get("add_eos_token", False)
    else:
        keys, tokens = _read_tokenizer_json(
            tokenizer, pre, plain=str(config.get("model_type", "")).startswith("gemma4")
        )
        add_bos, add_eos = _added_around(tokenizer, settings)
    if len(tokens.texts) > n_vocab:
        raise ConversionError(
            f"the tokenizer has {len(tokens.texts)} tokens, the embedding {n_vocab} rows: token {n_vocab} "
            f"{tokens.texts[n_vocab]!r} would have no vector"
        )
    for i in range(len(tokens.texts), n_vocab):
        tokens.texts.append(f"[PAD{i}]")
        tokens.kinds.append(UNUSED)
        if tokens.scores is not None:
            tokens.scores.append(-1e6)
    keys["tokenizer.ggml.tokens"] = k.strings(tokens.texts)
    if tokens.scores is not None:
        keys["tokenizer.ggml.scores"] = k.f32s(tokens.scores)
    keys["tokenizer.ggml.token_type"] = k.i32s(tokens.kinds)
    special = _special_ids(tokens, settings, generation, config, _json(folder / "special_tokens_map.json") or {})
    keys |= {f"tokenizer.ggml.{name}_token_id": k.u32(token) for name, token in special.items()}
    if suppressed := [i for i in generation.get("suppress_tokens") or [] if isinstance(i, int) and 0 <= i < n_vocab]:
        keys["tokenizer.ggml.suppress_tokens"] = k.i32s(suppressed)
    for name, flag in (("bos", add_bos), ("eos", add_eos)):
        if flag and name not in special:
            raise ConversionError(f"the tokenizer adds a {name} token, but none is named in tokenizer_config.json")
        keys[f"tokenizer.ggml.add_{name}_token"] = k.boolean(bool(flag))
    return keys | _templates(folder, settings)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConversionError(f"'{path.name}' is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConversionError(f"'{path.name}' is {type(value).__name__}, expected an object")
    return value


def _read_tokenizer_json(tokenizer: dict[str, Any], pre: str | None, *, plain: bool) -> tuple[k.Keys, _Tokens]:
    """Keys and tokens. `plain`: a BPE over characters keeps its merges (`gemma4`), instead of becoming scores (`llama`)."""
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ConversionError(
            f"tokenizer.json: model type is {json.dumps(model.get('type'))}; supported: BPE "
            "(leave the tokenizer out with --no-vocab)"
        )
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []]
    tokens = _table(tokenizer, model)
    if model.get("byte_fallback") and "ByteLevel" not in json.dumps(tokenizer.get("pre_tokenizer")):
        tokens.scores = _scores(tokens, merges)
        keys: k.Keys = {
            "tokenizer.ggml.model": k.string("llama"),
            "tokenizer.ggml.pre": k.string("default"),
            "tokenizer.ggml.add_space_prefix": k.boolean(_adds_space(tokenizer)),
        }
        if plain:
            for text in tokens.ids.keys() & set(_SHOWN):
                tokens.kinds[tokens.ids[text]] = USER_DEFINED
            keys["tokenizer.ggml.model"] = k.string("gemma4")
            del keys["tokenizer.ggml.pre"]
            keys["tokenizer.ggml.merges"] = k.strings([f"{left} {right}" for left, right in merges])
        return keys, tokens
    _check_normalizer(tokenizer.get("normalizer"))
    for text in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(text):
            raise ConversionError(
                f"tokenizer.json: '{text}' is {json.dumps(model[text])}, which GGUF's gpt2 tokenizer cannot express"
            )
    keys = {
        "tokenizer.ggml.model": k.string("gpt2"),
        "tokenizer.ggml.pre": k.string(pre or pre_name(tokenizer)),
        "tokenizer.ggml.merges": k.strings([f"{left} {right}" for left, right in merges]),
    }
    return keys, tokens


def _table(tokenizer: dict[str, Any], model: dict[str, Any]) -> _Tokens:
    ids: dict[str, int] = dict(model["vocab"])
    added: dict[int, dict[str, Any]] = {}
    for token in tokenizer.get("added_tokens") or []:
        added[int(token["id"])] = token
        ids[token["content"]] = int(token["id"])
    count = max(ids.values(), default=-1) + 1
    if count > 4 * len(ids) + 1024:
        raise ConversionError(f"tokenizer.json: {len(ids)} tokens have ids up to {count - 1}")
    tokens = _Tokens([f"[PAD{i}]" for i in range(count)], [UNUSED] * count, None, ids)
    unknown, fallback = model.get("unk_token"), bool(model.get("byte_fallback"))
    for text, i in ids.items():
        tokens.texts[i] = text
        tokens.kinds[i] = BYTE if fallback and _BYTE_TOKEN.fullmatch(text) else NORMAL
    for i, token in added.items():
        text = token["content"]
        tokens.texts[i] = text if token.get("special") or not fallback else text.replace(_SPACE, " ")
        tokens.kinds[i] = CONTROL if token.get("special") else USER_DEFINED
    if unknown in ids:
        tokens.kinds[ids[unknown]] = UNKNOWN if fallback else tokens.kinds[ids[unknown]]
    return tokens


def _scores(tokens: _Tokens, merges: list[tuple[str, ...]]) -> list[float]:
    """Scores that make a SentencePiece reader merge in the order of `merges`: a product's score is minus the rank of
    its first merge.

    Only products are compared while merging; everything else gets a score below them all. A product that can be made
    in several ways has adjacent ranks in files that came from SentencePiece, so one number per product keeps the
    order.
    """
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    lowest = float(-len(merges) - 1)
    return [float(-rank[text]) if text in rank else lowest for text in tokens.texts]


def _adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a U+2581 is put before a text: a Prepend normalizer, or a Metaspace pre-tokenizer that prepends."""
    for key, children in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        node = tokenizer.get(key) or {}
        for step in [node, *node.get(children, [])]:
            if step.get("type") == "Prepend":
                return True
            if step.get("type") == "Metaspace":
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                return bool(scheme != "never")
    return False


def _check_normalizer(node: dict[str, Any] | None) -> None:
    """NFC is what GGUF readers leave out for every file of these families; another normalizer would change ordinary
    text.
    """
    steps = (node or {}).get("normalizers", [node] if node else [])
    for step in steps:
        if step.get("type") != "NFC":
            raise ConversionError(
                f"tokenizer.json: normalizer {json.dumps(step, ensure_ascii=False)[:200]} has no counterpart in "
                f"GGUF's gpt2 tokenizer"
            )


def _added_around(tokenizer: dict[str, Any], settings: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS behind a text. Llama's class rebuilds its template from its
    flags; else the template says it.
    """
    flags = (settings.get("add_bos_token"), settings.get("add_eos_token"))
    node = tokenizer.get("post_processor") or {}
    template = next((p for p in [node, *node.get("processors", [])] if p.get("type") == "TemplateProcessing"), None)
    if template is None or "Llama" in str(settings.get("tokenizer_class")):
        defaults = (template is not None and "SpecialToken" in template["single"][0], False)
        return tuple(default if flag is None else bool(flag) for flag, default in zip(flags, defaults, strict=True))  # type: ignore[return-value]
    single = template.get("single") or [{}]
    first = single[0].get("SpecialToken", {}).get("id")
    named = settings.get("bos_token")
    bos = named.get("content") if isinstance(named, dict) else named
    if first is not None and bos is not None and first != bos:
        raise ConversionError(
            f"tokenizer.json puts {first!r} before a text, tokenizer_config.json names {bos!r} as bos_token; GGUF readers can add BOS only"
        )
    return "SpecialToken" in single[0], len(single) > 1 and "SpecialToken" in single[-1]


def _special_ids(
    tokens: _Tokens,
    settings: dict[str, Any],
    generation: dict[str, Any],
    config: dict[str, Any],
    special: dict[str, Any],
) -> dict[str, int]:
    """Ids by role. The tokenizer's own word comes first, then generation_config.json, then config.json."""
    found: dict[str, int] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        named = [values.get(f"{key}_token") for values in (settings, special)]
        texts = [value.get("content") if isinstance(value, dict) else value for value in named]
        text = next((t for t in texts if isinstance(t, str) and t in tokens.ids), None)
        if text is not None:
            found[role] = tokens.ids[text]
        elif (
            role in ("bos", "eos")
            and (ids := _ids(generation, key) or _ids(config, key))
            and ids[0] < len(tokens.texts)
        ):
            found[role] = ids[0]
    stops = _ids(generation, "eos") + _ids(config, "eos")
    turn = next((i for i in stops if i < len(tokens.texts) and tokens.texts[i] in _END_OF_TURN), None)
    if turn is not None and turn != found.get("eos"):
        found["eot"] = turn
    return found


def _ids(values: dict[str, Any], key: str) -> list[int]:
    value = values.get(f"{key}_token_id")
    listed = value if isinstance(value, list) else [value]
    return [i for i in listed if isinstance(i, int) and not isinstance(i, bool) and i >= 0]


def _templates(folder: Path, settings: dict[str, Any]) -> k.Keys:
    """The chat template and its named variants: files first, as newer checkpoints have them, then
    tokenizer_config.json.
    """
    found: dict[str, str] = {}
    given = settings.get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        found |= {
            str(entry["name"]): str(entry["template"])
            for entry in given
            if isinstance(entry, dict) and {"name", "template"} <= entry.keys()
        }
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text("utf-8")
    elif (old := _json(folder / "chat_template.json")) and isinstance(old.get("chat_template"), str):
        found["default"] = old["chat_template"]
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text("utf-8")
    keys: k.Keys = {}
    others = sorted(found.keys() - {"default"})
    if others:
        keys["tokenizer.chat_templates"] = k.strings(others)
        keys |= {f"tokenizer.chat_template.{name}": k.string(found[name]) for name in others}
    if "default" in found:
        keys["tokenizer.chat_template"] = k.string(found["default"])
    return keys


def _read_sentencepiece(path: Path, settings: dict[str, Any]) -> _Tokens:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ConversionError(
            f"'{path.name}' without tokenizer.json needs the sentencepiece package: pip install sentencepiece, "
            "or leave the tokenizer out with --no-vocab"
        ) from None
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ConversionError(f"'{path.name}' is not a SentencePiece model: {error}") from None
    count = model.vocab_size()
    tokens = _Tokens(
        [model.id_to_piece(i) for i in range(count)], [NORMAL] * count, [model.get_score(i) for i in range(count)]
    )
    assert tokens.scores is not None
    for i in range(count):
        for kind, holds in (
            (UNKNOWN, model.is_unknown),
            (CONTROL, model.is_control),
            (UNUSED, model.is_unused),
            (BYTE, model.is_byte),
        ):
            if holds(i):
                tokens.kinds[i] = kind
    for key, token in sorted((settings.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        i, text = int(key), token["content"]
        while len(tokens.texts) <= i:
            tokens.texts.append(f"[PAD{len(tokens.texts)}]")
            tokens.kinds.append(UNUSED)
            tokens.scores.append(-1e6)
        if tokens.kinds[i] in (NORMAL, UNUSED):
            tokens.kinds[i] = CONTROL if token.get("special") else USER_DEFINED
            tokens.texts[i] = text if token.get("special") else text.replace(_SPACE, " ")
    tokens.ids = {text: i for i, text in enumerate(tokens.texts)}
    return tokens
