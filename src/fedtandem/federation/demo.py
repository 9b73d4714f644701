"""`fedtandem demo`: checked paths both ways, the shipped recipe `mutual`; then answers together."""

import json
from pathlib import Path

from fedtandem.config import load_config
from fedtandem.federation.runs import run_command

TEST_SETS = ("a-1-step", "a-2-steps", "a-3-steps", "b-1-step", "b-2-steps", "b-3-steps", "old-skill")
SMALL = (
    "name=demo",
    "evaluation.every=2",
    *(f"evaluation.sets.{name}.data.chains.n=200" for name in TEST_SETS),
)
"""Measured before and after alone, on so many chains a test set."""
ALONE = "standalone"
"""The control that costs nothing: its private phase is the run's own."""


def demo_command(*, output: Path | None, json_output: bool, seed: int = 0, controls: str = ALONE) -> int:
    """Run the shipped recipe `mutual` on small test sets; end with what each SLM spares the LLM.

    Args:
        output: the run folder; `runs/demo` (then `runs/demo-2`, ...) by default.
        json_output: print the summary as JSON and nothing else.
        seed: draws the clients' secret tables, their data and every batch.
        controls: methods beside it, comma-separated; `llm2slm` is the strong one, half as long again.

    Raises:
        ConfigError: no such method.
    """
    named = json.dumps([name.strip() for name in controls.split(",") if name.strip()])
    config = load_config("recipe:mutual", [*SMALL, f"seed={seed}", f"controls={named}"])
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
