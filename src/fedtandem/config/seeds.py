"""Seeds that are not stated follow the run's seed: filled in before validation, so that a record shows them all."""

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any


def with_seeds(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the seeds of its data sections filled in; malformed parts are left to the validation.

    A shuffle, a partition and the secret tables of chains take the run's seed itself: parties that state the same
    set must draw the same. The prompts of a chains set get a seed of their own, by the set's place in the document,
    so that no two sets hold the same prompts. Data of a model made from scratch follow that model's seed.
    """
    filled: dict[str, Any] = deepcopy(dict(document))
    try:
        seed = int(filled.get("seed", 0))  # the validation, too, takes 3.0 and "3" for 3
    except (TypeError, ValueError, OverflowError):
        return filled
    _fill(filled.get("public"), seed, "public")
    _fill_party(filled.get("server"), seed, "server")
    for name, client in _named(filled.get("clients")):
        _fill_party(client, seed, f"clients.{name}")
    for name, held_out in _named(_get(filled.get("evaluation"), "sets")):
        _fill(_get(held_out, "data"), seed, f"evaluation.{name}")
    return filled


def _fill_party(party: Any, seed: int, place: str) -> None:
    _fill(_get(party, "data"), seed, f"{place}.data")
    scratch = _get(party, "scratch")
    own = _get(scratch, "seed")
    _fill(_get(scratch, "data"), own if isinstance(own, int) else seed, f"{place}.scratch")


def _fill(data: Any, seed: int, place: str) -> None:
    if not isinstance(data, dict):
        return
    _default(data, "seed", seed)
    if isinstance(data.get("partition"), dict):
        _default(data["partition"], "seed", seed)
    if isinstance(data.get("chains"), dict):
        _default(data["chains"], "table_seed", seed)
        digest = hashlib.sha256(f"{seed}/{place}".encode()).digest()
        _default(data["chains"], "seed", int.from_bytes(digest[:4], "big"))


def _default(table: dict[str, Any], key: str, value: int) -> None:
    if table.get(key) is None:
        table[key] = value


def _get(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, dict) else None


def _named(tables: Any) -> list[tuple[str, Any]]:
    """(name, table) of a list of named tables or of a table keyed by name."""
    if isinstance(tables, dict):
        return [(str(name), table) for name, table in tables.items()]
    if isinstance(tables, list | tuple):
        return [(str(_get(table, "name") or at), table) for at, table in enumerate(tables)]
    return []
