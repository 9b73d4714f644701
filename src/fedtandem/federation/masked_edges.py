"""An edge that learns only its clients' sums: calibration under masks, through any carrier. Experimental.

Two messages a client and job: it offers a fresh key; told everybody's keys, it does the job and answers under masks.
What an edge receives is encoded, counted and checked like every other message, and none of it is one client's numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ec

from fedtandem.algorithms.threshold_parties import NOBODY, ThresholdClient
from fedtandem.errors import ConfigError, InvalidMessage
from fedtandem.exchange.calibration import N_BINS, N_COUNTS, N_SUMS, CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Absence, Carrier, Envelope
from fedtandem.exchange.masking import MaskedReply, MaskingRequest, Offer, OfferReply
from fedtandem.exchange.reading import Expected
from fedtandem.federation.masking import Attempt, Encoding, Masker, Words, check_offer, masked_sum

STATISTICS = Encoding(clip=2.0**30, scale=2.0**16)
"""Counts and sums up to 10^9, in steps of 1/65536."""
SHAPES = {"tokens": 1, "skipped": 1, "labelled": 1, "counts": N_COUNTS * N_BINS, "sums": N_SUMS}
N_WORDS = sum(SHAPES.values())
Known = Mapping[str, ec.EllipticCurvePublicKey]
Decoded = TypeVar("Decoded")


class MaskedClient:
    """A client that tells its statistics under masks alone; a plain request is refused.

    Args:
        client: its tokens.
        signing: its registered key.
        known: the registered keys of all.
    """

    def __init__(self, client: ThresholdClient, signing: ec.EllipticCurvePrivateKey, known: Known) -> None:
        self.client, self._signing, self._known = client, signing, known
        self._masker: Masker | None = None
        self._answered: tuple[bytes | memoryview, Envelope] | None = None

    def handle(self, envelope: Envelope) -> Envelope:
        """Offer a fresh key, or answer under masks. A message that comes twice gets the same reply.

        Raises:
            InvalidMessage: a plain request; an attempt for which no key was offered; a key its client did not sign.
            QuorumError: fewer than three take part.
        """
        if self._answered is not None and self._answered[0] == envelope.body:
            return self._answered[1]
        request = MaskingRequest.from_envelope(envelope)
        attempt = Attempt(request.run, request.round, request.attempt)
        if request.job is None:
            self._masker = Masker(self.client.name, attempt, self._signing, self._known)
            reply = OfferReply(
                attempt.round, attempt.attempt, self._masker.offer, self.client.models
            ).to_envelope()
        else:
            words = self._mask(attempt, request.job, request.offers)
            reply = MaskedReply(attempt.round, self.client.name, attempt.attempt, words).to_envelope()
        self._answered = (envelope.body, reply)
        return reply

    def _mask(self, attempt: Attempt, job: CalibrationRequest, offers: Sequence[Offer]) -> Words:
        """What is asked for as one masked vector."""
        if self._masker is None or self._masker.attempt != attempt:
            raise InvalidMessage(
                f"{self.client.name}, round {attempt.round}: no key was offered for attempt {attempt.attempt} of run "
                f"{attempt.run!r}. Ask for one first."
            )
        return self._masker.mask(statistics(self.client, job), STATISTICS, offers)


def statistics(client: ThresholdClient, job: CalibrationRequest) -> npt.NDArray[np.float64]:
    """What a client would answer, as one vector to be masked, 0 where this job has none; (N_WORDS,)."""
    reply = CalibrationReply.from_envelope(client.handle(job.to_envelope()))
    parts = []
    for name, size in SHAPES.items():
        values = np.asarray(getattr(reply, name), dtype=np.float64).reshape(-1)
        parts.append(values if len(values) else np.zeros(size))
    return np.concatenate(parts)


class MaskedEdge:
    """One cluster's side: it asks its clients and answers as if it were one client with all their tokens.

    So thresholds are learnt for clusters, not for single clients.

    Args:
        name: of the cluster.
        clients: carries to its clients; at least three.
        known: their registered keys, by name.
        run: names the calibration, for the keys.
        deadline_s: for each of their replies.
        members: its clients, connected or not; empty: those that the carrier reaches.
        absent: told (client, round, why) of everyone who gives no valid reply.
    """

    def __init__(
        self, name: str, clients: Carrier, known: Known, run: str, deadline_s: float = 60.0,
        members: Sequence[str] = (), absent: Callable[[str, int, Absence], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.name, self._clients, self._known, self._run = name, clients, known, run
        self._deadline_s, self._members, self._absent = deadline_s, tuple(members), absent
        self._models: tuple[str, str] = ("", "")
        self.summed: tuple[str, ...] = ()
        """Whose numbers the last sum held."""

    def handle(self, envelope: Envelope) -> Envelope:
        """Pass a request on and answer with the sums; who does not answer is left out of them.

        Raises:
            QuorumError: fewer than three clients answer.
            ConfigError: a job that is no sum.
        """
        request = CalibrationRequest.from_envelope(envelope)
        if request.job == "descend":
            raise ConfigError(
                "a client's own gradient step is no sum to be masked; use --learn histogram or line."
            )
        own = replace(request, names=(), tau=request.tau[:1])
        names = self._members or [party.name for party in self._clients.parties()]
        total, self.summed, _ = masked_sum(
            self._run, request.round, names, self._offers,
            lambda attempt, offers: self._masked(attempt, offers, own), STATISTICS,
        )  # fmt: skip
        ends = np.cumsum(list(SHAPES.values()))[:-1]
        tokens, skipped, labelled, counts, sums = np.split(total, ends)
        is_count = request.job == "count"
        return CalibrationReply(
            round=request.round, party=self.name, names=(self.name,), models=(self._models,), tokens=tokens,
            skipped=skipped, tau=own.tau, labelled=labelled, counts=counts if is_count else NOBODY,
            sums=sums if is_count else NOBODY,
        ).to_envelope()  # fmt: skip

    def _offers(self, attempt: Attempt, names: Sequence[str]) -> list[Offer]:
        asked = MaskingRequest(attempt.round, attempt.run, attempt.attempt)

        def decode(name: str, envelope: Envelope) -> OfferReply:
            reply = OfferReply.from_envelope(envelope, expected=Expected(party=name, round=attempt.round))
            check_offer(reply.offer, attempt, self._known)
            return reply

        replies = self._ask(asked, names, decode)
        if replies:
            self._models = next(iter(replies.values())).models
        return [reply.offer for reply in replies.values()]

    def _masked(self, attempt: Attempt, offers: Sequence[Offer], job: CalibrationRequest) -> dict[str, Words]:
        asked = MaskingRequest(attempt.round, attempt.run, attempt.attempt, tuple(offers), job)

        def decode(name: str, envelope: Envelope) -> MaskedReply:
            expected = Expected(party=name, round=attempt.round)
            reply = MaskedReply.from_envelope(envelope, N_WORDS, expected=expected)
            if reply.attempt != attempt.attempt:
                raise InvalidMessage(f"{name}: masked for attempt {reply.attempt}, not {attempt.attempt}.")
            return reply

        replies = self._ask(asked, [offer.name for offer in offers], decode)
        return {name: reply.words for name, reply in replies.items()}

    def _ask(
        self, request: MaskingRequest, names: Sequence[str], decode: Callable[[str, Envelope], Decoded]
    ) -> dict[str, Decoded]:
        """The valid replies; whoever has none is absent, and the masks are made anew without it."""
        answers = self._clients.ask(dict.fromkeys(names, request.to_envelope()), deadline_s=self._deadline_s)
        found, missing = {}, dict(answers.absences)
        for name, envelope in sorted(answers.replies.items()):
            try:
                found[name] = decode(name, envelope)
            except InvalidMessage as error:
                missing[name] = Absence("invalid", str(error))
        for name, absence in sorted(missing.items()):
            self._absent(name, request.round, absence)
        return found


def masked_clients(clients: Mapping[str, ThresholdClient]) -> tuple[dict[str, MaskedClient], Known]:
    """Clients with fresh keys of their own, and their public ones; where sites hold registered keys, those instead."""
    keys = {client: ec.generate_private_key(ec.SECP384R1()) for client in clients}
    known = {client: key.public_key() for client, key in keys.items()}
    return {name: MaskedClient(client, keys[name], known) for name, client in clients.items()}, known
