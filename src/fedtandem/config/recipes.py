"""The configs shipped with the package: list them, copy one."""

import json
from importlib.resources import files
from pathlib import Path

from fedtandem.config.load import RECIPE, locate
from fedtandem.errors import ConfigError


def recipe_files() -> list[Path]:
    """All shipped recipes, sorted by name."""
    return sorted(Path(str(files("fedtandem") / "recipes")).glob("*.toml"))


def description(file: Path) -> str:
    """What a recipe says about itself: its first comment that is not the launch command."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "fedtandem run" not in line and line.strip("# "):
            return line.strip("# ")
    return ""


def recipes_command(name: str | None, *, output: Path | None, json_output: bool = False) -> str:
    """`fedtandem recipes [NAME]`.

    Returns:
        The list as text, or the path of the copy.

    Raises:
        ConfigError: no such recipe, or the file to write exists.
    """
    if name is None:
        listed = {file.stem: description(file) for file in recipe_files()}
        if json_output:
            return json.dumps(listed)
        width = max(map(len, listed))
        return "\n".join(f"{stem:<{width}}  {says}" for stem, says in listed.items())
    source = locate(name if name.startswith(RECIPE) else RECIPE + name)
    target = output or Path(source.name)
    if target.exists():
        raise ConfigError(f"{target} exists already; name another file with --output.")
    from fedtandem.atomic import write_text

    text = source.read_text(encoding="utf-8")
    # A copy stands elsewhere: what it extends is found by name.
    lines = [
        f'extends = "{RECIPE}{line.split(chr(34))[1].removesuffix(".toml")}"'
        if line.startswith('extends = "') and RECIPE not in line
        else line
        for line in text.splitlines()
    ]
    write_text(target, "\n".join(lines) + "\n")
    return json.dumps({"output": str(target)}) if json_output else f"{target}"
