"""Messages about thresholds in plain words."""

from collections.abc import Callable

from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.masking import MaskedReply, MaskingRequest, OfferReply
from fedtandem.exchange.trace_card import TraceCard

TITLES = {
    "trace_card_request": "the server asks a site what thresholds can be learnt from",
    "trace_card": "{party} says what its recorded decisions can be asked about; none of them is told",
    "calibration_request": "the server asks about thresholds",
    "calibration_reply": "{party} answers about thresholds",
    "masking_request": "the server asks about thresholds under masks",
    "offer_reply": "{party} offers a fresh key for masks",
    "masked_reply": "{party} answers about thresholds under masks",
}
JOBS = {
    "survey": "how many decisions there are, and how many are kept at this threshold",
    "count": "count decisions and what the LLM said of them, by uncertainty",
    "descend": "step the threshold along its gradient",
    "publish": "use this threshold from now on",
}


def _trace_card(envelope: Envelope) -> list[str]:
    card = TraceCard.from_envelope(envelope)
    return [
        f"edge {card.edge or '(none of its own)'}; uncertainty: {', '.join(card.measures) or 'none'}; feedback: "
        f"{', '.join(card.feedbacks)}",
        "it will answer under masks alone" if card.masked else "it will answer in plain counts",
    ]


def _request(envelope: Envelope) -> list[str]:
    return _job(CalibrationRequest.from_envelope(envelope))


def _job(request: CalibrationRequest) -> list[str]:
    told = ", ".join(f"{tau:.4f}" for tau in request.tau[:3])
    return [f"{request.job}: {JOBS[request.job]}; threshold {told}, audit rate {request.audit_rate:g}"]


def _reply(envelope: Envelope) -> list[str]:
    reply = CalibrationReply.from_envelope(envelope)
    lines = []
    for i, name in enumerate(reply.names[:3]):
        slm, llm = reply.models[i]
        lines.append(
            f"{name}: {reply.tokens[i]:,.0f} decisions of {slm[:32]} beside {llm[:32]}, {reply.skipped[i]:,.0f} kept "
            f"at its threshold {reply.tau[i]:.4f}; {reply.labelled[i]:,.0f} with the LLM's word"
        )
    if len(reply.counts):
        lines.append(
            f"a histogram of each: decisions and refusals by uncertainty, {reply.counts[0].size} counts; and "
            f"{reply.sums.shape[-1]} sums of a line"
        )
    return [*lines, "no text, no token, no single decision"]


def _masking_request(envelope: Envelope) -> list[str]:
    request = MaskingRequest.from_envelope(envelope)
    if request.job is None:
        return [f"for a fresh key, attempt {request.attempt}"]
    names = ", ".join(offer.name for offer in request.offers)
    return [f"attempt {request.attempt}, summed with {names}", *_job(request.job)]


def _offer_reply(envelope: Envelope) -> list[str]:
    reply = OfferReply.from_envelope(envelope)
    return [
        f"an X25519 public key for attempt {reply.attempt}, signed by its registered key; models "
        f"{reply.models[0][:32]} beside {reply.models[1][:32]}"
    ]


def _masked_reply(envelope: Envelope) -> list[str]:
    reply = MaskedReply.from_envelope(envelope)
    return [
        f"{len(reply.words)} numbers under the masks of attempt {reply.attempt}: without the others' they say nothing, "
        "the sum of all is plain"
    ]


CONTENTS: dict[str, Callable[[Envelope], list[str]]] = {
    "trace_card_request": lambda _: ["nothing more"],
    "trace_card": _trace_card,
    "calibration_request": _request,
    "calibration_reply": _reply,
    "masking_request": _masking_request,
    "offer_reply": _offer_reply,
    "masked_reply": _masked_reply,
}
"""Message -> what it holds, line by line."""
