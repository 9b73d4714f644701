"""From a TOML or YAML file to a config, or to one message with every fault in it."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fedtandem.config.document import merge
from fedtandem.config.faults import refuse
from fedtandem.config.overrides import apply_overrides, read_overrides
from fedtandem.config.run import RunConfig
from fedtandem.config.schema import map_paths
from fedtandem.config.section import Section
from fedtandem.config.study import StudyConfig
from fedtandem.config.validate import validated
from fedtandem.errors import ConfigError

RECIPE = "recipe:"
"""`recipe:chains` is the file of that name shipped with the package."""
ROOT = "{data.root}"

C = TypeVar("C", bound=RunConfig)


def load_config(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> RunConfig:
    """Read a run's config.

    Args:
        path: a .toml, .yaml or .yml file, or "recipe:NAME" for a shipped one.
        overrides: "key=value" texts, or dotted key -> value; applied after `extends`.

    Returns:
        The config: defaults and seeds filled in, paths absolute.

    Raises:
        ConfigError: all faults in one message, each with its path, its value and what is allowed.
    """
    return _load(RunConfig, path, overrides)


def load_study(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> StudyConfig:
    """Read a study's config: a run's sections and [study].

    Raises:
        ConfigError: as `load_config`.
    """
    return _load(StudyConfig, path, overrides)


def load_either(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> RunConfig:
    """Read a run's config, or a study's where the file has a [study] section.

    Raises:
        ConfigError: as `load_config`.
    """
    is_study = "study" in read_document(StudyConfig, locate(path))
    return _load(StudyConfig if is_study else RunConfig, path, overrides)


def load_resolved(document: Mapping[str, Any]) -> RunConfig:
    """The config that `RunConfig.resolved` wrote down, e.g. in run.json.

    Raises:
        ConfigError: it was written by another version of the schema.
    """
    return _build(RunConfig, deepcopy(dict(document)), "the recorded config")


def with_overrides(config: C, overrides: Mapping[str, Any]) -> C:
    """The config with some keys changed, as if its file had stated them.

    Seeds that the file leaves open follow a changed `seed`.

    Raises:
        ConfigError: a key does not exist, or the result cannot be carried out.
    """
    document = deepcopy(config._document) if config._document is not None else config.resolved()
    faults = apply_overrides(type(config), document, overrides)
    refuse(faults, "the overrides")
    return _build(type(config), document, "the config with overrides")


def cell_config(study: StudyConfig, row: str, seed: int) -> RunConfig:
    """The run of one cell of a study: a row (method or arm) under one seed.

    Raises:
        ConfigError: the study has no such row, or an arm's overrides cannot be carried out.
    """
    arm = next((arm for arm in study.study.arms if arm.name == row), None)
    if arm is None and row not in study.study.methods:
        raise ConfigError(f"the study has no row {row!r}; its rows are {', '.join(study.study.rows)}.")
    document = deepcopy(study._document) if study._document is not None else study.resolved()
    document.pop("study", None)
    changes = {
        "algorithm": arm.method if arm else row,
        "controls": [],
        "seed": seed,
        **(arm.overrides if arm else {}),
    }
    faults = apply_overrides(RunConfig, document, changes)
    refuse(faults, f"the overrides of study row {row!r}")
    return _build(RunConfig, document, f"study row {row!r}")


def _load(schema: type[C], path: str | Path, overrides: Iterable[str] | Mapping[str, Any]) -> C:
    file = locate(path)
    document = read_document(schema, file)
    if schema is RunConfig and "study" in document:
        raise ConfigError(f"{path} is a study (it has a [study] section): run it with `fedtandem study`.")
    changes = dict(overrides) if isinstance(overrides, Mapping) else read_overrides(overrides)
    faults = apply_overrides(schema, document, changes)
    document = map_paths(schema, document, lambda kind, text: absolute(kind, text, Path.cwd()))
    return _build(schema, document, str(path), faults)


def _build(schema: type[C], document: dict[str, Any], source: str, faults: Iterable[Any] = ()) -> C:
    root = data_root(document)
    filled = map_paths(schema, document, lambda _, text: text.replace(ROOT, root))
    if isinstance(filled.setdefault("data", {}), dict):
        filled["data"]["root"] = root
    config, more = validated(schema, filled)
    refuse([*faults, *more], source)
    if config is None:
        raise ConfigError(f"{source} is not a config.")
    object.__setattr__(config, "_document", document)
    return config


def locate(path: str | Path) -> Path:
    """The file behind a path or a "recipe:NAME".

    Raises:
        ConfigError: there is none.
    """
    text = str(path)
    if text.startswith(RECIPE):
        folder = Path(str(files("fedtandem") / "recipes"))
        file = folder / f"{text.removeprefix(RECIPE).removesuffix('.toml')}.toml"
        if not file.is_file():
            known = ", ".join(sorted(recipe.stem for recipe in folder.glob("*.toml")))
            raise ConfigError(f"there is no recipe {text.removeprefix(RECIPE)!r}; shipped are {known}.")
        return file
    file = Path(text).expanduser()
    if not file.is_file():
        raise ConfigError(f"there is no config file {text!r} (looked in {Path.cwd()}).")
    return file


def read_document(schema: type[Section], file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tables over those of the files it `extends`; relative paths made absolute, each from its own file.

    Raises:
        ConfigError: not TOML or YAML, a file that is not there, or files that extend each other in a circle.
    """
    file = file.resolve()
    if file in seen:
        circle = " -> ".join(path.name for path in (*seen, file))
        raise ConfigError(f"{file}: files extend each other in a circle ({circle}).")
    own = parse(file)
    bases = own.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{file}: extends = {bases!r} must be a file name or a list of them.")
    document: dict[str, Any] = {}
    for base in bases:
        target = locate(base) if base.startswith(RECIPE) else file.parent / Path(base).expanduser()
        if not target.is_file():
            raise ConfigError(f"{file}: extends {base!r}, but there is no file {target}.")
        document = merge(document, read_document(schema, target, (*seen, file)))
    return merge(document, map_paths(schema, own, lambda kind, text: absolute(kind, text, file.parent)))


def parse(file: Path) -> dict[str, Any]:
    """A TOML or YAML file as plain values.

    Raises:
        ConfigError: another ending, or a syntax error, with its line.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".toml":
            return tomllib.loads(text)
        if file.suffix in (".yaml", ".yml"):
            value = yaml.load(text, Loader=_UniqueKeys)
            if isinstance(value, dict):
                return value
            raise ConfigError(f"{file}: holds a {type(value).__name__}, not a table of sections.")
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid {file.suffix.removeprefix('.').upper()}: {error}") from error
    raise ConfigError(f"{file}: a config ends in .toml, .yaml or .yml.")


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; here that is an error, as in TOML."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def absolute(kind: str, text: str, folder: Path) -> str:
    """A relative path as seen from `folder`; hub names, embedded things and `{data.root}` stay as they are."""
    if not text or text.startswith((ROOT, "embedded:", "scratch:")) or "://" in text:
        return text
    path = Path(text).expanduser()
    if kind == "folder or name" and not (text.startswith((".", "~", "/")) or (folder / path).is_dir()):
        return text
    return os.path.normpath(folder / path)


def data_root(document: Mapping[str, Any]) -> str:
    section = document.get("data")
    stated = section.get("root") if isinstance(section, Mapping) else None
    if isinstance(stated, str):
        return stated
    return os.path.normpath(Path.cwd() / (os.environ.get("FEDTANDEM_SHARED") or "../shared"))
