"""The two sides that the cloud asks about thresholds: a client with its tokens, an edge with its clients."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Carrier, Envelope
from fedtandem.inference.audit import audited
from fedtandem.inference.gradient import START, descend
from fedtandem.inference.histogram import count_feedback
from fedtandem.inference.line import line_sums
from fedtandem.inference.routing import is_sent

Floats = npt.NDArray[np.float64]
NOBODY = np.zeros(0)

COUNT_NAMES = ("tokens", "sent", "sent_beta", "sent_square", "audited", "audited_beta", "audited_square")


class ThresholdClient:
    """A client's side: its tokens with their feedback, and the threshold it uses.

    Args:
        name: stable.
        models: fingerprints of its SLM and of the LLM that answers it.
        u: uncertainties, (N,).
        beta: what the LLM says of each draft, (N,). Only sent and audited tokens' values are ever looked at.
        session, position: of each token, for the audit draw.
        key: the tenant's audit key.
    """

    def __init__(
        self,
        name: str,
        models: tuple[str, str],
        u: Floats,
        beta: Floats,
        session: Sequence[str],
        position: npt.NDArray[np.int64],
        key: bytes,
    ) -> None:
        self.name, self.models, self.tau = name, models, START
        self._u, self._beta, self._session, self._position, self._key = u, beta, session, position, key

    def handle(self, envelope: Envelope) -> Envelope:
        """Do one job and report."""
        request = CalibrationRequest.from_envelope(envelope)
        self.tau = float(request.tau[0])
        sent = is_sent(self._u, self.tau)
        counts, sums, labelled = NOBODY, NOBODY, 0
        if request.job in ("count", "descend"):
            seen = ~sent & self._audits(request.audit_rate)
            labelled = int((sent | seen).sum())
            weight = np.where(sent, 1.0, 1 / request.audit_rate)
            known = sent | seen
            if request.job == "count":
                h = count_feedback(self._u, self._beta, sent, seen, request.audit_rate)
                counts = np.stack([getattr(h, name) for name in COUNT_NAMES])
                line = line_sums(self._u[known], self._beta[known], weight[known])
                sums = np.array([line.n, line.u, line.uu, line.beta, line.u_beta, line.beta_beta])
            else:
                self.tau = descend(
                    self.tau, self._u[known], self._beta[known], request.price, weight=weight[known]
                )
        return CalibrationReply(
            round=request.round, party=self.name, names=(self.name,), models=(self.models,),
            tokens=np.array([len(self._u)]), skipped=np.array([int((~sent).sum())]), tau=np.array([self.tau]),
            labelled=np.array([labelled]), counts=counts, sums=sums,
        ).to_envelope()  # fmt: skip

    def _audits(self, rate: float) -> npt.NDArray[np.bool_]:
        if rate >= 1:
            return np.ones(len(self._u), dtype=bool)
        return audited(self._key, self.name, self._session, self._position, rate)


class Edge:
    """One cluster's side: asks its clients and answers for all of them.

    Args:
        name: of the cluster.
        clients: carries to its clients alone.
        deadline_s: for each of their replies.
    """

    def __init__(self, name: str, clients: Carrier, deadline_s: float = 60.0) -> None:
        self.name, self._clients, self._deadline_s = name, clients, deadline_s

    def handle(self, envelope: Envelope) -> Envelope:
        """Pass a request on, each client its own threshold, and put the valid replies together.

        A client that is absent or whose reply is refused is left out; the cloud sees who answered.
        """
        request = CalibrationRequest.from_envelope(envelope)
        asked = requests_of(request, (party.name for party in self._clients.parties()))
        answers = self._clients.ask(asked, deadline_s=self._deadline_s)
        replies = []
        for name, reply in sorted(answers.replies.items()):
            try:
                replies.append(reply_of(name, request.round, reply))
            except InvalidMessage:
                continue  # as if it had not come: the cloud reads the absence off the names
        return together(self.name, request.round, replies).to_envelope()


def requests_of(request: CalibrationRequest, clients: Iterable[str]) -> dict[str, Envelope]:
    """What an edge passes on to those of these clients that a request is for, each its own threshold."""
    known = dict(zip(request.names, request.tau.tolist(), strict=True)) if request.names else {}
    asked = {}
    for name in clients:
        if request.names and name not in known:
            continue
        tau = known.get(name, float(request.tau[0]))
        asked[name] = replace(request, names=(), tau=np.array([tau])).to_envelope()
    return asked


def reply_of(client: str, round_number: int, envelope: Envelope) -> CalibrationReply:
    """A client's reply, for itself alone.

    Raises:
        InvalidMessage: a field is not what a reply may hold, or it is about another client or round.
    """
    reply = CalibrationReply.from_envelope(envelope)
    if reply.names != (client,) or reply.round != round_number:
        raise InvalidMessage(
            f"{client}, round {round_number}: the reply is about {', '.join(reply.names)[:100] or 'nobody'} in round "
            f"{reply.round}. Nothing of it was used."
        )
    return reply


def together(party: str, round_number: int, replies: Sequence[CalibrationReply]) -> CalibrationReply:
    """The replies of several parties as one, in this order."""

    def joined(field: str) -> Floats:
        parts = [np.asarray(getattr(reply, field)) for reply in replies]
        return np.concatenate(parts) if parts else NOBODY

    return CalibrationReply(
        round=round_number, party=party, names=tuple(name for reply in replies for name in reply.names),
        models=tuple(pair for reply in replies for pair in reply.models), tokens=joined("tokens"),
        skipped=joined("skipped"), tau=joined("tau"), labelled=joined("labelled"), counts=joined("counts"),
        sums=joined("sums"),
    )  # fmt: skip
