"""A site's consent: what a run would have it send, held against its own file before round 1 and at every envelope."""

from fedtandem.config import RunConfig
from fedtandem.config.site import SENT, AllowConfig, Sent, SiteConfig
from fedtandem.errors import ConsentError
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import decode_frame
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import FetchReply, WorkReply
from fedtandem.exchange.trace_card import TraceCard
from fedtandem.federation.build import flow_of
from fedtandem.federation.methods import Method, method_named


def needed(config: RunConfig, method: Method) -> dict[Sent, str]:
    """What a method would have a client send, and which setting asks for it."""
    flow, public = flow_of(method, config), config.public
    asks: dict[Sent, str] = {"card": "every run"}
    if flow.up:
        asks["scores"] = "knowledge sent up (federation.send_up)"
        if public.labelled or public.send_rows:
            asks["rows"] = "knowledge sent up (federation.send_up)"
        if not public.labelled:
            asks["texts"] = "public.labelled = false"
    if flow.aggregate_every:
        asks["weights"] = "averaging of weights (fedavg, federation.aggregate_every)"
    selector = method.items or config.selection.selector
    if selector != "all" and flow.down and flow.clients_learn and config.selection.direction != "up":
        asks["requests"] = f"selection.selector = {selector!r}"
        if config.selection.asks_for_drafts(selector):
            asks["texts"] = 'selection.lada.reference = "peer"'
    return asks


def exactly(config: RunConfig, *, max_bytes_per_round: int) -> AllowConfig:
    """Consent to this run and no more: what its methods send, its rounds, its functions; and measurements."""
    asked = {what for name in config.methods for what in needed(config, method_named(name))}
    return AllowConfig(
        send=tuple(what for what in SENT if what in asked or what == "measurements"),
        max_bytes_per_round=max_bytes_per_round,
        max_rounds=config.federation.num_rounds,
        functions=tuple(reference for _, reference in functions(config)),
    )


def check_plan(site: SiteConfig, config: RunConfig, method: Method) -> None:
    """Refuse a run that asks for more than the site's file allows.

    Raises:
        ConsentError: names each thing asked for, and the key that forbids it.
    """
    allow = site.allow
    found = [
        f"it asks for {what} ({why}), but allow.send = [{', '.join(allow.send)}]"
        for what, why in needed(config, method).items()
        if what not in allow.send
    ]
    rounds = config.federation.num_rounds
    if rounds > allow.max_rounds:
        found.append(f"it has {rounds} rounds, but allow.max_rounds = {allow.max_rounds}")
    for key, reference in functions(config):
        if reference not in allow.functions:
            found.append(
                f"{key} = {reference!r} would run a function here that allow.functions does not name"
            )
    if found:
        raise ConsentError(
            f"{site.name} does not take part in run {config.name!r}: {'; '.join(found)}. "
            "Change the run, or the site's own file if its owner agrees."
        )


def functions(config: RunConfig) -> list[tuple[str, str]]:
    """(key, "package.module:function") of everything a run would import by name."""
    named = {
        "public.check": config.public.check,
        "public.check_form": config.public.check_form,
        "selection.selector": config.selection.selector,
        "selection.candidates": config.selection.candidates,
        "selection.teacher": config.selection.teacher,
    }
    return [(key, value) for key, value in named.items() if isinstance(value, str) and ":" in value]


def contents(envelope: Envelope) -> set[Sent]:
    """What one outgoing envelope holds, read back from its bytes.

    Raises:
        InvalidMessage: it is none of a client's messages.
    """
    if envelope.kind == "calibrate":
        return {"masked_counts" if _message(envelope) in ("offer_reply", "masked_reply") else "counts"}
    if envelope.kind == "card" and _message(envelope) == "trace_card":
        return {counts_word(TraceCard.from_envelope(envelope).masked)}
    if envelope.kind == "card":
        return {"card"}
    if envelope.kind == "fetch":
        return _parts(FetchReply.from_envelope(envelope).knowledge)
    reply = WorkReply.from_envelope(envelope)
    held = _parts(reply.knowledge)
    if reply.adapter is not None:
        held.add("weights")
    if reply.wanted is not None:
        held.add("requests")
    if reply.drafts is not None:
        held.add("texts")
    if reply.metrics:
        held.add("measurements")
    return held


def _message(envelope: Envelope) -> str:
    return str(decode_frame(envelope.body)[0].get("message"))


def counts_word(masked: bool) -> Sent:
    """What `fedtandem calibrate`, with --masked or without, would have a site send."""
    return "masked_counts" if masked else "counts"


def check_calibration(site: SiteConfig, *, masked: bool, step: int) -> None:
    """Refuse a calibration that asks for more than the site's file allows.

    Args:
        step: how many gradient steps it has asked for with this one; 0 where it asks for none.

    Raises:
        ConsentError: names what is asked for, and the key that forbids it.
    """
    allow, word = site.allow, counts_word(masked)
    says = f"{site.name} does not take part in this calibration: it asks for"
    if word not in allow.send:
        raise ConsentError(
            f"{says} {word} (fedtandem calibrate {'with' if masked else 'without'} --masked), but allow.send = "
            f"[{', '.join(allow.send)}]. Ask in the other way, or add {word!r} to allow.send in the site's own file if "
            "its owner agrees."
        )
    if step > allow.max_rounds:
        raise ConsentError(
            f"{says} gradient step {step}, but allow.max_rounds = {allow.max_rounds}. Lower --rounds, use --learn "
            "histogram, or raise the limit in the site's own file if its owner agrees."
        )


def _parts(knowledge: Knowledge | None) -> set[Sent]:
    if knowledge is None:
        return set()
    held: set[Sent] = {"scores"}
    if knowledge.rows is not None:
        held.add("rows")
    if knowledge.texts is not None:
        held.add("texts")
    return held


def check_envelope(site: SiteConfig, envelope: Envelope, sent_before: int) -> None:
    """Hold an envelope back that its site does not allow.

    Args:
        sent_before: bytes this site has sent in the same round already.

    Raises:
        ConsentError: what it holds, or how large it is.
    """
    allow = site.allow
    forbidden = sorted(contents(envelope) - set(allow.send))
    if forbidden:
        raise ConsentError(
            f"{site.name}, round {envelope.round}: the reply holds {', '.join(forbidden)}, but allow.send = "
            f"[{', '.join(allow.send)}]. Nothing was sent."
        )
    total = sent_before + envelope.n_bytes
    if total > allow.max_bytes_per_round:
        raise ConsentError(
            f"{site.name}, round {envelope.round}: the reply would bring the round to {total:,} bytes, but "
            f"allow.max_bytes_per_round = {allow.max_bytes_per_round:,}. Nothing was sent. Lower knowledge.top_k, or "
            "raise the site's limit."
        )
