"""Several texts read by one causal model, token by token: keys and values are kept for what was read before.

The caller always gives whole texts. What a text has in common with the one read before is taken from the cache, what
the new one no longer has is dropped, the rest is fed: cropping and feeding on gives what a fresh reading gives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedtandem.errors import ModelError

Forward = Callable[[Tensor, Tensor, Any, int], tuple[Tensor, Any]]
"""(new ids (B, W), mask of all columns (B, C + W), cache of C columns or None, n) -> (logits of the last n columns
(B, n, V), cache)."""

SLACK_COLUMNS = 32


class CachedRows:
    """B texts in one batch, each of them anywhere in its own length.

    Columns of the cache that a text no longer has are masked; where all texts end in such columns they are cut off,
    and where too many lie inside they are squeezed out.

    Args:
        forward: the model.
        n_rows: B.
        pad_id: fed where a text has nothing new; never attended to.
        limit: tokens the model's context holds; None if nothing says.
        can_cache: False reads every text afresh (models that count places themselves, sliding windows).
        name: for messages.
    """

    def __init__(
        self,
        forward: Forward,
        n_rows: int,
        *,
        vocab_size: int,
        pad_id: int,
        limit: int | None,
        can_cache: bool,
        name: str,
    ) -> None:
        self._forward = forward
        self._vocab_size = vocab_size
        self._pad_id = pad_id
        self._limit = limit
        self._can_cache = can_cache
        self._name = name
        self._cache: Any = None
        self._order = list(range(n_rows))  # which text each row of the batch is
        self._held: dict[int, list[int]] = {row: [] for row in range(n_rows)}
        # Bookkeeping in NumPy: on arrays this small every call of torch costs ten times as much.
        self._mask = np.zeros((n_rows, 0), dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        """V of the tokenizer."""
        return self._vocab_size

    @property
    def limit(self) -> int | None:
        """Tokens the model's context holds; None if nothing says."""
        return self._limit

    @torch.no_grad()
    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        """One forward pass over what is new.

        Args:
            rows: which texts; the others stay as they are.
            ids: each one's whole tokens.
            last: of how many last tokens the logits are wanted; at least 1.

        Returns:
            Per text (last, V), in the model's own dtype and on its device.

        Raises:
            ModelError: a text is empty or longer than the model's context.
        """
        for row, text, count in zip(rows, ids, last, strict=True):
            if not 1 <= count <= len(text):
                raise ModelError(
                    f"{self._name}: logits of the last {count} of {len(text)} tokens do not exist."
                )
            if self._limit is not None and len(text) > self._limit:
                raise ModelError(
                    f"{self._name}: text {row} has grown to {len(text)} tokens, the model's context holds "
                    f"{self._limit}; shorten the prompt or write fewer new tokens."
                )
        if not self._can_cache:
            return self._afresh(ids, last)
        new: dict[int, list[int]] = {}
        for row, text, count in zip(rows, ids, last, strict=True):
            kept = min(common_length(self._held[row], text), len(text) - count)
            self._crop(row, kept)
            new[row] = [int(token) for token in text[kept:]]
        self._cut_off()
        output = self._feed(new, max(last))
        if self._cache is not None and not is_plain(self._cache):
            # Windows forget columns by count, and masked ones would count: right answers come first.
            self._can_cache, self._cache = False, None
        return [
            output[self._order.index(row), output.shape[1] - count :, : self._vocab_size]
            for row, count in zip(rows, last, strict=True)
        ]

    def forget(self, row: int) -> None:
        """A text is finished. Rows leave the batch when that saves half of the work: leaving copies the cache."""
        self._held.pop(row, None)
        if self._cache is None or 2 * len(self._held) > len(self._order) or not self._held:
            return
        left = [b for b, text in enumerate(self._order) if text in self._held]
        self._order = [self._order[b] for b in left]
        self._mask = self._mask[left]
        self._cache.batch_select_indices(torch.tensor(left, device=self._cache.layers[0].keys.device))

    # -- details -----------------------------------------------------------------------------------------------

    def _crop(self, row: int, kept: int) -> None:
        """Drop all but the first `kept` tokens of a text."""
        surplus = len(self._held[row]) - kept
        if surplus > 0:
            b = self._order.index(row)
            self._mask[b, np.flatnonzero(self._mask[b])[kept:]] = 0
            del self._held[row][kept:]

    def _cut_off(self) -> None:
        """Cut columns that end no text any more; squeeze when a third of the width is of no use to anyone."""
        if self._cache is None:
            return
        used = np.flatnonzero(self._mask.any(axis=0))
        width = int(used[-1]) + 1 if len(used) else 0
        if width < self._mask.shape[1]:
            self._cache.crop(width - self._mask.shape[1])
            self._mask = self._mask[:, :width]
        longest = int(self._mask.sum(axis=1).max())
        if width > 1.5 * longest + SLACK_COLUMNS:
            self._squeeze(longest)

    def _squeeze(self, longest: int) -> None:
        """Move every text's columns to the right end of a narrower cache."""
        # A stable sort of the mask: unused columns first, used ones behind them in their order.
        columns = self._mask.argsort(axis=1, kind="stable")[:, -longest:]  # (B, longest)
        self._mask = np.take_along_axis(self._mask, columns, axis=1)
        for layer in self._cache.layers:
            index = torch.from_numpy(columns).to(layer.keys.device)[:, None, :, None]
            layer.keys = layer.keys.gather(2, index.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
            layer.values = layer.values.gather(
                2, index.expand(-1, layer.values.shape[1], -1, layer.values.shape[3])
            )

    def _feed(self, new: dict[int, list[int]], wanted: int) -> Tensor:
        """Read new tokens at the right end of new columns; logits of the last `wanted` columns (B, wanted, V)."""
        width = max(len(tokens) for tokens in new.values())
        step_ids = np.full((len(self._order), width), self._pad_id, dtype=np.int64)
        step_mask = np.zeros_like(step_ids)
        for b, row in enumerate(self._order):
            tokens = new.get(row, [])
            if tokens:
                step_ids[b, width - len(tokens) :] = tokens
                step_mask[b, width - len(tokens) :] = 1
                self._held[row] += tokens
        self._mask = np.concatenate([self._mask, step_mask], axis=1)
        output, self._cache = self._forward(
            torch.from_numpy(step_ids), torch.from_numpy(self._mask), self._cache, wanted
        )
        return output

    def _afresh(self, ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        longest = max(len(text) for text in ids)
        step_ids = torch.full((len(ids), longest), self._pad_id, dtype=torch.int64)
        mask = torch.zeros_like(step_ids)
        for b, text in enumerate(ids):
            step_ids[b, longest - len(text) :] = torch.tensor([int(token) for token in text])
            mask[b, longest - len(text) :] = 1
        output, _ = self._forward(step_ids, mask, None, max(last))
        return [output[b, output.shape[1] - count :, : self._vocab_size] for b, count in enumerate(last)]


def common_length(held: list[int], text: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = min(len(held), len(text))
    # Texts mostly grow: one comparison of lists is much faster than a loop.
    if held[:n] == list(text[:n]):
        return n
    return next(i for i in range(n) if held[i] != text[i])


def is_plain(cache: Any) -> bool:
    """Whether every layer keeps all its columns: nothing else can be cut, squeezed or masked in the middle."""
    layers = getattr(cache, "layers", None)
    return layers is not None and all(type(layer).__name__ == "DynamicLayer" for layer in layers)
