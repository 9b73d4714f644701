"""Masked sums: exact, one value moves one vector, other masks each time, signed keys, dropouts, never two."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from fedtandem.algorithms.fedhlm import Settings, run_fedhlm
from fedtandem.algorithms.threshold_parties import Edge, ThresholdClient
from fedtandem.errors import ConfigError, InvalidMessage, QuorumError
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import decode_frame
from fedtandem.exchange.masking import MaskingRequest, Offer, OfferReply
from fedtandem.federation.local import Fault, FaultPlan, LocalCarrier
from fedtandem.federation.masked_edges import STATISTICS, MaskedClient, MaskedEdge, masked_clients
from fedtandem.federation.masking import Attempt, Encoding, Masker, Words, masked_sum, unmask
from fedtandem.inference.threshold import Goal

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
@limits(max_examples=20)
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


def test_a_signed_key_of_small_order_is_refused() -> None:
    """With the point 0 everybody knows the secret; its signature is as good as any."""
    made, offers = maskers()
    public = bytes(32)
    signature = SIGNING["b"].sign(FIRST.context(b"b", public), ec.ECDSA(hashes.SHA384()))
    with pytest.raises(InvalidMessage, match="b's key for masks is none"):
        made["a"].mask([1.0], COUNTS, [offers[0], Offer("b", public, signature), *offers[2:]])


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
    made: dict[str, Masker] = {}

    def begin(attempt: Attempt, names: Sequence[str]) -> list[Offer]:
        made.update((name, Masker(name, attempt, SIGNING[name], KNOWN)) for name in names)
        return [made[name].offer for name in names]

    def send(attempt: Attempt, offers: Sequence[Offer]) -> dict[str, Words]:
        answer = [offer.name for offer in offers if attempt.attempt > 0 or offer.name != "b"]
        for name in answer:
            words[name].append(made[name].mask([values[name]], COUNTS, offers))
        return {name: words[name][-1] for name in answer}

    total, names, attempts = masked_sum("run", 1, NAMES, begin, send, COUNTS)
    assert total.tolist() == [1101.0]
    assert (names, attempts) == (("a", "c", "d"), 2)
    assert words["a"][0] != words["a"][1]


# -- as messages, through a carrier ---------------------------------------------------------------------------------

SETTINGS = Settings(goal=Goal("price", 0.4), audit_rate=1.0, draws=0)


def threshold_clients(names: Sequence[str] = NAMES) -> dict[str, ThresholdClient]:
    generator = np.random.default_rng(0)
    clients = {}
    for name in names:
        u = generator.random(300)
        beta = (generator.random(300) < u).astype(float)
        clients[name] = ThresholdClient(name, ("slm", "llm"), u, beta, ["s"] * 300, np.arange(300), b"k" * 32)
    return clients


def masked_edge(clients: dict[str, ThresholdClient], faults: FaultPlan | None = None) -> MaskedEdge:
    masking, known = masked_clients(clients)
    return MaskedEdge("edge", LocalCarrier(masking, faults=faults), known, "run")


def job(kind: str = "count", round_number: int = 1) -> CalibrationRequest:
    return CalibrationRequest(round_number, kind, 1.0, 0.0, (), np.array([0.5]))  # type: ignore[arg-type]


def sums(edge: MaskedEdge) -> CalibrationReply:
    return CalibrationReply.from_envelope(edge.handle(job().to_envelope()))


def test_thresholds_under_masks_are_those_of_the_plain_counts() -> None:
    """Behind one edge: the pooled table decides the cluster's threshold either way."""
    plain = run_fedhlm(LocalCarrier({"edge": Edge("edge", LocalCarrier(threshold_clients()))}), SETTINGS)
    masked = run_fedhlm(LocalCarrier({"edge": masked_edge(threshold_clients())}), SETTINGS)
    assert masked.names == ("edge",)
    assert masked.models == (("slm", "llm"),)
    assert masked.thresholds.cluster == pytest.approx(plain.thresholds.cluster, abs=1e-6)
    assert masked.table.tokens.sum() == plain.table.tokens.sum() == 1200


