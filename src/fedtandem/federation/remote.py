"""Clients that are elsewhere: what a run needs to know of the engine that reaches them."""

import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedtandem.errors import ConfigError
from fedtandem.exchange.carrier import Carrier
from fedtandem.federation.methods import METHODS

Count = Callable[[str, int, int, int], None]
"""`count(party, round, bytes up, bytes down)`."""
Emit = Callable[..., None]


@dataclass(frozen=True)
class Remote:
    """An engine.

    Attributes:
        name: what the record calls it.
        connect: (experiment, method, count, emit) -> the carrier of one method.
    """

    name: str
    connect: Callable[[str, str, Count, Emit], Carrier]


def new_experiment(name: str) -> str:
    """What sites keep their states under: the run's name and 8 hexadecimal digits, new for every run folder."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[:60] or 'run'}-{secrets.token_hex(4)}"


def check_methods(methods: Sequence[str]) -> None:
    """Refuse what cannot be done without the clients' models or data.

    Raises:
        ConfigError: names the method.
    """
    for name in methods:
        if METHODS[name].no_rounds:
            raise ConfigError(
                f"method {name}: clients elsewhere are measured untouched in the first round of any other method; "
                "leave it out."
            )
        if METHODS[name].pools_private:
            raise ConfigError(
                f"method {name} needs every client's private data in one place, which sites do not send. Run it with "
                "--carrier local where you hold all data, or leave it out."
            )


def is_told(event: Any, party: str) -> bool:
    """Whether an event of a site's record may enter the server's: its own, of a kind that parties write."""
    if not isinstance(event, dict) or event.get("party") != party or event.get("event") not in PARTY_EVENTS:
        return False
    if not isinstance(event.get("round"), int) or event.keys() & {"method", "time", "self"}:
        return False
    return event["event"] != "metric" or (
        {key: type(event.get(key)) for key in _METRIC} == _METRIC and math.isfinite(event["value"])
    )


_METRIC = {"split": str, "metric": str, "value": float, "n": int, "higher_is_better": bool}
PARTY_EVENTS = frozenset({"phase", "metric", "alignment", "selection", "items", "paths", "check", "warning"})
"""What a party writes into the record; rounds, bytes and absences are the server's to tell."""
