"""[defence]: what the server does against clients that lie or are broken."""

from pydantic import Field

from fedtandem.config.section import Section


class DefenceConfig(Section):
    """Scores held against rows, quarantine, a cap on each client's share."""

    check_samples: int = Field(64, ge=1)
    """Of what a client won in a round, so many samples' scores are computed again from its rows."""
    score_tolerance: float = Field(0.1, ge=0)
    """A score may be so much better than its rows allow (nats per byte; per token in `mined`). Noise under
    [privacy] needs more."""
    max_wrong: float = Field(0.1, ge=0, lt=1)
    """Above this share of wrong scores a client is not believed for the rest of the run."""
    influence_cap: float = Field(0.5, gt=0, le=1)
    """Share of the public samples that one client may teach in a round."""
