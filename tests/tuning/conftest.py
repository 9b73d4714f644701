"""A tiny real Llama, and examples for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import Batch
from fedtandem.tuning.phase import Example

V = 29


@dataclass
class Padding:
    pad_id: int = 0


class TinyLM:
    """What training needs of a language model: 2 layers, width 16, and dropout if asked for."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=dropout,
            attn_implementation="eager",
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.model: Any = LlamaForCausalLM(config).eval()
        self.tokenizer = Padding()
        self.device = torch.device("cpu")

    def logits_at(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return logits[batch.row, batch.col]

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}


def example(seed: int, *, taught: bool = False, labelled: bool = True, scored: bool = True) -> Example:
    """A text of 4 to 9 tokens whose second half is the answer, maybe with a teacher's three best tokens per row."""
    generator = np.random.default_rng(seed)
    length = int(generator.integers(4, 10))
    positions = np.arange(length // 2, length - 1, dtype=np.int32)
    n = len(positions)
    encoded = Encoded(
        input_ids=generator.integers(1, V, length).astype(np.int32),
        positions=positions,
        end_byte=np.arange(n, dtype=np.int32),
        segment=np.ones(n, np.uint8),
        n_answer_bytes=n,
        scored=scored,
        is_eos=np.arange(n) == n - 1,
    )
    if not taught:
        return Example(encoded, labelled=labelled)
    ids = np.concatenate([np.sort(generator.choice(V, 3, replace=False)) for _ in range(n)])
    rows = SparseLogits(
        token_ids=ids.astype(np.int32),
        log_probs=np.log(np.tile(np.array([0.5, 0.3, 0.1], np.float32), n)),
        row_splits=np.arange(n + 1) * 3,
        tail_log_prob=np.full(n, np.log(0.1), np.float32),
        end_byte=encoded.end_byte,
        segment=encoded.segment,
        sample_splits=np.array([0, n]),
    )
    return Example(encoded, rows, labelled=labelled)


@pytest.fixture
def make_example() -> Callable[..., Example]:
    return example


@pytest.fixture
def tiny_lm() -> type[TinyLM]:
    return TinyLM
