"""Our round policy: who is asked, how long we wait, and what a short round does."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from fedtandem.errors import InvalidMessage, PrivacyBudgetError, QuorumError
from fedtandem.exchange.carrier import Absence, Carrier, Envelope

Reply = TypeVar("Reply")
Emit = Callable[..., None]
_LOG = logging.getLogger(__name__)

Need = Literal["quorum", "willing", "none"]
MAX_ASKS = 10
"""`on_short = "wait"` re-asks those missing this many times before it gives up."""


@dataclass(frozen=True)
class RoundPolicy:
    """The `[federation]` values a round needs.

    Source: specification of the federation, section 5.
    """

    fraction_train: float = 1.0
    min_clients: int = 1
    deadline_s: float = 600.0
    on_short: Literal["wait", "skip", "fail"] = "wait"
    seed: int = 0
    members: tuple[str, ...] = ()
    """All clients of the run, connected or not; empty: those that the carrier reaches."""
    again: str = "go on with --resume"
    """How the user takes it up after a fault, for messages."""


class Strategy:
    """Asks clients through a carrier and returns the *valid* replies.

    An invalid reply is an absence with the party's name, never a crash. A client whose privacy budget is spent is not
    asked again in a round.
    """

    def __init__(self, carrier: Carrier, policy: RoundPolicy, emit: Emit) -> None:
        self.carrier = carrier
        self.policy = policy
        self.emit = emit
        self._spent: dict[str, str] = {}

    def names(self) -> list[str]:
        """Every client of the run, sorted by name."""
        return sorted(self.policy.members) or self.here()

    def here(self) -> list[str]:
        """Those of them that can be asked now."""
        return sorted(party.name for party in self.carrier.parties())

    def chosen(self, round_number: int) -> list[str]:
        """The clients of this round: `fraction_train` of the sorted names, drawn by seed and round."""
        names = self.names()
        count = max(1, round(self.policy.fraction_train * len(names)))
        if count >= len(names):
            return names
        draw = random.Random(f"{self.policy.seed}/{round_number}")
        return sorted(draw.sample(names, count))

    def ask(
        self,
        requests: Mapping[str, Envelope],
        decode: Callable[[str, Envelope], Reply],
        *,
        round_number: int,
        need: Need = "quorum",
    ) -> dict[str, Reply] | None:
        """Send each named party its envelope and decode what comes back.

        Args:
            requests: client name -> envelope.
            decode: turns a reply into a checked message; raises `InvalidMessage` where it cannot.
            round_number: for messages and events.
            need: `quorum`: `min_clients` valid replies; `willing`: also, nobody may refuse or answer wrongly (the
                first cards); `none`: whatever comes of one asking.

        Returns:
            The valid replies by client name, sorted by name; None when the round is short and
            `on_short = "skip"`.

        Raises:
            QuorumError: the round is short and `on_short = "fail"`, or waiting did not help; names the missing.
            PrivacyBudgetError: too few are left whose privacy budget is not spent; names those whose is.
        """
        quorum = min(self.policy.min_clients, len(requests))
        replies: dict[str, Reply] = {}
        waiting = dict(requests)
        missing: dict[str, Absence] = {}
        for _ in range(MAX_ASKS):
            kinds = sorted({envelope.kind for envelope in waiting.values()})
            self.emit(
                "asked",
                round=round_number,
                parties=sorted(waiting),
                kinds=kinds,
                deadline_s=self.policy.deadline_s,
            )
            answers = self.carrier.ask(waiting, deadline_s=self.policy.deadline_s)
            missing = dict(answers.absences)
            for name, envelope in answers.replies.items():
                try:
                    replies[name] = decode(name, envelope)
                except InvalidMessage as error:
                    missing[name] = Absence("invalid", str(error))
            for name, absence in sorted(missing.items()):
                _LOG.warning(
                    "round %d: %s is absent (%s): %s", round_number, name, absence.reason, absence.text
                )
                self.emit("absence", round=round_number, party=name, reason=absence.reason, text=absence.text)
            if need == "willing" and any(
                absence.reason in ("refused", "invalid") for absence in missing.values()
            ):
                break
            self._spent = {name: text for name, text in self._spent.items() if name not in replies}
            self._spent |= {
                name: absence.text for name, absence in missing.items() if absence.reason == "spent"
            }
            if len(replies) >= quorum or need == "none":
                return dict(sorted(replies.items()))
            self._check_budgets(round_number, requests, quorum, need)
            if self.policy.on_short == "skip" and need == "quorum":
                return None
            if self.policy.on_short == "fail":
                break
            waiting = {name: requests[name] for name in missing if name not in self._spent}
        told = "; ".join(
            f"{name}: {absence.reason} ({absence.text})" for name, absence in sorted(missing.items())
        )
        wanted = "all" if need == "willing" else quorum
        raise QuorumError(
            f"round {round_number}: {len(replies)} of {len(requests)} clients gave a valid reply but {wanted} are "
            f"needed. Missing: {told}. Bring them back and {self.policy.again}, or lower federation.min_clients."
        )

    def _check_budgets(
        self, round_number: int, requests: Mapping[str, Envelope], quorum: int, need: Need
    ) -> None:
        """End the run where spent privacy budgets alone leave too few; one that skips rounds ends when all must be."""
        skips = self.policy.on_short == "skip" and need == "quorum"
        members, enough = (self.names(), self.policy.min_clients) if skips else (requests, quorum)
        gone = sorted(self._spent.keys() & set(members))
        if gone and len(members) - len(gone) < enough:
            told = " ".join(f"{name} says: {self._spent[name]}" for name in gone)
            raise PrivacyBudgetError(
                f"round {round_number}: the privacy budget of {', '.join(gone)} is spent, and of {len(members)} "
                f"clients {enough} are needed. {told} Where the site's own file is the stricter, it may grant more "
                "there (client.privacy.dp.target_epsilon); then go on with --resume. Else begin a new run that asks "
                "for fewer private updates, or for fewer clients (federation.min_clients)."
            )
