"""A verdict is believed only where it can be one: what a cloud that lies or errs may say ends at this place."""

from collections.abc import Sequence

import numpy as np

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.verification import VerifyReply, VerifyRequest


def refuse_what_cannot_be(
    reply: VerifyReply, request: VerifyRequest, drafts: Sequence[int], vocab_size: int
) -> None:
    """Check a reply against what was asked.

    Which token the LLM wrote is its own word; that it is a token, in its place and within the room, can be checked.

    Args:
        drafts: the pending tokens, in the LLM's ids.
        vocab_size: V of the LLM.

    Raises:
        InvalidMessage: it is no answer to the request.
    """
    tokens, accepted = reply.tokens, reply.accepted
    n = len(tokens)
    faults = {
        "tokens that are not in the vocabulary": bool(((tokens < 0) | (tokens >= vocab_size)).any()),
        "drafts accepted that were not sent": accepted > len(drafts)
        or tokens[:accepted].tolist() != list(drafts[:accepted]),
        "more tokens than there is room for": n > min(request.room, accepted + 1 + request.more),
        "more passes than tokens": not 1 <= reply.passes <= 1 + request.more,
        "audits of other tokens": len(reply.disagreed) not in (0, request.audits)
        or bool((reply.disagreed > 1).any()),
        "other log-probabilities than were asked for": _are_others(reply, request.top, n, vocab_size),
    }
    wrong = [name for name, holds in faults.items() if holds]
    if wrong:
        raise InvalidMessage(
            f"the upstream's verdict has {'; '.join(wrong)}; is it a fedtandem cloud of this version?"
        )


def _are_others(reply: VerifyReply, top: int, n: int, vocab_size: int) -> bool:
    ids, values = reply.top_ids, reply.top_log_probs
    if len(reply.log_probs) not in ((n,) if top > 0 else (0, n)) or len(ids) not in (0, n * max(0, top)):
        return True
    in_vocabulary = ((ids >= 0) & (ids < vocab_size)).all()
    return bool(np.isnan(reply.log_probs).any() or np.isnan(values).any() or not in_vocabulary)
