"""The federation of thresholds: through carriers the same as by hand, every byte counted, liars and silence borne."""

from dataclasses import replace

import numpy as np
import pytest

from fedtandem.algorithms.fedhlm import Settings, run_fedhlm
from fedtandem.algorithms.threshold_parties import Edge, ThresholdClient
from fedtandem.algorithms.threshold_policy import make_policy
from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.frame import decode_frame
from fedtandem.federation.local import Fault, LocalCarrier
from fedtandem.inference.aggregation import weighted_median
from fedtandem.inference.histogram import count_feedback, stacked
from fedtandem.inference.policy import policy_from_json, policy_to_json
from fedtandem.inference.threshold import CLIENT, GLOBAL, Goal, learn_thresholds

KEY, MODELS = b"key", ("slm", "llm")


def data(k, n=400, seed=0):
    rng = np.random.default_rng([seed, k])
    u = rng.random(n)
    return u, np.clip(0.9 * u - 0.02 * (k % 4) + 0.05 * rng.normal(size=n), 0, 1)


def make_clients(n=20, tokens=400):
    return {
        f"c{k:02d}": ThresholdClient(f"c{k:02d}", MODELS, *data(k, tokens), [str(i) for i in range(tokens)],
                                     np.zeros(tokens, dtype=np.int64), KEY)
        for k in range(n)
    }  # fmt: skip


def federation(clients, n_edges=4, count=lambda *_: None, faults=None, wrap=lambda e: e):
    names = sorted(clients)
    edges = {
        f"e{c}": wrap(
            Edge(
                f"e{c}", LocalCarrier({n: clients[n] for n in names[c::n_edges]}, count=count, faults=faults)
            )
        )
        for c in range(n_edges)
    }
    return LocalCarrier(edges, count=count)


def test_one_round_through_edges_is_the_same_as_one_table():
    done = run_fedhlm(federation(make_clients()), Settings(audit_rate=1.0, draws=20))
    every = []
    for name in done.names:
        u, beta = data(int(name[1:]))
        every.append(count_feedback(u, beta, u > 0.5, u <= 0.5, 1.0))
    straight = learn_thresholds(
        stacked(every), done.group, Goal("price", 0.3), np.random.default_rng(0), draws=0
    )
    np.testing.assert_allclose(done.thresholds.client, straight.client, atol=1e-9)
    assert done.clusters == ("e0", "e1", "e2", "e3")
    assert np.bincount(done.group).tolist() == [5] * 4
    assert len(done.history) == 2


def test_clients_end_with_what_the_policy_says():
    clients = make_clients()
    settings = Settings(audit_rate=1.0, draws=20)
    done = run_fedhlm(federation(clients), settings)
    policy = make_policy(done, settings, measure="expected", feedback="agreement")
    for name, client in clients.items():
        assert client.tau == pytest.approx(policy.clients[name].tau, abs=1e-6)  # float32 on the wire
    again = policy_from_json(policy_to_json(policy), "p.json")
    assert again == policy


def test_the_first_calibration_audits_enough():
    done = run_fedhlm(federation(make_clients()), Settings(draws=0))
    skipped = done.table.tokens.sum() - done.table.sent.sum()
    assert done.audit_rate == pytest.approx(500 / (skipped / 4), rel=0.1)
    assert done.table.audits.sum() == pytest.approx(done.audit_rate * skipped, rel=0.15)
    thin = run_fedhlm(federation(make_clients()), Settings(draws=0, audit_rate=0.01))
    assert (thin.thresholds.client_source == GLOBAL).all()
    full = run_fedhlm(federation(make_clients()), Settings(draws=0, audit_rate=1.0))
    assert (full.thresholds.client_source == CLIENT).all()


