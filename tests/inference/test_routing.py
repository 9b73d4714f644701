"""Routing: the gate's limits, the cheapest tier by brute force, and when peers pay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.inference.routing import CLOUD, LOCAL, PEER, Costs, choose_tier, is_sent, peers_pay, tier_costs

unit = st.floats(0, 1)


@given(st.lists(unit, min_size=1), unit, unit)
def test_the_gate_sends_less_as_tau_rises_and_its_limits_are_all_and_none(u, one, other):
    low, high = sorted((one, other))
    assert (is_sent(u, high) <= is_sent(u, low)).all()
    assert is_sent(u, -1).all()  # the LLM's law
    assert not is_sent(u, 2).any()  # the SLM's law


@given(unit, unit, unit, st.floats(0, 200), unit)
def test_the_tier_is_the_cheapest(beta, rho, wrong, error, cloud_error):
    costs = Costs(error=error, cloud_error=cloud_error)
    of = tier_costs(beta, rho, wrong, costs)
    assert of[choose_tier(beta, rho, wrong, costs)] == of.min()
    cloud = 20 + error * cloud_error
    assert of.tolist() == pytest.approx([error * beta, 1 + rho * error * wrong + (1 - rho) * cloud, cloud])


@given(unit, st.floats(0.1, 50), st.floats(0.1, 50))
def test_simple_and_complete_form_agree_where_nobody_errs(rho, c_p, c_l):
    costs = Costs(peer=c_p, cloud=c_l)
    of = tier_costs(1.0, rho, 0.0, costs)
    if abs(rho * c_l - c_p) > 1e-6:
        assert peers_pay(rho, costs) == (of[PEER] < of[CLOUD])


def test_without_peers_the_tiers_are_a_threshold_at_the_price():
    costs = Costs()
    beta = np.linspace(0, 1, 101)
    chosen = choose_tier(beta, 0.0, 0.0, costs)
    assert set(chosen) == {LOCAL, CLOUD}
    np.testing.assert_array_equal(chosen == CLOUD, beta > costs.price)
