"""`fedtandem demo`: checked paths both ways, the shipped recipe `mutual` with fewer updates; then answers together."""

from pathlib import Path

from fedtandem.config import load_config
from fedtandem.federation.runs import run_command

CLIENTS = ("clinic-a", "clinic-b")
TEST_SETS = ("a-1-step", "a-2-steps", "a-3-steps", "b-1-step", "b-2-steps", "b-3-steps", "old-skill")
FEWER = (
    "name=demo",
    "server.tuning.max_steps=450",
    *(f"clients.{client}.tuning.max_steps=400" for client in CLIENTS),
    *(f"evaluation.sets.{name}.data.chains.n=200" for name in TEST_SETS),
    "evaluation.every=2",
)
"""What makes the recipe a demo of four minutes; with fewer updates clients are not sure of what they know."""


def demo_command(*, output: Path | None, json_output: bool, seed: int = 0) -> int:
    """Run the shipped recipe `mutual` with fewer updates; end with what each SLM spares the LLM.

    Args:
        output: the run folder; `runs/demo` (then `runs/demo-2`, ...) by default.
        json_output: print the summary as JSON and nothing else.
        seed: draws the clients' secret tables, their data and every batch.
    """
    config = load_config("recipe:mutual", [*FEWER, f"seed={seed}"])
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
