"""One answer while it is being written: what stands, what is pending, what the server knows."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fedtandem.inference.record import Record
from fedtandem.inference.uplink import Draft

OnCommit = Callable[[int, list[int]], bool | None]
"""(prompt, its new tokens), as soon as they are final; True ends the answer there."""


@dataclass
class Row:
    """One answer being written."""

    index: int
    prompt: list[int]
    prompt_bytes: int
    """What it takes to tell the server the prompt."""
    limit: int
    eos_id: int
    on_commit: OnCommit | None
    written: list[int] = field(default_factory=list)
    pending: list[Draft] = field(default_factory=list)
    draft_ends: bool = False
    """Nothing more is drafted before the LLM has looked."""
    told: int | None = None
    """How many tokens of `written` the server knows; None before the first exchange."""
    block_bytes: int | None = None
    """Size of the pending block on the wire, where its drafter sends something else than ids."""
    spell: Callable[[int], bytes] | None = None
    """Bytes of a token, where the client does not know the LLM's ids and answers travel as text."""
    resolved: list[bool] = field(default_factory=list)
    """Of each token of `written`: whether the LLM wrote or verified it."""
    unaudited: list[tuple[int, Tensor | None, float]] = field(default_factory=list)
    """(place in `written`, draft law (V,) float32 or None for a peer's token, u) of tokens shown before the LLM's law
    in their place was seen."""
    on_audit: Callable[[int, float, float], None] | None = None
    charged: float = 0.0
    is_done: bool = False
    record: Record = field(default_factory=Record)

    @property
    def room(self) -> int:
        """Tokens that may follow what is written and pending."""
        return self.limit - len(self.written) - len(self.pending)

    @property
    def ids(self) -> list[int]:
        """The whole text with what is pending."""
        return [*self.prompt, *self.written, *(draft.token for draft in self.pending)]

    def commit(self, tokens: list[int], *, resolved: bool) -> None:
        """Write tokens that nothing will take back, and show them.

        Args:
            resolved: whether the LLM wrote or verified them.
        """
        self.written += tokens
        self.resolved += [resolved] * len(tokens)
        self.record.tokens = len(self.written)
        self.is_done = tokens[-1] == self.eos_id or len(self.written) >= self.limit
        if self.on_commit is not None and self.on_commit(self.index, tokens):
            self.is_done = True
