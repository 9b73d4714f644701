"""[server.scratch], [clients.scratch]: a small model trained from nothing on the spot, kept in a cache."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from fedtandem.config.data import DataConfig
from fedtandem.config.section import Section

if TYPE_CHECKING:
    from fedtandem.data.public import Sample
    from fedtandem.models.scratch import ScratchSpec


class ScratchConfig(Section):
    """In place of `model`: shape, tokenizer and pretraining of a model that does not exist yet."""

    architecture: Literal["llama", "gpt2", "opt", "gpt_neox", "bloom", "qwen2"] = "llama"
    """Model type of `transformers`."""
    hidden_size: int = Field(96, ge=8)
    """Width."""
    intermediate_size: int | None = Field(None, ge=8)
    """Width of the feed-forward layers; None: 4 x hidden_size, 8/3 x for Llama and Qwen2."""
    num_hidden_layers: int = Field(3, ge=1)
    """Depth."""
    num_attention_heads: int = Field(6, ge=1)
    """Heads; a head of 16 works well at this size."""
    max_length: int = Field(512, ge=8)
    """Context in tokens."""
    tokenizer: Literal["bytes", "bpe", "pieces"] = "bpe"
    """Trained on `data`: `bytes` (every byte a token), `bpe` (as GPT-2's), `pieces` (SentencePiece-like)."""
    vocab_size: int = Field(512, ge=259)
    """At most so many tokens; all bytes and three specials are always there."""
    bos: bool = False
    """Texts begin with a token of their own."""
    positions: Literal["answer", "all"] = "answer"
    """What is learnt: answers, or prompts too."""
    data: DataConfig
    """What it is pretrained on."""
    num_train_epochs: float = Field(1, gt=0)
    """Passes over `data`."""
    max_steps: int = Field(-1, ge=-1)
    """Updates in place of epochs; -1 counts epochs."""
    per_device_train_batch_size: int = Field(64, ge=1)
    """Samples per update."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of the schedule."""
    warmup_steps: int = Field(30, ge=0)
    """Updates in which the rate rises."""
    lr_scheduler_type: Literal["linear", "constant"] = "linear"
    """After the warm-up: down to zero, or level."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's."""
    seed: int | None = None
    """Draws weights and batches. Default: the run's seed, so every seed of a study has its own model."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be shared evenly by {self.num_attention_heads} heads"
            )
        return self

    def to_spec(self, run_seed: int, samples: "Sequence[Sample]") -> "ScratchSpec":
        """The plain value that the model room reads.

        Args:
            run_seed: used where no seed is stated.
            samples: what `data` holds; they decide the updates of an epoch and whether texts end with EOS.
        """
        from fedtandem.models.scratch import ScratchSpec

        updates = math.ceil(self.num_train_epochs * len(samples) / self.per_device_train_batch_size)
        return ScratchSpec(
            architecture=self.architecture,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_length=self.max_length,
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            bos=self.bos,
            positions=self.positions,
            eos=all(sample.eos for sample in samples),
            updates=self.max_steps if self.max_steps > 0 else updates,
            batch_size=self.per_device_train_batch_size,
            learning_rate=self.learning_rate,
            warmup_updates=self.warmup_steps,
            weight_decay=self.weight_decay,
            schedule=self.lr_scheduler_type,
            seed=run_seed if self.seed is None else self.seed,
        )
