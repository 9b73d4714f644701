"""The card: who a party is, told once per run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.alignment.card import VocabularyCard
from fedtandem.alignment.sequence import EndTable
from fedtandem.errors import InvalidMessage, VocabularyMismatch
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.coding import from_planes, pack_ends, to_planes, unpack_ends
from fedtandem.exchange.frame import Array, canonical_json
from fedtandem.exchange.reading import ANY, MAX_COUNT, MAX_TEXT, MEND, Expected, Reader
from fedtandem.exchange.sealing import named, seal, take_hash, take_party, unseal


@dataclass(frozen=True, eq=False)
class Card:
    """Who a party is: told once per run, before the first round; the server's and a client's alike.

    Attributes:
        party: its name.
        vocabulary: its tokenizer's tokens as strings and bytes.
        public_hash, n_public: which public set it holds.
        ends: where its predictor positions stand in the public set; None where that is unlabelled.
        token_ids: its tokens at those positions, (ΣP',) int32; alignment mode `mined` only.
        n_private: size of its private set, the weight of its adapter in an average.
        model: the model's name, for the report.
        trainable_bytes: what sending its adapter would cost at 2 bytes a number.
    """

    party: str
    vocabulary: VocabularyCard
    public_hash: str
    n_public: int
    ends: EndTable | None
    token_ids: npt.NDArray[np.int32] | None
    n_private: int
    model: str
    trainable_bytes: int

    def to_envelope(self) -> Envelope:
        """Encode; raises InvalidMessage where a field could not be accepted."""
        vocabulary_header, vocabulary_arrays = self.vocabulary.to_arrays()
        header: dict[str, Any] = {
            "party": self.party,
            "vocabulary": vocabulary_header,
            "public_hash": self.public_hash,
            "n_public": int(self.n_public),
            "ends": self.ends is not None,
            "token_ids": self.token_ids is not None,
            "n_private": int(self.n_private),
            "model": self.model[:MAX_TEXT],
            "trainable_bytes": int(self.trainable_bytes),
        }
        arrays: dict[str, Array] = named("vocabulary", vocabulary_arrays)
        if self.ends is not None:
            ends = self.ends
            arrays |= named("ends", pack_ends(ends.end_byte, ends.segment, ends.sample_splits))
        if self.token_ids is not None:
            arrays["token_ids"] = to_planes(self.token_ids)
        return seal("card", "card", 0, header, arrays)

    @classmethod
    def from_envelope(cls, envelope: Envelope, *, expected: Expected = ANY) -> "Card":
        """Decode and check.

        Raises:
            InvalidMessage: a field is not what a card may hold, or not what was expected.
        """
        read = unseal(envelope, ("card",), "card", expected)
        party = take_party(read, expected)
        vocabulary = _take_vocabulary(read.section("vocabulary"), party, envelope.round)
        public_hash = take_hash(read, "public_hash", expected.public_hash)
        n_public = read.integer("n_public", 0, MAX_COUNT)
        ends = None
        if read.flag("ends"):
            with read.naming("ends"):
                ends = EndTable(*unpack_ends(read.group("ends.")))
            if ends.n_samples != n_public:
                raise read.refuse("ends", f"{ends.n_samples} samples", f"{n_public}, as n_public says", MEND)
        token_ids = None
        if read.flag("token_ids"):
            with read.naming("token_ids"):
                ids = from_planes("token_ids", read.any_array("token_ids"))
            if len(ids) and int(ids.max()) >= len(vocabulary):
                raise read.refuse("token_ids", int(ids.max()), f"ids up to {len(vocabulary) - 1}", MEND)
            token_ids = ids.astype(np.int32)
        card = cls(
            party=party,
            vocabulary=vocabulary,
            public_hash=public_hash,
            n_public=n_public,
            ends=ends,
            token_ids=token_ids,
            n_private=read.integer("n_private", 0, 1 << 48),
            model=read.text("model", empty=True),
            trainable_bytes=read.integer("trainable_bytes", 0, 1 << 62),
        )
        read.finish()
        return card


def _take_vocabulary(section: Reader, party: str, round_number: int) -> VocabularyCard:
    header, arrays = section.header(), section.group("")
    try:
        vocabulary = VocabularyCard.from_arrays(header, arrays)
    except (VocabularyMismatch, InvalidMessage) as error:
        raise InvalidMessage(f"{party}, round {round_number}: {error}") from error
    plain_header, plain_arrays = vocabulary.to_arrays()
    if canonical_json(header) != canonical_json(plain_header) or sorted(arrays) != sorted(plain_arrays):
        got = sorted({*header, *arrays})
        raise section.refuse(
            "header", got, f"{sorted({*plain_header, *plain_arrays})} with values as a card has them"
        )
    for name, array in plain_arrays.items():
        if not np.array_equal(array, arrays[name]):
            raise section.refuse(
                name, arrays[name][:5].tolist(), f"{array[:5].tolist()}, each once and in order"
            )
    return vocabulary
