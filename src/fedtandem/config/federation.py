"""[federation]: rounds, quorum, deadlines."""

from typing import Literal

from pydantic import Field

from fedtandem.config.section import Section


class FederationConfig(Section):
    """The clock and the rules of a run."""

    carrier: Literal["local", "flower"] = "local"
    """What carries the messages: `local` is a loop in this process (all is still encoded and counted), `flower` reaches
    clients at their sites."""
    num_rounds: int = Field(5, ge=1)
    """Rounds of the whole algorithm (the paper: "within 10", depending on the data)."""
    private_rounds: int | None = Field(None, ge=1)
    """Clients tune on private data in the first so many rounds only; after that they replay them. Default: in every
    round (paper)."""
    fraction_train: float = Field(1.0, gt=0, le=1)
    """Share of the clients asked in a round, drawn by seed."""
    min_clients: int = Field(1, ge=1)
    """Valid replies a round needs (quorum)."""
    deadline_s: float = Field(600, gt=0)
    """Seconds until a client that has not answered counts as absent; loading its model is included."""
    on_short: Literal["wait", "skip", "fail"] = "wait"
    """Below the quorum: ask those missing again, repeat the last committed state, or end with exit code 6."""
    aggregate_every: int = Field(0, ge=0)
    """Equal clients: FedAvg of their trainable weights after every so many rounds; 0 is off."""
    train_server: bool = True
    """False: the server's model is never trained (LLM2SLM)."""
    send_down: bool = True
    """False: clients get no knowledge from the server."""
    send_up: bool = True
    """False: the server gets no knowledge from clients."""
    keep_models: bool = True
    """Local carrier: keep clients' models in memory between rounds. False loads and unloads one at a time."""