def test_counted_bytes_are_the_frames():
    seen = {"up": 0, "down": 0}
    packed = {"up": 0, "down": 0}

    def count(_party, _round, up, down):
        seen["up"] += up
        seen["down"] += down

    class Weighed:
        def __init__(self, edge):
            self.edge = edge

        def handle(self, envelope):
            reply = self.edge.handle(envelope)
            packed["down"] += len(envelope.to_bytes())
            packed["up"] += len(reply.to_bytes())
            return reply

    clients = make_clients()
    edges = {"e0": Weighed(Edge("e0", LocalCarrier(clients)))}
    run_fedhlm(LocalCarrier(edges, count=count), Settings(draws=0))
    assert seen == packed
    counts = []
    run_fedhlm(federation(clients, count=lambda p, _r, up, _d: counts.append((p, up))), Settings(draws=0))
    a_client = [up for party, up in counts if party == "c03"]
    assert len(a_client) == 3  # survey, count, publish
    assert max(a_client) < 2048


def test_one_histogram_round_is_as_good_as_thirty_of_fedavg():
    goal = Goal("price", 0.3)
    one = run_fedhlm(federation(make_clients()), Settings(goal=goal, audit_rate=1.0, draws=0))
    parity = Settings(learn="gradient", goal=goal, audit_rate=1.0, edge="mean", cloud="mean", robust=False)
    thirty = run_fedhlm(federation(make_clients()), parity)
    start = run_fedhlm(federation(make_clients()), replace(parity, learn="fixed"))

    def cost(done):
        total = 0.0
        for name, tau in zip(done.names, done.thresholds.client, strict=True):
            u, beta = data(int(name[1:]), 4000, seed=1)
            total += np.where(u <= tau, beta, 0.3).mean()
        return total / 20

    assert cost(one) <= 1.01 * cost(thirty)
    assert cost(thirty) < cost(start)
    assert thirty.history.shape == (31, 4)
    assert np.abs(thirty.thresholds.client - 0.36).max() < 0.1


def test_a_line_is_used_where_it_is_one_and_refused_where_it_is_not():
    done = run_fedhlm(federation(make_clients()), Settings(learn="line", audit_rate=1.0))
    assert np.abs(done.thresholds.client - 0.36).max() < 0.06
    with pytest.raises(ConfigError, match="knows a price only"):
        run_fedhlm(federation(make_clients()), Settings(learn="line", goal=Goal("share", 0.1)))
    crooked = make_clients()
    for client in crooked.values():
        client._beta = (np.abs(client._u - 0.5) < 0.2).astype(float)
    with pytest.raises(ConfigError, match="a line explains only"):
        run_fedhlm(federation(crooked), Settings(learn="line", audit_rate=1.0))


def test_absent_clients_are_left_out_and_nobody_at_all_is_an_error():
    lost = {"c03", "c07"}

    def fault(name, envelope):
        return Fault("lost") if name in lost and envelope.round > 1 else None

    done = run_fedhlm(federation(make_clients(), faults=fault), Settings(audit_rate=1.0, draws=0))
    assert set(done.names) == {f"c{k:02d}" for k in range(20)} - lost
    half = run_fedhlm(
        federation(make_clients(), faults=fault), Settings(learn="gradient", rounds=3, audit_rate=1.0)
    )
    assert len(half.names) == 18
    with pytest.raises(QuorumError, match="no client answered"):
        run_fedhlm(federation(make_clients(), faults=lambda *_: Fault("lost")), Settings())


class Liar(ThresholdClient):
    """Says that its threshold is 1, whatever it was asked."""

    def handle(self, envelope):
        reply = CalibrationReply.from_envelope(super().handle(envelope))
        return replace(reply, tau=np.ones(1)).to_envelope()


