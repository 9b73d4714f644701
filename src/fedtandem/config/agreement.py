"""What must hold between sections: each rule finds its faults, and all are reported together."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedtandem.checking.checkers import BY_ANSWER
from fedtandem.config.faults import Fault
from fedtandem.config.privacy import PrivacyConfig

if TYPE_CHECKING:
    from fedtandem.config.run import RunConfig

SERVER = "server"
WITHOUT_PRIVATE_DATA = frozenset({"zero_shot", "server_public"})


class Disagreement(ValueError):
    """Sections that are well formed but cannot be carried out together."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


def disagreements(config: "RunConfig") -> list[Fault]:
    """Every fault between sections."""
    rules = (_names, _private_data, _equal_models, _evaluation, _public, _replay, _quorum, _privacy)
    return [fault for rule in rules for fault in rule(config)]


def _names(config: "RunConfig") -> Iterator[Fault]:
    for name, count in Counter(client.name for client in config.clients).items():
        if count > 1:
            yield Fault(f"clients.{name}.name", name, f"{count} clients have this name; names must be unique")
        if name in (SERVER, "clients", "all"):
            yield Fault(f"clients.{name}.name", name, "is kept for the program itself; choose another name")


def _private_data(config: "RunConfig") -> Iterator[Fault]:
    tuned = [method for method in config.methods if method not in WITHOUT_PRIVATE_DATA]
    for client in config.clients:
        if client.data is None and tuned and config.federation.carrier == "local":
            yield Fault(
                f"clients.{client.name}.data",
                None,
                f"method {tuned[0]} tunes clients on private data: give a data table",
            )
        if client.data is not None and not client.data.labelled:
            yield Fault(f"clients.{client.name}.data.labelled", False, "private data need answers")
    if config.server.data is not None and not config.server.data.labelled:
        yield Fault("server.data.labelled", False, "data to replay need answers")


def _equal_models(config: "RunConfig") -> Iterator[Fault]:
    """FedAvg adds weights: they must be the same weights."""
    asked = (
        "fedavg"
        if "fedavg" in config.methods
        else "aggregate_every"
        if config.federation.aggregate_every
        else None
    )
    if asked is None:
        return
    first = config.clients[0]
    for client in config.clients[1:]:
        if (client.model, client.revision, client.scratch) != (first.model, first.revision, first.scratch):
            yield Fault(
                f"clients.{client.name}.model", client.model,
                f"{asked} averages weights, so all clients need one model; {first.name} has {first.model!r}",
            )  # fmt: skip
        ours, theirs = (first.tuning.method, first.tuning.peft), (client.tuning.method, client.tuning.peft)
        if ours != theirs:
            yield Fault(
                f"clients.{client.name}.tuning", theirs[0],
                f"{asked} averages weights, so `method` and `peft` must equal those of {first.name}",
            )  # fmt: skip


def _evaluation(config: "RunConfig") -> Iterator[Fault]:
    known = {"*", SERVER, "clients", *(client.name for client in config.clients)}
    for name, count in Counter(test.name for test in config.evaluation.sets).items():
        if count > 1:
            yield Fault(
                f"evaluation.sets.{name}.name", name, f"{count} sets have this name; names must be unique"
            )
    for test in config.evaluation.sets:
        for party in test.parties:
            if party not in known:
                yield Fault(
                    f"evaluation.sets.{test.name}.parties",
                    party,
                    f"no such party; there are {', '.join(sorted(known))}",
                )
        if not test.data.labelled:
            yield Fault(f"evaluation.sets.{test.name}.data.labelled", False, "a held-out set needs answers")


def _public(config: "RunConfig") -> Iterator[Fault]:
    public = config.public
    by_answer = public.check in BY_ANSWER
    if public.check != "none" and public.labelled:
        yield Fault(
            "public.check", public.check, "checks answers that parties write: set public.labelled = false"
        )
    if by_answer and public.check_answers is None:
        yield Fault(
            "public.check_answers",
            None,
            f"the check {public.check!r} needs the column with the right answers",
        )
    if public.check_answers is not None and not by_answer:
        yield Fault(
            "public.check_answers", public.check_answers,
            f"is used by the checks {', '.join(BY_ANSWER)} alone; public.check is {public.check!r}",
        )  # fmt: skip
    for key, says in (("check_returns", "returns"), ("check_offers", "offers")):
        if getattr(public, key) and public.check == "none":
            yield Fault(f"public.{key}", True, f"{says} what was checked: name a check")
    if public.labelled:
        return
    if public.format == "text" and not public.prompt_bytes:
        yield Fault(
            "public.prompt_bytes",
            0,
            "unlabelled text needs prompts: say how many bytes of a window are shown",
        )
    if config.knowledge.positions == "all":
        yield Fault(
            "knowledge.positions", "all", 'without answers there is only "answer": parties write them'
        )


def _replay(config: "RunConfig") -> Iterator[Fault]:
    share = config.distillation.replay_fraction_server
    if share and config.public.labelled and config.server.data is None:
        yield Fault(
            "distillation.replay_fraction_server",
            share,
            "the server replays `server.data`: give it a data table",
        )


def _privacy(config: "RunConfig") -> Iterator[Fault]:
    """A budget is about a client's own data: nothing else may read them."""
    if config.server.privacy != PrivacyConfig():
        yield Fault("server.privacy", "set", "is for clients: put it under [privacy] or [clients.privacy]")
    share = config.distillation.replay_fraction
    for client in config.clients:
        if client.privacy.and_(config.privacy).dp is None:
            continue
        if share:
            yield Fault(
                "distillation.replay_fraction", share,
                f"{client.name} tunes under dp: private data replayed in the public phase would be outside of it",
            )  # fmt: skip
        if config.public.check == "path" and not config.public.labelled:
            yield Fault(
                "public.check", "path",
                f"{client.name} tunes under dp: this check looks at its private samples, which no epsilon covers",
            )  # fmt: skip


def _quorum(config: "RunConfig") -> Iterator[Fault]:
    federation = config.federation
    asked = max(1, round(federation.fraction_train * len(config.clients)))
    if federation.min_clients > asked:
        yield Fault(
            "federation.min_clients", federation.min_clients,
            f"only {asked} of {len(config.clients)} clients are asked in a round "
            f"(fraction_train = {federation.fraction_train:g}): the quorum could never be met",
        )  # fmt: skip
