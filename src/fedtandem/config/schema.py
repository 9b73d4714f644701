"""Walk a raw document along the schema: which keys exist, where tables hang, which texts are paths."""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fedtandem.config.section import IsPath, IsPathOrName, Section

ALIASES = {"torch_dtype": "dtype"}
"""Accepted spellings of other programs -> ours."""


@dataclass(frozen=True)
class Shape:
    """What a key holds.

    Attributes:
        section: the section, if it is a table or a list of tables.
        many: it is a list of tables with names.
        free: it is a table with keys of the user's own.
        text: a plain text is allowed.
        path: "file" or "folder or name" if texts in it are paths.
    """

    section: type[Section] | None = None
    many: bool = False
    free: bool = False
    text: bool = False
    path: Literal["file", "folder or name"] | None = None


def shape_of(section: type[Section], key: str) -> Shape:
    """The shape of one key of a section.

    Raises:
        KeyError: the section has no such key.
    """
    info = section.model_fields[ALIASES.get(key, key)]
    return _shape(info.annotation, tuple(info.metadata))


def _shape(annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _shape(inner, (*metadata, *more))
    if origin in (Union, types.UnionType):
        shapes = [_shape(arm, metadata) for arm in get_args(annotation) if arm is not type(None)]
        return Shape(
            section=next((shape.section for shape in shapes if shape.section), None),
            many=any(shape.many for shape in shapes),
            free=any(shape.free for shape in shapes),
            text=any(shape.text for shape in shapes),
            path=next((shape.path for shape in shapes if shape.path), None),
        )
    if origin is tuple or origin is list:
        inner = _shape(get_args(annotation)[0], metadata)
        return Shape(section=inner.section, many=inner.section is not None, path=inner.path)
    if origin is dict:
        return Shape(free=True)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Shape(section=annotation)
    if annotation is str or (origin is Literal and all(isinstance(arm, str) for arm in get_args(annotation))):
        kind: Literal["file", "folder or name"] | None = None
        for mark in metadata:
            kind = (
                "file"
                if isinstance(mark, IsPath)
                else "folder or name"
                if isinstance(mark, IsPathOrName)
                else kind
            )
        return Shape(text=True, path=kind)
    return Shape()


def map_paths(
    section: type[Section], table: Mapping[str, Any], change: Callable[[str, str], str]
) -> dict[str, Any]:
    """The table with every path in it replaced by `change(kind, text)`; malformed parts are left as they are."""
    changed: dict[str, Any] = {}
    for key, value in table.items():
        if ALIASES.get(key, key) not in section.model_fields:
            changed[key] = value
            continue
        shape = shape_of(section, key)
        if shape.section is not None:
            changed[key] = _map_tables(shape.section, value, change, many=shape.many)
        elif shape.path is not None and isinstance(value, str):
            changed[key] = change(shape.path, value)
        elif shape.path is not None and isinstance(value, list | tuple):
            changed[key] = [change(shape.path, item) if isinstance(item, str) else item for item in value]
        else:
            changed[key] = value
    return changed


def _map_tables(section: type[Section], value: Any, change: Callable[[str, str], str], *, many: bool) -> Any:
    if many and isinstance(value, list | tuple):
        return [map_paths(section, item, change) if isinstance(item, Mapping) else item for item in value]
    if many and isinstance(value, Mapping):
        return {
            name: map_paths(section, item, change) if isinstance(item, Mapping) else item
            for name, item in value.items()
        }
    return map_paths(section, value, change) if isinstance(value, Mapping) else value


def unknown_key(root: type[Section], section: type[Section], key: str) -> str:
    """What to say about a key that a section does not have."""
    known = list(section.model_fields)
    near = get_close_matches(key, known, n=1)
    if near:
        return f'unknown key; did you mean "{near[0]}"?'
    homes = [path for path in leaves(root) if path.rpartition(".")[2] == key]
    if homes:
        return f'unknown key here; it belongs at "{homes[0]}"'
    near = get_close_matches(key, {path.rpartition(".")[2] for path in leaves(root)}, n=1)
    if near:
        home = next(path for path in leaves(root) if path.rpartition(".")[2] == near[0])
        return f'unknown key; did you mean "{home}"?'
    return f"unknown key; known here: {', '.join(known)}"


def leaves(section: type[Section], prefix: str = "") -> list[str]:
    """Dotted paths of all keys, a list of tables as `clients.<name>`; shallow paths first."""
    paths: list[str] = []
    for key in section.model_fields:
        shape = shape_of(section, key)
        paths.append(prefix + key)
        if shape.section is not None:
            paths += leaves(shape.section, f"{prefix}{key}." + ("<name>." if shape.many else ""))
    return sorted(paths, key=lambda path: path.count("."))
