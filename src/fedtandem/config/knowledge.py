"""[knowledge]: what is kept of a model's distributions, and how it travels."""

from typing import Literal

from pydantic import Field

from fedtandem.config.alignment import Mode
from fedtandem.config.section import Section


class KnowledgeConfig(Section):
    """Sparse logits on the public set."""

    top_k: int | None = Field(None, ge=1)
    """Logits kept per position at most. Default: 64 in `bytes` (ours), 128 in `mined` (the reference's)."""
    top_k_mass: float | None = Field(None, gt=0, le=1)
    """The fewest logits that hold this probability are kept. Default: 0.99 in `bytes`, 1.0 (all top_k) in `mined`."""
    positions: Literal["answer", "all"] = "answer"
    """`answer`: what predicts the answer and its end. `all`: the prompt too (what the reference does)."""
    values: Literal["fp16", "u8"] = "fp16"
    """How log-probabilities are written: 16 bits, or 8 bits in steps of 1/16 nat below the row's highest."""
    exchange: Literal["auto", "two_phase", "one_phase"] = "auto"
    """`two_phase`: scores first, then only the rows that won. `one_phase`: all rows at once. Same result;
    `auto` is two_phase where a message costs little (the local carrier)."""
    downlink: Literal["per_client", "shared"] = "per_client"
    """`per_client`: each client gets the rows it will learn from. `shared`: all get the union of them."""

    def top_k_for(self, mode: Mode | str) -> int:
        """`top_k`, or the mode's default."""
        return self.top_k if self.top_k is not None else {"bytes": 64, "mined": 128}[mode]

    def top_k_mass_for(self, mode: Mode | str) -> float:
        """`top_k_mass`, or the mode's default."""
        return self.top_k_mass if self.top_k_mass is not None else {"bytes": 0.99, "mined": 1.0}[mode]
