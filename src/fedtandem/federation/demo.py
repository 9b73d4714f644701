"""`fedtandem demo`: the chains playground from its shipped recipe, from nothing to a report."""

from importlib.resources import as_file, files
from pathlib import Path

from fedtandem.config import load_config
from fedtandem.federation.runs import run_command


def demo_command(*, output: Path | None, json_output: bool, seed: int = 0) -> int:
    """Run the shipped `chains` recipe.

    Args:
        output: the run folder; `runs/demo` (then `runs/demo-2`, ...) by default.
        json_output: print the summary as JSON and nothing else.
        seed: draws the clients' secret tables, their data and every batch.
    """
    with as_file(files("fedtandem") / "recipes" / "chains.toml") as recipe:
        config = load_config(recipe, [f"seed={seed}", "name=demo"])
    return run_command(
        config, output=output or _fresh(Path("runs") / "demo"), resume=False, json_output=json_output
    )


def _fresh(folder: Path) -> Path:
    """The folder, or the first numbered neighbour that does not exist yet."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
