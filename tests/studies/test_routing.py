"""Routing studies: their arithmetic against the product's own, and each of them whole, in miniature."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtandem.algorithms.fedhlm import two_levels
from fedtandem.errors import DataError
from fedtandem.inference.gradient import START, descend
from fedtandem.studies.bars import bar, markdown, number, plain, spread
from fedtandem.studies.routing.byzantine import AVERAGES, _taus
from fedtandem.studies.routing.federated_bag import averaged
from fedtandem.studies.routing.news import LABELS, read_news, shared_out
from fedtandem.studies.routing.prices import (
    PARITY_MEANS,
    Stream,
    _least,
    best_fixed,
    cost,
    fedavg,
    hindsight,
    other_half,
)
from fedtandem.studies.routing.routers import settled, threshold_for
from fedtandem.studies.routing.study import SMALL, SMALL_SKEWS, RoutingStudy
from fedtandem.studies.trials import run


def stream(n: int = 600, clients: int = 8, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    u = rng.random(n)
    beta = np.clip(0.8 * u - 0.05 + 0.1 * rng.normal(size=n), 0, 1)
    return Stream(
        u, beta, rng.integers(0, clients, n), np.arange(clients) % 2, tuple(f"c{k}" for k in range(clients))
    )


def test_fedavg_of_all_prices_at_once_is_the_products_own():
    s, prices = stream(), (0.2, 0.4)
    ours = fedavg(s, prices, eta=0.3, rounds=3)
    count = np.bincount(s.client, minlength=8).astype(np.float64)
    for p, price in enumerate(prices):
        tau = np.full(8, START)
        for r in range(3):
            reports = np.array([
                descend(tau[k], s.u[s.client == k], s.beta[s.client == k], price, eta=0.3) for k in range(8)
            ])  # fmt: skip
            tau, _ = two_levels(reports, count, s.edge, 2, PARITY_MEANS)
            np.testing.assert_allclose(ours[r][p], tau, atol=1e-12)


def test_hindsight_is_the_least_of_all_thresholds():
    s = stream(60)
    for price in (0.1, 0.3, 0.6):
        every = [cost(s, tau, price) for tau in [0.0, *s.u, 1.0]]
        assert hindsight(s, price) == pytest.approx(min(every))
        by_client = hindsight(s, price, s.client)
        assert by_client <= hindsight(s, price) + 1e-12
    tied = replace(s, u=np.round(s.u, 1))
    assert hindsight(tied, 0.3) == pytest.approx(min(cost(tied, tau, 0.3) for tau in [0.0, *tied.u, 1.0]))


def test_a_threshold_from_elsewhere_is_never_better_than_hindsight():
    s = stream()
    for price in (0.05, 0.3):
        assert hindsight(s, price) <= other_half(s, price, 0) < 1.2 * hindsight(s, price)
        tau, least = _least(s.u, s.beta, price)
        assert cost(s, tau, price) == pytest.approx(least)


def test_one_threshold_for_all_prices_is_never_better_than_one_for_each():
    s = stream()
    fixed = best_fixed(s)
    assert all(hindsight(s, price) <= cost(s, fixed, price) for price in (0.05, 0.2, 0.5))


def test_a_threshold_for_a_share_sends_that_share():
    rank = np.random.default_rng(0).random(200)
    for share in (0.0, 0.05, 0.5, 1.0):
        assert (rank > threshold_for(rank, share)).mean() == pytest.approx(share)


def test_a_lucky_point_of_a_curve_is_not_where_it_settles():
    curve = np.array([0.5, 0.9, 0.7, 0.8, 0.9])
    assert settled(curve, 0.8) == 0.75
    assert settled(curve, 0.5) == 0.0


def test_a_words_row_is_averaged_over_the_clients_that_hold_it():
    before = {"rows": torch.zeros(4, 1), "head": torch.zeros(2, 1), "bias": torch.zeros(2)}
    one, two = ({key: torch.full_like(t, float(v)) for key, t in before.items()} for v in (1, 4))
    holds = torch.tensor([[True, True, True, False], [True, True, False, False]])
    mean = averaged(before, [one, two], torch.tensor([1.0, 2.0]), holds)
    assert mean["rows"].flatten().tolist() == [3.0, 3.0, 1.0, 0.0]  # both, both, the first alone, nobody
    assert mean["head"].flatten().tolist() == [3.0, 3.0]


def test_liars_move_a_mean_and_hardly_a_median():
    s = stream(2000, clients=10)
    shift = {}
    for way in AVERAGES:
        honest, lied = _taus(way, s, (), "high"), _taus(way, s, (0, 1), "high")
        shift[way] = float(np.abs(lied - honest)[2:].mean())
    assert shift["gradient, median"] < shift["gradient, mean"] / 2


def test_bars_and_tables_say_what_was_measured():
    missed = bar("at most 1 %", [0.01, 0.03], at_most=0.01, why="noise")
    assert not missed.met
    assert missed.why == "noise"
    assert missed.values.mean == pytest.approx(0.02)
    assert bar("at most 3 %", [0.01, 0.03], at_most=0.03, why="noise").why == ""
    assert spread([0.5]).interval is None
    assert number(-0.005, "points", unit=True) == "−0.50 points"
    assert plain({"x": (np.float64("nan"), np.int64(2))}) == {"x": [None, 2]}
    assert markdown({"head": ["a", "b"], "rows": [["1", "2"]]}) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_news_are_split_once_and_skewed_alike(shared: Path):
    news = read_news(shared / "data" / "ag_news", 0, calibration=400, most=1500)
    again = read_news(shared / "data" / "ag_news", 0, calibration=400, most=1500)
    assert news.calibration == again.calibration
    assert not {item.id for item in news.fit} & {item.id for item in news.calibration}
    assert np.bincount([item.label for item in news.calibration]).tolist() == [100] * len(LABELS)
    for skew in ("dirichlet-0.1", "iid"):
        out = shared_out(news, 8, skew, 0)
        assert [item.text for item in out.test] == [item.text for item in news.test]
        assert {item.client for item in out.calibration} == {f"client-{k:02d}" for k in range(8)}
    with pytest.raises(DataError, match="training rows of class"):
        read_news(shared / "data" / "ag_news", 0, calibration=4000, most=1500)


@pytest.mark.slow
@pytest.mark.parametrize("study", ["news-routing", "non-iid", "byzantine"])
def test_every_study_runs_whole_and_goes_on_where_it_stopped(
    study: str, shared: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    pytest.importorskip("sklearn")
    traces = tmp_path_factory.getbasetemp() / "routing-traces"  # recorded by whichever comes first
    small = RoutingStudy(study, shared / "data" / "ag_news", traces, SMALL, SMALL_SKEWS)
    run(small, tmp_path / study, (0,), quiet=True)
    first = (tmp_path / study / "cells" / "000-whole.json").stat().st_mtime_ns
    run(small, tmp_path / study, (0, 1), quiet=True)
    assert (tmp_path / study / "cells" / "000-whole.json").stat().st_mtime_ns == first
    told = json.loads((tmp_path / study / "summary.json").read_text())
    assert told["seeds"] == [0, 1]
    assert all(len(b["values"]["per_seed"]) == 2 for b in told["bars"])
    page = (tmp_path / study / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    for table in told["tables"].values():
        assert all(len(row) == len(table["head"]) for row in table["rows"])
    other = replace(small, models=replace(SMALL, rounds=3))
    with pytest.raises(DataError, match="other settings"):
        run(other, tmp_path / study, (0, 1), quiet=True)
    with pytest.raises(DataError, match="traces of other settings"):
        run(other, tmp_path / "elsewhere", (0, 1), quiet=True)
