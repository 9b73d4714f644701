"""[server.tuning], [clients.tuning]: how weights are trained. Names are those of `transformers.TrainingArguments`."""

from typing import Any, Literal

from pydantic import Field, field_validator

from fedtandem.config.section import Section

PAPER_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
Schedule = Literal["cosine", "linear", "constant"]


class TuningConfig(Section):
    """Training of one party; both its private and its public phase unless `public_tuning` says otherwise."""

    method: Literal["lora", "full"] = "lora"
    """`lora`: an adapter; `full`: all weights (better for models that were hardly pretrained)."""
    learning_rate: float = Field(3e-5, gt=0)
    """Peak of the schedule. The paper's: 3e-5 for the LLM, 3e-5 to 3e-4 for SLMs."""
    num_train_epochs: float = Field(1, gt=0)
    """Passes over the data per phase and round (paper: 1)."""
    max_steps: int = Field(-1, ge=-1)
    """Optimiser steps per phase and round, in place of epochs; -1 counts epochs."""
    per_device_train_batch_size: int = Field(4, ge=1)
    """Samples per forward pass (paper: 4)."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes per optimiser step."""
    warmup_ratio: float = Field(0.008, ge=0, le=1)
    """Share of the whole run's steps in which the rate rises (paper: 0.008)."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape of the rate over the whole run (paper: cosine)."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's (paper: 0.1)."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's (paper: 0.9)."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's (paper: 0.95)."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are cut to this norm (paper: 1.0)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    peft: dict[str, Any] = Field(default_factory=lambda: dict(PAPER_LORA))
    """Passed to `peft.LoraConfig` unchanged; what is left out is the paper's: r 8, lora_alpha 16, lora_dropout 0.05."""

    @field_validator("peft")
    @classmethod
    def _paper_where_silent(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {**PAPER_LORA, **value}


class TuningOverride(Section):
    """What the public phase does differently; keys that are not set follow `tuning`."""

    learning_rate: float | None = Field(None, gt=0)
    """See `tuning`."""
    num_train_epochs: float | None = Field(None, gt=0)
    """See `tuning`."""
    max_steps: int | None = Field(None, ge=-1)
    """See `tuning`."""
    per_device_train_batch_size: int | None = Field(None, ge=1)
    """See `tuning`."""
    gradient_accumulation_steps: int | None = Field(None, ge=1)
    """See `tuning`."""
    warmup_ratio: float | None = Field(None, ge=0, le=1)
    """See `tuning`."""
    lr_scheduler_type: Schedule | None = None
    """See `tuning`."""
    weight_decay: float | None = Field(None, ge=0)
    """See `tuning`."""
    adam_beta1: float | None = Field(None, ge=0, lt=1)
    """See `tuning`."""
    adam_beta2: float | None = Field(None, ge=0, lt=1)
    """See `tuning`."""
    max_grad_norm: float | None = Field(None, ge=0)
    """See `tuning`."""

    def over(self, tuning: TuningConfig) -> TuningConfig:
        """`tuning` with what is set here in its place."""
        return tuning.model_copy(update=self.model_dump(exclude_none=True))
