"""An edge that learns only its clients' sums: calibration under masks, in process. Experimental."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedtandem.algorithms.threshold_parties import NOBODY, ThresholdClient
from fedtandem.errors import ConfigError
from fedtandem.exchange.calibration import N_BINS, N_COUNTS, N_SUMS, CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.federation.masking import Attempt, Encoding, Masker, Offer, Words, masked_sum

STATISTICS = Encoding(clip=2.0**30, scale=2.0**16)
"""Counts and sums up to 10^9, in steps of 1/65536."""
SHAPES = {"tokens": 1, "skipped": 1, "labelled": 1, "counts": N_COUNTS * N_BINS, "sums": N_SUMS}


@dataclass(frozen=True)
class MaskedClient:
    """A client that tells its statistics under masks alone.

    Attributes:
        client: its tokens.
        signing: its registered key.
        known: the registered keys of all.
    """

    client: ThresholdClient
    signing: ec.EllipticCurvePrivateKey
    known: Mapping[str, ec.EllipticCurvePublicKey]

    def begin(self, attempt: Attempt) -> Masker:
        """Offer a fresh key."""
        return Masker(self.client.name, attempt, self.signing, self.known)

    def send(self, request: CalibrationRequest, masker: Masker, offers: Sequence[Offer]) -> Words:
        """Do the job; what is asked for as one masked vector, 0 where this job has none."""
        reply = CalibrationReply.from_envelope(self.client.handle(request.to_envelope()))
        parts = []
        for name, size in SHAPES.items():
            values = np.asarray(getattr(reply, name), dtype=np.float64).reshape(-1)
            parts.append(values if len(values) else np.zeros(size))
        return masker.mask(np.concatenate(parts), STATISTICS, offers)


class MaskedEdge:
    """One cluster's side: it asks its clients and answers as if it were one client with all their tokens.

    So thresholds are learnt for clusters, not for single clients.

    Args:
        name: of the cluster.
        clients: its clients; at least three.
        run: names the calibration, for the keys.
    """

    def __init__(self, name: str, clients: Mapping[str, MaskedClient], run: str) -> None:
        self.name, self._clients, self._run = name, dict(sorted(clients.items())), run
        self._models = next(iter(self._clients.values())).client.models

    def handle(self, envelope: Envelope) -> Envelope:
        """Pass a request on and answer with the sums.

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
        total, _, _ = masked_sum(
            self._run, request.round, list(self._clients),
            lambda attempt, name: self._clients[name].begin(attempt),
            lambda masker, offers: self._clients[masker.name].send(own, masker, offers), STATISTICS,
        )  # fmt: skip
        ends = np.cumsum(list(SHAPES.values()))[:-1]
        tokens, skipped, labelled, counts, sums = np.split(total, ends)
        is_count = request.job == "count"
        return CalibrationReply(
            round=request.round, party=self.name, names=(self.name,), models=(self._models,), tokens=tokens,
            skipped=skipped, tau=own.tau, labelled=labelled, counts=counts if is_count else NOBODY,
            sums=sums if is_count else NOBODY,
        ).to_envelope()  # fmt: skip


def masked_edge(name: str, clients: Mapping[str, ThresholdClient], run: str) -> MaskedEdge:
    """An edge whose clients have fresh keys of their own; where sites hold registered keys, those are given instead."""
    keys = {client: ec.generate_private_key(ec.SECP384R1()) for client in clients}
    known = {client: key.public_key() for client, key in keys.items()}
    return MaskedEdge(name, {n: MaskedClient(c, keys[n], known) for n, c in clients.items()}, run)
