"""Imports point one way: from the command line down to the pure rooms, never back."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "fedtandem"

PURE = {"exchange", "knowledge", "alignment", "selection", "distillation", "inference"}
EVERYWHERE = {"errors", "atomic", "user_code"} | PURE
LOWEST = {"models", "data"}
TOP = {"studies", "reports"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "atomic": {"errors"},
    "user_code": {"errors"},
    **{room: {"errors", "user_code"} | PURE for room in PURE},
    "data": EVERYWHERE | LOWEST,
    "models": EVERYWHERE | LOWEST,
    "tuning": EVERYWHERE | LOWEST,
    # Verdicts on written paths: plain values and the playground's form; no model, no torch.
    "checking": EVERYWHERE | {"data"},
    "evaluation": EVERYWHERE | LOWEST,
    "algorithms": EVERYWHERE | LOWEST | {"tuning", "evaluation", "checking"},
    # What a run is: plain values for the rooms below, read by those above alone.
    "config": EVERYWHERE | LOWEST | {"checking"},
    "federation": EVERYWHERE | LOWEST | {"tuning", "evaluation", "checking", "algorithms", "config"},
    "reports": EVERYWHERE | LOWEST | {"config", "federation"},
    "serving": EVERYWHERE | LOWEST | {"algorithms", "config", "federation", ""},
    "studies": EVERYWHERE
    | LOWEST
    | {"tuning", "evaluation", "checking", "algorithms", "config", "federation", "reports"},
    "cli": EVERYWHERE | LOWEST | {"config", "federation", "reports", "studies", "serving", ""},
    "__main__": {"cli"},
    "": {"errors", "config", "federation", "models", "knowledge", "selection", "distillation"},
}
"""Room -> the rooms it may import beside itself; "" is the package's own __init__."""

FINISHED_PAGES = {("federation", "reports")}
"""A command ends by printing a table and writing a page: these imports stand inside functions, never on top."""

THIRD_PARTY_OF_PURE = {
    "torch",
    "isal",
    "numpy",
    "rapidfuzz",
    "safetensors",
    "zstandard",
    "typing_extensions",
    "usearch",
}


def imports(file: Path, package: Path = PACKAGE) -> Iterator[tuple[str, int, bool]]:
    """(dotted module, line, whether it stands on top of the file) of every import, `TYPE_CHECKING` ones included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    here = ["fedtandem", *file.relative_to(package).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from fedtandem import x` imports a room or a public name of the package itself.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "fedtandem" else [module]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) not in inside


def room_of(module: str, package: Path = PACKAGE) -> str:
    """`fedtandem.models.load` -> `models`; a public name -> "" (the package itself)."""
    parts = module.split(".")
    if len(parts) == 1:
        return ""
    is_room = (package / parts[1]).is_dir() or (package / f"{parts[1]}.py").is_file()
    return parts[1] if is_room else ""


def arrows_back(package: Path = PACKAGE) -> list[str]:
    """Every import that points where it must not."""
    found = []
    for file in sorted(package.rglob("*.py")):
        relative = file.relative_to(package)
        room = relative.parts[0].removesuffix(".py").replace("__init__", "")
        for module, line, on_top in imports(file, package):
            if module.split(".")[0] == "fedtandem":
                target = room_of(module, package)
                if target == room or target in MAY_IMPORT[room]:
                    continue
                if (room, target) in FINISHED_PAGES and not on_top:
                    continue
                found.append(f"{relative}:{line}: {room} imports {target or 'the package'} ({module})")
            elif room in PURE and module.split(".")[0] not in THIRD_PARTY_OF_PURE and not is_standard(module):
                found.append(f"{relative}:{line}: {room} is pure and imports {module}")
    return found


def is_standard(module: str) -> bool:
    import sys

    return module.split(".")[0] in sys.stdlib_module_names


def test_no_import_points_back() -> None:
    assert arrows_back() == []


def test_every_room_is_in_the_table() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms -= {"__pycache__", "__init__", "recipes", "py"}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("models", "from fedtandem.algorithms.fedmkt import run_fedmkt"),
        ("algorithms", "from fedtandem.config import RunConfig"),
        ("knowledge", "import transformers"),
        ("selection", "from ..federation import runs"),
        ("alignment", "def f():\n    from fedtandem.models import load"),
        ("tuning", "import fedtandem.config.run"),
        ("data", "from fedtandem import run"),
    ],
)
def test_a_planted_back_arrow_is_found(tmp_path: Path, room: str, line: str) -> None:
    for name in MAY_IMPORT:
        if name:
            (tmp_path / name).mkdir()
    (tmp_path / room / "planted.py").write_text(line)
    assert [fault.split(":")[0] for fault in arrows_back(tmp_path)] == [f"{room}/planted.py"]


def test_only_flower_files_may_import_flwr() -> None:
    allowed = {"flower.py", "flower_messages.py", "flower_names.py", "client_app.py", "server_app.py"}
    for file in PACKAGE.rglob("*.py"):
        if file.name not in allowed:
            assert not [module for module, _, _ in imports(file) if module.split(".")[0] == "flwr"], file
