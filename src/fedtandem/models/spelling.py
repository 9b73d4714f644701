"""Which bytes each token of a tokenizer spells, read from its own parts and never from a class name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

BYTE_LEVEL, PIECES, WORD_PIECES, LITERAL = "byte level", "pieces", "word pieces", "literal"
"""How token strings are written: GPT-2's byte alphabet; `▁` for a space; `##` in a word; as the text."""

UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@dataclass(frozen=True, eq=False, repr=False)
class Spelling:
    """The bytes of a tokenizer's tokens, and what its normaliser does to the text before.

    Attributes:
        tokenizer: the fast tokenizer this was read from.
        tokens: token string by id, "" for unused ids; (V,).
        surface: the bytes a token stands for when it is met in a text; special tokens literally; b"" unused; (V,).
        added: ids of tokens matched in the raw text before the model runs (special or not).
        special: the added ids that are marks, not text.
        kind: one of BYTE_LEVEL, PIECES, WORD_PIECES, LITERAL.
        marker: sign of a leading space in token strings: "▁", "Ġ" or "".
        forms: Unicode normal forms applied to the text, in order; None when the normaliser does more than that.
        dummy_prefix: a space is put before the text (or before each piece of it) that the text does not hold.
    """

    tokenizer: Tokenizer
    tokens: tuple[str, ...]
    surface: tuple[bytes, ...]
    added: Mapping[int, Any]
    special: frozenset[int]
    kind: str
    marker: str
    forms: tuple[str, ...] | None
    dummy_prefix: bool

    def __repr__(self) -> str:
        return f"Spelling({len(self.tokens)} tokens, {self.kind})"

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of each token's surface; (V,) int32."""
        return np.fromiter(map(len, self.surface), dtype=np.int32, count=len(self.surface))

    @cached_property
    def starts_with_space(self) -> npt.NDArray[np.bool_]:
        """Ordinary tokens whose surface begins with a space; (V,) bool."""
        flags = (piece[:1] == b" " and i not in self.added for i, piece in enumerate(self.surface))
        return np.fromiter(flags, dtype=np.bool_, count=len(self.surface))

    @cached_property
    def is_added(self) -> npt.NDArray[np.bool_]:
        """Tokens matched in the raw text; (V,) bool."""
        flags = np.zeros(len(self.surface), dtype=np.bool_)
        flags[list(self.added)] = True
        return flags

    def encode(self, texts: list[str], *, marks_are_text: bool, offsets: bool = False) -> list[Encoding]:
        """Encode texts whole, without special tokens of the tokenizer's own, padding or cutting.

        Args:
            texts: any Unicode strings.
            marks_are_text: True: a literal special string is ordinary text. False: it becomes its token.
            offsets: also make character offsets (slower).
        """
        backend = self.tokenizer
        before = backend.encode_special_tokens
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = marks_are_text
        try:
            encode_batch = backend.encode_batch if offsets else backend.encode_batch_fast
            return list(encode_batch(texts, add_special_tokens=False))
        finally:
            backend.encode_special_tokens = before

    def encode_with_marks(self, text: str) -> Encoding:
        """One text with offsets; a literal special string becomes its token."""
        return self.encode([text], marks_are_text=False, offsets=True)[0]


