"""Text to token ids and back, from the keys of a GGUF file, with ids equal to llama.cpp's.

The merging is done by the `tokenizers` library; this module builds it from the file's lists and does the two things
around it that GGUF runtimes define differently: special tokens are cut out of the text longest first (the library cuts
leftmost first, which differs where two overlap), and SentencePiece-style vocabularies get their leading space per piece
of text between specials. It parses no file and knows no model.

Three kinds: `gpt2`, byte-level BPE with split patterns per `tokenizer.ggml.pre` (`_pretokenizers`); `llama`,
SentencePiece BPE whose merges are implied by the scores, with bytes as the fallback; `gemma4`, BPE over plain UTF-8
with spaces escaped and the same fallback.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import Regex
from tokenizers import Tokenizer as _Core
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from ._pretokenizers import pre_tokenizer
from ._vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    PREFIX,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    read_flag,
    read_list,
    read_text,
    read_vocabulary,
)
from .errors import ArgumentError, ModelFormatError, UnsupportedModelError

_log = logging.getLogger("moepic_gguf")

_SPACE = "\u2581"  # how SentencePiece writes a space inside a token
_C_SPACES = " \t\n\v\f\r"


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE (GPT-2, Radford et al. 2019): character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(rest)}


_BYTE_OF = _byte_alphabet()


class Tokenizer:
    """A tokenizer bound to one vocabulary. Immutable, so any number of threads may share it."""

    def __init__(
        self, vocabulary: Vocabulary, core: _Core, *, byte_level: bool, space_prefix: bool, add_bos: bool, add_eos: bool
    ) -> None:
        """For the builders of this module; callers use `from_metadata`."""
        self._vocabulary = vocabulary
        self._core = core
        self._byte_level = byte_level
        self._has_gaps = core.get_vocab_size() > len(vocabulary.texts)
        self._space_prefix = space_prefix
        self._add_bos = add_bos
        self._add_eos = add_eos
        self._pieces: list[bytes | None] = [None] * len(vocabulary.texts)
        # Longest first, in bytes: the order in which specials are cut out of a text.
        kinds, texts = vocabulary.kinds, vocabulary.texts
        special = [i for i, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN, USER_DEFINED)]
        special.sort(key=lambda i: -len(_raw(texts[i])))
        self._special = [(texts[i], i) for i in special]
        self._user_defined = [(text, i) for text, i in self._special if kinds[i] == USER_DEFINED]

    @classmethod
    def from_metadata(cls, meta: Mapping[str, object]) -> Tokenizer:
        """Build from GGUF keys (`tokenizer.ggml.*`, and `general.name` for one family) holding plain Python values.

        Token strings may be str or bytes. Raises ModelFormatError naming a key that is missing or broken, and
        UnsupportedModelError for a tokenizer model or pre-tokenizer this build does not know.
        """
        model = read_text(meta, "model")
        builder = {"gpt2": _build_byte_level, "llama": _build_sentencepiece, "gemma4": _build_plain_bpe}.get(
            model or ""
        )
        if model is None:
            raise ModelFormatError(f"{PREFIX}model: missing; the file carries no tokenizer")
        if builder is None:
            raise UnsupportedModelError(f"{PREFIX}model: '{model}' is not supported (known: gpt2, llama, gemma4)")
        return builder(meta)

    # What the vocabulary holds.

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the file's list."""
        return len(self._vocabulary.texts)

    @property
    def bos_id(self) -> int | None:
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        return self._vocabulary.eos_id

    @property
    def eot_id(self) -> int | None:
        """End of turn: named by the file, else found by its text."""
        return self._vocabulary.eot_id

    @property
    def eom_id(self) -> int | None:
        return self._vocabulary.eom_id

    @property
    def unk_id(self) -> int | None:
        return self._vocabulary.unk_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a generation: eos, eot, eom and the well-known end tokens found by their text."""
        return self._vocabulary.stop_ids

    @property
    def add_bos(self) -> bool:
        """Whether `encode(add_special=True)` puts the BOS id in front."""
        return self._add_bos

    @property
    def add_eos(self) -> bool:
        """Whether `encode(add_special=True)` appends the EOS id."""
        return self._add_eos

    def is_control(self, token: int) -> bool:
        """Is `token` a control token: one that steers the model and is never part of plain text?"""
        return self._vocabulary.kinds[self._checked(token)] == CONTROL

    def token_text(self, token: int) -> str:
        """The token's string as the file has it, byte-level stand-ins and all; `token_bytes` is what it spells."""
        return self._vocabulary.texts[self._checked(token)]

    def token_id(self, text: str) -> int | None:
        """The id whose string is exactly `text`, None where there is none."""
        return self._vocabulary.ids.get(text)

    # Text to ids.

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special    put BOS in front and EOS behind where the file asks for them.
        parse_special  control tokens spelled in the text become their ids; otherwise they are plain text. User-defined
                       tokens are cut out either way, as they belong to the text. Set it for rendered chat templates,
                       never for what a user typed.
        Raises         ArgumentError for a string that is not Unicode text (a lone surrogate), with its position.
        """
        _check_text(text)
        ids: list[int] = []
        vocabulary = self._vocabulary
        if add_special and self._add_bos and vocabulary.bos_id is not None:
            ids.append(vocabulary.bos_id)
        after_special = True
        for fragment in self._fragments(text, self._special if parse_special else self._user_defined):
            if isinstance(fragment, int):
                ids.append(fragment)
                after_special = True
                continue
            if not self._byte_level:
                fragment = (" " if self._space_prefix and after_special else "") + fragment
                fragment = fragment.replace(" ", _SPACE)
            ids.extend(self._core.encode(fragment, add_special_tokens=False).ids)
            after_special = False
        if self._has_gaps:
            ids = [i for i in ids if i < self.vocab_size]
        if add_special and self._add_eos and vocabulary.eos_id is not None:
            ids.append(vocabulary.eos_id)
        return ids

    def _fragments(self, text: str, special: list[tuple[str, int]]) -> list[str | int]:
        """`text` cut at the special tokens it holds, longer ones first: plain text as str, specials as ids."""
        fragments: list[str | int] = [text] if text else []
        for spelled, token in special:
            if spelled not in text:
                continue
            rstrip = token in self._vocabulary.rstrip_ids
            cut: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    cut.append(fragment)
                    continue
                for i, part in enumerate(fragment.split(spelled)):
                    if i:
                        cut.append(token)
                        part = part.lstrip(_C_SPACES) if rstrip else part
                    if part:
                        cut.append(part)
            fragments = cut
        return fragments

    # Ids to text.

    def token_bytes(self, token: int) -> bytes:
        """The bytes `token` spells, maybe part of a character. Control tokens spell their text, unused ones nothing."""
        piece = self._pieces[self._checked(token)]
        if piece is None:
            piece = self._pieces[token] = self._spell(token)
        return piece

    def _spell(self, token: int) -> bytes:
        text, kind = self._vocabulary.texts[token], self._vocabulary.kinds[token]
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return _raw(text)
        if kind == BYTE:
            return bytes([_byte_value(text, token)])
        if kind != NORMAL:
            return b""
        if not self._byte_level:
            return _raw(text.replace(_SPACE, " "))
        # A character outside the byte alphabet belongs to a token that never was byte-level text; it spells itself.
        return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else _raw(c) for c in text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text `ids` spell; bytes that are not UTF-8 become U+FFFD.

        skip_special   leave out control and unknown tokens.
        The space that `encode` puts in front of a SentencePiece text is taken off again, so that decoding an encoded
        text gives it back.
        """
        return b"".join(self._spelled(ids, skip_special=skip_special, at_start=True)).decode("utf-8", "replace")

    def _spelled(self, ids: Iterable[int], *, skip_special: bool, at_start: bool) -> Iterator[bytes]:
        kinds = self._vocabulary.kinds
        strip = at_start and self._space_prefix
        for token in ids:
            piece = self.token_bytes(token)
            if skip_special and kinds[token] in (CONTROL, UNKNOWN):
                continue
            if strip and piece:
                piece, strip = piece.removeprefix(b" "), False
            yield piece

    def stream(self, *, skip_special: bool = False, at_start: bool = False) -> StreamDecoder:
        """A `StreamDecoder` over this vocabulary."""
        return StreamDecoder(self, skip_special=skip_special, at_start=at_start)

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self._vocabulary.texts):
            raise ArgumentError(f"token id {token} is outside the vocabulary of {len(self._vocabulary.texts)} tokens")
        return token


