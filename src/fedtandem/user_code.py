"""A function of the user's own, named in a config as "package.module:function"."""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from fedtandem.errors import ConfigError, did_you_mean

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def known_or_own(value: str, known: Sequence[str]) -> str:
    """A name, if it is known or names a function of the user's own.

    Raises:
        ValueError: it is neither; suggests what is near.
    """
    if value in known or REFERENCE.fullmatch(value):
        return value
    hint = did_you_mean(value, known)
    raise ValueError(f'must be one of {", ".join(known)} or "package.module:function"{hint}')


def import_function(reference: str, key: str, shape: str) -> Callable[..., Any]:
    """The function behind "package.module:function".

    Args:
        key: the config key it was named under, for the message.
        shape: what it should look like, for the message.

    Raises:
        ConfigError: its module cannot be imported, or holds no such function.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's own may raise what it likes
        raise ConfigError(
            f"{key} is {reference!r}, but the module {module_name!r} cannot be imported: {error}. "
            "Install it, or put its folder on PYTHONPATH."
        ) from error
    function: object = getattr(module, function_name, None)
    if not callable(function):
        found = (
            "has no such name" if function is None else f"holds a {type(function).__name__} under that name"
        )
        raise ConfigError(f"{key} is {reference!r}, but {module_name!r} {found}; name a function {shape}.")
    return function
