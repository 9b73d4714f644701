"""Where each token ends in the original text, in bytes, and only where that can be said."""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from fedtandem.models.spelling import BYTE_LEVEL, Spelling

UNKNOWN = -1
"""No claim: the byte at which this token ends cannot be said."""

Ends = npt.NDArray[np.int32]


def token_ends(
    spelling: Spelling, text: str, ids: npt.NDArray[np.int32], encoders: Sequence[Callable[[str], Encoding]]
) -> Ends:
    """Bytes of `text` spelled by ids[0..i], by the first way that can be trusted; -1 where none can.

    Args:
        spelling: of the tokenizer that made the ids.
        text: the original text.
        ids: its token ids, whole; (T,) int32.
        encoders: functions text -> Encoding with offsets, tried until one gives these ids.
    """
    if spelling.forms is not None:
        ends = exact_ends(spelling, text, ids)
        if ends is None:
            ends = canonical_ends(spelling, text, ids)
        if ends is not None:
            return ends
        if spelling.kind == BYTE_LEVEL:  # it lost bytes it has no token for; nothing is guessed about it
            return np.full(ids.size, UNKNOWN, np.int32)
    for encode in encoders:
        encoding = encode(encodable(text))
        if encoding.ids == ids.tolist():
            return offset_ends(spelling, text, encoding)
    return np.full(ids.size, UNKNOWN, np.int32)