def read_spelling(tokenizer: Tokenizer, special_ids: frozenset[int] = frozenset()) -> Spelling:
    """Work out how `tokenizer` writes bytes.

    Args:
        tokenizer: a fast tokenizer.
        special_ids: ids known as marks besides those the tokenizer flags itself.
    """
    parts = {name: _parts(getattr(tokenizer, name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [""] * (1 + max(vocabulary.values(), default=-1))
    # Two strings may share an id after merging added tokens; the smaller string is the deterministic choice.
    for token, token_id in sorted(vocabulary.items(), reverse=True):
        tokens[token_id] = token
    added = dict(tokenizer.get_added_tokens_decoder())
    special = frozenset(i for i, token in added.items() if token.special) | special_ids
    kind, marker = _kind(parts["decoder"])
    byte_fallback = bool(getattr(tokenizer.model, "byte_fallback", False)) or any(
        part["type"] == "ByteFallback" for part in parts["decoder"]
    )
    spell = _speller(kind, marker, parts["decoder"], byte_fallback)
    surface = [spell(token) if token else b"" for token in tokens]
    for token_id, mark in added.items():
        tokens[token_id] = mark.content
        raw = mark.content.replace("▁", " ") if marker == "▁" and mark.normalized else mark.content
        surface[token_id] = raw.encode("utf-8", "replace")
    return Spelling(
        tokenizer=tokenizer,
        tokens=tuple(tokens),
        surface=tuple(surface),
        added=added,
        special=special,
        kind=kind,
        marker=marker,
        forms=_unicode_forms(parts["normalizer"], marker),
        dummy_prefix=_has_dummy_prefix(parts["normalizer"] + parts["pre_tokenizer"]),
    )


def without_dummy_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts no space of its own before a text: for text that continues other text."""
    state = json.loads(tokenizer.to_str())
    normalizers = [part for part in _flat(state["normalizer"]) if part["type"] != "Prepend"]
    if state["normalizer"] is not None:
        state["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    pre_tokenizers = _flat(state["pre_tokenizer"])
    if not any(part["type"] in ("WhitespaceSplit", "Whitespace") for part in pre_tokenizers):
        for part in pre_tokenizers:
            if part["type"] == "Metaspace":
                part["prepend_scheme"] = "never"
            if part["type"] == "ByteLevel":
                part["add_prefix_space"] = False
    return Tokenizer.from_str(json.dumps(state))


def without_marks(tokenizer: Tokenizer, special: frozenset[int]) -> Tokenizer:
    """A copy in which no text can become a special token: their strings in the model are renamed beyond reach.

    Needed where the model itself holds `</s>` as a piece (Unigram, WordLevel): declining to match special tokens
    in the text does not keep such a model from producing them.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    unknown = model.get("unk_token")
    vocabulary = model["vocab"]
    names = {token["content"] for token in state["added_tokens"] if token["id"] in special}
    pieces = (
        vocabulary if isinstance(vocabulary, dict) else {piece: i for i, (piece, _) in enumerate(vocabulary)}
    )
    names |= {piece for piece, i in pieces.items() if i in special}
    renamed = {name: f"\x00{name}\x00not text\x00" for name in names}
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(piece, piece): i for piece, i in vocabulary.items()}
    else:
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocabulary]
    if unknown is not None:
        model["unk_token"] = renamed.get(unknown, unknown)
    if "merges" in model:
        pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not {pair[0], pair[1], pair[0] + pair[1]} & names]
    for token in state["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    state["post_processor"] = None  # the marks it would put in are gone
    return Tokenizer.from_str(json.dumps(state))


def _parts(component: Any) -> list[dict[str, Any]]:
    """A component of a tokenizer as the flat list of its JSON parts."""
    if component is None:
        return []
    state = component.__getstate__()
    return _flat(json.loads(state))


def _flat(part: Any) -> list[dict[str, Any]]:
    """Undo nesting: a sequence of sequences becomes one list."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = next(
            part[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in part
        )
        return [leaf for child in inner for leaf in _flat(child)]
    return [part]


def _kind(decoder: list[dict[str, Any]]) -> tuple[str, str]:
    """(kind, marker) of token strings, from how the decoder undoes them."""
    for part in decoder:
        if part["type"] == "ByteLevel":
            return BYTE_LEVEL, "Ġ"
        if part["type"] == "Metaspace":
            return PIECES, part.get("replacement", "▁")
        if part["type"] == "Replace" and part.get("content") == " ":
            return PIECES, part["pattern"].get("String", "")
        if part["type"] == "WordPiece":
            return WORD_PIECES, ""
    return LITERAL, ""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins, character -> byte: printable Latin-1 stands for itself, the rest is from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _speller(
    kind: str, marker: str, decoder: list[dict[str, Any]], byte_fallback: bool
) -> Callable[[str], bytes]:
    """The function token string -> bytes for this kind of token strings."""
    if kind == BYTE_LEVEL:
        alphabet = byte_alphabet()

        def spell_byte_level(token: str) -> bytes:
            try:
                return bytes([alphabet[character] for character in token])
            except KeyError:  # outside the alphabet: written as it is
                return token.encode("utf-8", "replace")

        return spell_byte_level
    if kind == WORD_PIECES:
        prefix = next(part.get("prefix", "##") for part in decoder if part["type"] == "WordPiece")

        def spell_word_piece(token: str) -> bytes:
            inside = token.startswith(prefix) and len(token) > len(prefix)
            return (token[len(prefix) :] if inside else " " + token).encode("utf-8", "replace")

        return spell_word_piece

    def spell_piece(token: str) -> bytes:
        if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return (token.replace(marker, " ") if marker else token.removesuffix(suffix)).encode(
            "utf-8", "replace"
        )

    suffix = next((part["suffix"] for part in decoder if part["type"] == "BPEDecoder"), "")
    return spell_piece


def _unicode_forms(normalizer: list[dict[str, Any]], marker: str) -> tuple[str, ...] | None:
    """The Unicode forms a normaliser applies; None if it also does something this room cannot undo."""
    forms: list[str] = []
    for part in normalizer:
        if part["type"] in UNICODE_FORMS:
            forms.append(part["type"])
        elif part["type"] == "Replace" and marker and part.get("content") == marker:
            if part["pattern"] != {"String": " "}:
                return None
        elif part["type"] != "Prepend" or part.get("prepend") != marker:
            return None
    return tuple(forms)


def _has_dummy_prefix(parts: list[dict[str, Any]]) -> bool:
    """Whether some part puts a space before the text."""
    return any(
        part["type"] == "Prepend"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        or (part["type"] == "ByteLevel" and bool(part.get("add_prefix_space")))
        for part in parts
    )
