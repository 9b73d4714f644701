"""How an answer came about, step by step, while it is written: places, doubts and times, no token and no text."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedtandem.inference.row import Source, Tier
from fedtandem.serving.asking import Asking

LETTERS: dict[Tier, str] = {
    "kept": "k", "accepted": "a", "llm": "l", "corrected": "c", "peer": "p", "degraded": "d",
}  # fmt: skip
MAX_TOKENS = 4096
"""Of one answer; what follows is counted and not listed."""


@dataclass
class Step:
    """Tokens that became final for one reason.

    Attributes:
        at: how many tokens stood before.
        why: kept, peer, verified, or the reason why the LLM was not asked.
        tiers: a letter of `LETTERS` per token.
        u: of each token; None where the SLM was not asked.
        ms: since the answer was begun.
        wait_ms, uplink_bytes, downlink_bytes: of the exchange behind it.
    """

    at: int
    why: str
    ms: float
    tiers: str = ""
    u: list[float | None] = field(default_factory=list)
    wait_ms: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an exchange only where there was one."""
        whole = {"at": self.at, "why": self.why, "ms": round(self.ms, 1), "tiers": self.tiers, "u": self.u}
        if self.wait_ms:
            whole |= {
                "wait_ms": round(self.wait_ms, 1), "up": self.uplink_bytes, "down": self.downlink_bytes,
            }  # fmt: skip
        return whole


class Trail:
    """The steps of one answer.

    Attributes:
        tokens: written so far.
        steps: why, at most `MAX_TOKENS` tokens of them.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.tokens = 0
        self.steps: list[Step] = []

    def add(self, sources: Sequence[Source], asking: Asking | None) -> None:
        """What is being committed.

        Args:
            sources: of its tokens.
            asking: who asks the LLM, if somebody does; knows what the last exchange took.
        """
        at, self.tokens = self.tokens, self.tokens + len(sources)
        room = MAX_TOKENS - at
        if room <= 0:
            return
        said = None if asking is None else asking.said
        why: str = "verified" if said is not None else sources[0].tier
        if why == "degraded" and asking is not None:
            why = asking.alone
        last = self.steps[-1] if self.steps else None
        if said is not None or last is None or last.why != why:
            last = Step(at, why, 1000 * (time.monotonic() - self._began))
            self.steps.append(last)
        if said is not None:
            last.wait_ms, last.uplink_bytes, last.downlink_bytes = (
                1000 * said.wait_s, said.uplink_bytes, said.downlink_bytes,
            )  # fmt: skip
        last.tiers += "".join(LETTERS[source.tier] for source in sources[:room])
        last.u += [None if source.u is None else round(source.u, 4) for source in sources[:room]]
