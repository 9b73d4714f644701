"""A vocabulary as another party sees it: strings, bytes, roles. The one thing told once per run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedtandem.errors import InvalidMessage, VocabularyMismatch

ROLES = ("eos", "bos", "unk", "pad")
"""Roles of special tokens. Where one token plays several, the first named here counts."""

CARD_SCHEMA = 1
_MAX_VOCABULARY = 4_000_000
_ARRAYS: Mapping[str, npt.DTypeLike] = {
    "text": np.uint8,
    "text_length": np.int32,
    "bytes": np.uint8,
    "bytes_length": np.int32,
    "special": np.int32,
}


@dataclass(frozen=True, repr=False)
class VocabularyCard:
    """All that alignment needs to know of a tokenizer.

    Attributes:
        tokens: token string by id, "" for ids nobody uses; (V,).
        token_bytes: the bytes a token spells, in one form for all tokenizers: the byte-level alphabet undone,
            `▁` a space, `<0x0A>` one byte, a WordPiece word start with a space before it. None for special
            tokens and unused ids; (V,).
        roles: id of each role in `ROLES` that the tokenizer has.
        special: ids of tokens that are marks, not text.
        marker: how a leading space is written in token strings: "▁", "Ġ" or "".
    """

    tokens: tuple[str, ...]
    token_bytes: tuple[bytes | None, ...]
    roles: Mapping[str, int]
    special: frozenset[int]
    marker: str

    def __repr__(self) -> str:
        return f"VocabularyCard({len(self.tokens)} tokens, {self.hash[:12]})"

    def __len__(self) -> int:
        """Size V of the real vocabulary: the highest id plus one."""
        return len(self.tokens)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the whole content, in hexadecimal; equal exactly for equal vocabularies."""
        header = {
            "schema": CARD_SCHEMA,
            "marker": self.marker,
            "roles": {role: self.roles[role] for role in sorted(self.roles)},
        }
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name}:{array.size}:".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Id of each token string; the lowest where several share one."""
        return {token: i for i, token in reversed(list(enumerate(self.tokens))) if token}

    def role_of(self, token_id: int) -> str | None:
        """The first role in `ROLES` this id plays, if any."""
        return next((role for role in ROLES if self.roles.get(role) == token_id), None)

    def to_arrays(self) -> tuple[dict[str, object], dict[str, npt.NDArray[np.generic]]]:
        """The card as a JSON header and arrays, for the wire; `from_arrays` is the way back."""
        header = {
            "schema": CARD_SCHEMA,
            "marker": self.marker,
            "roles": dict(sorted(self.roles.items())),
            "hash": self.hash,
        }
        return header, self._arrays()

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        texts = [token.encode("utf-8", "surrogatepass") for token in self.tokens]
        spelled = [b"" if piece is None else piece for piece in self.token_bytes]
        lengths = [-1 if piece is None else len(piece) for piece in self.token_bytes]
        return {
            "text": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "text_length": np.array([len(text) for text in texts], dtype=np.int32),
            "bytes": np.frombuffer(b"".join(spelled), dtype=np.uint8),
            "bytes_length": np.array(lengths, dtype=np.int32),
            "special": np.array(sorted(self.special), dtype=np.int32),
        }

    @staticmethod
    def from_arrays(
        header: Mapping[str, object], arrays: Mapping[str, npt.NDArray[np.generic]]
    ) -> "VocabularyCard":
        """Rebuild a card that came over the wire, believing nothing.

        Raises:
            InvalidMessage: a field is missing, of the wrong type or shape, or contradicts another.
            VocabularyMismatch: the content does not have the hash the header claims.
        """
        marker, roles, claimed = _checked_header(header)
        data = {name: _checked_array(name, dtype, arrays) for name, dtype in _ARRAYS.items()}
        size = data["text_length"].size
        if data["bytes_length"].size != size or not 0 < size <= _MAX_VOCABULARY:
            raise InvalidMessage(
                f"vocabulary card: {size} token strings but {data['bytes_length'].size} byte forms; "
                f"expected equal counts in [1, {_MAX_VOCABULARY}]. The sender's card is damaged; send it again."
            )
        texts = _cut("text", data["text"], data["text_length"], lowest=0)
        spelled = _cut("bytes", data["bytes"], data["bytes_length"], lowest=-1)
        special = data["special"].tolist()
        for what, ids in (("special", special), ("roles", list(roles.values()))):
            wrong = [i for i in ids if not 0 <= i < size]
            if wrong:
                raise InvalidMessage(
                    f"vocabulary card: {what} names token id {wrong[0]}, but ids end at {size - 1}."
                )
        try:
            tokens = tuple(text.decode("utf-8", "surrogatepass") for text in texts)
        except UnicodeDecodeError as error:
            raise InvalidMessage(f"vocabulary card: a token string is not UTF-8 ({error}).") from error
        known = data["bytes_length"] >= 0
        card = VocabularyCard(
            tokens=tokens,
            token_bytes=tuple(
                piece if is_known else None for piece, is_known in zip(spelled, known, strict=True)
            ),
            roles=roles,
            special=frozenset(special),
            marker=marker,
        )
        if card.hash != claimed:
            raise VocabularyMismatch(
                f"vocabulary card: its content has the hash {card.hash[:12]}, its header says {claimed[:12]}. "
                "It was changed on the way, or made by another version; have the sender make it again."
            )
        return card


