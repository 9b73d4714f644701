"""The round policy against the local carrier with injected faults."""

from collections.abc import Mapping

import pytest

from fedtandem.errors import InvalidMessage, PrivacyBudgetError, QuorumError
from fedtandem.exchange.carrier import SCHEMA, Absence, Answers, Envelope
from fedtandem.federation.local import Fault, FaultPlan, LocalCarrier
from fedtandem.federation.strategy import RoundPolicy, Strategy


class Echo:
    """A party that answers with what it got: enough to see what the carrier and the policy do."""

    def __init__(self) -> None:
        self.asked = 0

    def handle(self, envelope: Envelope) -> Envelope:
        self.asked += 1
        return Envelope(envelope.kind, envelope.round, SCHEMA, bytes(envelope.body) + b"!")


def request(text: bytes = b"hello", round_number: int = 1) -> Envelope:
    return Envelope("work", round_number, SCHEMA, text)


def body(name: str, envelope: Envelope) -> bytes:
    if b"bad" in bytes(envelope.body):
        raise InvalidMessage(f"{name}: bad body")
    return bytes(envelope.body)


def once(name: str, kind: str) -> FaultPlan:
    """A fault for the first message to one party."""
    hit: list[str] = []

    def plan(party: str, _envelope: Envelope) -> Fault | None:
        if party == name and not hit:
            hit.append(party)
            return Fault(kind)  # type: ignore[arg-type]
        return None

    return plan


def strategy(
    *, faults: FaultPlan | None = None, events: list[dict[str, object]] | None = None, **policy: object
) -> tuple[Strategy, dict[str, Echo]]:
    parties = {name: Echo() for name in ("c", "a", "b")}

    def emit(event: str, **fields: object) -> None:
        if events is not None:
            events.append({"event": event, **fields})

    return Strategy(LocalCarrier(parties, faults=faults), RoundPolicy(**policy), emit), parties  # type: ignore[arg-type]


def ask(s: Strategy, text: bytes = b"hello") -> dict[str, bytes] | None:
    return s.ask({name: request(text) for name in s.names()}, body, round_number=1)


def test_replies_come_sorted_by_name() -> None:
    s, _ = strategy()
    assert ask(s) == {"a": b"hello!", "b": b"hello!", "c": b"hello!"}
    assert list(ask(s) or {}) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["lost", "late", "corrupt"])
def test_one_absent_client_does_not_stop_a_round_with_quorum(kind: str) -> None:
    events: list[dict[str, object]] = []
    s, _ = strategy(faults=once("b", kind), events=events, min_clients=2)
    assert sorted(ask(s) or {}) == ["a", "c"]
    assert [(e["event"], e.get("parties", e.get("party"))) for e in events] == [
        ("asked", ["a", "b", "c"]),
        ("absence", "b"),
    ]


def test_wait_asks_only_the_missing_again() -> None:
    s, parties = strategy(faults=once("b", "lost"), min_clients=3)
    assert sorted(ask(s) or {}) == ["a", "b", "c"]
    assert {name: echo.asked for name, echo in parties.items()} == {"a": 1, "b": 1, "c": 1}


def test_skip_gives_none_and_fail_names_the_missing() -> None:
    s, _ = strategy(faults=once("b", "lost"), min_clients=3, on_short="skip")
    assert ask(s) is None
    s, _ = strategy(faults=once("b", "lost"), min_clients=3, on_short="fail")
    with pytest.raises(QuorumError, match=r"2 of 3.*b: lost"):
        ask(s)


def test_waiting_for_ever_ends_with_an_error_that_names_the_missing() -> None:
    s, _ = strategy(faults=lambda name, _: Fault("lost") if name == "c" else None, min_clients=3)
    with pytest.raises(QuorumError, match="c: lost"):
        ask(s)


class Spending(LocalCarrier):
    """Of the parties it reaches, some say that their privacy budget is spent; who is asked is noted."""

    def __init__(self, spent: set[str], asked: list[list[str]]) -> None:
        super().__init__({name: Echo() for name in "abc"})
        self.spent, self.asked = spent, asked

    def ask(self, requests: Mapping[str, Envelope], *, deadline_s: float) -> Answers:
        self.asked.append(sorted(requests))
        told = super().ask({n: e for n, e in requests.items() if n not in self.spent}, deadline_s=deadline_s)
        return Answers(
            told.replies, {n: Absence("spent", "epsilon 8 of 8") for n in self.spent & requests.keys()}
        )


