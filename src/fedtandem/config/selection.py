"""[selection]: which samples are learnt from which teacher."""

import re
from typing import Literal

from pydantic import Field, field_validator

from fedtandem.config.section import Section

BUILT_IN = ("dual_min_ce", "all", "none")


class SelectionConfig(Section):
    """DualMinCE and what may stand in its place."""

    selector: str = "dual_min_ce"
    """`dual_min_ce` (paper), `all` (always the best peer), `none` (nobody), or "package.module:function"."""
    on_self: Literal["skip", "self"] = "skip"
    """A sample on which the learner is best: `skip` its distillation (paper) or learn from its own stale view."""
    margin: float = Field(0.0, ge=0)
    """A teacher must be better by more than this, in the score's unit (nats per byte in `bytes`)."""

    @field_validator("selector")
    @classmethod
    def _is_a_name_or_a_function(cls, value: str) -> str:
        if value not in BUILT_IN and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            raise ValueError(f'must be {", ".join(BUILT_IN)} or "package.module:function"')
        return value
