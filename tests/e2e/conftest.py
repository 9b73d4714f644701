"""A whole federation at a size a test can run: chains, a Llama server, a GPT-2 and an OPT client, three tokenizers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtandem.config import RunConfig, load_config

TINY = """
name = "tiny"
algorithm = "fedmkt"
seed = 3
num_threads = 1

[server]
[server.scratch]
architecture = "llama"
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
tokenizer = "bpe"
vocab_size = 300
max_steps = 40
learning_rate = 5e-3
per_device_train_batch_size = 16
[server.scratch.data]
path = "embedded:chains"
chains = { n = 200, operators = "+-*m@&", steps = [1, 2] }
[server.tuning]
learning_rate = 2e-3
per_device_train_batch_size = 8
[server.tuning.peft]
lora_dropout = 0.05

[[clients]]
name = "clinic-a"
[clients.scratch]
architecture = "gpt2"
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
tokenizer = "bytes"
max_steps = 20
learning_rate = 5e-3
per_device_train_batch_size = 16
[clients.scratch.data]
path = "embedded:chains"
chains = { n = 200, operators = "+-*m@&", steps = [1, 2] }
[clients.data]
path = "embedded:chains"
chains = { n = 24, operators = "+", must_contain = "@", steps = [1] }
[clients.tuning]
method = "full"
learning_rate = 2e-3
per_device_train_batch_size = 8

[[clients]]
name = "clinic-b"
[clients.scratch]
architecture = "opt"
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
tokenizer = "bpe"
vocab_size = 280
max_steps = 20
learning_rate = 5e-3
per_device_train_batch_size = 16
[clients.scratch.data]
path = "embedded:chains"
chains = { n = 200, operators = "+-*m@&", steps = [1, 2] }
[clients.data]
path = "embedded:chains"
chains = { n = 16, operators = "+", must_contain = "&", steps = [1] }
[clients.tuning]
learning_rate = 2e-3
per_device_train_batch_size = 8

[public]
path = "embedded:chains"
chains = { n = 20, operators = "+-", must_contain = "@&", steps = [1, 2] }

[federation]
num_rounds = 2

[[evaluation.sets]]
name = "held-out"
metric = "bits_per_byte"
data = { path = "embedded:chains", chains = { n = 20, operators = "+@&", steps = [1] } }

[report]
enabled = false
"""

Tiny = Callable[..., RunConfig]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """The config above with overrides: `tiny("federation.num_rounds=1")`."""

    def make(*overrides: str) -> RunConfig:
        path = tmp_path / "tiny.toml"
        path.write_text(TINY)
        return load_config(path, list(overrides))

    return make