class StreamDecoder:
    """Ids to text, one at a time, never cutting a UTF-8 character in two: what is incomplete waits for the next id.

    The pieces joined equal `Tokenizer.decode` of all ids, U+FFFD included. One decoder serves one stream on one thread.

    skip_special   leave out control and unknown tokens.
    at_start       the ids begin a text and do not continue a prompt, so a SentencePiece leading space is taken off.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False, at_start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = at_start and tokenizer._space_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that became complete with `token`; may be empty."""
        spelled = b"".join(self._tokenizer._spelled((token,), skip_special=self._skip_special, at_start=self._strip))
        self._strip = self._strip and not spelled and not self._tokenizer.token_bytes(token).startswith(b" ")
        return self._utf8.decode(spelled)

    def flush(self) -> str:
        """What is left at the end of the stream: nothing, or U+FFFD for an incomplete character."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise ArgumentError(f"text must be a str, found {type(text).__name__}")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"text has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is no Unicode "
            "character (was it decoded with 'surrogateescape'?)"
        ) from None


def _byte_value(text: str, token: int) -> int:
    try:
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return int(text[3:5], 16)
    except ValueError:
        pass
    raise ModelFormatError(f"{PREFIX}tokens[{token}]: a byte token must read '<0xNN>', found {text!r}")


def _bos_and_eos(meta: Mapping[str, object], vocabulary: Vocabulary, *, default_bos: bool) -> tuple[bool, bool]:
    """Whether to add BOS and EOS. A file that asks for one it does not name is broken; a family's habit gives way."""
    add_bos, add_eos = read_flag(meta, "add_bos_token"), read_flag(meta, "add_eos_token")
    if add_bos and vocabulary.bos_id is None:
        raise ModelFormatError(f"{PREFIX}add_bos_token is true, but {PREFIX}bos_token_id is missing")
    if add_eos and vocabulary.eos_id is None:
        raise ModelFormatError(f"{PREFIX}add_eos_token is true, but {PREFIX}eos_token_id is missing")
    if add_bos is None:
        add_bos = default_bos and vocabulary.bos_id is not None
    return add_bos, bool(add_eos)


