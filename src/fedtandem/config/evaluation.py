"""[evaluation]: what is measured, on whom, how often."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fedtandem.config.data import DataConfig
from fedtandem.config.section import Section


def named_tables(value: Any) -> Any:
    """A table of tables keyed by name is a list of tables that hold their name."""
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        return [{"name": name, **item} for name, item in value.items()]
    return value


class EvaluationSet(Section):
    """One held-out set."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """The `split` of the results table."""
    parties: tuple[str, ...] = ("*",)
    """Who is measured on it: "server", "clients", clients' names, or "*" for all."""
    metric: Literal["exact_match", "accuracy", "bits_per_byte", "rouge_l"]
    """`exact_match`: every token of the answer is the model's first choice. `accuracy`: the right option is the
    likeliest per byte. `bits_per_byte`: lower is better. `rouge_l`: of the greedy answer."""
    data: DataConfig
    """The samples; labelled."""


class EvaluationConfig(Section):
    """Measurements during and after a run."""

    every: int = Field(1, ge=0)
    """After every so many rounds, and always at the end; 0 only at the end."""
    batch_size: int = Field(64, ge=1)
    """Samples per forward pass, here and in the public pass."""
    sets: Annotated[tuple[EvaluationSet, ...], BeforeValidator(named_tables)] = ()
    """[[evaluation.sets]]; without any, a run trains but measures nothing."""
