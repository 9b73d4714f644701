"""What a row cost: updates, CPU seconds and bytes, per party."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedtandem.studies.cells import Cell

CLIENTS = "clients"
"""The party of a row that is the mean over all clients measured alike."""
SERVER = "server"
MAX_UPDATE_GAP = 0.01
"""Two rows have equal budgets when their updates differ by no more than this share."""


def of_party(values: Mapping[str, float], party: str) -> float:
    """A party's share of a cell's cost; the mean over clients for `clients`."""
    if party != CLIENTS:
        return float(values.get(party, 0.0))
    clients = [value for name, value in values.items() if name not in (SERVER, "all")]
    return float(np.mean(clients)) if clients else 0.0


def payload_of(cell: Cell, party: str) -> float:
    """Bytes a party sent and received; the server's are those of all clients together."""
    both = {name: float(up + down) for name, (up, down) in cell.payload_bytes.items()}
    return sum(both.values()) if party == SERVER else of_party(both, party)


def are_equal(updates: float, control_updates: float) -> bool:
    """Whether two rows were trained for the same number of updates."""
    return abs(updates - control_updates) <= MAX_UPDATE_GAP * max(updates, control_updates)


def budget(cell: Cell) -> dict[str, Any]:
    """A cell's cost as JSON values."""
    return {
        "method": cell.row,
        "seed": cell.seed,
        "updates": dict(cell.updates),
        "cpu_seconds": cell.cpu_seconds,
        "up": sum(up for up, _ in cell.payload_bytes.values()),
        "down": sum(down for _, down in cell.payload_bytes.values()),
    }
