"""Samples: what all parties share of the public set, and the hash by which they prove it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedtandem.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One row: two byte strings, prompt and answer, that no party alters.

    The separating space belongs to the answer, for every answer and every choice alike.
    """

    id: str
    prompt: str
    answer: str | None
    """None: the row is unlabelled. Never empty."""
    choices: tuple[str, ...] = ()
    """Every option as an answer string, separator included; () when the answer is free text."""
    label: int | None = None
    """Index of the right option in `choices`; None where that is not known."""
    references: tuple[str, ...] = ()
    """All accepted answers of a free-text row (without separator), for Rouge-L; () means `answer` alone."""
    eos: bool = True
    """The answer ends where the string ends. False for a window of a document: no EOS inside a document."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """The row's other columns: what partitions, filters and checks may look at."""

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of prompt and answer together."""
        return len(self.prompt.encode()) + len((self.answer or "").encode())


def references_of(sample: Sample) -> tuple[str, ...]:
    """The accepted answers of a free-text sample, without the separating space."""
    return sample.references or ((sample.answer or "").strip(),)


def public_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 (hex) of the public set: ids, prompts, answers and ends, in order.

    Two parties with equal hashes hold the same samples in the same order. The choices, references
    and other columns are not part of it: they serve evaluation at home.

    Source: specification of FedMKT, section 1 (the reference code compares lengths only).
    """
    digest = hashlib.sha256()
    for sample in samples:
        # JSON of a list: no two different rows have the same line.
        row = json.dumps([sample.id, sample.prompt, sample.answer, sample.eos], ensure_ascii=True)
        digest.update(row.encode() + b"\n")
    return digest.hexdigest()


def check_samples(samples: Sequence[Sample], *, labelled: bool, where: str) -> None:
    """Refuse samples that cannot be used: an empty answer, a missing one, nothing to predict from.

    Args:
        labelled: whether every sample must have an answer; if False, none may.
        where: names the party and the set for the message, e.g. "public set" or "client clinic-a".

    Raises:
        DataError: names the sample and what to do.
    """
    for sample in samples:
        # A window of a document may well be blank; an answer may not.
        if sample.answer is not None and not (sample.answer.strip() if sample.eos else sample.answer):
            raise DataError(
                f"{where}: sample {sample.id!r} has an empty answer ({sample.answer!r}). An empty answer "
                "cannot "
                "be learnt or scored: remove the row, or remove the `answer` key of every row and set "
                "labelled = false."
            )
        if labelled and sample.answer is None:
            raise DataError(
                f"{where}: sample {sample.id!r} has no answer. Give it one, or set labelled = false for the "
                "whole set."
            )
        if not labelled and sample.answer is not None:
            raise DataError(
                f"{where}: sample {sample.id!r} has an answer, but the set is unlabelled (labelled = false)."
            )
        if sample.answer is None and not sample.prompt:
            raise DataError(
                f"{where}: sample {sample.id!r} has neither prompt nor answer: an unlabelled row needs a "
                "prompt. "
                "For text rows set prompt_bytes."
            )