def test_spent_budgets_end_the_run_with_exit_code_7_where_too_few_are_left() -> None:
    asked: list[list[str]] = []
    for on_short in ("wait", "fail"):
        short = Strategy(
            Spending({"b"}, asked), RoundPolicy(min_clients=3, on_short=on_short), lambda *_, **__: None
        )
        with pytest.raises(
            PrivacyBudgetError, match=r"budget of b is spent.*b says: epsilon 8 of 8"
        ) as fault:
            ask(short)
        assert fault.value.exit_code == 7
    assert asked == [["a", "b", "c"]] * 2  # nobody was asked again


def test_a_spent_budget_is_an_absence_while_enough_are_left() -> None:
    events: list[dict[str, object]] = []
    carrier = Spending({"b"}, [])
    enough = Strategy(
        carrier, RoundPolicy(min_clients=2), lambda event, **fields: events.append({"event": event, **fields})
    )
    assert sorted(ask(enough) or {}) == ["a", "c"]
    assert [(e["party"], e["reason"]) for e in events if e["event"] == "absence"] == [("b", "spent")]
    carrier.spent = {"a", "c"}
    with pytest.raises(PrivacyBudgetError, match=r"budget of a, c is spent"):
        ask(enough)  # b, which was granted more, answers


def test_a_run_that_skips_rounds_goes_on_while_another_draw_may_be_enough() -> None:
    silent = lambda *_, **__: None  # noqa: E731
    names = {"a": request(), "b": request()}
    skips = Strategy(Spending({"b"}, []), RoundPolicy(min_clients=2, on_short="skip"), silent)
    assert skips.ask(names, body, round_number=1) is None
    skips.carrier = Spending({"b", "c"}, [])
    assert skips.ask(names, body, round_number=2) is None
    with pytest.raises(PrivacyBudgetError, match=r"budget of b, c is spent, and of 3 clients 2"):
        ask(skips)


def test_an_invalid_reply_is_an_absence_with_the_partys_name() -> None:
    events: list[dict[str, object]] = []
    s, _ = strategy(events=events, on_short="fail")
    with pytest.raises(QuorumError, match="a: invalid"):
        ask(s, b"bad")
    assert {e["reason"] for e in events if e["event"] == "absence"} == {"invalid"}


def test_sampling_depends_on_seed_and_round_alone() -> None:
    names = [f"client-{i:02d}" for i in range(20)]
    parties = {name: Echo() for name in names}
    first = Strategy(LocalCarrier(parties), RoundPolicy(fraction_train=0.3, seed=1), lambda *_, **__: None)
    again = Strategy(
        LocalCarrier(dict(reversed(parties.items()))),
        RoundPolicy(fraction_train=0.3, seed=1),
        lambda *_, **__: None,
    )
    draws = [first.chosen(t) for t in range(1, 6)]
    assert draws == [again.chosen(t) for t in range(1, 6)]
    assert all(len(set(draw)) == 6 and draw == sorted(draw) for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1


def test_counted_bytes_are_the_serialised_bytes() -> None:
    counted: list[tuple[str, int, int, int]] = []
    carrier = LocalCarrier({"a": Echo()}, count=lambda *row: counted.append(row))
    sent = request(b"x" * 1000, round_number=3)
    answers = carrier.ask({"a": sent}, deadline_s=10)
    assert counted == [("a", 3, len(answers.replies["a"].to_bytes()), len(sent.to_bytes()))]


def test_a_duplicate_reaches_the_party_twice_and_answers_once() -> None:
    echo = Echo()
    answers = LocalCarrier({"a": echo}, faults=once("a", "duplicate")).ask({"a": request()}, deadline_s=10)
    assert echo.asked == 2
    assert list(answers.replies) == ["a"]


def test_a_slow_party_is_late() -> None:
    import time

    class Slow:
        def handle(self, envelope: Envelope) -> Envelope:
            time.sleep(0.02)
            return envelope

    answers = LocalCarrier({"a": Slow()}).ask({"a": request()}, deadline_s=0.001)
    assert answers.absences["a"].reason == "late"
    assert "federation.deadline_s" in answers.absences["a"].text
