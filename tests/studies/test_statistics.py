"""The statistics of a study: by hand, by property, on pure noise, on a real effect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.studies.statistics import (
    Comparison,
    Items,
    PairedItems,
    bootstrap_p_value,
    compare,
    decide,
    holm,
    t_interval,
    t_p_value,
    two_level_bootstrap,
)

SEEDS, FAMILY, ITEMS = 5, 6, 60
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_students_t_by_hand():
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 / (1 / sqrt 3) = 3.464 with 2 degrees of freedom. For 2 degrees
    # P(T > t) = 1/2 - t / (2 sqrt(2 + t^2)), so p = 1 - sqrt(12/14) = 0.0742; the 97.5 % point is 4.3027.
    values = np.array([1.0, 2.0, 3.0])
    mean, low, high = t_interval(values)
    assert mean == 2
    np.testing.assert_allclose([low, high], [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(t_p_value(values), 1 - (12 / 14) ** 0.5, rtol=1e-9)


def test_holm_by_hand():
    # Sorted .01 .02 .04 with factors 3 2 1: .03, .04, .04; never decreasing.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.02])), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm(np.array([0.01, 0.011])), [0.02, 0.02])


@given(p_lists, st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, alpha):
    adjusted = holm(np.array(p))
    rejected = np.zeros(len(p), dtype=bool)
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - rank) > alpha:
            break
        rejected[index] = True
    np.testing.assert_array_equal(adjusted <= alpha, rejected)


@given(p_lists, st.data())
def test_a_larger_p_never_turns_another_comparison_into_a_rejection(p, data):
    larger = [data.draw(st.floats(value, 1)) for value in p]
    assert (holm(np.array(larger)) >= holm(np.array(p))).all()


def test_equal_differences_are_certain_and_no_difference_is_none():
    assert t_p_value(np.array([0.1] * 5)) == 0
    assert t_p_value(np.zeros(5)) == 1
    assert bootstrap_p_value(np.zeros(100)) == 1


def test_one_seed_has_figures_but_no_interval_and_no_claim():
    lone = compare([0.9], [0.5], None, np.random.default_rng(0))
    assert (lone.mean, lone.interval, lone.p) == (0.4, None, None)
    assert not decide([lone])[0].claim


def paired(method: np.ndarray, control: np.ndarray) -> list[list[PairedItems]]:
    one = np.ones(method.shape[-1])
    return [[PairedItems(Items(m, one), Items(c, one))] for m, c in zip(method, control, strict=True)]


def test_the_bootstrap_of_a_ratio_is_centred_on_the_ratio_of_sums():
    # Bits per byte: long texts count more. 30 bits in 10 bytes and 1 bit in 1 byte make 31 / 11, not (3 + 1) / 2.
    rng = np.random.default_rng(0)
    weight = np.tile([10.0, 1.0], 200)
    method, control = Items(np.tile([30.0, 1.0], 200), weight), Items(np.tile([40.0, 1.0], 200), weight)
    assert method.figure == pytest.approx(31 / 11)
    drawn = two_level_bootstrap([[PairedItems(method, control)]] * 5, rng)
    assert drawn.mean() == pytest.approx(31 / 11 - 41 / 11, abs=0.01)


def test_a_pooled_row_is_the_mean_over_its_parties():
    one = np.ones(4)
    up, down = (
        PairedItems(Items(one, one), Items(0 * one, one)),
        PairedItems(Items(0 * one, one), Items(one, one)),
    )
    drawn = two_level_bootstrap([[up, down, up, up]] * 3, np.random.default_rng(0), draws=10, item_draws=5)
    np.testing.assert_allclose(drawn, 0.5)  # (1 - 1 + 1 + 1) / 4


def test_items_that_are_not_paired_are_refused():
    one = np.ones(3)
    with pytest.raises(ValueError, match="same test items"):
        PairedItems(Items(one, one), Items(np.ones(4), np.ones(4)))


def test_the_same_generator_gives_the_same_interval():
    rng = np.random.default_rng(3)
    items = paired(rng.random((5, 40)), rng.random((5, 40)))
    figures = [pair[0].method.figure for pair in items], [pair[0].control.figure for pair in items]
    first, second = (compare(*figures, items, np.random.default_rng(7)) for _ in range(2))
    assert first == second


def nested_noise(
    rng: np.random.Generator, families: int, effect: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Per-item results (families, comparisons, seeds, items) of methods and of the control they share.

    Every trained model has luck of its own (a heavy-tailed seed effect of sd 0.02); every seed draws its own test
    items, whose difficulty (sd 0.25) method and control share; and each model errs on items in its own way (sd 0.2).
    """
    difficulty = rng.normal(0.5, 0.25, (families, 1, SEEDS, ITEMS))
    luck = 0.02 * rng.standard_t(5, (families, FAMILY + 1, SEEDS, 1)) / (5 / 3) ** 0.5
    own = rng.normal(0, 0.2, (families, FAMILY + 1, SEEDS, ITEMS))
    results = difficulty + luck + own
    return results[:, 1:] + effect, results[:, :1]


