"""Masked sums: exact, one value moves one vector, other masks each time, signed keys, dropouts, never two."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.calibration import CalibrationRequest
from fedtandem.federation.masking import Attempt, Encoding, Masker, Offer, Words, masked_sum, unmask

NAMES = ("a", "b", "c", "d")
SIGNING = {name: ec.generate_private_key(ec.SECP384R1()) for name in NAMES}
KNOWN = {name: key.public_key() for name, key in SIGNING.items()}
COUNTS = Encoding(clip=1e9)
FIRST = Attempt("run", 1, 0)


def maskers(names: Sequence[str] = NAMES, attempt: Attempt = FIRST) -> tuple[dict[str, Masker], list[Offer]]:
    made = {name: Masker(name, attempt, SIGNING[name], KNOWN) for name in names}
    return made, [masker.offer for masker in made.values()]


@given(
    values=st.lists(st.lists(st.integers(-(10**9), 10**9), min_size=5, max_size=5), min_size=3, max_size=4)
)
@settings(max_examples=20)
def test_masks_cancel_exactly(values: list[list[int]]) -> None:
    made, offers = maskers(NAMES[: len(values)])
    masked = {m.name: m.mask(v, COUNTS, offers) for m, v in zip(made.values(), values, strict=True)}
    assert unmask(masked, offers, COUNTS).tolist() == np.sum(values, axis=0).tolist()


def test_fractions_are_kept_to_the_step_and_clipped() -> None:
    encoding = Encoding(clip=2.0, scale=2.0**20)
    made, offers = maskers(("a", "b", "c"))
    values = {"a": [0.1, 5.0], "b": [-0.3, 0.0], "c": [1 / 3, -7.0]}
    masked = {name: made[name].mask(values[name], encoding, offers) for name in values}
    np.testing.assert_allclose(unmask(masked, offers, encoding), [0.1 - 0.3 + 1 / 3, 0.0], atol=3 * 2**-21)


def test_a_value_changes_its_own_masked_vector_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are drawn anew for every masker, so the same keys are lent to a second one."""
    made, offers = maskers()
    again = {}
    for name, masker in made.items():
        twin = Masker(name, FIRST, SIGNING[name], KNOWN)
        twin._secret, twin.offer = masker._secret, masker.offer
        again[name] = twin
    before = {name: m.mask([1.0, 2.0, 3.0], COUNTS, offers) for name, m in made.items()}
    after = {
        name: m.mask([1.0, 9.0 if name == "b" else 2.0, 3.0], COUNTS, offers) for name, m in again.items()
    }
    changed = {name: (before[name] != after[name]).tolist() for name in NAMES}
    assert changed == {name: [False, name == "b", False] for name in NAMES}


def test_masks_differ_between_rounds_and_attempts_and_hide_equal_values() -> None:
    seen = []
    for attempt in (FIRST, Attempt("run", 2, 0), Attempt("run", 1, 1)):
        made, offers = maskers(attempt=attempt)
        seen += [m.mask(np.zeros(50), COUNTS, offers) for m in made.values()]
    words = np.stack(seen)
    assert len(np.unique(words)) == words.size  # zeros from four clients, three times: never the same word
    high = (words >> np.uint64(63)).mean()
    assert abs(high - 0.5) < 0.12  # the masks cover the whole range


def test_the_keys_are_bound_to_run_and_round() -> None:
    """With one pair's secret known to be the same, the words still differ with the attempt."""
    one, offers = maskers(("a", "b", "c"))
    other = Masker("a", Attempt("run", 2, 0), SIGNING["a"], KNOWN)
    other._secret = one["a"]._secret
    assert (one["a"]._stream(offers[1], 20) != other._stream(offers[1], 20)).all()


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_are_refused(n: int) -> None:
    made, offers = maskers(NAMES[:n])
    with pytest.raises(QuorumError, match="at least 3"):
        made["a"].mask([1.0], COUNTS, offers)


