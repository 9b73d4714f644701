"""Where a party's samples come from, as plain values. The config's data section mirrors it field by field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedtandem.data.chains import ChainsSource
from fedtandem.data.partition import Partition

Format = Literal["auto", "prompt_completion", "messages", "text", "multiple_choice"]
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class DataSource:
    """Everything needed to load samples. Steps run in the order of the fields from `filter` on."""

    path: str | tuple[str, ...] | None = None
    """File, glob or folder (JSON Lines, also .gz; Parquet), or several; "embedded:chains": the playground."""
    name: str | None = None
    """A `datasets` hub name or a folder that `datasets` can load; `subset` is its configuration."""
    subset: str | None = None
    split: str | None = None
    """Split of `name`; for a folder in `path`, the file with this stem."""
    preset: str | None = None
    """Name in `presets.PRESETS`: format, columns, template, answers and windows of a well-known set."""
    format: Format = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Remap: the name this program expects -> the column's name in the file."""
    template: str | None = None
    """Prompt with {column} placeholders, e.g. "{premise}\\nquestion: {hypothesis}\\nanswer:"."""
    answer_template: str | None = None
    """The same for the answer; None takes the `answer` (or `completion`) column."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Label words, which become the choices: value of the answer column -> word, {"0": "yes", "1": "no"}."""
    separator: str = " "
    """What stands between prompt and answer; it belongs to the answer."""
    labelled: bool = True
    """False: answers are not read, even where the rows have them."""
    on_empty: Literal["error", "drop"] = "error"
    """What an empty answer does: stop with its place, or drop the row (`check` prints how many)."""
    filter: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Column -> glob, or several of which one must match; all columns must match."""
    part: Part | None = None
    """Text: by order inside a document, first 80 % train, a gap of 5 rows, then validation, last 10 % test.
    Other rows: the same shares of one fixed random order, no gap."""
    window_bytes: int | None = None
    """Text: cut documents into windows of so many bytes, at a character boundary; None or 0 keeps
    rows whole."""
    prompt_bytes: int = 0
    """Text: the first bytes of a window (to a character boundary) are its prompt."""
    partition: Partition | None = None
    shuffle: bool = False
    seed: int = 0
    """Of the shuffle; a partition has its own."""
    limit: int | None = None
    """At most so many samples."""
    limit_bytes: int | None = None
    """Stop before the sample whose prompt and answer would pass so many UTF-8 bytes (one is always kept)."""
    chains: ChainsSource | None = None
    """What to make for path = "embedded:chains"."""

    @property
    def title(self) -> str:
        """Short name for messages: the path or hub name."""
        if self.path is None:
            return self.name or "no path"
        return self.path if isinstance(self.path, str) else ", ".join(self.path)
