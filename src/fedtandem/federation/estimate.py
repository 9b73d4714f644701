"""What a run will cost, by arithmetic on shapes alone: memory, bytes and time, before any weight is loaded."""

from dataclasses import dataclass
from typing import Literal

OVERHEAD_S = 0.012
"""Seconds per forward-backward that do not depend on size (Python and small kernels), on one CPU core."""


@dataclass(frozen=True)
class ModelShape:
    """A model by its sizes.

    Attributes:
        parameters: all weights.
        trainable: those that are tuned: the adapter, or all.
        hidden_size, n_layers, n_heads: of the decoder.
        vocab_size: width of the logits.
        bytes_per_weight: 4 fp32, 2 bf16, 0.5 in 4 bits.
    """

    parameters: int
    trainable: int
    hidden_size: int
    n_layers: int
    n_heads: int
    vocab_size: int
    bytes_per_weight: float


@dataclass(frozen=True)
class Work:
    """What a party does in one round.

    Attributes:
        train_tokens: tokens of all samples of its training phases, passes counted.
        train_steps: forward-backward passes.
        score_tokens: tokens it only reads (public pass, evaluation), passes counted.
        write_tokens: tokens it writes one by one (unlabelled prompts), over all batches.
        batch_size, length: samples per training step, and the longest of them in tokens.
        positions: predictor positions of one training step.
        checkpointing: activations are computed again in the backward pass.
    """

    train_tokens: int
    train_steps: int
    score_tokens: int
    write_tokens: int
    batch_size: int
    length: int
    positions: int
    checkpointing: bool = False


def memory_bytes(shape: ModelShape, work: Work) -> int:
    """Peak of one party: weights, gradients, AdamW's two moments, activations, logits with their gradient.

    Activations per layer: B T (34 d + 5 h T) bytes at 16 bits, twice that at 32; with checkpointing 2 B T d a layer
    and one whole layer.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, equation 1.
    """
    width = 2 if shape.bytes_per_weight >= 4 else 1
    tokens = work.batch_size * work.length
    layer = width * tokens * (34 * shape.hidden_size + 5 * shape.n_heads * work.length)
    kept = layer * shape.n_layers
    if work.checkpointing:
        kept = layer + 2 * width * tokens * shape.hidden_size * shape.n_layers
    logits = 2 * 4 * work.positions * shape.vocab_size
    optimiser = shape.trainable * (4 + 8)
    return int(shape.parameters * shape.bytes_per_weight + optimiser + kept + logits)


def flops(shape: ModelShape, work: Work) -> float:
    """Multiply-adds x 2: 2 N a token forward, 4 N backward through all weights, 2 N where most are frozen."""
    frozen = shape.trainable < shape.parameters / 2
    train = (4 if frozen else 6) * shape.parameters * work.train_tokens
    return float(train + 2 * shape.parameters * (work.score_tokens + work.write_tokens))


def seconds(shape: ModelShape, work: Work, flops_per_second: float) -> float:
    """Time of one round of one party at a measured speed; right to a factor of about three."""
    return flops(shape, work) / flops_per_second + work.train_steps * OVERHEAD_S


def knowledge_bytes(
    n_samples: int,
    n_positions: int,
    *,
    top_k: int,
    values: Literal["fp16", "u8"],
    text_bytes: int = 0,
) -> int:
    """At most what one party's knowledge takes on the wire: scores, and rows of `top_k` entries at every position."""
    per_entry = 4.1 if values == "fp16" else 3.2
    return int(4 * n_samples + n_positions * top_k * per_entry + text_bytes + 1000)
