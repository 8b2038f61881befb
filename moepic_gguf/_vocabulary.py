"""The keys `tokenizer.ggml.*` of a GGUF, checked and turned into one plain `Vocabulary`. Knows no tokenizer library.

What a token is for comes from three places, in this order: its entry in `token_type`; its text, for the end-of-turn and
fill-in-the-middle tokens that many files mark as ordinary; and a few families whose files are known to mark them
wrongly. The lists are those by which llama.cpp collects its end-of-generation ids, because chat templates and files in
the wild have been tested against them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ModelFormatError

_log = logging.getLogger("moepic_gguf")

PREFIX = "tokenizer.ggml."

# Values of `tokenizer.ggml.token_type`.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# In order of preference where a file names no `eot_token_id`.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)
_END_OF_MESSAGE = ("<|eom_id|>",)
_END_OF_GENERATION = (
    *_END_OF_TURN,
    *_END_OF_MESSAGE,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
# Fill-in-the-middle roles: metadata key -> texts. The last three also end a generation.
_FILL_IN = {
    "fim_pre_token_id": "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE> "
    "<|code_prefix|> <|prefix|>",
    "fim_suf_token_id": "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> "
    "<|code_suffix|> <|suffix|>",
    "fim_mid_token_id": "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> "
    "<|code_middle|> <|middle|>",
    "fim_pad_token_id": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep_token_id": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep_token_id": "<|file_sep|>",
}
_FILL_IN_ENDS = ("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
# gpt-oss: parts of its channel syntax, to be shown and never hidden as control tokens.
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and their roles.

    texts      token strings as the file has them; bytes that are not UTF-8 are kept as surrogate escapes.
    kinds      one of NORMAL .. BYTE per token, after the corrections described at the top.
    scores     per token, empty where the file has none.
    stop_ids   every token that ends a generation.
    rstrip_ids special tokens that swallow the white space after them.
    """

    texts: list[str]
    ids: dict[str, int]
    kinds: bytearray
    scores: list[float]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eom_id: int | None
    unk_id: int | None
    stop_ids: frozenset[int]
    rstrip_ids: frozenset[int]


def read_list(meta: Mapping[str, object], name: str) -> list[Any]:
    """The array key `tokenizer.ggml.<name>`, empty where absent."""
    value = meta.get(PREFIX + name)
    if value is None:
        return []
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ModelFormatError(f"{PREFIX}{name}: expected an array, found {type(value).__name__}")
    return list(value)


def read_flag(meta: Mapping[str, object], name: str) -> bool | None:
    """The boolean key `tokenizer.ggml.<name>`, None where absent."""
    value = meta.get(PREFIX + name)
    if value is not None and not isinstance(value, (bool, int)):
        raise ModelFormatError(f"{PREFIX}{name}: expected a boolean, found {value!r}")
    return None if value is None else bool(value)


def read_text(meta: Mapping[str, object], name: str) -> str | None:
    """The string key `tokenizer.ggml.<name>`, None where absent or empty."""
    value = meta.get(PREFIX + name)
    if value is not None and not isinstance(value, str):
        raise ModelFormatError(f"{PREFIX}{name}: expected a string, found {type(value).__name__}")
    return value or None


def _special_id(meta: Mapping[str, object], name: str, n_tokens: int, default: int | None = None) -> int | None:
    value = meta.get(PREFIX + name)
    if value is None:
        return default if default is not None and default < n_tokens else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelFormatError(f"{PREFIX}{name}: expected a token id, found {value!r}")
    if not 0 <= value < n_tokens:
        # Real files write -1 or 2^32-1 for "none"; other readers take it so.
        _log.warning("%s%s: %d is outside the vocabulary of %d tokens; taken as absent", PREFIX, name, value, n_tokens)
        return None
    return value


def _texts(meta: Mapping[str, object]) -> list[str]:
    tokens = read_list(meta, "tokens")
    if not tokens:
        raise ModelFormatError(f"{PREFIX}tokens: missing or empty; the file carries no vocabulary")
    texts: list[str] = []
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            texts.append(token or f"[EMPTY_{i}]")
        elif isinstance(token, (bytes, bytearray)):
            texts.append(bytes(token).decode("utf-8", "surrogateescape") or f"[EMPTY_{i}]")
        else:
            raise ModelFormatError(f"{PREFIX}tokens[{i}]: expected a string, found {type(token).__name__}")
    return texts


