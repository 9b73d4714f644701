"""Which node is which client: who its registered key says (`Keys`), or who it says it is (`SelfNamed`).

The second is for simulation and loopback only.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedtandem.errors import ConfigError

POLL_S = 0.5
NAME_TTL_S = 60.0
ASK_NAME = "query.name"


class Names(Protocol):
    """Which node is which client, now."""

    def online(self, grid: Grid) -> dict[str, int]: ...


class Keys:
    """Clients by their registered keys.

    Args:
        folder: NAME.pub for each client, as registered with the SuperLink.

    Raises:
        ConfigError: a file is no public key, or two names have one key.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._name_of: dict[bytes, str] = {}
        for name in sorted(names):
            key = read_public_key(folder / f"{name}.pub")
            if key in self._name_of:
                raise ConfigError(
                    f"{folder}: {name}.pub and {self._name_of[key]}.pub are the same key. Give each its own."
                )
            self._name_of[key] = name

    def online(self, grid: Grid) -> dict[str, int]:
        """Name -> node id of every connected client whose key is known."""
        found = {self._name_of.get(_canonical(node.public_key)): node.node_id for node in grid.get_nodes()}
        return {name: node for name, node in found.items() if name is not None}


class SelfNamed:
    """Clients by what they say; nobody is kept from claiming another's name."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def online(self, grid: Grid) -> dict[str, int]:
        """Name -> node id; new nodes are asked.

        Raises:
            ConfigError: two nodes give one name.
        """
        here = sorted(grid.get_node_ids())
        new = [node for node in here if node not in self._known]
        asked = [Message(RecordDict(), node, ASK_NAME, ttl=NAME_TTL_S) for node in new]
        ids = set(grid.push_messages(asked)) if asked else set()
        end = time.monotonic() + NAME_TTL_S
        while ids and time.monotonic() < end:
            for reply in grid.pull_messages(ids):
                ids.discard(reply.metadata.reply_to_message_id)
                if not reply.has_error():
                    name = dict(reply.content.config_records.get("name", {})).get("name")
                    self._known[reply.metadata.src_node_id] = str(name)
            time.sleep(POLL_S)
        found: dict[str, int] = {}
        for node in here:
            name = self._known.get(node)
            if name is not None and name in found:
                raise ConfigError(
                    f"two nodes call themselves {name!r}. Give each site its own name, and register keys "
                    "(fedtandem deploy), so that names are bound to them."
                )
            if name is not None:
                found[name] = node
        return found


def read_public_key(path: Path) -> bytes:
    """A public key as ssh-keygen writes it, in one form.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"the public key {path} cannot be used: {error}. Put each client's NAME.pub there; `fedtandem deploy` "
            "writes them."
        ) from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _canonical(key: bytes) -> bytes:
    """A key as a SuperLink tells it (PEM), in the form of `read_public_key`; any other stays as it is."""
    try:
        loaded = serialization.load_pem_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        return key
    return loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
