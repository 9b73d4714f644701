"""Which token of one vocabulary stands for a token of another."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fedtandem.alignment.card import ROLES, VocabularyCard
from fedtandem.alignment.edit_distance import nearest_strings

NO_TOKEN = -1
"""In a map: no token of the base stands for this id."""

MAP_VERSION = 2
"""Raised whenever a rule here changes: maps kept on disk are then made anew."""

IdMap = npt.NDArray[np.int32]


def byte_map(
    base: VocabularyCard, teacher: VocabularyCard, first_piece: Callable[[Sequence[str]], Sequence[int]]
) -> IdMap:
    """Carry each teacher token to the base token that spells the same bytes, or their beginning.

    In this order: equal bytes; if the bytes are UTF-8, the first piece of the base's own tokenisation of them, if
    it is a byte prefix; the longest base token that is a byte prefix; none. Where several base tokens spell the same
    bytes (a Llama vocabulary has "," and <0x2C>), the one its tokenizer writes stands for them, else the lowest id.
    Special tokens go by role, never by string.

    Args:
        base: the receiving vocabulary (A).
        teacher: the sending vocabulary (B).
        first_piece: texts -> id of the first token the base's tokenizer gives each (-1: none), read as text
            that continues other text.

    Returns:
        Base id or -1 for each teacher id; (V_teacher,) int32. The identity when both are one vocabulary.

    Source: departure from FedMKT, arXiv:2406.02224v4 (mode `bytes`).
    """
    if base.hash == teacher.hash:
        return np.arange(len(teacher), dtype=np.int32)
    of_bytes = _ids_by_bytes(base, first_piece)
    id_map = _by_role(base, teacher)
    rest: list[int] = []
    for token_id, spelled in enumerate(teacher.token_bytes):
        if not spelled:
            continue
        same = of_bytes.get(spelled)
        if same is None:
            rest.append(token_id)
        else:
            id_map[token_id] = same
    first = _first_pieces([teacher.token_bytes[i] or b"" for i in rest], first_piece)
    for token_id, piece in zip(rest, first, strict=True):
        spelled = teacher.token_bytes[token_id] or b""
        prefix = base.token_bytes[piece] if 0 <= piece < len(base) else None
        id_map[token_id] = (
            piece if prefix and spelled.startswith(prefix) else _longest_prefix(spelled, of_bytes)
        )
    return id_map


def min_ed_map(
    base: VocabularyCard, teacher: VocabularyCard, progress: Callable[[int, int], None] | None = None
) -> IdMap:
    """Carry each teacher token to the base token whose string is nearest by edit distance (MinED).

    The teacher's space marker, wherever it occurs, is first written as the base's. An equal string wins; else
    the smallest Levenshtein distance in code points, ties to the first by code points. Special tokens go by role.

    Args:
        base: the receiving vocabulary (A).
        teacher: the sending vocabulary (B).
        progress: called with (inexact tokens done, of how many); a large pair takes a while.

    Returns:
        Base id or -1 for each teacher id; (V_teacher,) int32.

    Source: FedMKT, arXiv:2406.02224v4, vocabulary mapping by MinED; lexicographic ties as the paper says.
    """
    if base.hash == teacher.hash:
        return np.arange(len(teacher), dtype=np.int32)
    ids = base.ids
    id_map = _by_role(base, teacher)
    rest: list[int] = []
    for token_id, token in enumerate(teacher.tokens):
        if not token or token_id in teacher.special:
            continue
        same = ids.get(with_marker_of(base, teacher, token))
        if same is None:
            rest.append(token_id)
        else:
            id_map[token_id] = same
    if rest and ids:
        candidates = list(ids)
        queries = [with_marker_of(base, teacher, teacher.tokens[i]) for i in rest]
        nearest, _ = nearest_strings(queries, candidates, progress)
        id_map[rest] = [ids[candidates[i]] for i in nearest]
    return id_map


def with_marker_of(base: VocabularyCard, teacher: VocabularyCard, token: str) -> str:
    """A teacher's token string with every space marker written as the base writes it."""
    return token.replace(teacher.marker, base.marker) if teacher.marker else token


def _by_role(base: VocabularyCard, teacher: VocabularyCard) -> IdMap:
    """A map that holds only the special tokens, by the part they play.

    A token with several parts counts for the first of `ROLES` on both sides: what the base reads as the end of
    an answer is reached only from the teacher's own end of an answer.
    """
    id_map = np.full(len(teacher), NO_TOKEN, dtype=np.int32)
    for role in reversed(ROLES):
        source, target = teacher.roles.get(role), base.roles.get(role)
        if source is None or teacher.role_of(source) != role:
            continue
        if target is not None and base.role_of(target) == role:
            id_map[source] = target
    return id_map


def _ids_by_bytes(
    card: VocabularyCard, first_piece: Callable[[Sequence[str]], Sequence[int]]
) -> dict[bytes, int]:
    """The id of each byte form: of several, the one the tokenizer itself writes, else the lowest."""
    ids: dict[bytes, list[int]] = {}
    for token_id, spelled in enumerate(card.token_bytes):
        if spelled:
            ids.setdefault(spelled, []).append(token_id)
    shared = [spelled for spelled, several in ids.items() if len(several) > 1]
    written = dict(zip(shared, _first_pieces(shared, first_piece), strict=True))
    return {
        spelled: written[spelled] if written.get(spelled) in several else several[0]
        for spelled, several in ids.items()
    }


def _first_pieces(spelled: list[bytes], first_piece: Callable[[Sequence[str]], Sequence[int]]) -> list[int]:
    """First piece of each form that is UTF-8, -1 for the others."""
    texts: dict[int, str] = {}
    for i, form in enumerate(spelled):
        try:
            texts[i] = form.decode("utf-8")
        except UnicodeDecodeError:
            continue
    pieces = [NO_TOKEN] * len(spelled)
    for i, piece in zip(texts, first_piece(list(texts.values())), strict=True):
        pieces[i] = int(piece)
    return pieces


def _longest_prefix(spelled: bytes, of_bytes: dict[bytes, int]) -> int:
    """The token with the longest byte form that begins `spelled`, or -1."""
    for stop in range(len(spelled) - 1, 0, -1):
        token_id = of_bytes.get(spelled[:stop])
        if token_id is not None:
            return token_id
    return NO_TOKEN


__all__ = ["MAP_VERSION", "NO_TOKEN", "IdMap", "VocabularyCard", "byte_map", "min_ed_map", "with_marker_of"]
