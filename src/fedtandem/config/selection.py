"""[selection]: which items are learnt, and from which teacher."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedtandem.config.section import Section
from fedtandem.selection.names import SELECTORS, TEACHERS
from fedtandem.user_code import known_or_own

RULES_AS_SELECTORS = ("dual_min_ce", "none")


def with_selector(document: dict[str, Any]) -> dict[str, Any]:
    """The document with a selector where it states a budget and none: the best of the study `lada-selection`.

    `verified_gap` where written paths are checked, else `confident_gap`. Malformed parts are left to the validation.
    """
    section, public = document.get("selection"), document.get("public")
    if not isinstance(section, dict) or "budget" not in section or "selector" in section:
        return document
    checked = (
        isinstance(public, dict) and public.get("labelled") is False and public.get("check", "none") != "none"
    )
    return {**document, "selection": {**section, "selector": "verified_gap" if checked else "confident_gap"}}


class LadaConfig(Section):
    """LaDa's own knobs; the other learning selectors share those that are not about its networks or its loss."""

    explore_weight: float = Field(0.1, ge=0)
    """Weight of the explore network (`linucb`: of the confidence bound) in an item's score."""
    reward: Literal["progress", "round_sum"] = "progress"
    """`progress`: how much likelier the right path became, item by item; `round_sum`: one number a round."""
    keep: Literal["budget", "threshold"] = "budget"
    """`budget`: the best k; `threshold`: those whose score is above 0.5, at least 5 % of the pool, at most k."""
    random_floor: float = Field(0.1, ge=0, lt=1)
    """Share of the budget drawn at random from the rest: protects from lock-in."""
    contrast_weight: float = Field(0.0, ge=0)
    """Weight of the contrastive loss over paths; 0 is off, since plain training did better (`lada-contrast`)."""
    reference: Literal["self", "peer", "none"] = "self"
    """What the contrastive loss is measured against: the receiver as the round began, the producer, or nothing."""
    prefer: Literal["role", "verified"] = "role"
    """`role`: the producer's path is preferred; `verified`: `public.check` may turn an item round or drop it."""
    negative: Literal["whole", "first_wrong_step"] = "whole"
    """What of the worse path is made unlikelier: all of it (paper), or its first wrong step alone, where `public.check`
    says which that is; pairs of which it cannot say so are left out."""
    beta: float | None = Field(None, gt=0)
    """Steepness of the contrastive loss. Default: 0.1, or 2 without a reference (on means per token)."""


class SelectionConfig(Section):
    """What is transferred between a client and the server, and who teaches it."""

    teacher: str = "dual_min_ce"
    """Who: `dual_min_ce` (paper), `all` (always the best peer), `none` (nobody), or "package.module:function"."""
    on_self: Literal["skip", "self"] = "skip"
    """A sample on which the learner is best: `skip` its distillation (paper) or learn from its own stale view."""
    margin: float = Field(0.0, ge=0)
    """A teacher must be better by more than this, in the score's unit (nats per byte in `bytes`)."""
    selector: str = "all"
    """What: `all` (paper), `confident_gap`, `random`, `lada`, ..., or "package.module:function" of your own. With a
    budget and no selector: `verified_gap` where `public.check` judges written paths, else `confident_gap`.
    `dual_min_ce` and `none` are understood too: all items, and that rule as `teacher`."""
    budget: int | float = 0.5
    """Items a client and the server exchange in a round, each way: a count, or a share of the public set."""
    direction: Literal["both", "down", "up"] = "both"
    """Which way the selector decides; the other way everything is transferred."""
    context: Literal["cached", "fresh"] | None = None
    """`cached`: items are named before they are sent, by what the receiver holds. `fresh`: they are shown first, as
    scores or as text without logits. Default: `cached` for selectors that learn, else `fresh`."""
    candidates: int | None = Field(None, ge=2)
    """Score only so many items, drawn anew each round."""
    probe: float = Field(0.1, gt=0, lt=0.5)
    """Share of the public set that is measured and never trained on; only where the selector learns or holds out."""
    lada: LadaConfig = LadaConfig()
    """The learned selector."""

    def asks_for_drafts(self, selector: str) -> bool:
        """Whether receivers send their own paths, for the producer to say how likely it finds them."""
        contrasts = selector in ("lada", "lada_shuffled") and self.lada.contrast_weight > 0
        return contrasts and self.lada.reference == "peer"

    @model_validator(mode="before")
    @classmethod
    def _a_rule_in_place_of_a_selector(cls, values: Any) -> Any:
        """`selector = "dual_min_ce"` says who teaches; it keeps its meaning where no other teacher is named."""
        if isinstance(values, dict) and values.get("selector") in RULES_AS_SELECTORS:
            return {"teacher": values["selector"], **values, "selector": "all"}
        return values

    @field_validator("teacher")
    @classmethod
    def _is_a_rule(cls, value: str) -> str:
        return known_or_own(value, TEACHERS)

    @field_validator("selector")
    @classmethod
    def _is_a_selector(cls, value: str) -> str:
        return known_or_own(value, SELECTORS)

    @field_validator("budget")
    @classmethod
    def _is_a_count_or_a_share(cls, value: int | float) -> int | float:
        if isinstance(value, bool) or (value < 1 if isinstance(value, int) else not 0 < value <= 1):
            raise ValueError("must be a count of 1 or more, or a share above 0 and at most 1.0")
        return value