def _checked_header(header: Mapping[str, object]) -> tuple[str, dict[str, int], str]:
    """(marker, roles, hash) of a card's header, each of the right type."""
    schema, marker, roles, claimed = (header.get(name) for name in ("schema", "marker", "roles", "hash"))
    if schema != CARD_SCHEMA:
        raise InvalidMessage(
            f"vocabulary card: schema {schema!r}, but this program reads {CARD_SCHEMA}. "
            "Run the same version of fedtandem at all parties."
        )
    if not isinstance(marker, str) or len(marker) > 8:
        raise InvalidMessage(f"vocabulary card: marker is {marker!r}; expected a short string.")
    if not isinstance(claimed, str) or len(claimed) != 64:
        raise InvalidMessage(f"vocabulary card: hash is {claimed!r}; expected 64 hexadecimal digits.")
    if not isinstance(roles, Mapping):
        raise InvalidMessage(f"vocabulary card: roles is {roles!r}; expected role names with token ids.")
    checked: dict[str, int] = {}
    for role, token_id in roles.items():
        if role not in ROLES or isinstance(token_id, bool) or not isinstance(token_id, int):
            raise InvalidMessage(
                f"vocabulary card: role {role!r} is {token_id!r}; expected one of {ROLES} with an id."
            )
        checked[role] = token_id
    return marker, checked, claimed


def _checked_array(
    name: str, dtype: npt.DTypeLike, arrays: Mapping[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.int64]:
    """One array of the card, of the promised type and one dimension."""
    array = arrays.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.ndim != 1:
        found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise InvalidMessage(
            f"vocabulary card: array {name!r} is {found}; expected {np.dtype(dtype)}, one dimension."
        )
    return array  # type: ignore[return-value]


def _cut(name: str, data: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], lowest: int) -> list[bytes]:
    """Cut joined bytes into pieces of the given lengths; -1 counts as 0."""
    if lengths.size and (
        int(lengths.min()) < lowest or int(lengths.clip(0).sum(dtype=np.int64)) != data.size
    ):
        raise InvalidMessage(
            f"vocabulary card: the lengths of {name!r} (smallest {int(lengths.min())}) do not add up to its "
            f"{data.size} bytes."
        )
    whole = data.tobytes()
    stops = np.cumsum(lengths.clip(0), dtype=np.int64).tolist()
    return [whole[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
