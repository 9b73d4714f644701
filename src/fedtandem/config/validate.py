"""Hold a document against the schema and say all that is wrong with it, in the words of the file."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError

from fedtandem.config.agreement import Disagreement
from fedtandem.config.faults import MISSING, Fault
from fedtandem.config.schema import shape_of, unknown_key
from fedtandem.config.section import Section

S = TypeVar("S", bound=Section)


def validated(schema: type[S], document: Mapping[str, Any]) -> tuple[S | None, list[Fault]]:
    """The config, or its faults: those of single values and those between sections, together."""
    try:
        return schema.model_validate(document), []
    except ValidationError as error:
        faults = _faults(schema, document, error)
        faults += _behind(schema, document, error)
        return None, faults


def _faults(schema: type[Section], document: Mapping[str, Any], error: ValidationError) -> list[Fault]:
    found: dict[str, Fault] = {}
    for item in error.errors(include_url=False):
        raised = item.get("ctx", {}).get("error")
        if isinstance(raised, Disagreement):
            found.update({str(fault): fault for fault in raised.faults})
            continue
        fault = _fault(schema, document, item)
        earlier = found.get(fault.path)
        # The arms of a union fail one by one at the same place.
        found[fault.path] = (
            fault if earlier is None else Fault(fault.path, fault.value, f"{earlier.text}, or {fault.text}")
        )
    return list(found.values())


def _behind(schema: type[Section], document: Mapping[str, Any], error: ValidationError) -> list[Fault]:
    """Rules between sections are held only against a well-formed document: drop what is faulty and look again."""
    repaired = deepcopy(dict(document))
    items = error.errors(include_url=False)
    if any(isinstance(item.get("ctx", {}).get("error"), Disagreement) for item in items):
        return []
    places = {_known_part(repaired, item["loc"]) for item in items if item["type"] != "missing"}
    # Last first: taking an item out of a list moves those behind it.
    for place in sorted(
        places, key=lambda place: [(isinstance(step, int), step) for step in place], reverse=True
    ):
        _drop(repaired, place)
    try:
        schema.model_validate(repaired)
    except ValidationError as second:
        raised = [item.get("ctx", {}).get("error") for item in second.errors(include_url=False)]
        return [fault for one in raised if isinstance(one, Disagreement) for fault in one.faults]
    return []


def _fault(schema: type[Section], document: Mapping[str, Any], item: Any) -> Fault:
    location = _known_part(document, item["loc"])
    path, value = _path(document, location), _value(document, location)
    if item["type"] == "missing":
        missing = item["loc"][len(location)]
        where = f"{path}.{missing}" if path else str(missing)
        return Fault(where, MISSING, "is missing" + _says(schema, (*location, missing)))
    if item["type"] == "extra_forbidden":
        return Fault(path, value, unknown_key(schema, _section_at(schema, location[:-1]), str(location[-1])))
    return Fault(path, value, _plain(item["msg"]))


def _plain(message: str) -> str:
    """Pydantic's words in ours: "Input should be greater than 0" -> "must be greater than 0"."""
    message = re.sub(r"^(Value error|Assertion failed), ", "", message)
    message = re.sub(r"^Input should be ", "must be ", message)
    message = re.sub(r"^(String|Tuple|List|Dictionary) should ", "must ", message)
    message = message.replace("must be a valid dictionary or instance of", "must be a table:")
    return message.replace("'", '"')


def _known_part(document: Mapping[str, Any], location: Sequence[Any]) -> tuple[Any, ...]:
    """The part of a location that stands in the document; the rest names arms of unions or what is missing."""
    value: Any = document
    kept: list[Any] = []
    for step in location:
        if isinstance(value, Mapping) and isinstance(step, int) and step < len(value):
            step = list(value)[step]  # a table keyed by name became a list on its way in
        known = step in value if isinstance(value, Mapping) else isinstance(value, list | tuple)
        if not known or (
            isinstance(value, list | tuple) and not (isinstance(step, int) and step < len(value))
        ):
            break
        value = value[step]
        kept.append(step)
    return tuple(kept)


def _value(document: Mapping[str, Any], location: Sequence[Any]) -> Any:
    value: Any = document
    for step in location:
        value = value[step]
    return value if location else MISSING


def _path(document: Mapping[str, Any], location: Sequence[Any]) -> str:
    """Dotted, tables of a list by their names."""
    value: Any = document
    words: list[str] = []
    for step in location:
        value = value[step]
        name = value.get("name") if isinstance(step, int) and isinstance(value, Mapping) else None
        words.append(str(name) if isinstance(name, str) else str(step))
    return ".".join(words)


def _section_at(schema: type[Section], location: Sequence[Any]) -> type[Section]:
    section, in_list = schema, False
    for step in location:
        if in_list:
            in_list = False
            continue
        shape = shape_of(section, str(step))
        if shape.section is None:
            return section
        section, in_list = shape.section, shape.many
    return section


def _says(schema: type[Section], location: Sequence[Any]) -> str:
    """What the schema says about a key."""
    section = _section_at(schema, location[:-1])
    info = section.model_fields.get(str(location[-1]))
    return f" ({info.description})" if info is not None and info.description else ""


def _drop(document: Any, location: Sequence[Any]) -> None:
    """Take a value out of a document, in place."""
    if not location:
        return
    for step in location[:-1]:
        document = document[step]
    if isinstance(document, dict | list):
        document.pop(location[-1])
