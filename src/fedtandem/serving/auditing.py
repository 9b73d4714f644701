"""How right peers' answers are: a keyed share of them is put to the LLM afterwards, and the edge reads the verdict.

A device that used (or might have used) a drawn answer sends the place once more through the edge, with the draw's
ticket. The edge compares what the LLM writes there with what it served, so that no device can accuse another: it can
only keep silent.

Source: specification of FedHLM, sections 6 and 8 (choice).
"""

from collections import OrderedDict

import numpy as np

from fedtandem.exchange.verification import VerifyReply, VerifyRequest, decoding_of
from fedtandem.inference.audit import WANTED, audited
from fedtandem.inference.gates import namespace, token_gate
from fedtandem.inference.peers import Attested, Found
from fedtandem.inference.similarity import wilson
from fedtandem.inference.uplink import unpack_ids
from fedtandem.serving.verifying import PEER_WINDOW

TICKET = "x-audit"
"""Header of a verification: the ticket of the peer's answer that it is about."""
EARLY_RATE = 0.1
"""Until `WANTED` answers were audited."""
MAX_OPEN = 4096
"""Draws whose verdict has not come; the oldest are forgotten."""


class PeerAudits:
    """One tenant's.

    Args:
        key: of the tenant; nobody without it can tell which answers will be looked at.

    Attributes:
        right, n: audited answers that the LLM writes too, and all.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._open: OrderedDict[str, tuple[Attested, str]] = OrderedDict()
        self._served = 0
        self.right, self.n = 0, 0

    @property
    def lower_bound(self) -> float:
        """Of the precision: 95 %, Wilson; 0 before the first audit."""
        return float(wilson(self.right, self.n)[0])

    def ticket(self, found: Found, rate: float) -> str:
        """Draw for one hit that may be used as an answer; "" if it is not drawn.

        Args:
            found: the hit.
            rate: of answers, once enough were looked at.
        """
        if found.entry is None:
            return ""
        self._served += 1
        ticket = f"{found.entry.signature.hex()}-{self._served}"
        rate = rate if self.n >= WANTED else max(rate, EARLY_RATE)
        if not audited(self._key, found.inserted_by, [ticket], np.array([self._served]), rate)[0]:
            return ""
        self._open[ticket] = (found.entry, found.inserted_by)
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return ticket

    def judge(self, ticket: str, request: VerifyRequest, reply: VerifyReply) -> tuple[str, str]:
        """What a verdict says of a drawn answer.

        Returns:
            right, wrong, or unusable (no such draw, another place, less than the whole answer, or rounding may decide
            it); and whose answer it was.
        """
        entry, owner = self._open.get(ticket, (None, ""))
        if entry is None or not _is_its_place(entry, request):
            return "unusable", ""
        served, written = unpack_ids(entry.answer), reply.tokens.tolist()
        same = 0
        while same < min(len(served), len(written)) and served[same] == written[same]:
            same += 1
        is_right = same == len(served)
        if not is_right and (same == len(written) or request.place + same in reply.near_ties):
            return "unusable", owner
        del self._open[ticket]
        self.n += 1
        self.right += is_right
        return ("right" if is_right else "wrong"), owner


def _is_its_place(entry: Attested, request: VerifyRequest) -> bool:
    """Whether the LLM was asked about the very place, with nothing taken from what it remembers."""
    decoding = decoding_of(request.uplink, request.temperature)
    scope = namespace(entry.tenant, request.model, request.tokenizer, request.scope, decoding)
    return (
        request.base == 0
        and request.uplink == "greedy"
        and scope == entry.namespace
        and token_gate(request.new_ids.tolist(), PEER_WINDOW) == entry.context
    )
