"""Knowledge as it travels: scores, sparse logits and texts of one model about the public set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.coding import (
    VALUES,
    Values,
    mass_tolerance,
    pack_ascending,
    pack_sparse,
    pack_texts,
    unpack_ascending,
    unpack_sparse,
    unpack_texts,
)
from fedtandem.exchange.frame import Array
from fedtandem.exchange.reading import ANY, MAX_COUNT, MEND, Expected, Reader, refusal
from fedtandem.exchange.sealing import named, take_hash
from fedtandem.knowledge.sparse_logits import SparseLogits


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What one model makes of the public set: scores of all samples, rows of some, texts where it has no answers.

    Attributes:
        party, round: whose, and when it was made.
        vocab_hash: the vocabulary its token ids belong to.
        public_hash: the public set it is about.
        scores: nats per byte (or per token), lower is better; (N,) float32, +inf = not scored.
        sample_index: the samples `rows` is about; (M,) int32, ascending.
        rows: M samples of sparse logits at temperature 1; None where only scores travel.
        texts: the path written for each prompt, "" where none is sent; N texts; None on a labelled set.
        tau: the temperature the rows were made at.
        values: how log-probabilities travel, half precision or steps of 1/16 nat.
        of_drafts: this model's score of the paths the receiver drafted, in the unit of `scores`; (N,) float32, +inf =
            none; None where none were asked about.

    Source: FedMKT, arXiv:2406.02224v4, section 3 (S_m); specification, sections 4 and 11.
    """

    party: str
    round: int
    vocab_hash: str
    public_hash: str
    scores: npt.NDArray[np.float32]
    sample_index: npt.NDArray[np.int32]
    rows: SparseLogits | None
    texts: tuple[str, ...] | None = None
    tau: float = 1.0
    values: Values = "fp16"
    of_drafts: npt.NDArray[np.float32] | None = None

    def check(self, expected: Expected = ANY) -> None:
        """Refuse what no model can have made, or what does not fit the parties; the receiver does so too.

        Raises:
            InvalidMessage: naming party, round, field, value and remedy.
        """
        _check_scores(self, "scores", self.scores, expected)
        if self.of_drafts is not None:
            _check_scores(self, "of_drafts", self.of_drafts, expected)
        n_samples, index = len(self.scores), np.asarray(self.sample_index)
        if self.of_drafts is not None and len(self.of_drafts) != n_samples:
            raise _refuse(
                self, "of_drafts", f"{len(self.of_drafts)} scores", f"{n_samples}, as in scores", MEND
            )
        if index.ndim != 1 or (index[1:] <= index[:-1]).any():
            raise _refuse(self, "sample_index", index, "ascending sample numbers, each once", MEND)
        if len(index) and not 0 <= int(index[0]) <= int(index[-1]) < n_samples:
            raise _refuse(self, "sample_index", int(index[-1]), f"sample numbers in [0, {n_samples})", MEND)
        if self.rows is not None and self.rows.n_samples != len(index):
            got = f"rows of {self.rows.n_samples} samples"
            raise _refuse(self, "rows", got, f"{len(index)}, as sample_index says", MEND)
        if self.texts is not None and len(self.texts) != n_samples:
            raise _refuse(self, "texts", f"{len(self.texts)} texts", f"{n_samples}, one for each score", MEND)