def test_a_key_that_was_not_signed_for_this_attempt_is_refused() -> None:
    made, offers = maskers()
    stale = Masker("b", Attempt("run", 0, 0), SIGNING["b"], KNOWN).offer
    forged = Masker("b", FIRST, SIGNING["c"], KNOWN).offer
    stranger = replace(offers[1], name="x")
    for wrong in (stale, forged, stranger):
        with pytest.raises(InvalidMessage, match=r"signed|registered"):
            made["a"].mask([1.0], COUNTS, [offers[0], wrong, *offers[2:]])
    with pytest.raises(InvalidMessage, match="twice"):
        made["a"].mask([1.0], COUNTS, [*offers, offers[1]])


def test_masks_are_used_once() -> None:
    made, offers = maskers()
    made["a"].mask([1.0], COUNTS, offers)
    with pytest.raises(InvalidMessage, match="once"):
        made["a"].mask([2.0], COUNTS, offers)


def test_what_cannot_be_summed_is_refused() -> None:
    made, offers = maskers()
    with pytest.raises(InvalidMessage, match="nan"):
        made["a"].mask([float("nan")], COUNTS, offers)
    with pytest.raises(ConfigError, match="63 bits"):
        made["a"].mask([1.0], Encoding(clip=2.0**60, scale=2.0), offers)


def test_a_dropout_is_left_out_and_the_rest_begin_anew() -> None:
    values = {"a": 1.0, "b": 10.0, "c": 100.0, "d": 1000.0}
    words: dict[str, list[Words]] = {name: [] for name in NAMES}

    def begin(attempt: Attempt, name: str) -> Masker:
        return Masker(name, attempt, SIGNING[name], KNOWN)

    def send(masker: Masker, offers: Sequence[Offer]) -> Words | None:
        if masker.name == "b" and masker.attempt.attempt == 0:
            return None
        words[masker.name].append(masker.mask([values[masker.name]], COUNTS, offers))
        return words[masker.name][-1]

    total, names, attempts = masked_sum("run", 1, NAMES, begin, send, COUNTS)
    assert total.tolist() == [1101.0]
    assert (names, attempts) == (("a", "c", "d"), 2)
    assert words["a"][0] != words["a"][1]


def test_too_many_dropouts_end_it() -> None:
    with pytest.raises(QuorumError, match="2 clients are left"):
        masked_sum(
            "run", 1, NAMES, lambda attempt, name: Masker(name, attempt, SIGNING[name], KNOWN),
            lambda masker, offers: None if masker.name in "cd" else masker.mask([1.0], COUNTS, offers), COUNTS,
        )  # fmt: skip


def test_thresholds_under_masks_are_those_of_the_plain_counts() -> None:
    """Three clients behind one edge: their pooled table decides the cluster's threshold either way."""
    from fedtandem.algorithms.fedhlm import Settings, run_fedhlm
    from fedtandem.algorithms.threshold_parties import Edge, ThresholdClient
    from fedtandem.federation.local import LocalCarrier
    from fedtandem.federation.masked_edges import masked_edge
    from fedtandem.inference.threshold import Goal

    generator = np.random.default_rng(0)
    clients = {}
    for name in "abc":
        u = generator.random(300)
        beta = (generator.random(300) < u).astype(float)
        clients[name] = ThresholdClient(name, ("slm", "llm"), u, beta, ["s"] * 300, np.arange(300), b"k" * 32)
    settings = Settings(goal=Goal("price", 0.4), audit_rate=1.0, draws=0)
    plain = run_fedhlm(LocalCarrier({"edge": Edge("edge", LocalCarrier(clients))}), settings)
    masked = run_fedhlm(LocalCarrier({"edge": masked_edge("edge", clients, "run")}), settings)
    assert masked.names == ("edge",)
    assert masked.thresholds.cluster == pytest.approx(plain.thresholds.cluster, abs=1e-6)
    assert masked.table.tokens.sum() == plain.table.tokens.sum() == 900
    with pytest.raises(QuorumError, match="at least 3"):
        masked_edge("edge", {n: clients[n] for n in "ab"}, "run").handle(next(iter(_survey())).to_envelope())


def _survey() -> list[CalibrationRequest]:
    return [CalibrationRequest(1, "survey", 1.0, 0.0, (), np.array([0.5]))]
