"""The calibration of a teacher's confidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.checking.confidence import confidence_curve, curve_text, read_curve, threshold_for
from fedtandem.errors import DataError

judged = st.lists(st.tuples(st.floats(0, 10, width=32), st.booleans()), min_size=1, max_size=60)


@given(judged)
def test_the_whole_is_the_plain_precision_and_each_share_counts_the_surest(
    paths: list[tuple[float, bool]],
) -> None:
    loss, right = np.array([p[0] for p in paths]), np.array([p[1] for p in paths])
    curve = confidence_curve(loss, right)
    assert (curve[-1].n, curve[-1].right) == (len(paths), int(right.sum()))
    for point in curve:
        assert point.n >= max(1, round(point.share * len(paths)))
        assert point.right == right[loss <= point.nats_per_byte].sum()
        assert point.low <= point.right / point.n <= point.high


def test_a_threshold_needs_proof() -> None:
    loss = np.linspace(0, 1, 200)
    curve = confidence_curve(loss, loss < 0.6)
    found = threshold_for(curve, 0.9)
    assert found is not None
    assert 0.59 < found < 0.7
    assert threshold_for(confidence_curve([0.1, 0.2], [True, True]), 0.9) is None  # two are no proof


def test_a_curve_is_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    curve = confidence_curve([0.1, 0.3, 0.2], [True, False, True])
    (tmp_path / "c.json").write_text(curve_text(curve))
    assert read_curve(tmp_path / "c.json") == curve
    (tmp_path / "c.json").write_text("{}[")
    with pytest.raises(DataError, match="--curve FILE"):
        read_curve(tmp_path / "c.json")


@pytest.mark.parametrize(("loss", "right"), [([], []), ([0.1], [True, False]), ([float("nan")], [True])])
def test_what_cannot_be_judged_is_refused(loss: list[float], right: list[bool]) -> None:
    with pytest.raises(ValueError, match="expected finite"):
        confidence_curve(loss, right)
