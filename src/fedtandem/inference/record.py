"""What one generation did and what it cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass
class Record:
    """Counts of one answer; tokens = kept + peer + accepted + corrected + own.

    Attributes:
        tokens: written, closing EOS included.
        kept: of the SLM's, shown without asking the LLM.
        peer: tokens the LLM wrote for a peer in the same context, shown without asking it again.
        drafted: of the SLM's or a peer's, sent to the LLM.
        peer_drafted: of those, how many were a peer's.
        accepted: of those, how many stood.
        corrected: tokens the LLM wrote in place of a refused draft.
        own: tokens the LLM wrote after a wholly accepted block, or without any draft.
        slm_passes, llm_passes: forward passes this answer took part in; audits are not in `llm_passes`.
        audit_passes: passes of the LLM for `audit = "all"` alone; they change no output.
        round_trips: times the client waited for the server.
        uplink_bytes, downlink_bytes: serialised messages, without transport headers.
        charged: sum of the upper bounds of beta over kept tokens; None where no bound was given.
        audited: kept tokens whose LLM law was seen.
        audited_error: sum of TV(q, p) over those; for greedy the number that the LLM would have written otherwise.
        peer_audited, peer_wrong: peers' tokens that the LLM has looked at since, and those it writes otherwise; only
            with `greedy`, where another token is an error.
        near_ties: places where the LLM's choice hung by less than NEAR_TIE; rounding may decide them otherwise.
        first_near_tie: index of the first of them in the answer; None where there is none.
    """

    tokens: int = 0
    kept: int = 0
    peer: int = 0
    drafted: int = 0
    peer_drafted: int = 0
    accepted: int = 0
    corrected: int = 0
    own: int = 0
    slm_passes: int = 0
    llm_passes: int = 0
    audit_passes: int = 0
    round_trips: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    charged: float | None = None
    audited: int = 0
    audited_error: float = 0.0
    peer_audited: int = 0
    peer_wrong: int = 0
    near_ties: int = 0
    first_near_tie: int | None = None

    @property
    def verified_share(self) -> float:
        """Share of tokens that the LLM has seen in their place before they were shown; 1 for an empty answer."""
        return 1 - (self.kept + self.peer) / self.tokens if self.tokens else 1.0

    @property
    def llm_passes_saved(self) -> float:
        """Share of the LLM's passes that writing these tokens by the LLM alone would have taken and did not."""
        return 1 - self.llm_passes / self.tokens if self.tokens else 0.0

    def as_dict(self) -> dict[str, int | float | None]:
        """For JSON: all counts and the two shares."""
        return {
            **asdict(self),
            "verified_share": self.verified_share,
            "llm_passes_saved": self.llm_passes_saved,
        }


SUMMED = (
    *(
        "tokens",
        "kept",
        "peer",
        "drafted",
        "accepted",
        "corrected",
        "own",
        "slm_passes",
        "llm_passes",
        "audit_passes",
    ),
    *("round_trips", "uplink_bytes", "downlink_bytes", "audited", "audited_error", "near_ties"),
    *("peer_drafted", "peer_audited", "peer_wrong"),
)


def summary(records: Sequence[Record]) -> dict[str, float]:
    """Sums over answers, and the shares that follow from them: of tokens for the LLM's passes and what it verified,
    of drafts for what it accepted (0 where nothing was drafted)."""
    totals: dict[str, float] = {"prompts": len(records)}
    totals |= {name: sum(getattr(record, name) for record in records) for name in SUMMED}
    tokens = max(1, totals["tokens"])
    totals["llm_passes_saved"] = 1 - totals["llm_passes"] / tokens
    totals["accepted_share"] = totals["accepted"] / max(1, totals["drafted"])
    totals["verified_share"] = 1 - (totals["kept"] + totals["peer"]) / tokens
    return totals
