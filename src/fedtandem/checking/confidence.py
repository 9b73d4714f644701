"""Where there is no checker: a teacher's confidence, and how far it could be trusted where somebody did check."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedtandem.errors import DataError
from fedtandem.inference.similarity import wilson

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Point:
    """The surest `share` of the judged paths.

    Attributes:
        share: in (0, 1].
        nats_per_byte: the least sure of them; the threshold.
        n, right: how many they are, and how many of them were right.
        low, high: 95 % interval of right / n.
    """

    share: float
    nats_per_byte: float
    n: int
    right: int
    low: float
    high: float


def confidence_curve(
    nats_per_byte: npt.ArrayLike, right: npt.ArrayLike, shares: Sequence[float] = SHARES
) -> list[Point]:
    """How often the surest paths are right: the calibration of a teacher's confidence, as measured.

    Args:
        nats_per_byte: the writer's own loss on each path, lower is surer; (N,).
        right: what a checker or gold said; (N,) bool.
        shares: in (0, 1], ascending.

    Raises:
        ValueError: no path, other lengths, or a loss that is no number.

    Source: intervals of E. B. Wilson, J. Amer. Statist. Assoc. 22 (1927) 209-212.
    """
    loss, good = np.asarray(nats_per_byte, dtype=np.float64), np.asarray(right, dtype=bool)
    if loss.shape != good.shape or loss.ndim != 1 or len(loss) == 0 or not np.isfinite(loss).all():
        raise ValueError(
            f"{loss.shape} losses and {good.shape} verdicts; expected finite (N,) and (N,), N >= 1."
        )
    order = np.argsort(loss, kind="stable")
    points = []
    for share in shares:
        threshold = float(loss[order[max(1, round(share * len(loss))) - 1]])
        among = loss <= threshold  # equal confidences stand or fall together
        n, hits = int(among.sum()), int(good[among].sum())
        low, high = wilson(hits, n)
        points.append(Point(float(share), threshold, n, hits, float(low), float(high)))
    return points


def threshold_for(curve: Sequence[Point], precision: float) -> float | None:
    """The loosest threshold whose precision is at least `precision` with 95 % confidence; None where none is."""
    proven = [point.nats_per_byte for point in curve if point.low >= precision]
    return max(proven, default=None)


def curve_text(curve: Sequence[Point]) -> str:
    """A curve as JSON."""
    return json.dumps([asdict(point) for point in curve], indent=1) + "\n"


def read_curve(file: Path) -> list[Point]:
    """A curve that `curve_text` wrote.

    Raises:
        DataError: it is none.
    """
    try:
        return [Point(**point) for point in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{file} holds no confidence curve ({error}); `fedtandem paths --check ... --curve FILE` writes one."
        ) from error
