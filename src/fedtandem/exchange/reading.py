"""Reading a received header and its arrays field by field, believing nothing."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.frame import MAX_FRAME_BYTES

Array = npt.NDArray[Any]

MAX_TEXT = 512
"""Longest name, hash or model text in a header."""


@dataclass(frozen=True)
class Expected:
    """What the receiver knows beforehand; None leaves a field to the message's own word.

    Attributes:
        party: who was asked.
        round: the round that was asked about.
        vocab_hash, vocab_size: the producer's vocabulary, from its card.
        public_hash, n_public: the public set both hold.
        max_bytes: largest content that is unpacked.
    """

    party: str | None = None
    round: int | None = None
    vocab_hash: str | None = None
    vocab_size: int | None = None
    public_hash: str | None = None
    n_public: int | None = None
    max_bytes: int = MAX_FRAME_BYTES


ANY = Expected()
"""Nothing is known beforehand."""

SERVER = "the server"
"""The sender of a request, in errors."""


MEND = "Nothing of this message was used; find out why the sender made it, then ask for it again."
MAX_COUNT = (1 << 31) - 1


def printable(text: str) -> str:
    """The text with control characters spelled out: what a stranger sent must not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def refusal(
    party: str, round_number: int | None, field: str, value: object, expected: str, remedy: str
) -> InvalidMessage:
    """The error about one field: who, when, what it was, what it should be, what to do."""
    when = "" if round_number is None else f", round {round_number}"
    shown = value if isinstance(value, str) else repr(value)
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    said = f"{party or 'an unnamed party'}{when}: {field} = {shown}; expected {expected}. {remedy}"
    return InvalidMessage(printable(said))


SAME_VERSION = (
    "Run the same fedtandem version on all parties; if they do, the message was changed: ask for it again."
)


class Reader:
    """One section of a message: header fields and arrays.

    Every field is taken once; `finish` refuses what was not taken.
    """

    def __init__(
        self, header: Mapping[str, Any], arrays: Mapping[str, Array], *, party: str, round_number: int | None
    ) -> None:
        self.party = party
        self.round = round_number
        self.name = ""
        """Put before each field's name in errors: `knowledge.`"""
        self._header = dict(header)
        self._arrays = dict(arrays)

    def refuse(self, field: str, value: object, expected: str, remedy: str = SAME_VERSION) -> InvalidMessage:
        """The error about a field of this section; to be raised by the caller."""
        return refusal(self.party, self.round, self.name + field, value, expected, remedy)

    def peek(self, field: str) -> Any:
        """A header value, left where it is; None where it is missing."""
        return self._header.get(field)

    def header(self) -> dict[str, Any]:
        """All header values that are left."""
        left, self._header = self._header, {}
        return left

    def take(self, field: str) -> Any:
        """A header value of any type."""
        if field not in self._header:
            raise self.refuse(field, "missing", "a value")
        return self._header.pop(field)

    def text(self, field: str, *, empty: bool = False) -> str:
        """A text of at most `MAX_TEXT` characters."""
        value = self.take(field)
        if not isinstance(value, str) or len(value) > MAX_TEXT or not (value or empty):
            raise self.refuse(field, value, f"a text of {'0' if empty else '1'} to {MAX_TEXT} characters")
        return value

    def integer(self, field: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        value = self.take(field)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(field, value, f"an integer from {low} to {high}")
        return value

    def positive(self, field: str) -> float:
        """A finite number above 0."""
        value = self.take(field)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise self.refuse(field, value, "a number above 0, written with a decimal point")
        return value

    def flag(self, field: str) -> bool:
        """true or false."""
        value = self.take(field)
        if not isinstance(value, bool):
            raise self.refuse(field, value, "true or false")
        return value

    def mapping(self, field: str) -> dict[str, Any]:
        """A JSON object."""
        value = self.take(field)
        if not isinstance(value, dict):
            raise self.refuse(field, value, "a JSON object")
        return value

    def array(self, field: str, dtype: npt.DTypeLike, length: int | None = None) -> Array:
        """A one-dimensional array of this dtype and, where given, length."""
        if field not in self._arrays:
            raise self.refuse(field, "missing", f"an array of {np.dtype(dtype)}")
        array = self._arrays.pop(field)
        if array.dtype != np.dtype(dtype) or array.ndim != 1 or (length is not None and len(array) != length):
            count = "n" if length is None else length
            raise self.refuse(field, f"{array.dtype}{array.shape}", f"{np.dtype(dtype)}({count},)")
        return array

    def has(self, field: str) -> bool:
        """Whether an array of this name came."""
        return field in self._arrays

    def any_array(self, field: str) -> Array:
        """An array as it came."""
        if field not in self._arrays:
            raise self.refuse(field, "missing", "an array")
        return self._arrays.pop(field)

    def group(self, prefix: str) -> dict[str, Array]:
        """All arrays whose names begin with `prefix`, without it."""
        names = [name for name in self._arrays if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._arrays.pop(name) for name in names}

    def section(self, field: str) -> "Reader":
        """A nested object with the arrays that begin with its name and a dot."""
        section = Reader(
            self.mapping(field), self.group(f"{field}."), party=self.party, round_number=self.round
        )
        section.name = f"{self.name}{field}."
        return section

    @contextmanager
    def naming(self, field: str) -> Iterator[None]:
        """Give the errors of a decoder party, round and field."""
        try:
            yield
        except ValueError as error:
            when = "" if self.round is None else f", round {self.round}"
            raise InvalidMessage(
                f"{self.party}{when}: {self.name}{field}: {error}. {SAME_VERSION}"
            ) from error

    def finish(self) -> None:
        """Refuse fields and arrays that nobody asked for."""
        left = sorted(self._header) + sorted(self._arrays)
        if left:
            raise self.refuse(left[0], "present", "no such field")
