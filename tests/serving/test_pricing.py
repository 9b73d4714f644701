"""Price backpressure: λ rises while the cloud is busy, falls back to the policy's, and takes τ along."""

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.federation.generate import TAU
from fedtandem.inference.histogram import BINS, best_bin, threshold_of
from fedtandem.inference.policy import Entry, Policy, Resolved, policy_to_json
from fedtandem.serving.explaining import find, told
from fedtandem.serving.pricing import Price


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    price: Price, clock: Clock, seconds: int, calls: int = 0, queue: float = 0.0, refused: int = 0
) -> float:
    for _ in range(seconds):
        for _ in range(calls):
            price.called(queue)
        for _ in range(refused):
            price.refused()
        clock.now += 1.0
        surcharge = price.surcharge
    return surcharge


def test_a_worked_example() -> None:
    clock = Clock()
    price = Price(0.1, 10, clock)
    assert run(price, clock, 5, calls=10) == 0  # at the budget
    assert run(price, clock, 2, calls=15) == pytest.approx(2 * 0.1 * 0.5)
    assert run(price, clock, 2, calls=100) == pytest.approx(0.1 + 0.2)  # a step is at most η
    assert run(price, clock, 1, calls=5) == pytest.approx(0.3 - 0.05)
    assert run(price, clock, 9) == 0  # and never below the policy's


def test_a_queue_and_refusals_raise_the_price_without_a_budget() -> None:
    clock = Clock()
    price = Price(0.05, None, clock)
    assert run(price, clock, 10, calls=1000) == 0
    assert run(price, clock, 4, calls=1, queue=1.5) == pytest.approx(4 * 0.05 * 0.5)
    assert run(price, clock, 2, refused=1) == pytest.approx(0.1 + 0.1)
    assert run(price, clock, 100, refused=1) == 1.0
    clock.now += 3600
    assert price.surcharge == 0


@given(
    calls=st.lists(st.integers(0, 50), min_size=1, max_size=40), step=st.floats(0, 1),
    budget=st.none() | st.floats(0.1, 40),
)  # fmt: skip
def test_the_surcharge_stays_in_its_bounds_and_more_calls_never_lower_it(
    calls: list[int], step: float, budget: float | None
) -> None:
    clocks = Clock(), Clock()
    one, more = (Price(step, budget, clock) for clock in clocks)
    for n in calls:
        low, high = run(one, clocks[0], 1, n), run(more, clocks[1], 1, n + 1)
        assert 0 <= low <= high + 1e-12 <= 1 + 1e-12


@given(
    tau=st.floats(-1, 1), price=st.floats(0.01, 0.99), others=st.lists(st.floats(0, 2), min_size=2, max_size=6),
    steps=st.lists(st.floats(0, 1), min_size=21, max_size=21) | st.just([]),
)  # fmt: skip
def test_tau_never_falls_with_the_price(
    tau: float, price: float, others: list[float], steps: list[float]
) -> None:
    found = Resolved(tau, "global", "", tuple(np.sort(steps).tolist()))
    taus = [found.tau_at(price, other) for other in sorted(others)]
    assert taus == sorted(taus)
    assert all(tau - 1e-12 <= one <= 1 for one in taus)
    assert found.tau_at(price, price) == tau
    if not steps:
        assert found.tau_at(price, 1.0) == pytest.approx(1.0)


def test_a_curve_is_the_tables_own() -> None:
    """Where τ is the table's, moving along the curve is solving the table at the other price."""
    u = (np.arange(BINS) + 0.5) / BINS
    tokens, beta, grid = np.full(BINS, 10.0), u**2, np.linspace(0, 1, 21)
    curve = tuple(threshold_of(best_bin(tokens, beta, grid)).tolist())
    found = Resolved(curve[6], "global", "", curve)
    assert found.tau_at(0.3, 0.8) == pytest.approx(float(threshold_of(best_bin(tokens, beta, 0.8))))


def test_a_spent_budget_raises_the_devices_threshold_and_is_told(lab, tmp_path) -> None:
    table = {"calls_per_s": 0.01, "price_step": 1.0}
    with lab.running(device=table, decisions={"folder": str(tmp_path)}) as one:
        url = one.urls["device"]
        body = {"model": "fedtandem", "prompt": "please write a poem", "temperature": 1.9, "max_tokens": 12}
        for i in range(200):  # the price moves once a second
            reply = httpx.post(f"{url}/v1/completions", json={**body, "seed": i, "trace": True}, timeout=60)
            (tau,) = {token["tau"] for token in reply.json()["fedtandem"]["tokens"]}
            if i == 0:
                assert tau == TAU
            if tau > TAU:
                break
        assert tau > TAU
        assert price_of(url) > 0.3
        found = find(tmp_path, reply.headers["x-request-id"])
    assert found["price_in_force"] > found["price"] == 0.3
    assert "so τ was raised" in "\n".join(told(found))


def price_of(url: str) -> float:
    rows = [
        row for row in httpx.get(f"{url}/metrics").text.splitlines() if row.startswith("lambda_effective ")
    ]
    return float(rows[0].split()[1])


def test_a_policy_keeps_its_curve(tmp_path) -> None:
    from fedtandem.inference.policy import policy_from_json

    entry = Entry(0.6, None, "fixed", 500, 1000, 1000, (("a", "b"),), curve=(0.1, 0.6, 0.9))
    policy = Policy("expected", "probabilities", "fixed", {"kind": "price", "value": 0.5}, 0.5, 1.0, 0.2, 0.01,
                    entry, {}, {})  # fmt: skip
    again = policy_from_json(policy_to_json(policy), "it")
    assert again == policy
    assert again.resolve("x", "", ("a", "b")).tau_at(0.5, 0.75) == pytest.approx(0.75)
    assert policy_from_json(policy_to_json(policy).replace('"curve"', '"older"'), "it").overall.curve == ()
