"""Clients that are elsewhere: what a run needs to know of the engine that reaches them."""

import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
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
    if not isinstance(event, dict) or event.get("party") != party:
        return False
    if not isinstance(event.get("event"), str) or event["event"] not in PARTY_EVENTS:
        return False
    if not isinstance(event.get("round"), int) or event.keys() & {"method", "time", "self"}:
        return False
    wanted = _FIELDS.get(event["event"], {})
    return all(type(event.get(key)) in kinds for key, kinds in wanted.items()) and all(
        math.isfinite(event[key]) for key, kinds in wanted.items() if type(event[key]) is float
    )


_NUMBER, _BOUND = (float, int), (float, int, NoneType)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "metric": {"split": (str,), "metric": (str,), "value": (float,), "n": (int,), "higher_is_better": (bool,)},
    "privacy": {
        "epsilon": _NUMBER, "epsilon_phase": _NUMBER, "delta": _NUMBER, "noise_multiplier": _NUMBER,
        "max_grad_norm": _NUMBER, "sample_rate": _NUMBER, "steps": (int,), "planned": (int,), "target_epsilon": _BOUND,
    },
}  # fmt: skip
"""What the report reads of such an event, with its types."""
PARTY_EVENTS = frozenset(
    {"phase", "metric", "alignment", "selection", "items", "paths", "check", "warning", "privacy"}
)
"""What a party writes into the record; rounds, bytes and absences are the server's to tell."""
