"""The learning rate over a whole run, of which one phase is only a part."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def learning_rate_factor(
    step: int,
    steps: int,
    span: tuple[float, float] = (0.0, 1.0),
    *,
    schedule: Schedule = "cosine",
    warmup_ratio: float = 0.0,
) -> float:
    """What the learning rate is multiplied by at one update.

    The phase covers the part `span` of the run, its updates evenly spread over it. The factor rises to 1 over the
    first `warmup_ratio` of the *run*, then falls towards 0 at the run's end; it is never 0 itself, so that a
    phase of a single update does something.

    Args:
        step: number of the update inside its phase, from 0.
        steps: updates of the phase.
        span: (first, last) fraction of the run that the phase covers.
        schedule: the shape after the rise; "constant" stays at 1.
        warmup_ratio: share of the run spent rising.

    Returns:
        A factor in (0, 1].
    """
    first, last = span
    done = first + (last - first) * step / steps  # of the run, before this update
    done_after = first + (last - first) * (step + 1) / steps
    rise = min(1.0, done_after / warmup_ratio) if warmup_ratio > 0 else 1.0
    if schedule == "constant" or done <= warmup_ratio:
        return rise
    fallen = (done - warmup_ratio) / (1 - warmup_ratio)
    return rise * (1 - fallen if schedule == "linear" else (1 + math.cos(math.pi * fallen)) / 2)
