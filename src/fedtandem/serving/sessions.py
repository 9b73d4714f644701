"""What the cloud remembers of answers being written: which text stands, and its last reply, to be given again."""

from collections import OrderedDict
from dataclasses import dataclass

from fedtandem.errors import FedtandemError
from fedtandem.exchange.verification import VerifyReply, VerifyRequest, hash_of

Key = tuple[str, str]
"""(tenant, session): no tenant meets another's."""


class UnknownPrefix(FedtandemError):
    """The cloud does not hold the text a request goes on from: send the whole text (base 0)."""


@dataclass(frozen=True)
class Judged:
    """A reply as it goes out, and what it says, for who counts.

    Attributes:
        reply: the frame.
        accepted, own: tokens that were drafts, and the LLM's.
        passes: forward passes it took.
    """

    reply: bytes
    accepted: int
    own: int
    passes: int

    @classmethod
    def of(cls, said: VerifyReply) -> "Judged":
        """A reply, written."""
        return cls(said.to_bytes(), said.accepted, len(said.tokens) - said.accepted, said.passes)


@dataclass
class Session:
    """One answer.

    Attributes:
        ids: prompt and answer as far as it was verified.
        digest, reply: of the last request that was answered; the same bytes get the same reply.
    """

    ids: list[int]
    digest: bytes
    reply: Judged


class Sessions:
    """At most `most` of them; the longest unused is forgotten first. Correctness never depends on what is kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[Key, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def replayed(self, key: Key, digest: bytes) -> Judged | None:
        """The reply to exactly this request, where it was the session's last one."""
        known = self._known.get(key)
        return known.reply if known is not None and known.digest == digest else None

    def text(self, key: Key, request: VerifyRequest) -> list[int]:
        """The whole text a request is about.

        Raises:
            UnknownPrefix: it goes on from a text that is not what stands here, an older place included.
        """
        new = request.new_ids.tolist()
        if request.base == 0:
            return [int(token) for token in new]
        known = self._known.get(key)
        if known is None or len(known.ids) != request.base or hash_of(known.ids) != request.known:
            raise UnknownPrefix("this text is not known here as it was named; send it whole.")
        return [*known.ids, *map(int, new)]

    def bound(self, most: int) -> None:
        """Another bound, from the next answer on."""
        self._most = most

    def settle(self, key: Key, ids: list[int], digest: bytes, reply: Judged) -> list[Key]:
        """Write down what stands now.

        Returns:
            Sessions that were forgotten for it.
        """
        self._known[key] = Session(ids, digest, reply)
        self._known.move_to_end(key)
        gone = []
        while len(self._known) > self._most:
            gone.append(self._known.popitem(last=False)[0])
        return gone

    def forget(self, key: Key) -> None:
        """An answer is finished."""
        self._known.pop(key, None)
