"""Thresholds: brute force, censoring, audits, merging, scopes, goals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtandem.errors import ConfigError
from fedtandem.inference.audit import audited, first_rate
from fedtandem.inference.gradient import descend, smoothed_loss, smoothed_slope
from fedtandem.inference.histogram import (
    BINS,
    best_bin,
    bin_for_error,
    bin_for_share,
    bin_of,
    bootstrap_bins,
    count_feedback,
    error_kept,
    mean_beta,
    share_sent,
    stacked,
    threshold_of,
)
from fedtandem.inference.isotonic import isotonic
from fedtandem.inference.line import fit_line, line_sums, line_threshold
from fedtandem.inference.routing import is_sent
from fedtandem.inference.threshold import CLIENT, CLUSTER, GLOBAL, LAST, Goal, learn_thresholds

# Eighths are exact in binary: sums do not depend on their order, so ties are true ties.
eighths = st.integers(0, 8).map(lambda k: k / 8)
tokens_and_betas = st.lists(st.tuples(st.integers(0, 640), eighths), min_size=1, max_size=60)


def fully_labelled(u, beta):
    everything = np.ones(len(u), dtype=bool)
    return count_feedback(u, beta, everything, ~everything, 1.0)


def cost(u, beta, tau, price):
    """Equation (4) for κ → ∞: error of what is kept plus the price of what is sent."""
    return float(np.mean(np.where(u <= tau, beta, price)))


def stream(n, rng, slope=0.82, offset=-0.06):
    """The toy stream: β = 0.82 u - 0.06 with 0/1 feedback, few uncertain tokens."""
    u = rng.beta(1.2, 3.0, n)
    return u, (rng.random(n) < np.clip(slope * u + offset, 0, 1)).astype(float)


@given(st.lists(st.tuples(eighths, st.integers(0, 3)), min_size=1, max_size=12))
def test_the_isotonic_fit_is_the_min_max_formula(points):
    values, weights = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    fit = isotonic(values, weights)
    if not weights.any():
        assert np.isnan(fit).all()
        return
    known = np.flatnonzero(weights)
    y, w = values[known], weights[known]

    def mean(i, j):
        return float((y[i : j + 1] * w[i : j + 1]).sum() / w[i : j + 1].sum())

    by_hand = [max(min(mean(i, j) for j in range(b, len(y))) for i in range(b + 1)) for b in range(len(y))]
    np.testing.assert_allclose(fit[known], by_hand, atol=1e-12)
    assert (np.diff(fit) >= -1e-12).all()
    assert fit.min() >= y.min() - 1e-12
    assert fit.max() <= y.max() + 1e-12


def test_rows_fitted_together_are_fitted_as_alone():
    rng = np.random.default_rng(0)
    values, weights = rng.random((50, BINS)), rng.integers(0, 3, (50, BINS)).astype(float)
    together = isotonic(values, weights)
    for row, w, fit in zip(values, weights, together, strict=True):
        np.testing.assert_allclose(isotonic(row, w), fit)


@given(tokens_and_betas, st.integers(-8, 16))
def test_with_every_label_the_histogram_is_brute_force(rows, price_in_sixteenths):
    bins, betas = zip(*rows, strict=True)
    u, beta, price = np.array(bins) / 640, np.array(betas), price_in_sixteenths / 16
    h = fully_labelled(u, beta)
    tau = threshold_of(best_bin(h.tokens, mean_beta(h)[0], price))
    of_bins = np.where(u > 0, np.ceil(u * BINS), 1)  # u = 0 is counted in the first bin
    costs = [np.where(of_bins <= j, beta, price).sum() for j in range(BINS + 1)]
    assert tau == int(np.argmin(costs)) / BINS  # argmin takes the first minimiser


@given(tokens_and_betas, st.integers(0, BINS))
def test_the_gate_skips_exactly_the_bins_below_a_threshold(rows, j):
    u = np.array([r[0] for r in rows]) / 640
    h = fully_labelled(u, np.zeros(len(u)))
    assert is_sent(u, threshold_of(j)).sum() == h.tokens[j:].sum()


@given(tokens_and_betas, eighths, eighths)
def test_sending_falls_with_tau_and_tau_rises_with_price(rows, low, high):
    low, high = sorted((low, high))
    u, beta = np.array([r[0] for r in rows]) / 640, np.array([r[1] for r in rows])
    assert (u > high).mean() <= (u > low).mean()
    h = fully_labelled(u, beta)
    assert share_sent(h.tokens, high) <= share_sent(h.tokens, low)
    fit = mean_beta(h)[0]
    assert best_bin(h.tokens, fit, low) <= best_bin(h.tokens, fit, high)


@given(tokens_and_betas, eighths)
def test_share_and_error_are_bounds_for_any_threshold(rows, tau):
    tau = tau * 0.99  # mostly not on an edge
    u, beta = np.array([r[0] for r in rows]) / 640, np.array([r[1] for r in rows])
    h = fully_labelled(u, beta)
    sent = is_sent(u, tau)
    assert sent.mean() <= share_sent(h.tokens, tau) + 1e-12
    raw = np.divide(h.sent_beta, h.sent, out=np.zeros(BINS), where=h.sent > 0)
    assert np.where(sent, 0, beta).mean() <= error_kept(h.tokens, raw, tau) + 1e-12


@given(tokens_and_betas, eighths)
def test_goals_are_met_and_as_cheaply_as_bins_allow(rows, goal):
    u, beta = np.array([r[0] for r in rows]) / 640, np.array([r[1] for r in rows])
    h = fully_labelled(u, beta)
    fit = mean_beta(h)[0]
    j = bin_for_share(h.tokens, goal)
    assert h.tokens[j:].sum() <= goal * len(u) + 1e-9
    assert j == 0 or h.tokens[j - 1 :].sum() > goal * len(u)
    j = bin_for_error(h.tokens, fit, goal)
    kept = [(h.tokens * fit)[:i].sum() for i in range(BINS + 1)]
    assert kept[j] <= goal * len(u) + 1e-9
    assert j == BINS or kept[j + 1] > goal * len(u)


def test_counting_refuses_what_cannot_be():
    yes, no = np.array([True]), np.array([False])
    with pytest.raises(ValueError, match=r"uncertainty is nan"):
        bin_of([np.nan])
    with pytest.raises(ValueError, match=r"token 0: β = nan"):
        count_feedback([0.5], [np.nan], yes, no, 0.1)
    count_feedback([0.5], [np.nan], no, no, 0.1)  # nobody looked at it
    with pytest.raises(ValueError, match="both sent and audited"):
        count_feedback([0.5], [0.1], yes, yes, 0.1)
    with pytest.raises(ValueError, match="audit rates"):
        stacked([count_feedback([0.5], [0.1], yes, no, a) for a in (0.1, 0.2)])


@given(st.lists(tokens_and_betas, min_size=3, max_size=4), st.randoms())
@settings(max_examples=30)
def test_merging_is_associative_and_blind_to_order(clients, random):
    parts = [
        fully_labelled(np.array([r[0] for r in rows]) / 640, np.array([r[1] for r in rows]))
        for rows in clients
    ]
    whole = stacked(parts).sum()
    nested = stacked([stacked(parts[:2]).sum(), stacked(parts[2:]).sum()]).sum()
    random.shuffle(parts)
    shuffled = stacked(parts).sum()
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, getattr(nested, name))
        np.testing.assert_array_equal(array, getattr(shuffled, name))


def test_bin_means_are_unbiased_under_audit_and_ignorance_is_not():
    rng = np.random.default_rng(1)
    u, beta = stream(4000, rng)
    sent = u > 0.5
    truth = np.bincount(bin_of(u), beta, minlength=BINS)
    estimates, careless = [], []
    for repeat in range(300):
        seen = audited(f"key {repeat}".encode(), "client", ["s"] * len(u), np.arange(len(u)), 0.05) & ~sent
        h = count_feedback(u, beta, sent, seen, 0.05)
        estimates.append(h.sent_beta + h.audited_beta / 0.05)
        careless.append(h.sent_beta)
    error = np.std(estimates, axis=0) / 300**0.5
    assert (np.abs(np.mean(estimates, axis=0) - truth) <= 4.5 * error + 1e-9).all()
    assert np.mean(careless, axis=0)[:20].sum() < 0.1 * truth[:20].sum()


def test_the_audit_draw_is_keyed_repeatable_and_at_its_rate():
    sessions, places = ["s"] * 20_000, np.arange(20_000)
    one = audited(b"k", "a", sessions, places, 0.1)
    assert (one == audited(b"k", "a", sessions, places, 0.1)).all()
    assert abs(one.mean() - 0.1) < 0.01
    for other in (audited(b"l", "a", sessions, places, 0.1), audited(b"k", "b", sessions, places, 0.1)):
        assert abs((one & other).mean() - 0.01) < 0.004  # independent draws
    assert (one <= audited(b"k", "a", sessions, places, 0.2)).all()
    assert audited(b"k", "a", sessions, places, 1.0).all()
    assert not audited(b"k", "a", sessions, places, 0.0).any()
    assert first_rate(1000) == 0.5
    assert first_rate(1e6) == 0.01
    assert first_rate(3) == 1.0


def test_the_censoring_table():
    """Section 6, by gradient: only the weighted audit finds the oracle; counting skipped tokens as β = 0 runs away."""
    rng = np.random.default_rng(2)
    u, beta = stream(40_000, rng)
    price, ones, sessions = 0.3, np.ones(len(u)), ["s"] * len(u)
    draws = [audited(bytes([key]), "c", sessions, np.arange(len(u)), 0.01) for key in range(8)]

    def learn(treatment):
        tau = 0.5
        for round_number in range(120):
            sent = u > tau
            seen = sent | draws[round_number % len(draws)]
            labels, weight = {
                "oracle": (beta, ones),
                "audit": (beta, np.where(sent, 1.0, 1 / 0.01) * seen),
                "ignored": (beta, sent.astype(float)),
                "zero": (np.where(sent, beta, 0.0), ones),
            }[treatment]
            tau = descend(tau, u, labels, price, weight=weight, eta=0.2, steps=1)
        return tau

    tau = {name: learn(name) for name in ("oracle", "audit", "ignored", "zero")}
    sends = {name: (u > value).mean() for name, value in tau.items()}
    wrong = {name: np.where(u <= value, beta, 0).mean() for name, value in tau.items()}
    assert abs(tau["audit"] - tau["oracle"]) < 0.03
    assert abs(wrong["audit"] - wrong["oracle"]) < 0.01
    assert tau["ignored"] < tau["oracle"] - 0.04  # pays for calls it does not need
    assert tau["zero"] > 0.85
    assert sends["zero"] < 0.01
    assert wrong["zero"] > 1.4 * wrong["oracle"]
    # And the histogram needs one round for what took 120 steps.
    sent = u > 0.5
    seen = ~sent & audited(b"one", "c", sessions, np.arange(len(u)), 0.03)
    h = count_feedback(u, beta, sent, seen, 0.03)
    found = float(threshold_of(best_bin(h.tokens, mean_beta(h)[0], price)))
    assert cost(u, beta, found, price) < 1.03 * cost(u, beta, (price + 0.06) / 0.82, price)


@given(tokens_and_betas, st.floats(0.05, 0.95), st.floats(0, 1), st.floats(1, 30))
def test_the_slope_is_the_derivative(rows, tau, price, kappa):
    u, beta = np.array([r[0] for r in rows]) / 640, np.array([r[1] for r in rows])
    w = 1.0 + (np.arange(len(u)) % 3)
    h = 1e-5

    def loss(t):
        return smoothed_loss(t, u, beta, price, weight=w, kappa=kappa)

    numeric = (loss(tau + h) - loss(tau - h)) / (2 * h)
    assert smoothed_slope(tau, u, beta, price, weight=w, kappa=kappa) == pytest.approx(numeric, abs=1e-5)


def test_descent_stops_where_rejections_cost_what_a_call_costs():
    rng = np.random.default_rng(3)
    u = rng.random(40_000)
    beta = np.clip(0.82 * u - 0.06, 0, 1)
    tau = 0.5
    for _ in range(300):
        tau = descend(tau, u, beta, 0.3, kappa=100.0, eta=0.05)
    assert tau == pytest.approx((0.3 + 0.06) / 0.82, abs=0.01)
    assert descend(0.3, [], [], 0.3) == 0.3
    assert smoothed_loss(0.5, u, beta, 0.3, kappa=1e5) == pytest.approx(cost(u, beta, 0.5, 0.3), abs=1e-4)


def test_the_line_finds_its_line():
    u = np.linspace(0, 1, 50)
    line = fit_line(line_sums(u, 0.82 * u - 0.06, np.ones(50)))
    assert (line.slope, line.offset, line.r2) == pytest.approx((0.82, -0.06, 1.0))
    assert line_threshold(line, 0.3) == pytest.approx((0.3 + 0.06) / 0.82)
    halves = line_sums(u[:20], u[:20], np.ones(20)) + line_sums(u[20:], u[20:], np.ones(30))
    assert fit_line(halves).slope == pytest.approx(1)
    flat = fit_line(line_sums(np.full(4, 0.5), [0.1] * 4, np.ones(4)))
    assert (line_threshold(flat, 0.2), line_threshold(flat, 0.05)) == (1.0, 0.0)


def make_clients(rng, sizes, offsets, rate=1.0, tau=0.5):
    parts, raw = [], []
    for k, (n, offset) in enumerate(zip(sizes, offsets, strict=True)):
        u = rng.random(n)
        beta = (rng.random(n) < np.clip(0.9 * u + offset, 0, 1)).astype(float)
        sent = u > tau
        seen = audited(b"key", str(k), ["s"] * n, np.arange(n), rate) & ~sent
        parts.append(count_feedback(u, beta, sent, seen, rate))
        raw.append((u, beta))
    return stacked(parts), raw


def test_a_scope_below_150_audits_defers_to_the_wider_one():
    rng = np.random.default_rng(4)
    h, _ = make_clients(rng, [2000] * 3 + [120, 2000, 2000] + [100] * 3, [0.0] * 3 + [-0.3] * 3 + [0.3] * 3)
    found = learn_thresholds(h, np.repeat([0, 1, 2], 3), Goal("price", 0.3), rng, draws=50)
    assert found.client_source.tolist() == [CLIENT] * 3 + [CLUSTER, CLIENT, CLIENT] + [CLUSTER] * 3
    assert found.client[3] == found.cluster[1]
    thin, _ = make_clients(rng, [2000] * 3 + [100] * 3, [0.0] * 6, rate=0.1)
    found = learn_thresholds(thin, np.repeat([0, 1], 3), Goal("price", 0.3), rng, draws=50)
    assert found.cluster_source.tolist() == [CLUSTER, GLOBAL]
    assert found.cluster[1] == found.overall
    assert found.client_source.tolist() == [CLUSTER] * 3 + [GLOBAL] * 3
    inside = (found.client_interval[:, 0] <= found.client) & (found.client <= found.client_interval[:, 1])
    assert inside.all()


def test_permuting_clients_permutes_their_thresholds():
    rng = np.random.default_rng(5)
    h, _ = make_clients(rng, [600] * 8, np.linspace(-0.2, 0.2, 8))
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    order = rng.permutation(8)
    one = learn_thresholds(h, group, Goal("share", 0.2), rng, draws=0)
    two = learn_thresholds(h[order], group[order], Goal("share", 0.2), rng, draws=0)
    np.testing.assert_allclose(two.client, one.client[order])
    np.testing.assert_allclose(two.cluster, one.cluster)


def test_one_cluster_is_flat():
    rng = np.random.default_rng(6)
    h, _ = make_clients(rng, [600] * 4, [0.0] * 4)
    found = learn_thresholds(h, np.zeros(4, dtype=int), Goal("price", 0.3), rng, draws=0)
    assert found.own_cluster[0] == pytest.approx(found.overall)
    assert found.cluster[0] == pytest.approx(found.overall)


@pytest.mark.parametrize(("kind", "value"), [("share", 0.1), ("share", 0.4), ("error", 0.02), ("error", 0.1)])
def test_a_goal_is_kept_on_the_counted_tokens(kind, value):
    rng = np.random.default_rng(7)
    h, raw = make_clients(rng, [800] * 6, np.linspace(-0.3, 0.1, 6))
    found = learn_thresholds(h, np.repeat([0, 1], 3), Goal(kind, value), rng, draws=0)
    u = np.concatenate([pair[0] for pair in raw])
    beta = np.concatenate([pair[1] for pair in raw])
    tau = np.repeat(found.client, 800)
    if kind == "share":
        assert (u > tau).mean() <= found.share <= value
        assert (u > tau).mean() > value - 0.04  # and not by sending far less
    else:
        assert found.error <= value
        assert np.where(u <= tau, beta, 0).mean() < value + 0.01


def test_an_impossible_goal_says_what_can_be_had():
    rng = np.random.default_rng(8)
    h, _ = make_clients(rng, [800] * 6, [0.0] * 6)
    group = np.repeat([0, 1], 3)
    last = learn_thresholds(h, group, Goal("price", 0.4), rng, draws=0)
    with pytest.raises(
        ConfigError, match=r"cannot be had when thresholds move at most 0\.1 a round: .* send [345]"
    ):
        learn_thresholds(h, group, Goal("share", 0.01), rng, last=last)
    with pytest.raises(ConfigError, match=r"0\.0010 cannot be had .* still 0\.0"):
        learn_thresholds(h, group, Goal("error", 0.001), rng, last=last)
    none = np.zeros(400, dtype=bool)
    blind = stacked([count_feedback(np.ones(400), np.ones(400), none, none, 0.01)] * 3)
    with pytest.raises(ConfigError, match="no token is labelled"):
        learn_thresholds(blind, np.zeros(3, dtype=int), Goal("price", 0.1), rng)


def test_without_a_last_policy_every_goal_can_be_had():
    rng = np.random.default_rng(8)
    h, _ = make_clients(rng, [800] * 6, [0.0] * 6)
    group = np.repeat([0, 1], 3)
    for kind in ("share", "error"):
        none = learn_thresholds(h, group, Goal(kind, 0.0), rng, draws=0)
        assert getattr(none, kind) == 0
        assert set(none.client) == ({1.0} if kind == "share" else {0.0})


def test_fewer_than_three_clients_keep_the_last_policy_and_steps_are_short():
    rng = np.random.default_rng(9)
    h, _ = make_clients(rng, [800] * 5, [-0.3] * 5)
    group = np.array([0, 0, 0, 1, 1])
    first = learn_thresholds(h, group, Goal("price", 0.1), rng, draws=0)
    second = learn_thresholds(h, group, Goal("price", 0.9), rng, last=first, draws=0)
    assert second.cluster_source.tolist() == [CLUSTER, LAST]
    assert second.client_source.tolist() == [CLIENT] * 3 + [LAST] * 2
    np.testing.assert_array_equal(second.client[3:], first.client[3:])
    moved = second.client[:3] - first.client[:3]
    assert ((moved > 0) & (moved <= 0.1 + 1e-12)).all()


def test_the_interval_covers_and_narrows():
    truth = (0.3 + 0.06) / 0.82
    widths, covered = {}, 0
    for n in (1000, 30_000):
        rng = np.random.default_rng(10)
        width = []
        for _ in range(20):
            u = rng.random(n)
            beta = (rng.random(n) < np.clip(0.82 * u - 0.06, 0, 1)).astype(float)
            bins = bootstrap_bins(fully_labelled(u, beta), 0.3, rng, draws=200)
            low, high = np.quantile(threshold_of(bins), [0.025, 0.975])
            width.append(high - low)
            covered += low - 1 / BINS <= truth <= high + 1 / BINS
        widths[n] = np.mean(width)
    assert widths[30_000] < 0.6 * widths[1000]
    assert covered >= 34  # of 40


def test_a_client_that_claims_many_tokens_weighs_two_medians():
    rng = np.random.default_rng(11)
    # Honest clients reject by u; the liar says nothing was ever wrong, a hundred times over.
    h, _ = make_clients(rng, [600] * 6, [0.0] * 6)
    honest = learn_thresholds(h, np.zeros(6, dtype=int), Goal("price", 0.3), rng, draws=0)
    u = rng.random(60_000)
    liar = count_feedback(u, np.zeros(60_000), u > 0.5, u <= 0.5, 1.0)
    lied = stacked([*(h[k] for k in range(6)), liar])
    shifted = learn_thresholds(lied, np.zeros(7, dtype=int), Goal("price", 0.3), rng, draws=0)
    assert shifted.overall - honest.overall < 0.2
    plain = lied.sum()
    uncapped = float(threshold_of(best_bin(plain.tokens, mean_beta(plain)[0], 0.3)))
    assert uncapped > 0.95
