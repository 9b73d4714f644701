"""[public], [server.data], [clients.data], evaluation data, and [data] root."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from fedtandem.checking.checkers import BUILT_IN, FORMS, CheckSettings
from fedtandem.config.section import FilePath, FolderOrName, Section
from fedtandem.user_code import known_or_own

if TYPE_CHECKING:
    from fedtandem.data.source import DataSource


def _several(value: object) -> object:
    """One text is a list of one."""
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[FilePath, ...], BeforeValidator(_several), Field(min_length=1)]


class PartitionConfig(Section):
    """This party's share of a set that several parties state alike."""

    kind: Literal["iid", "dirichlet", "field"]
    """`iid`: an even random split. `dirichlet`: skewed labels. `field`: by a column, e.g. the author."""
    parts: int = Field(ge=1)
    """Shares in all."""
    index: int = Field(ge=0)
    """This party's share, counted from 0."""
    alpha: float = Field(0.5, gt=0)
    """Dirichlet concentration: small is skewed, large is even."""
    field: str | None = None
    """Column to split by; needed for `field`. With `dirichlet`: the label (default: the sample's)."""
    until: str | None = None
    """The column's value counts up to this mark: "_" makes "Eliot" of "Eliot_Adam_1859"."""
    seed: int | None = None
    """Draws the split; must be equal for all parties of it. Default: the run's seed."""

    @model_validator(mode="after")
    def _index_is_a_part(self) -> Self:
        if self.index >= self.parts:
            raise ValueError(
                f"index {self.index} lies outside the {self.parts} parts: use 0 to {self.parts - 1}"
            )
        if self.kind == "field" and self.field is None:
            raise ValueError('kind = "field" needs `field`, the column to split by')
        return self


class ChainsConfig(Section):
    """Chained arithmetic made on the spot, for path = "embedded:chains"."""

    operators: str = "+-*m"
    """Drawn evenly for every step: + - * m (max); `@` and `&` are private, each a secret random 10x10 table."""
    steps: tuple[int, ...] = Field((1, 2, 3, 4), min_length=1)
    """Lengths of the chains, each equally often."""
    n: int = Field(1000, ge=1)
    """Prompts in all."""
    must_contain: str = ""
    """Every prompt holds one of these operators at least once; they take turns."""
    noisy: str = ""
    """Operators with a new random table in every prompt: who learns from them stays unsure of them."""
    part: Literal["train", "test"] | None = None
    """Chains of two steps and more fall to train or test for good, so that none of one is in the other."""
    seed: int | None = None
    """Draws the prompts. Default: follows the run's seed, differently for every set."""
    table_seed: int | None = None
    """Draws the private operators' tables. Default: the run's seed."""

    @model_validator(mode="after")
    def _operators_exist(self) -> Self:
        unknown = sorted(set(self.operators + self.must_contain + self.noisy) - set("+-*m@&"))
        if unknown:
            raise ValueError(f"unknown operators {' '.join(unknown)}; the playground has + - * m @ &")
        if not self.operators and not self.must_contain:
            raise ValueError("`operators` and `must_contain` are both empty; name at least one operator")
        if min(self.steps) < 1:
            raise ValueError(f"steps {list(self.steps)}: a chain has at least one step")
        return self


