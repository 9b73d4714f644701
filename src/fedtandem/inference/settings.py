"""How to generate: plain values, checked once."""

import math
from dataclasses import dataclass
from typing import Literal

from fedtandem.errors import ConfigError
from fedtandem.inference.uplink import UPLINKS, Uplink

Mode = Literal["exact", "bounded", "fedhlm", "local", "cloud"]
MODES: tuple[Mode, ...] = ("exact", "bounded", "fedhlm", "local", "cloud")
Audit = Literal["none", "passing", "all"]
Peer = Literal["draft", "answer"]
PEER_USES: dict[Peer, tuple[Mode, ...]] = {
    "draft": ("exact", "cloud"),
    "answer": ("fedhlm", "bounded", "cloud"),
}
"""How what peers know may be used -> the modes it goes with; `cloud` only adds to it."""


@dataclass(frozen=True)
class DecodeSettings:
    """How to generate.

    Raises:
        ConfigError: a value out of its range; says which.
    """

    mode: Mode = "exact"
    uplink: Uplink = "shared_noise"
    """Also how tokens are chosen: `greedy` takes the likeliest, all others sample."""
    block: int = 6
    """Drafts per verification at most (g_max)."""
    tau: float = 0.3
    """-1 asks the LLM about every token, 1 and above trust every draft's uncertainty."""
    eps: float | None = None
    """Of `bounded`: how far in total variation a whole answer's law may be from the LLM's."""
    max_new_tokens: int = 128
    seed: int = 0
    """Prompt i of a call uses seed + i, wherever it stands in a batch."""
    temperature: float = 1.0
    """Of both laws; without effect on `greedy`."""
    top_k: int = 30
    """Tokens in the laws of `scalar` and `sparse`."""
    audit: Audit = "passing"
    """Kept tokens whose error is measured: none, those the LLM reads later anyway, or all (extra passes at the
    end, counted apart)."""

    peer: Peer = "draft"
    """How what peers know is used, where there are any: verified by the LLM, or taken as it is."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("uplink", self.uplink, UPLINKS),
            ("audit", self.audit, ("none", "passing", "all")),
            ("peer", self.peer, tuple(PEER_USES)),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is unknown; use {', '.join(known)}.")
        if not -1 <= self.tau <= 2:  # NaN fails it as well
            raise ConfigError(
                f"tau is {self.tau}; uncertainties lie in [0, 1], so give a number from -1 (verify all) to 2."
            )
        if not 1 <= self.block <= 64:
            raise ConfigError(f"block is {self.block}; a block holds 1 to 64 drafts (4 to 8 are usual).")
        if self.max_new_tokens < 1 or self.top_k < 1:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens} and top_k {self.top_k}; both must be at least 1."
            )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature}; give a positive number, or use uplink greedy for the likeliest."
            )
        if self.mode == "bounded" and (self.eps is None or not 0 < self.eps <= 1):
            raise ConfigError(
                f"eps is {'missing' if self.eps is None else self.eps}; mode bounded needs a total variation in "
                "(0, 1], e.g. 0.1. For an error of 0 use mode exact."
            )
