"""Texts that come and go, read by one causal model in common batches; their keys and values in a bounded memory.

Each text keeps its own keys and values. A pass lays those of its texts side by side, padded on the left, so that texts
may join and leave between any two passes. What does not fit in the memory is forgotten, the longest unused first, and
read again when it is asked for: answers never depend on what is kept.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedtandem.errors import ModelError
from fedtandem.models.cached_rows import Forward, common_length, is_plain


@dataclass
class _Held:
    """One text: its ids, and per layer keys and values (H, T, D)."""

    ids: list[int]
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


class SessionReader:
    """One model and the texts it has read lately. For one thread.

    Args:
        forward: the model, as in `cached_rows`.
        vocab_size: V of the tokenizer.
        pad_id: fed where a text has nothing new; never attended to.
        limit: tokens the model's context holds; None if nothing says.
        can_cache: False reads every text afresh.
        cache_bytes: keys and values kept between passes, at most.
        name: for messages.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        vocab_size: int,
        pad_id: int,
        limit: int | None,
        can_cache: bool,
        cache_bytes: int,
        name: str,
    ) -> None:
        self._forward = forward
        self.vocab_size = vocab_size
        self.limit = limit
        self._pad_id = pad_id
        self._can_cache = can_cache
        self.cache_bytes = cache_bytes
        """May be changed; what is beyond it goes with the next pass."""
        self._name = name
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.held_bytes = 0
        """Of keys and values, now."""
        self.evicted = 0
        """Texts forgotten for want of room, ever."""

    def new_tokens(self, session: str, ids: Sequence[int], last: int) -> int:
        """How many tokens a pass would have to read for this text."""
        held = self._held.get(session)
        return len(ids) - (0 if held is None else min(common_length(held.ids, ids), len(ids) - last))

    @torch.no_grad()
    def logits(
        self, sessions: Sequence[str], ids: Sequence[Sequence[int]], last: Sequence[int]
    ) -> list[Tensor]:
        """One forward pass over what is new.

        Args:
            sessions: B names, each once.
            ids: each one's whole tokens.
            last: of how many last tokens the logits are wanted; at least 1.

        Returns:
            Per text (last, V), in the model's own dtype and on its device.

        Raises:
            ModelError: a text is shorter than `last` or longer than the model's context.
        """
        for text, count in zip(ids, last, strict=True):
            if not 1 <= count <= len(text) or (self.limit is not None and len(text) > self.limit):
                raise ModelError(
                    f"{self._name}: logits of the last {count} of {len(text)} tokens in a context of {self.limit} do "
                    "not exist."
                )
        held = [
            self._cropped(name, text, count) for name, text, count in zip(sessions, ids, last, strict=True)
        ]
        new = [list(text[len(one.ids) :]) for one, text in zip(held, ids, strict=True)]
        old_width = max(len(one.ids) for one in held)
        width = max(map(len, new))
        step, mask = self._padded(held, new, old_width, width)
        output, cache = self._forward(step, mask, _side_by_side(held, old_width), max(last))
        if self._can_cache and not is_plain(cache):
            self._can_cache = False  # windows forget columns by count, and padded ones would count
        if self._can_cache:
            for b, (name, one, tokens) in enumerate(zip(sessions, held, new, strict=True)):
                self._keep(name, one, tokens, cache, b, old_width + width)
            self._make_room()
        return [output[b, output.shape[1] - count :, : self.vocab_size] for b, count in enumerate(last)]

    def forget(self, session: str) -> None:
        """A text is finished."""
        held = self._held.pop(session, None)
        if held is not None:
            self.held_bytes -= held.n_bytes

    # -- details -----------------------------------------------------------------------------------------------

    def _padded(
        self, held: Sequence[_Held], new: Sequence[list[int]], old_width: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """New tokens (B, width) and what may be attended to (B, old_width + width), padded on the left."""
        if len(new) == 1:
            return torch.tensor(new), torch.ones((1, old_width + width), dtype=torch.int64)
        step = torch.full((len(held), width), self._pad_id, dtype=torch.int64)
        mask = torch.zeros((len(held), old_width + width), dtype=torch.int64)
        for b, (one, tokens) in enumerate(zip(held, new, strict=True)):
            step[b, width - len(tokens) :] = torch.tensor(tokens)
            mask[b, old_width - len(one.ids) : old_width] = 1
            mask[b, old_width + width - len(tokens) :] = 1
        return step, mask

    def _cropped(self, session: str, text: Sequence[int], last: int) -> _Held:
        """What is held of a text and may be gone on from; taken out of the memory until the pass is done."""
        held = self._held.pop(session, None)
        if held is None:
            return _Held([])
        self.held_bytes -= held.n_bytes
        kept = min(common_length(held.ids, text), len(text) - last)
        layers = [(keys[:, :kept], values[:, :kept]) for keys, values in held.layers]
        return _Held(held.ids[:kept], layers if kept else [])

    def _keep(self, session: str, held: _Held, tokens: list[int], cache: Any, b: int, width: int) -> None:
        """The pass's columns of one text, copied out: a view would keep the whole batch alive."""
        old, n = len(held.ids), len(tokens)
        layers = []
        for i, layer in enumerate(cache.layers):
            fresh = layer.keys[b, :, width - n :], layer.values[b, :, width - n :]
            before = held.layers[i] if old else None
            layers.append(
                (fresh[0].clone(), fresh[1].clone())
                if before is None
                else (torch.cat([before[0], fresh[0]], dim=1), torch.cat([before[1], fresh[1]], dim=1))
            )
        whole = _Held([*held.ids, *tokens], layers)
        self._held[session] = whole
        self.held_bytes += whole.n_bytes

    def _make_room(self) -> None:
        while self.held_bytes > self.cache_bytes and self._held:
            self.forget(next(iter(self._held)))
            self.evicted += 1


def _side_by_side(held: Sequence[_Held], width: int) -> Any:
    """The texts' keys and values as one batch's cache, padded on the left; None where nothing is held."""
    if width == 0:
        return None
    from transformers import DynamicCache

    cache = DynamicCache()
    first = next(one for one in held if one.ids)
    for i, (keys, _) in enumerate(first.layers):
        both = []
        for which in (0, 1):
            heads, _, dimension = first.layers[i][which].shape
            joined = keys.new_zeros((len(held), heads, width, dimension))
            for b, one in enumerate(held):
                if one.ids:
                    joined[b, :, width - len(one.ids) :] = one.layers[i][which]
            both.append(joined)
        cache.update(both[0], both[1], i)
    return cache