class DataConfig(Section):
    """Where samples come from; the same keys for private, public and evaluation data."""

    path: Paths | None = None
    """File, glob or folder (JSON Lines, also .gz; Parquet), or several; "embedded:chains" is the playground."""
    name: FolderOrName | None = None
    """A `datasets` hub name, or a folder `datasets` can load."""
    subset: str | None = None
    """Configuration of `name`."""
    split: str | None = None
    """Split of `name`; for a folder in `path`, the file with this stem."""
    preset: str | None = None
    """Columns, template, answers and windows of a well-known set, e.g. "ag_news", "boolq", "english_novels"."""
    format: Literal["auto", "prompt_completion", "messages", "text", "multiple_choice"] = "auto"
    """`auto` decides by the columns and says what it decided."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Remap: the name this program expects -> the column's name in the file."""
    template: str | None = None
    """Prompt with {column} placeholders."""
    answer_template: str | None = None
    """The same for the answer."""
    answers: dict[str, str] = Field(default_factory=dict)
    """Label words: value of the answer column -> answer; they become the choices."""
    separator: str = " "
    """What stands between prompt and answer; it belongs to the answer."""
    labelled: bool = True
    """False (public set only): rows are prompts without answers."""
    on_empty: Literal["error", "drop"] = "error"
    """What an empty answer does: stop with its place, or drop the row."""
    filter: dict[str, str | list[str]] = Field(default_factory=dict)
    """Column -> glob, or several of which one must match; all columns must match."""
    part: Literal["train", "validation", "test"] | None = None
    """Of one set, by order inside a document: first 80 %, after a gap 10 %, last 10 %."""
    window_bytes: int | None = Field(None, ge=0)
    """Text: cut documents into windows of so many bytes, at a character boundary; 0 keeps rows whole."""
    prompt_bytes: int = Field(0, ge=0)
    """Text: the first bytes of a window are its prompt."""
    partition: PartitionConfig | None = None
    """This party's share."""
    shuffle: bool = False
    """Put the samples in a random order before `limit`."""
    seed: int | None = None
    """Of the shuffle. Default: the run's seed."""
    limit: int | None = Field(None, ge=1)
    """At most so many samples."""
    limit_bytes: int | None = Field(None, ge=1)
    """Stop before the sample that would pass so many bytes."""
    chains: ChainsConfig | None = None
    """What to make for path = "embedded:chains"."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.name is None):
            raise ValueError("needs exactly one of `path` (files) and `name` (a `datasets` name)")
        embedded = self.path == ("embedded:chains",)
        if embedded != (self.chains is not None):
            raise ValueError('`path = "embedded:chains"` and a `chains` table belong together')
        if self.window_bytes and self.prompt_bytes >= self.window_bytes:
            raise ValueError(
                f"prompt_bytes {self.prompt_bytes} must be less than window_bytes {self.window_bytes}"
            )
        return self

    def to_source(self) -> "DataSource":
        """The plain value that the data room reads."""
        from fedtandem.data.chains import ChainsSource
        from fedtandem.data.partition import Partition
        from fedtandem.data.source import DataSource

        plain = self.model_dump(
            include=set(DataConfig.model_fields) - {"path", "filter", "partition", "chains", "seed"}
        )
        partition = chains = None
        if self.partition is not None:
            share = self.partition
            partition = Partition(
                kind=share.kind,
                parts=share.parts,
                index=share.index,
                alpha=share.alpha,
                field=share.field,
                until=share.until,
                seed=share.seed or 0,
            )
        if self.chains is not None:
            made = self.chains
            chains = ChainsSource(
                n=made.n,
                operators=tuple(made.operators),
                steps=made.steps,
                must_contain=tuple(made.must_contain),
                noisy=tuple(made.noisy),
                seed=made.seed or 0,
                table_seed=made.table_seed or 0,
                part=made.part,
                labelled=self.labelled,
            )
        return DataSource(
            **plain,
            path=self.path[0] if self.path is not None and len(self.path) == 1 else self.path,
            filter={
                column: glob if isinstance(glob, str) else tuple(glob) for column, glob in self.filter.items()
            },
            partition=partition,
            chains=chains,
            seed=self.seed or 0,
        )


class PublicConfig(DataConfig):
    """The set all parties hold, row for row. Without answers (`labelled = false`) parties write them."""

    max_new_tokens: int = Field(64, ge=1)
    """Unlabelled: longest answer a party writes."""
    temperature: float = Field(0.0, ge=0)
    """Unlabelled: 0 writes the most likely token each time; above 0 draws, as free prose needs."""
    confidence_keep: float = Field(0.6, gt=0, le=1)
    """Unlabelled: share of the written answers that is learnt, those with the highest log-probability per byte."""
    send_rows: bool = True
    """Unlabelled: send sparse logits with the answers, not the text alone."""
    check: str = "none"
    """Unlabelled: what a written answer must pass before it is learnt: `none`, `exact`, `numeric`, `choice` (against
    `check_answers`), `arithmetic` (recalculates steps), `path` (form and own facts), or "package.module:function"."""
    check_answers: str | None = None
    """Column of the public rows with the right answers; used by the check alone, never taught."""
    check_form: str = "chains"
    """`path`: what a path looks like: `chains` (the playground), or "package.module:function"."""
    check_sureness: float = Field(0.9, ge=0, le=1)
    """`path`: a party claims to know a step when its own data has such steps and its own answer is this probable."""
    check_undecided: Literal["refuse", "keep"] = "refuse"
    """What becomes of an answer of which the check cannot tell."""
    check_timeout_s: float = Field(10.0, gt=0)
    """A function of your own may take so long for one answer; then it counts as failed."""
    check_returns: bool = False
    """A client sends a path of the server's back as its own where it verified every step: the return loop."""
    check_offers: bool = False
    """A client sends only paths of which it verified every step, so that none guesses at what another knows."""

    @field_validator("check", "check_form")
    @classmethod
    def _is_known(cls, value: str, info: ValidationInfo) -> str:
        return known_or_own(value, BUILT_IN if info.field_name == "check" else tuple(FORMS))

    def check_settings(self) -> CheckSettings:
        """The plain value that the algorithms read."""
        return CheckSettings(
            self.check, self.check_form, self.check_sureness, self.check_undecided, self.check_timeout_s
        )


class DataRootConfig(Section):
    """[data]: where `{data.root}` in a path points to."""

    root: FilePath | None = None
    """Default: the environment's FEDTANDEM_SHARED, else ../shared beside the working directory."""
