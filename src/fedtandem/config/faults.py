"""Faults of a config: where, which value, what is allowed; all in one message."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from fedtandem.errors import ConfigError


class _Missing:
    """No value stands there."""

    def __repr__(self) -> str:
        return "nothing"


MISSING: Final = _Missing()


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        path: dotted, clients by name.
        value: what stands there, or MISSING.
        text: what is wrong with it, what is allowed.
    """

    path: str
    value: Any
    text: str

    def __str__(self) -> str:
        where = self.path or "the file"
        if self.value is MISSING or self.value is None or isinstance(self.value, dict):
            return f"{where}: {self.text}"
        return f"{where} = {shown(self.value)}: {self.text}"


def shown(value: Any) -> str:
    """A value as a config file writes it, cut to one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = '"' + value.replace("\n", "\\n") + '"'
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) if not isinstance(item, dict) else "{...}" for item in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse(faults: Iterable[Fault], source: str) -> None:
    """Raise one error with all faults.

    Raises:
        ConfigError: there is at least one.
    """
    unique = list(dict.fromkeys(str(fault) for fault in faults))
    if not unique:
        return
    count = "1 fault" if len(unique) == 1 else f"{len(unique)} faults"
    raise ConfigError(f"{count} in {source}:\n" + "\n".join(f"  {line}" for line in unique))