def _matchable(vocabulary: Vocabulary) -> dict[str, int]:
    """The vocabulary for the library: without strings that are not Unicode, which no text can match."""
    try:
        "".join(vocabulary.texts).encode("utf-8")
        return vocabulary.ids
    except UnicodeEncodeError:
        return {text: i for text, i in vocabulary.ids.items() if not any(0xD800 <= ord(c) <= 0xDFFF for c in text)}


def _read_merges(meta: Mapping[str, object], ids: dict[str, int]) -> list[tuple[str, str]]:
    if PREFIX + "merges" not in meta:
        raise ModelFormatError(f"{PREFIX}merges: missing; a BPE vocabulary is merged by them")
    raw = read_list(meta, "merges")
    if not all(isinstance(line, (str, bytes)) for line in raw):
        raise ModelFormatError(f"{PREFIX}merges: expected an array of strings")
    merges: list[tuple[str, str]] = []
    left_out = 0
    # A pair given twice keeps its first rank.
    for line in dict.fromkeys(raw):
        text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
        left, space, right = text.partition(" ")
        if not left:  # the left half itself begins with a space
            cut = text.find(" ", 1)
            left, space, right = (text[:cut], " ", text[cut + 1 :]) if cut > 0 else ("", "", "")
        if not space or not right:
            raise ModelFormatError(
                f"{PREFIX}merges[{raw.index(line)}]: expected two parts with a space between, found {text!r}"
            )
        if left in ids and right in ids and left + right in ids:
            merges.append((left, right))
        else:
            left_out += 1
    if left_out:
        _log.warning("%smerges: %d merges name tokens that the vocabulary lacks; left out", PREFIX, left_out)
    return merges


