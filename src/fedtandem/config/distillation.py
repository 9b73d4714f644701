"""[distillation]: how a party learns from the knowledge it received."""

from typing import Literal

from pydantic import Field

from fedtandem.config.alignment import Mode
from fedtandem.config.section import Section


class DistillationConfig(Section):
    """Loss and batches of the public phase. What is not set follows the alignment mode or the kind of public set."""

    temperature: float = Field(1.0, gt=0)
    """Softens teacher and student before they are compared, after transport."""
    loss: Literal["ce", "kl"] = "ce"
    """`ce`: cross-entropy to the teacher (paper). `kl`: the same less the teacher's entropy; equal gradients."""
    hard_weight: float | None = Field(None, ge=0, le=1)
    """Clients: weight of the labels where a position is taught (the paper's lambda).
    Default: 0.1 in `bytes` (ours: the prototype's best), 0.9 in `mined` (the paper's)."""
    hard_weight_up: float | None = Field(None, ge=0, le=1)
    """The same at the server. Default: 0.5 in `bytes`, 0.9 in `mined`."""
    untaught: Literal["labels", "paper"] | None = None
    """Positions without a teacher: `labels` gives them full label weight, `paper` only hard_weight.
    Default: `labels` in `bytes`, `paper` in `mined`."""
    replay_fraction: float | None = Field(None, ge=0, lt=1)
    """Clients: share of every public batch that is private data. Default: 0, or 0.375 with unlabelled prompts."""
    replay_fraction_server: float | None = Field(None, ge=0, lt=1)
    """Server: share of every public batch that is `server.data` (or, with unlabelled prompts and no data, the
    untouched model's own answers). Default: 0, or 0.5 with unlabelled prompts."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Smoothing of the labels; a control of studies."""
    reset_optimizer: bool = False
    """Forget moments and begin the schedule anew in every phase (what the reference does)."""

    def hard_weight_for(self, mode: Mode | str, *, server: bool) -> float:
        """The clients' or the server's label weight in this mode."""
        if server:
            return (
                self.hard_weight_up if self.hard_weight_up is not None else {"bytes": 0.5, "mined": 0.9}[mode]
            )
        return self.hard_weight if self.hard_weight is not None else {"bytes": 0.1, "mined": 0.9}[mode]

    def untaught_for(self, mode: Mode | str) -> Literal["labels", "paper"]:
        """`untaught`, or the mode's default."""
        return self.untaught or ("paper" if mode == "mined" else "labels")

    def replay_fraction_for(self, *, server: bool, labelled: bool) -> float:
        """The share of own data in a batch of the public phase."""
        stated = self.replay_fraction_server if server else self.replay_fraction
        if stated is not None:
            return stated
        if labelled:
            return 0.0
        return 0.5 if server else 0.375