def test_no_clients_numbers_are_in_any_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message between edge and clients: neither its arrays nor any word of them is a client's own."""
    clients = threshold_clients()
    own = {n: CalibrationReply.from_envelope(c.handle(job().to_envelope())) for n, c in clients.items()}
    sent: list[tuple[bytes, dict[str, np.ndarray]]] = []
    to_bytes = Envelope.to_bytes

    def recorded(self: Envelope) -> bytes:
        sent.append((self.body, dict(decode_frame(self.body)[1])))
        return to_bytes(self)

    monkeypatch.setattr(Envelope, "to_bytes", recorded)
    total = sums(masked_edge(clients))
    assert total.counts.sum() == pytest.approx(sum(reply.counts.sum() for reply in own.values()))
    masked = [arrays["words"] for _, arrays in sent if "words" in arrays]
    assert len(masked) == 4
    for reply in own.values():
        counts = reply.counts.reshape(-1)
        plain = STATISTICS.encode(counts)
        marks = [counts.astype(kind).tobytes() for kind in (np.float32, np.float64, np.int32, np.int64)]
        marks.append(plain.tobytes())
        for body, arrays in sent:
            unpacked = b"".join(array.tobytes() for array in arrays.values())
            assert not [mark for mark in marks if mark in body or mark in unpacked]
        assert not any(np.isin(words, plain).any() for words in masked)


@pytest.mark.parametrize("kind", ["lost", "late", "corrupt"])
@pytest.mark.parametrize("step", [0, 1], ids=["with its key", "with its numbers"])
def test_who_drops_out_is_left_out_of_the_sum(kind: str, step: int) -> None:
    """Lost once with its key, it is not in that attempt; lost with its numbers, the others begin anew without it."""
    seen: list[str] = []

    def faults(party: str, _envelope: Envelope) -> Fault | None:
        if party != "b":
            return None
        seen.append(party)
        return Fault(kind) if len(seen) == step + 1 else None  # type: ignore[arg-type]

    clients = threshold_clients()
    total = sums(masked_edge(clients, faults))
    assert total.tokens.tolist() == [900.0]
    assert len(seen) == step + 1


def test_fewer_than_three_left_are_named_and_those_missing_too() -> None:
    with pytest.raises(QuorumError, match=r"2 clients are left for a masked sum \(a, b\).*Missing: c, d\."):
        sums(masked_edge(threshold_clients(), lambda party, _: Fault("lost") if party in "cd" else None))
    with pytest.raises(QuorumError, match="at least 3"):
        sums(masked_edge(threshold_clients(("a", "b"))))


def test_a_key_that_its_client_did_not_sign_is_left_out() -> None:
    """d answers with c's signing key: it is not believed, and the other three are summed."""
    masking, known = masked_clients(threshold_clients())
    masking["d"] = MaskedClient(masking["d"].client, SIGNING["d"], known)
    assert sums(MaskedEdge("edge", LocalCarrier(masking), known, "run")).tokens.tolist() == [900.0]


def test_a_client_answers_under_masks_alone_and_a_repeated_message_alike() -> None:
    masking, _ = masked_clients(threshold_clients())
    with pytest.raises(InvalidMessage, match="calibration_request"):
        masking["a"].handle(job().to_envelope())
    ask_key = MaskingRequest(1, "run", 0).to_envelope()
    offers = [OfferReply.from_envelope(client.handle(ask_key)).offer for client in masking.values()]
    ask = MaskingRequest(1, "run", 0, tuple(offers), job()).to_envelope()
    first = masking["a"].handle(ask)
    assert masking["a"].handle(ask).to_bytes() == first.to_bytes()
    with pytest.raises(
        InvalidMessage, match="once"
    ):  # other numbers under the same masks: their difference would show
        masking["a"].handle(
            MaskingRequest(1, "run", 0, tuple(offers), replace(job(), audit_rate=0.5)).to_envelope()
        )
    with pytest.raises(InvalidMessage, match="no key was offered for attempt 1"):
        masking["a"].handle(MaskingRequest(1, "run", 1, tuple(offers), job()).to_envelope())


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (MaskingRequest(1, "run", 0, (Offer("a", b"short", b"s"),), job()), "32 bytes of a key"),
        (MaskingRequest(1, "run", 0, (Offer("a", bytes(32), b"s"),), None), "job"),
        (MaskingRequest(1, "run", 0, (Offer("a", bytes(32), b"s"),), job(round_number=2)), "another round"),
        (MaskingRequest(1, "run", -1), "attempt"),
    ],
)
def test_a_request_that_cannot_be_is_refused(broken: MaskingRequest, says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        MaskingRequest.from_envelope(broken.to_envelope())