def _build_byte_level(meta: Mapping[str, object]) -> Tokenizer:
    name = read_text(meta, "pre")
    if name is None:
        _log.warning(
            "%spre: missing; taking 'default', which old files mean (ids may differ from the model's own tokenizer)",
            PREFIX,
        )
    row = pre_tokenizer(name or "default")
    vocabulary = read_vocabulary(meta, default_bos=None, default_eos=None, default_unk=None)
    ids = _matchable(vocabulary)
    merges = _read_merges(meta, ids)
    gap = None
    if any(c not in ids for c in _BYTE_OF):
        # A byte without a token has no id, but still keeps its neighbours from merging. The library would drop it
        # before merging, so it gets an id past the end, which `encode` leaves out.
        gap = "\0no such byte"
        ids = ids | {gap: len(vocabulary.texts)}
    core = _Core(BPE(vocab=ids, merges=merges, unk_token=gap, fuse_unk=False, ignore_merges=row.whole_words))
    splits = [Split(Regex(pattern), behavior="isolated") for pattern in row.splits]
    if row.first_joins_left:
        splits[0] = Split(Regex(row.splits[0]), behavior="merged_with_previous")
    core.pre_tokenizer = Sequence([*splits, ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    add_bos, add_eos = _bos_and_eos(meta, vocabulary, default_bos=row.add_bos)
    return Tokenizer(vocabulary, core, byte_level=True, space_prefix=False, add_bos=add_bos, add_eos=add_eos)


def _score_merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges a SentencePiece BPE vocabulary implies: two tokens whose joint text is a token, best score first.

    SentencePiece picks the best score and, among equals, the leftmost pair; a list of ranks can say the first. Ways to
    build the same token come in the order of the left half's length, shortest first.
    """
    lengths = sorted({len(text) for text in ids})
    found: list[tuple[float, int, int, str, str]] = []
    for text, token in ids.items():
        for cut in lengths:
            if cut >= len(text):
                break
            left = text[:cut]
            if left in ids:
                right = text[cut:]
                if right in ids:
                    found.append((-scores[token], token, cut, left, right))
    found.sort()
    return [(left, right) for _, _, _, left, right in found]


def _build_sentencepiece(meta: Mapping[str, object]) -> Tokenizer:
    vocabulary = read_vocabulary(meta, default_bos=1, default_eos=2, default_unk=0)
    if not vocabulary.scores:
        raise ModelFormatError(f"{PREFIX}scores: missing; a 'llama' vocabulary is merged by its scores")
    ids = _matchable(vocabulary)
    core = _Core(_with_byte_fallback(vocabulary, ids, _score_merges(ids, vocabulary.scores)))
    add_bos, add_eos = _bos_and_eos(meta, vocabulary, default_bos=True)
    prefix = read_flag(meta, "add_space_prefix")
    return Tokenizer(
        vocabulary, core, byte_level=False, space_prefix=prefix is None or prefix, add_bos=add_bos, add_eos=add_eos
    )


def _with_byte_fallback(vocabulary: Vocabulary, ids: dict[str, int], merges: list[tuple[str, str]]) -> BPE:
    unknown = None if vocabulary.unk_id is None else vocabulary.texts[vocabulary.unk_id]
    return BPE(
        vocab=ids, merges=merges, byte_fallback=True, unk_token=unknown if unknown in ids else None, fuse_unk=False
    )


def _build_plain_bpe(meta: Mapping[str, object]) -> Tokenizer:
    vocabulary = read_vocabulary(meta, default_bos=None, default_eos=None, default_unk=None)
    ids = _matchable(vocabulary)
    core = _Core(_with_byte_fallback(vocabulary, ids, _read_merges(meta, ids)))
    core.pre_tokenizer = Split(Regex(r"[^\n]+|\n+"), behavior="isolated")
    # Gemma 4 files say add_bos_token = false by mistake; the model needs it.
    _, add_eos = _bos_and_eos(meta, vocabulary, default_bos=True)
    return Tokenizer(
        vocabulary, core, byte_level=False, space_prefix=False, add_bos=vocabulary.bos_id is not None, add_eos=add_eos
    )


__all__ = ["StreamDecoder", "Tokenizer"]
