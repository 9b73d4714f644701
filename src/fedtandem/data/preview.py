"""What a set looks like before anything is trained: counts, the decision on its format, one sample."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedtandem.data.formats import Decision
from fedtandem.data.load import load
from fedtandem.data.public import Sample, public_hash
from fedtandem.data.source import DataSource


@dataclass(frozen=True)
class Preview:
    """A set in a few figures. Bytes are UTF-8; `prompt_bytes` and `answer_bytes` are (median, largest)."""

    where: str
    title: str
    decision: Decision
    n: int
    n_bytes: int
    prompt_bytes: tuple[int, int]
    answer_bytes: tuple[int, int]
    labels: tuple[tuple[str, int], ...]
    """(answer, count) of every option, most frequent first; () where answers are free text."""
    hash: str
    first: Sample

    def lines(self) -> list[str]:
        """The preview for a terminal."""
        answers = "no answers"
        if self.answer_bytes[1]:
            answers = f"answer bytes: median {self.answer_bytes[0]}, at most {self.answer_bytes[1]}"
        text = [
            f"{self.where}: {self.n} samples, {self.n_bytes:,} bytes, from {self.title}",
            f"  read as {self.decision.format} ({self.decision.reason}); "
            f"columns {', '.join(self.decision.columns)}",
            f"  prompt bytes: median {self.prompt_bytes[0]}, at most {self.prompt_bytes[1]}; {answers}",
            f"  hash {self.hash[:16]}",
        ]
        if self.decision.dropped:
            text.append(f"  {self.decision.dropped} rows dropped for their empty answers")
        if self.labels:
            text.append("  answers: " + ", ".join(f"{label!r} {count}" for label, count in self.labels))
        text.append(f"  first sample {self.first.id!r}:")
        text.append(f"    prompt {shortened(self.first.prompt)!r}")
        text.append(f"    answer {None if self.first.answer is None else shortened(self.first.answer)!r}")
        return text


def preview(source: DataSource, *, where: str) -> Preview:
    """Load a set and describe it.

    Raises:
        DataError: as `load_samples` does.
    """
    loaded = load(source, where=where)
    return describe(loaded.samples, loaded.decision, where=where, title=source.title)


def describe(samples: Sequence[Sample], decision: Decision, *, where: str, title: str) -> Preview:
    """Describe a non-empty set."""
    chosen = Counter(sample.answer for sample in samples if sample.answer is not None and sample.choices)
    options = {choice for sample in samples for choice in sample.choices}
    return Preview(
        where=where,
        title=title,
        decision=decision,
        n=len(samples),
        n_bytes=sum(sample.n_bytes for sample in samples),
        prompt_bytes=_median_and_largest([len(sample.prompt.encode()) for sample in samples]),
        answer_bytes=_median_and_largest([len((sample.answer or "").encode()) for sample in samples]),
        # Label words are few; the options of real multiple choice differ from row to row.
        labels=tuple(chosen.most_common()) if 0 < len(options) <= 20 else (),
        hash=public_hash(samples),
        first=samples[0],
    )


def shortened(text: str, limit: int = 300) -> str:
    """The text's head and tail when it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _median_and_largest(sizes: Sequence[int]) -> tuple[int, int]:
    return int(np.median(sizes)), max(sizes)
