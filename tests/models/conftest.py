"""Tiny language models with random weights: one with a tokenizer made here, six with real tokenizers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.scratch import ScratchSpec, scratch_config, untrained
from fedtandem.models.scratch_tokenizer import train_tokenizer
from fedtandem.models.tokenizer import TextTokenizer

TINY = ScratchSpec(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_length=64)


@dataclass(frozen=True)
class Family:
    """An architecture with the real tokenizer that its models use."""

    architecture: str
    tokenizer: str
    targets: frozenset[str]
    """Where LoRA goes, by layer name."""
    padded_rows: int = 0
    """Rows of the head beyond the tokenizer's vocabulary."""


FAMILIES = (
    Family("llama", "llama2", frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})),
    Family("gpt2", "gpt2", frozenset({"c_attn"})),
    Family("opt", "roberta", frozenset({"q_proj", "v_proj"}), padded_rows=7),  # 50,265 -> 50,272
    Family("bloom", "falcon", frozenset({"query_key_value"}), padded_rows=64),
    Family("gpt_neox", "gpt-neox", frozenset({"query_key_value"}), padded_rows=155),  # 50,277 -> 50,432
    Family(
        "qwen2", "qwen2", frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}), padded_rows=290
    ),  # -> 151,936
)


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda family: family.architecture)
def family(request: pytest.FixtureRequest) -> Family:
    """Each of the six in turn."""
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="session")
def family_folder(family: Family, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as stock transformers would write it: random weights, real tokenizer, maybe a padded head."""
    from transformers import AutoModelForCausalLM

    tokenizer = TextTokenizer.from_pretrained(shared / "tokenizers" / family.tokenizer)
    spec = replace(TINY, architecture=family.architecture)
    config = scratch_config(spec, tokenizer)
    config.vocab_size = tokenizer.vocab_size + family.padded_rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    folder = tmp_path_factory.mktemp("families") / family.architecture
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def lora_model(family_folder: Path) -> LanguageModel:
    """The family's model with a LoRA adapter; tests put its weights back."""
    return load_model(ModelSpec(str(family_folder), tuning_method="lora", seed=3))


@pytest.fixture(scope="session")
def byte_tokenizer() -> TextTokenizer:
    """Every byte is a token."""
    return train_tokenizer("bytes", [], 0)


@pytest.fixture
def make_tiny(byte_tokenizer: TextTokenizer) -> Callable[..., LanguageModel]:
    """A byte-level model with random weights; keyword arguments change its spec."""

    def make(**changes: object) -> LanguageModel:
        return untrained(replace(TINY, **changes), byte_tokenizer)  # type: ignore[arg-type]

    return make