def t_rejects(method: np.ndarray, control: np.ndarray) -> np.ndarray:
    """(families,) whether Student's t with Holm rejects anything; the first half of the claim, vectorised."""
    return (holm(t_p_value((method - control).mean(axis=-1))) < 0.05).any(axis=-1)


def family_of(method: np.ndarray, control: np.ndarray, rng: np.random.Generator) -> list[Comparison]:
    """The comparisons of one family, whole."""
    return [
        compare(m.mean(axis=-1).tolist(), control[0].mean(axis=-1).tolist(), paired(m, control[0]), rng,
                draws=4000, item_draws=400)
        for m in method
    ]  # fmt: skip


def test_pure_noise_gives_at_most_seven_percent_families_with_a_false_claim():
    # A claim needs the t test to reject too (Holm is monotone: see above), so only families in which it does are
    # put through the whole procedure; all others make no claim.
    rng = np.random.default_rng(20)
    families, claimed, by_t = 3000, 0, 0
    for _ in range(10):
        method, control = nested_noise(rng, families // 10)
        suspects = np.flatnonzero(t_rejects(method, control))
        by_t += len(suspects)
        claimed += sum(any(d.claim for d in decide(family_of(method[i], control[i], rng))) for i in suspects)
    assert by_t / families <= 0.07
    assert claimed / families <= 0.07


def test_a_bootstrap_over_seeds_alone_would_make_many_false_claims():
    # Why it never stands alone: five differences of pure noise, percentile interval of their resampled means.
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2000, SEEDS))
    means = np.stack([noise[:, rng.integers(0, SEEDS, SEEDS)].mean(axis=1) for _ in range(1000)])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert ((low > 0) | (high < 0)).mean() > 0.12


def test_a_real_effect_is_found():
    # The sd of a per-seed difference is about sqrt(2 (0.02^2 + 0.2^2 / 60)) = 0.046; an effect four times that.
    rng = np.random.default_rng(4)
    method, control = nested_noise(rng, 40, effect=0.19)
    claims = [d.claim for m, c in zip(method, control, strict=True) for d in decide(family_of(m, c, rng))]
    assert np.mean(claims) > 0.8


def test_four_seeds_make_no_claim_whatever_the_effect():
    rng = np.random.default_rng(5)
    method, control = nested_noise(rng, 1, effect=10.0)
    four = [
        compare(
            m[:4].mean(-1).tolist(),
            control[0, 0, :4].mean(-1).tolist(),
            paired(m[:4], control[0, 0, :4]),
            rng,
        )
        for m in method[0]
    ]
    assert not any(d.claim for d in decide(four))
    assert "4 seeds" in decide(four)[0].why_not
