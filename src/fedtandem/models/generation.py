"""Greedy decoding of many prompts at once: left padding, one key-value cache, finished rows leave the batch."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtandem.errors import ModelError

Ids = npt.NDArray[np.int32]
Choose = Callable[[Tensor], Tensor]
"""Logits (B, V) -> the next token of each row, (B,) int64."""


def chooser(temperature: float, seed: int) -> Choose:
    """The most likely token at temperature 0 (ties: the lower id), else one drawn from softmax(logits / temperature).

    Drawn on the CPU from `seed` alone, so that every device draws alike.
    """
    if temperature == 0:
        return lambda logits: logits.argmax(dim=-1)
    generator = torch.Generator().manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        p = torch.softmax(logits.float().cpu() / temperature, dim=-1)
        return torch.multinomial(p, 1, generator=generator)[:, 0].to(logits.device)

    return sample


def greedy(
    model: Any,
    prompts: Sequence[Ids],
    *,
    inputs: Callable[[Tensor], dict[str, Tensor]],
    vocab_size: int,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    device: torch.device,
    choose: Choose,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Ids]:
    """The most likely (or a drawn) next token, again and again, until EOS or `max_new_tokens`.

    Args:
        model: a causal model in evaluation mode; call under `torch.no_grad()`.
        inputs: attention mask (B, T) -> the model's mask and position arguments for these T columns.
        vocab_size: ids at and above it (padding of the head) are never written.

    Returns:
        New ids per prompt in the prompts' order, closing EOS included; int32.

    Raises:
        ModelError: a prompt is empty or leaves no room in the model's context.
    """
    results: list[Ids] = [np.zeros(0, dtype=np.int32)] * len(prompts)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ModelError(f"prompt {i} has no tokens: this model needs at least one token to go on from.")
    # Like lengths share a batch, so there is little padding; the order inside a length is the caller's.
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    limit = getattr(model.config, "max_position_embeddings", None)
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        longest = len(prompts[chosen[-1]])
        room = max_new_tokens if limit is None else min(max_new_tokens, int(limit) - longest)
        if room < 1 <= max_new_tokens:
            raise ModelError(
                f"a prompt of {longest} tokens leaves no room in this model's context of {limit} tokens; "
                "shorten the prompts."
            )
        written = _continue_batch(
            model, [prompts[i] for i in chosen], inputs, vocab_size, eos_id, pad_id, room, device, choose
        )
        for i, ids in zip(chosen, written, strict=True):
            results[i] = ids
        if on_progress is not None:
            on_progress(min(start + batch_size, len(prompts)), len(prompts))
    return results


def _continue_batch(
    model: Any,
    prompts: Sequence[Ids],
    inputs: Callable[[Tensor], dict[str, Tensor]],
    vocab_size: int,
    eos_id: int,
    pad_id: int,
    room: int,
    device: torch.device,
    choose: Choose,
) -> list[Ids]:
    """Greedy continuations of one batch, at most `room` tokens each."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for b, prompt in enumerate(prompts):
        ids[b, longest - len(prompt) :] = torch.from_numpy(np.asarray(prompt, dtype=np.int64))
        mask[b, longest - len(prompt) :] = 1
    step_ids, mask = ids.to(device), mask.to(device)
    keep_last = (
        {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    alive = np.arange(len(prompts))  # which prompt each row of the batch belongs to
    done = np.zeros(len(prompts), dtype=bool)
    written = np.zeros((len(prompts), max(room, 0)), dtype=np.int32)
    counts = np.zeros(len(prompts), dtype=np.int64)
    cache = None
    for column in range(room):
        arguments = inputs(mask)
        if "position_ids" in arguments:
            arguments["position_ids"] = arguments["position_ids"][:, -step_ids.shape[1] :]
        output = model(input_ids=step_ids, past_key_values=cache, use_cache=True, **arguments, **keep_last)
        cache = output.past_key_values
        best = choose(output.logits[:, -1, :vocab_size])
        chosen = best.cpu().numpy()
        going = ~done[alive]
        written[alive[going], column] = chosen[going]
        counts[alive[going]] += 1
        done[alive[chosen == eos_id]] = True
        left = np.flatnonzero(~done[alive])
        if len(left) == 0:
            break
        # Dropping rows copies the cache: only when that saves half of the work.
        if 2 * len(left) <= len(alive) and hasattr(cache, "batch_select_indices"):
            rows = torch.from_numpy(left).to(device)
            cache.batch_select_indices(rows)
            best, mask, alive = best[rows], mask[rows], alive[left]
        step_ids = best[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return [written[b, : counts[b]].copy() for b in range(len(prompts))]
