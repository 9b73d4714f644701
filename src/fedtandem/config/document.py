"""Plain tables from config files, laid over each other."""

from collections.abc import Mapping
from typing import Any

from fedtandem.config.overrides import named_list


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: tables key by key, everything else replaced whole.

    A list of named tables that `over` states as a table keyed by name ([clients.clinic-a.tuning]) is changed name by
    name; one that it states as a list ([[clients]]) is replaced.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        elif (
            _is_named_list(old)
            and isinstance(value, Mapping)
            and all(isinstance(v, Mapping) for v in value.values())
        ):
            merged[key] = _merge_named(named_list(old), value)
        else:
            merged[key] = value
    return merged


def _is_named_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "name" in item for item in value)
    )


def _merge_named(base: list[dict[str, Any]], over: Mapping[str, Any]) -> list[dict[str, Any]]:
    merged = {item["name"]: item for item in base}
    for name, value in over.items():
        merged[name] = merge(merged.get(name, {"name": name}), value)
    return list(merged.values())