def knowledge_section(knowledge: Knowledge) -> tuple[dict[str, Any], dict[str, Array]]:
    knowledge.check()
    header = {
        "party": knowledge.party,
        "round": int(knowledge.round),
        "vocab_hash": knowledge.vocab_hash,
        "public_hash": knowledge.public_hash,
        "rows": knowledge.rows is not None,
        "texts": knowledge.texts is not None,
        "tau": float(knowledge.tau),
        "values": knowledge.values,
    }
    arrays: dict[str, Array] = {
        "scores": knowledge.scores,
        "sample_index": pack_ascending(np.asarray(knowledge.sample_index, np.int64)),
    }
    if knowledge.of_drafts is not None:
        header["of_drafts"] = True
        arrays["of_drafts"] = knowledge.of_drafts
    try:
        if knowledge.rows is not None:
            # Rows that came in steps and are sent on carry their rounding with them.
            counts = np.diff(knowledge.rows.row_splits)
            knowledge.rows.validate(1 << 31, mass_tolerance=mass_tolerance(counts, knowledge.values))
            arrays |= named("rows", pack_sparse(knowledge.rows, values=knowledge.values))
        if knowledge.texts is not None:
            arrays |= named("texts", pack_texts(knowledge.texts))
    except ValueError as error:
        raise InvalidMessage(
            f"{knowledge.party}, round {knowledge.round}: its knowledge cannot be sent: {error}. If training has "
            "diverged, lower the learning rate."
        ) from error
    return header, arrays


def take_knowledge(read: Reader, expected: Expected, party: str | None = None) -> Knowledge | None:
    if read.peek("knowledge") is None:
        read.take("knowledge")
        return None
    section = read.section("knowledge")
    whose = section.text("party")
    if party is not None and whose != party:
        raise section.refuse("party", whose, repr(party), "A client sends only its own knowledge.")
    section.party = whose
    made = section.integer("round", 0, read.round if read.round is not None else MAX_COUNT)
    values = section.take("values")
    if values not in VALUES:
        raise section.refuse("values", values, " or ".join(VALUES))
    has_rows, has_texts = section.flag("rows"), section.flag("texts")
    has_drafts = section.peek("of_drafts") is not None and section.flag("of_drafts")
    rows = texts = None
    if has_rows:
        with section.naming("rows"):
            rows = unpack_sparse(section.group("rows."), values=values, vocab_size=expected.vocab_size)
    if has_texts:
        with section.naming("texts"):
            texts = unpack_texts(section.group("texts."))
    knowledge = Knowledge(
        party=whose,
        round=made,
        vocab_hash=take_hash(section, "vocab_hash", expected.vocab_hash),
        public_hash=take_hash(section, "public_hash", expected.public_hash),
        scores=section.array("scores", np.float32),
        sample_index=take_index(section, None),
        rows=rows,
        texts=texts,
        tau=section.positive("tau"),
        values=values,
        of_drafts=section.array("of_drafts", np.float32) if has_drafts else None,
    )
    section.finish()
    knowledge.check(expected)
    return knowledge


def _refuse(knowledge: Knowledge, field: str, value: object, expected: str, remedy: str) -> InvalidMessage:
    return refusal(knowledge.party, knowledge.round, f"knowledge.{field}", value, expected, remedy)


def _check_scores(
    knowledge: Knowledge, field: str, scores: npt.NDArray[np.float32], expected: Expected
) -> None:
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float32 or scores.ndim != 1:
        raise _refuse(knowledge, field, type(scores), "float32 (N,)", MEND)
    if expected.n_public is not None and len(scores) != expected.n_public:
        got = f"{len(scores)} scores"
        raise _refuse(knowledge, field, got, f"{expected.n_public}, one for each public sample", MEND)
    bad = np.flatnonzero(np.isnan(scores) | np.isneginf(scores))
    if len(bad):
        raise _refuse(
            knowledge,
            field,
            f"{scores[bad[0]]} at sample {bad[0]}",
            "a number, or inf for a sample that was not scored",
            "Its training has probably diverged: lower that party's learning rate, or use float32.",
        )


def take_index(read: Reader, n_samples: int | None, field: str = "sample_index") -> npt.NDArray[np.int32]:
    with read.naming(field):
        index = unpack_ascending(read.any_array(field))
    end = MAX_COUNT if n_samples is None else n_samples
    if len(index) and int(index[-1]) >= end:
        raise read.refuse(field, int(index[-1]), f"sample numbers below {end}", MEND)
    return index.astype(np.int32)