@pytest.mark.parametrize("liars", [1, 2])
def test_the_median_bears_liars_that_the_mean_does_not(liars):
    settings = Settings(learn="gradient", goal=Goal("price", 0.3), rounds=20, audit_rate=1.0)

    def edges_after(robust, n_liars):
        clients = make_clients()
        for name in sorted(clients)[::4][:n_liars]:  # all at one edge
            clients[name].__class__ = Liar
        how = settings if robust else replace(settings, edge="mean", cloud="mean", robust=False)
        return run_fedhlm(federation(clients), how).history[-1][0]

    robust = abs(edges_after(True, liars) - edges_after(True, 0))
    plain = abs(edges_after(False, liars) - edges_after(False, 0))
    assert robust < 0.06
    assert plain > 1.5 * robust


def request(**change):
    return replace(CalibrationRequest(1, "count", 0.5, 0.3, (), np.array([0.5])), **change)


def test_messages_come_back_and_nonsense_does_not():
    asked = request(names=("a", "b"), tau=np.array([0.25, 0.5]))
    again = CalibrationRequest.from_envelope(asked.to_envelope())
    assert again.names == ("a", "b")
    np.testing.assert_array_equal(again.tau, asked.tau)
    clients = make_clients(1)
    reply = CalibrationReply.from_envelope(clients["c00"].handle(request().to_envelope()))
    assert reply.models == (MODELS,)
    assert reply.counts.shape == (1, 7, 64)
    for bad, told in [
        ({"tau": np.array([np.nan])}, "tau = nan"), ({"tau": np.array([1.5])}, "tau = 1.5"),
        ({"tokens": np.array([-1.0])}, "tokens = -1"), ({"labelled": np.array([1e6])}, "more than tokens"),
        ({"counts": -reply.counts}, "contradictory"), ({"counts": reply.counts[:, :3]}, "counts = 192"),
        ({"names": ("c00", "c00")}, "a name twice"), ({"sums": reply.sums[:, :5]}, "sums = 5"),
    ]:  # fmt: skip
        with pytest.raises(InvalidMessage, match=told):
            CalibrationReply.from_envelope(replace(reply, **bad).to_envelope())
    with pytest.raises(InvalidMessage, match="job = steal"):
        CalibrationRequest.from_envelope(request(job="steal").to_envelope())


def test_a_tampered_report_is_left_out_of_its_edge():
    clients = make_clients(5)
    edge = Edge("e", LocalCarrier(clients, faults=lambda n, _: Fault("corrupt") if n == "c02" else None))
    reply = CalibrationReply.from_envelope(edge.handle(request().to_envelope()))
    assert reply.names == ("c00", "c01", "c03", "c04")


def test_an_edge_speaks_for_its_clients_and_not_for_others():
    class Impostor(ThresholdClient):
        def handle(self, envelope):
            reply = CalibrationReply.from_envelope(super().handle(envelope))
            return replace(reply, names=("c00",)).to_envelope()

    clients = make_clients(3)
    clients["c01"].__class__ = Impostor
    reply = CalibrationReply.from_envelope(Edge("e", LocalCarrier(clients)).handle(request().to_envelope()))
    assert reply.names == ("c00", "c02")


def test_the_median_of_reports_is_what_the_edge_level_holds():
    clients = make_clients(5)
    settings = Settings(learn="gradient", goal=Goal("price", 0.3), rounds=1, audit_rate=1.0)
    done = run_fedhlm(federation(clients, n_edges=1), settings)
    stepped = []
    for k in range(5):
        from fedtandem.inference.gradient import descend

        u, beta = data(k)
        stepped.append(descend(0.5, u, beta, 0.3))
    assert done.history[1][0] == pytest.approx(weighted_median(np.array(stepped), np.ones(5)), abs=1e-6)


def test_frames_hold_no_token_text_or_embedding():
    """What leaves a client is counts: the names of its arrays say so."""
    _, arrays = decode_frame(make_clients(1)["c00"].handle(request().to_envelope()).body)
    assert set(arrays) == {"tokens", "skipped", "tau", "labelled", "counts", "sums", "model"}
    assert sum(array.size for array in arrays.values()) < 500
