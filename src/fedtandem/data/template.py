"""Prompt templates: "{premise}\\nquestion: {hypothesis}\\nanswer:" filled from a row's columns."""

from collections.abc import Mapping
from string import Formatter

from fedtandem.errors import DataError


def placeholders(template: str, *, where: str) -> list[str]:
    """The columns a template names, in order.

    Raises:
        DataError: a brace without its partner, or a placeholder that is more than a column's name.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(
            f"{where}: the template {template!r} cannot be read: {error}. Write {{{{ and }}}} for braces "
            "meant "
            "as text."
        ) from error
    names = []
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        if not name or spec or conversion:
            raise DataError(
                f"{where}: a placeholder of the template {template!r} is no plain column name; write "
                f"{{column}}, "
                "and {{ and }} for braces meant as text."
            )
        names.append(name)
    return names


def fill(template: str, values: Mapping[str, object], *, place: str, where: str) -> str:
    """The template with every placeholder replaced by its column.

    Raises:
        DataError: the row lacks a column; names it and those it has.
    """
    names = placeholders(template, where=where)
    if missing := [name for name in names if values.get(name) is None]:
        raise DataError(
            f"{where}: {place} has no column {missing[0]!r}, which the template {template!r} needs; its "
            "columns "
            f"are {', '.join(sorted(values))}. Rename with `columns`."
        )
    return "".join(
        literal + ("" if name is None else as_text(values[name]))
        for literal, name, _, _ in Formatter().parse(template)
    )


def as_text(value: object) -> str:
    """A column's value as text: strings as they are, true/false in lower case, lists joined by newlines."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "\n".join(as_text(item) for item in value)
    return str(value)