def encodable(text: str) -> str:
    """Lone surrogates, which are no Unicode text, as `?`; everything else unchanged."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def exact_ends(spelling: Spelling, text: str, ids: npt.NDArray[np.int32]) -> Ends | None:
    """Running sum of the tokens' bytes, trusted only if the tokens spell `text` byte for byte.

    Returns:
        Bytes of `text` spelled by ids[0..i], which may lie inside a character; (T,) int32. None when the tokens
        spell something else.
    """
    return _spelled_ends(spelling, text, ids, text)


def canonical_ends(spelling: Spelling, text: str, ids: npt.NDArray[np.int32]) -> Ends | None:
    """The same for a tokenizer that normalises first: counted in the normalised text and carried back.

    Carried back only at cuts where both halves normalise apart, and inside pieces that normalising left alone;
    `UNKNOWN` elsewhere. None when the tokens do not spell the normalised text either.
    """
    if spelling.forms is None:
        return None
    cuts = _cuts(text, spelling.forms, spelling.marker)
    ends = _spelled_ends(spelling, "".join(form for _, form in cuts), ids, text)
    if ends is None:
        return None
    sizes = np.array([(len(_bytes(piece)), len(_bytes(form))) for piece, form in cuts], np.int64).reshape(
        -1, 2
    )
    original, normal = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(sizes, axis=0)]).T
    same = np.array([*(piece == form for piece, form in cuts), True])
    # A piece of no normal bytes shares its place with the next; the last cut at a place is past all of them.
    cut = np.searchsorted(normal, ends, side="right") - 1
    known = (normal[cut] == ends) | same[cut]
    return np.where(known, original[cut] + ends - normal[cut], UNKNOWN).astype(np.int32)


def _bytes(text: str) -> bytes:
    """UTF-8; a lone surrogate, which no tokenizer accepts, becomes `?`."""
    return text.encode("utf-8", "replace")


def _spelled_ends(spelling: Spelling, spelled: str, ids: npt.NDArray[np.int32], text: str) -> Ends | None:
    """Running sum of token bytes if they concatenate to `spelled`, with or without a dummy prefix."""
    surface, wanted = spelling.surface, _bytes(spelled)
    if not ids.size:
        return np.empty(0, np.int32) if not wanted else None
    written = b"".join([surface[i] for i in ids.tolist()])
    lengths = spelling.lengths[ids].copy()
    if written == wanted:
        return np.cumsum(lengths, dtype=np.int32)
    if spelling.dummy_prefix:
        added = spelling.is_added[ids]
        # Some tokenizers put the dummy space before the text only, others after each added token as well.
        first = np.zeros(ids.size, np.bool_)
        first[0] = True
        for opens in (first, first | np.append(False, added[:-1])):
            dummy = opens & spelling.starts_with_space[ids]
            if _written_without(surface, ids, dummy) == wanted:
                return np.cumsum(lengths - dummy, dtype=np.int32)
    if spelling.is_added[ids].any() and spelled == text:
        return _walk(spelling, ids, text)
    return None


def _written_without(
    surface: Sequence[bytes], ids: npt.NDArray[np.int32], dummy: npt.NDArray[np.bool_]
) -> bytes:
    """The bytes of all tokens, less the first byte of those flagged."""
    return b"".join([surface[i][skip:] for i, skip in zip(ids.tolist(), dummy.tolist(), strict=True)])


def _walk(spelling: Spelling, ids: npt.NDArray[np.int32], text: str) -> Ends | None:
    """Token by token through the text, for added tokens that swallow the white space beside them."""
    data, place, ends = text.encode("utf-8", "replace"), 0, []
    after_added = True
    for token_id in ids.tolist():
        added = spelling.added.get(token_id)
        piece = spelling.surface[token_id]
        if added is not None and added.lstrip:
            place += _white(data[place:])
        if not data.startswith(piece, place) and after_added and spelling.dummy_prefix and piece[:1] == b" ":
            piece = piece[1:]
        if not data.startswith(piece, place):
            return None
        place += len(piece)
        if added is not None and added.rstrip:
            place += _white(data[place:])
        after_added = added is not None
        ends.append(place)
    return np.array(ends, np.int32) if place == len(data) else None


def _white(data: bytes) -> int:
    """Bytes of white space at the start of `data`."""
    text = data.decode("utf-8", "replace")
    return len(text[: len(text) - len(text.lstrip())].encode())


def _cuts(text: str, forms: tuple[str, ...], marker: str) -> list[tuple[str, str]]:
    """Cut the text into the smallest pieces that normalise apart; each with its normalised form."""

    def normal(piece: str) -> str:
        for form in forms:
            piece = unicodedata.normalize(form, piece)  # type: ignore[arg-type]
        return piece.replace(marker, " ") if marker == "▁" else piece

    cuts: list[tuple[str, str]] = []
    for run in _runs(text):
        whole, start = normal(run), 0
        if len(run) == 1 or (run.isascii() and whole == run):
            cuts.extend((character, normal(character)) for character in run)
            continue
        for stop in range(1, len(run)):
            if normal(run[:stop]) + normal(run[stop:]) == whole:
                cuts.append((run[start:stop], normal(run[:stop])[len(normal(run[:start])) :]))
                start = stop
        cuts.append((run[start:], whole[len(normal(run[:start])) :]))
    return cuts


def _runs(text: str) -> list[str]:
    """Cut before every character that never joins the one before: safe and cheap, not yet the finest."""
    joining, runs, start = _joining_characters(), [], 0
    for i in range(1, len(text)):
        character = text[i]
        if not unicodedata.combining(character) and character not in joining:
            runs.append(text[start:i])
            start = i
    return [*runs, text[start:]] if text else []


@cache
def _joining_characters() -> frozenset[str]:
    """Characters that can be the second half of a composition, Hangul vowels and finals included."""
    seconds = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A7, 0x11C3))}
    for code in range(0x110000):
        decomposition = unicodedata.decomposition(chr(code))
        if decomposition and not decomposition.startswith("<"):
            seconds.update(chr(int(part, 16)) for part in decomposition.split()[1:])
    # A character whose own decomposition begins with a mark or a joining one joins as well.
    for code in range(0x110000):
        first = unicodedata.normalize("NFKD", chr(code))[0] if unicodedata.decomposition(chr(code)) else ""
        if first and (unicodedata.combining(first) or first in seconds):
            seconds.add(chr(code))
    return frozenset(seconds)


def offset_ends(spelling: Spelling, text: str, encoding: Encoding) -> Ends:
    """Ends by the tokenizer's own character offsets: for tokenizers whose tokens do not spell the text.

    White space before a token counts to it; dropped white space after it does not. `UNKNOWN` for a token that
    shares a character with the next one, that is only a space marker, that is followed by a dropped character
    other than white space, and wherever normalising the text since the last known end does not give the tokens
    since then: offsets slip when a normaliser drops characters.
    """
    ids, offsets = encoding.ids, encoding.offsets
    byte_at = np.concatenate([[0], np.cumsum([len(_bytes(character)) for character in text])])
    ends = np.full(len(ids), UNKNOWN, np.int32)
    anchor = 0  # characters up to the last known end
    runs = [b""]  # what the tokens since then spell, cut at special tokens, which can stand for any text
    for i, (token_id, (_, stop)) in enumerate(zip(ids, offsets, strict=True)):
        surface = spelling.surface[token_id]
        if token_id in spelling.special:
            runs.append(b"")
        elif surface.strip():
            runs[-1] += surface
        else:  # a lone marker claims the first character of the token behind it
            continue
        after = offsets[i + 1][0] if i + 1 < len(offsets) else len(text)
        if after < stop or text[stop:after].strip():
            continue
        if stop - anchor > _LOST_AFTER:
            break
        if _gives(spelling, text, anchor, stop, runs, ids[i + 1 :]):
            ends[i] = byte_at[stop]
            anchor, runs = stop, [b""]
    return ends


_LOST_AFTER = 1000
"""Characters without a known end after which the offsets of a text are no longer believed."""


def _gives(
    spelling: Spelling, text: str, start: int, stop: int, runs: Sequence[bytes], next_ids: Sequence[int]
) -> bool:
    """Whether normalising text[start:stop] gives these runs of tokens, with something between any two runs."""
    whole = _plain(spelling, text[start:stop])
    parts = [_plain_bytes(spelling, run) for run in runs]
    if len(parts) == 1:
        return whole == parts[0]
    # A special token met in a text is its literal string or the unknown token, so it fits anything.
    if not (whole.startswith(parts[0]) and whole.endswith(parts[-1]) and len(whole) > sum(map(len, parts))):
        return False
    if all(_plain(spelling, character) for character in text[start:stop] if not character.isspace()):
        return True
    # Where characters vanish beside a token that fits anything, the text behind must go on with the next tokens.
    special = next((i for i, token_id in enumerate(next_ids) if token_id in spelling.special), None)
    expected = _plain_bytes(spelling, b"".join(spelling.surface[token_id] for token_id in next_ids[:special]))
    rest = _plain(spelling, text[stop:])
    return rest == expected if special is None else rest.startswith(expected)


def _plain(spelling: Spelling, piece: str) -> str:
    """Normalised text without white space and markers."""
    normalizer = spelling.tokenizer.normalizer
    normal = piece if normalizer is None else normalizer.normalize_str(piece)
    return "".join(normal.split()).replace(spelling.marker or " ", "")


def _plain_bytes(spelling: Spelling, spelled: bytes) -> str:
    """What tokens spell, without white space and markers."""
    return "".join(spelled.decode("utf-8", "replace").split()).replace(spelling.marker or " ", "")