def _kinds(meta: Mapping[str, object], n_tokens: int) -> bytearray:
    types = read_list(meta, "token_type")
    if not types:
        return bytearray([NORMAL]) * n_tokens
    if len(types) < n_tokens:
        raise ModelFormatError(f"{PREFIX}token_type: {len(types)} entries for {n_tokens} tokens")
    try:
        # Anything outside the enumeration is "undefined": it spells nothing, like an unused token.
        return bytearray(kind if NORMAL <= kind <= BYTE else UNUSED for kind in types[:n_tokens])
    except TypeError as error:
        raise ModelFormatError(f"{PREFIX}token_type: expected integers ({error})") from None


def _scores(meta: Mapping[str, object], n_tokens: int) -> list[float]:
    scores = read_list(meta, "scores")
    if scores and len(scores) < n_tokens:
        raise ModelFormatError(f"{PREFIX}scores: {len(scores)} entries for {n_tokens} tokens")
    try:
        return [float(score) for score in scores[:n_tokens]]
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"{PREFIX}scores: expected numbers ({error})") from None


def _phi3_rstrip(meta: Mapping[str, object], texts: list[str], kinds: bytearray, ids: dict[str, int]) -> frozenset[int]:
    """Phi-3's special tokens swallow the space after them; its GGUF files say so only by their name."""
    name = str(meta.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = {i for i, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    special |= {ids[text] for text in ("</s>",) if text in ids}
    return frozenset(i for i in special if texts[i] not in ("<unk>", "<s>", "<|endoftext|>"))


def read_vocabulary(
    meta: Mapping[str, object], *, default_bos: int | None, default_eos: int | None, default_unk: int | None
) -> Vocabulary:
    """Check the keys of `meta` and collect them. Raises ModelFormatError, which names the key and the entry."""
    texts = _texts(meta)
    n_tokens = len(texts)
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != n_tokens:
        i = next(i for i, text in enumerate(texts) if ids[text] != i)
        raise ModelFormatError(f"{PREFIX}tokens: {texts[i]!r} appears twice, as {i} and {ids[texts[i]]}")
    kinds = _kinds(meta, n_tokens)

    bos_id = _special_id(meta, "bos_token_id", n_tokens, default_bos)
    eos_id = _special_id(meta, "eos_token_id", n_tokens, default_eos)
    unk_id = _special_id(meta, "unknown_token_id", n_tokens, default_unk)

    def named_or_found(key: str, candidates: tuple[str, ...]) -> int | None:
        named = _special_id(meta, key, n_tokens)
        if named is not None:
            return named
        found = next((ids[text] for text in candidates if text in ids), None)
        if found is not None:
            kinds[found] = CONTROL
        return found

    eot_id = named_or_found("eot_token_id", _END_OF_TURN)
    eom_id = named_or_found("eom_token_id", _END_OF_MESSAGE)
    stops: set[int] = set()
    for key, candidates in _FILL_IN.items():
        found = named_or_found(key, tuple(candidates.split()))
        if found is not None and key in _FILL_IN_ENDS:
            stops.add(found)
    for text in _END_OF_GENERATION:
        if text in ids:
            stops.add(ids[text])
            kinds[ids[text]] = CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            kinds[ids[text]] = USER_DEFINED
    stops.update(i for i in (eos_id, eot_id, eom_id) if i is not None)

    # In gpt-oss and solar-open "<|end|>" closes a message, not the answer.
    stop_texts = {texts[i] for i in stops}
    calls = bool(stop_texts & {"<|call|>", "<|calls|>"})
    if "<|end|>" in stop_texts and calls and stop_texts & {"<|return|>", "<|flush|>"}:
        stops.discard(ids["<|end|>"])
        kinds[ids["<|end|>"]] = USER_DEFINED
    # Where "<|tool_response>" or "<|plamo:eos|>" exist, "</s>" is ordinary text (HTML's strike-through).
    if "</s>" in stop_texts and stop_texts & {"<|tool_response>", "<|plamo:eos|>"}:
        stops.discard(ids["</s>"])
        kinds[ids["</s>"]] = NORMAL

    return Vocabulary(
        texts=texts,
        ids=ids,
        kinds=kinds,
        scores=_scores(meta, n_tokens),
        bos_id=bos_id,
        eos_id=eos_id,
        eot_id=eot_id,
        eom_id=eom_id,
        unk_id=unk_id,
        stop_ids=frozenset(stops),
        rstrip_ids=_phi3_rstrip(meta, texts, kinds, ids),
    )
