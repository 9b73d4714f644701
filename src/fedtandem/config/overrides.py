"""Dotted overrides: `server.tuning.learning_rate=1e-4`, `clients.clinic-a.data.path=mine.jsonl`."""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from fedtandem.config.faults import Fault
from fedtandem.config.schema import ALIASES, Shape, shape_of, unknown_key
from fedtandem.config.section import Section
from fedtandem.errors import ConfigError, did_you_mean


def read_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Arguments of the form key=value; the value stays text until its key is known.

    Raises:
        ConfigError: an argument has no `=`.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"override {argument!r} is not of the form key=value, e.g. -o federation.num_rounds=3."
            )
        overrides[key.strip()] = Text(text)
    return overrides


class Text(str):
    """An override as typed: read as a TOML value where its key wants one."""


def apply_overrides(
    root: type[Section], document: dict[str, Any], overrides: Mapping[str, Any]
) -> list[Fault]:
    """Set values in a document, in place.

    Keys go along the schema; a list of named tables takes a name, a number, or `*` for all. A typed value is a TOML
    literal (1e-4, true, ["a"], "text"), `null` for nothing, else text as it stands.

    Returns:
        Faults: paths that do not exist.
    """
    faults: list[Fault] = []
    for path, value in overrides.items():
        try:
            _set(root, root, document, path.split("."), value, path)
        except _NoSuchPath as missing:
            faults.append(Fault(path, value if not isinstance(value, Text) else str(value), str(missing)))
    return faults


class _NoSuchPath(Exception):
    """Says why."""


def _set(
    root: type[Section], section: type[Section], table: dict[str, Any], keys: list[str], value: Any, path: str
) -> None:
    key, rest = keys[0], keys[1:]
    if ALIASES.get(key, key) not in section.model_fields:
        raise _NoSuchPath(unknown_key(root, section, key))
    shape = shape_of(section, key)
    if not rest:
        table[key] = literal(value, shape)
    elif shape.free:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = table[key] = {}
        inner[".".join(rest)] = literal(value, Shape())
    elif shape.section is None:
        raise _NoSuchPath(f'"{key}" is a single value, it has no keys')
    elif shape.many:
        _set_in_list(root, shape.section, table, key, rest, value, path)
    else:
        if not isinstance(table.get(key), dict):
            table[key] = {}
        _set(root, shape.section, table[key], rest, value, path)


def _set_in_list(
    root: type[Section],
    section: type[Section],
    table: dict[str, Any],
    key: str,
    rest: list[str],
    value: Any,
    path: str,
) -> None:
    items = named_list(table.get(key))
    table[key] = items
    names = [str(item.get("name")) for item in items]
    which = rest[0]
    if which == "*":
        chosen = items
    elif which in names:
        chosen = [items[names.index(which)]]
    elif which.isdigit() and int(which) < len(items):
        chosen = [items[int(which)]]
    else:
        hint = did_you_mean(which, names)
        raise _NoSuchPath(
            f"nothing in {key} is called {which!r}; there are {', '.join(names) or 'none'}{hint}"
        )
    if len(rest) == 1:
        raise _NoSuchPath(
            f"names a whole table; go on with one of its keys: {', '.join(section.model_fields)}"
        )
    for item in chosen:
        _set(root, section, item, rest[1:], value, path)


def named_list(value: Any) -> list[dict[str, Any]]:
    """A list of tables, each holding its name; from such a list or from a table keyed by name."""
    if isinstance(value, dict):
        return [{"name": name, **item} for name, item in value.items() if isinstance(item, dict)]
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []


def literal(value: Any, shape: Shape) -> Any:
    """A typed text as the value its key wants."""
    if not isinstance(value, Text):
        return value
    text = value.strip()
    if text in ("null", "none", "None"):
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(parsed, str):
        return parsed
    plain = isinstance(parsed, bool | int | float | list | dict)
    return text if (shape.text and not isinstance(parsed, list)) or not plain else parsed
