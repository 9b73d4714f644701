"""The methods a run or a study can name: each is the same loop with some arrows taken out."""

from dataclasses import dataclass
from typing import Literal

from fedtandem.algorithms.settings import Flow
from fedtandem.errors import ConfigError

NO_EXCHANGE = Flow(private=False, clients_learn=False, server_learns=False, up=False, down=False)


@dataclass(frozen=True)
class Method:
    """One row of a results table.

    Attributes:
        flow: the arrows it keeps.
        parties: whose rows it has: `clients`, `server` or both.
        says: what it is, for reports.
        teacher: replaces `selection.teacher`; None keeps it.
        items: replaces `selection.selector`; None keeps it.
        mode: replaces `alignment.mode`; None keeps it.
        no_rounds: only the untouched models are measured.
        pools_private: the server gets every client's private data (an upper bound nobody may have).
    """

    flow: Flow
    parties: frozenset[str]
    says: str
    teacher: str | None = None
    items: str | None = None
    mode: Literal["bytes", "mined"] | None = None
    no_rounds: bool = False
    pools_private: bool = False


_CLIENTS, _SERVER, _ALL = frozenset({"clients"}), frozenset({"server"}), frozenset({"clients", "server"})

METHODS: dict[str, Method] = {
    "zero_shot": Method(NO_EXCHANGE, _ALL, "the models as they came", no_rounds=True),
    "standalone": Method(
        Flow(clients_learn=False, server_learns=False, up=False, down=False), _CLIENTS,
        "each client alone on its private data",
    ),
    "standalone_public": Method(
        Flow(server_learns=False, up=False, down=False), _CLIENTS,
        "each client alone on private data and the same public set, without the exchange",
    ),
    "server_public": Method(
        Flow(private=False, clients_learn=False, up=False, down=False), _SERVER,
        "the server alone on the same public set, without the exchange",
    ),
    "llm2slm": Method(Flow(server_learns=False, up=False), _ALL, "one way, the untouched LLM teaches the clients"),
    "fedavg": Method(
        Flow(clients_learn=False, server_learns=False, up=False, down=False, aggregate_every=1), _CLIENTS,
        "average of the clients' trainable weights each round, no public set",
    ),
    "fedmkt": Method(Flow(), _ALL, "FedMKT as configured"),
    "fedmkt_bytes": Method(Flow(), _ALL, "FedMKT with byte alignment", mode="bytes"),
    "fedmkt_mined": Method(Flow(), _ALL, "FedMKT with the paper's MinED alignment and loss", mode="mined"),
    "fedmkt_no_selection": Method(Flow(), _ALL, "FedMKT that always takes the best peer", teacher="all"),
    "fedmkt_all": Method(Flow(), _ALL, "FedMKT on the whole public set", items="all"),
    "fedmkt_random": Method(Flow(), _ALL, "FedMKT on as many items, drawn at random", items="random"),
    "lada": Method(Flow(), _ALL, "FedMKT with items chosen by LaDa's learned filter", items="lada"),
    "centralised": Method(
        Flow(private=False, clients_learn=False, up=False, down=False, server_private=True), _SERVER,
        "the server on everybody's private data and the public set", pools_private=True,
    ),
}  # fmt: skip


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        ConfigError: nothing has this name; lists what has.
    """
    if name not in METHODS:
        raise ConfigError(f"method is {name!r}; known are {', '.join(METHODS)}.")
    return METHODS[name]
