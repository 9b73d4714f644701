"""`fedtandem demo`: the chains playground from its shipped recipe, from nothing to a report, then answers together."""

from importlib.resources import as_file, files
from pathlib import Path

from fedtandem.config import load_config
from fedtandem.federation.runs import run_command


def demo_command(*, output: Path | None, json_output: bool, seed: int = 0) -> int:
    """Run the shipped `chains` recipe; end with what each SLM spares the LLM.

    Args:
        output: the run folder; `runs/demo` (then `runs/demo-2`, ...) by default.
        json_output: print the summary as JSON and nothing else.
        seed: draws the clients' secret tables, their data and every batch.
    """
    with as_file(files("fedtandem") / "recipes" / "chains.toml") as recipe:
        config = load_config(recipe, [f"seed={seed}", "name=demo"])
    folder = output or _fresh(Path("runs") / "demo")
    code = run_command(config, output=folder, resume=False, json_output=json_output)
    if code == 0 and not json_output:
        from fedtandem.federation.joint import joint_command
        from fedtandem.reports.tables import print_joint

        print_joint(joint_command(folder))
    return code


def _fresh(folder: Path) -> Path:
    """The folder, or the first numbered neighbour that does not exist yet."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
