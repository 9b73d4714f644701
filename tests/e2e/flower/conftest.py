"""The real apps without sockets: a `Grid` that calls the `ClientApp` itself, once per message, with a fresh context.

It sets ids that a running Flower process sets (`TaskIdentity`, message ids) by their internal names; its own test
(`test_in_process_grid.py`) fails first when Flower moves them.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedtandem.config import RunConfig
from fedtandem.federation import client_app
from fedtandem.federation.runs import run_methods
from fedtandem.federation.server_app import remote

SERVER, FIRST = 1, 101
"""Node ids: of a SuperLink, and of the first client."""
Meddle = Callable[[Message, Callable[[Message], Message]], list[Message]]
"""What the network does: gets a request and the way to the client; returns what comes back."""


def honest(request: Message, client: Callable[[Message], Message]) -> list[Message]:
    return [client(request)]


def died(request: Message) -> Message:
    """What a SuperLink says of a node that is gone."""
    return Message(Error(5, "node unavailable"), reply_to=request)


@dataclass
class InProcessGrid(Grid):
    """Nodes 101, 102, ... are the clients by name; `meddle` is the network; `keys` as a SuperLink tells them."""

    site_of: client_app.SiteOf
    count: int
    meddle: Meddle = honest
    keys: dict[int, bytes] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._inbox: list[Message] = []
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = SERVER

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [FIRST + at for at in range(self.count) if FIRST + at not in self.offline]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, public_key=self.keys.get(node, b"")) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent.append(message)
            ids.append(message.metadata.message_id)
            self._inbox += self.meddle(message, self.client)
            TaskIdentity.node_id = SERVER
        return ids

    def client(self, message: Message) -> Message:
        """One client process: a new app, an empty context."""
        node = message.metadata.dst_node_id
        TaskIdentity.node_id = node
        config = {"partition-id": node - FIRST, "num-partitions": self.count}
        context = Context(1, node, config, RecordDict(), {})
        return client_app.make_client_app(self.site_of)(message, context)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self._inbox if reply.metadata.reply_to_message_id in wanted]
        self._inbox = [reply for reply in self._inbox if reply not in found]
        return found

    def send_and_receive(self, *_: Any, **__: Any) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture
def make_grid() -> type[InProcessGrid]:
    """For tests that need no run: `make_grid(site_of, count)`."""
    return InProcessGrid


@dataclass
class Federation:
    """A run of the real apps over an in-process grid."""

    config: RunConfig
    folder: Path
    grid: InProcessGrid
    keys: Path | None = None

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        engine = remote(self.grid, self.config, "in-process grid", self.keys)
        return run_methods(
            self.config, self.config.methods, self.folder / "server", resume=resume, remote=engine
        )

    def adapters(self) -> dict[str, bytes]:
        """Final weights by party."""
        found = {"server": self.folder / "server" / "adapters" / "fedmkt" / "server"}
        for client in self.config.clients:
            (found[client.name],) = (self.folder / "sites" / client.name / "runs").glob("*/fedmkt/adapter")
        return weights(found)


def weights(folders: dict[str, Path]) -> dict[str, bytes]:
    """The trained weights of each party's folder, as the bytes of its only safetensors file."""
    return {name: next(folder.glob("*.safetensors")).read_bytes() for name, folder in folders.items()}


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Federation]:
    """Make one: `federation(config, meddle=...)`."""

    def make(config: RunConfig, name: str = "flower", **grid: Any) -> Federation:
        sites = client_app.VirtualSites(config, tmp_path / name / "sites")
        return Federation(
            config, tmp_path / name, InProcessGrid(**{"site_of": sites, "count": len(config.clients), **grid})
        )

    return make
