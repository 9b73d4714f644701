"""A study: the sections of a run, and [study]: which methods, which seeds, against which control."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from fedtandem.config.evaluation import named_tables
from fedtandem.config.run import MethodName, RunConfig
from fedtandem.config.section import Section


class ArmConfig(Section):
    """A row of its own: a method with some keys changed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    """The row's name; not that of a method."""
    method: MethodName
    """What is run."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> value, e.g. {"distillation.hard_weight" = 0.9}."""


class RequirementConfig(Section):
    """A figure without which no comparison of the study is printed (mean over seeds)."""

    method: str
    """A row of the study."""
    party: str
    """"server", a client's name, or "clients" for the mean over clients."""
    split: str
    """Name of an evaluation set."""
    metric: str
    """Its metric."""
    at_least: float | None = None
    """The figure must reach it."""
    at_most: float | None = None
    """The figure must not exceed it."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("needs at_least or at_most")
        return self


class ClaimConfig(Section):
    """A comparison the study set out to make, named before it ran; what is left out stands for all."""

    method: str | None = None
    """The row that is compared with its controls."""
    control: str | None = None
    """The control."""
    party: str | None = None
    """"server", a client's name, or "clients" for the mean over clients."""
    split: str | None = None
    """Name of an evaluation set."""
    metric: str | None = None
    """Its metric."""


class StudySection(Section):
    """[study]."""

    methods: tuple[MethodName, ...] = ()
    """Rows as the file states them."""
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    """A claim needs at least 5."""
    control: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """What rows are compared with: one or several rows for all, or row -> its controls ("default" for the rest).
    A row meets a control for the parties that have both. Unstated: standalone_public and server_public."""
    arms: Annotated[tuple[ArmConfig, ...], BeforeValidator(named_tables)] = ()
    """[[study.arms]]: further rows, one knob varied at a time."""

    require: tuple[RequirementConfig, ...] = ()
    """[[study.require]]: else the study says "not valid" and compares nothing."""
    claims: tuple[ClaimConfig, ...] = ()
    """[[study.claims]]: the comparisons Holm's correction runs over; others are shown without a claim. Unstated: all
    comparisons of the server and of the mean over clients."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of all rows: methods, then arms."""
        return (*dict.fromkeys(self.methods), *(arm.name for arm in self.arms))

    def controls_of(self, row: str) -> tuple[str, ...]:
        """The rows it is compared with; a control itself is compared only where the file says so."""
        table = self._controls
        if row in table:
            return tuple(name for name in table[row] if name != row)
        default = table.get("default", ())
        return () if row in default else default

    @property
    def _controls(self) -> dict[str, tuple[str, ...]]:
        """Row or "default" -> its controls."""
        if self.control is None:
            usual = ("standalone_public", "server_public")
            return {"default": tuple(name for name in usual if name in self.rows)}
        if isinstance(self.control, dict):
            return {row: _several(named) for row, named in self.control.items()}
        return {"default": _several(self.control)}

    @model_validator(mode="after")
    def _rows_exist(self) -> Self:
        rows = self.rows
        if not rows:
            raise ValueError("names no rows: give `methods` or `arms`")
        if len(set(rows)) < len(rows):
            raise ValueError("two rows have the same name: methods and arms share one list")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice")
        named = {name for controls in self._controls.values() for name in controls}
        named |= {need.method for need in self.require}
        named |= {name for claim in self.claims for name in (claim.method, claim.control) if name is not None}
        unknown = sorted((named | set(self._controls) - {"default"}) - set(rows))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is named but is no row; rows are {', '.join(rows)}")
        return self


def _several(named: str | tuple[str, ...]) -> tuple[str, ...]:
    return (named,) if isinstance(named, str) else named


class StudyConfig(RunConfig):
    """A run's sections, used for every cell of methods x seeds."""

    study: StudySection
    """Rows and seeds."""
