"""`fedtandem.run`: a config's method and controls, from Python."""

from pathlib import Path
from typing import Any

from fedtandem.config import RunConfig
from fedtandem.federation.runs import run_methods


def run(config: RunConfig, output: str | Path | None = None, *, resume: bool = False) -> dict[str, Any]:
    """Run a config's method and its controls.

    Args:
        config: from `load_config`.
        output: the run folder; default `runs/NAME`.
        resume: go on with what the folder holds.

    Returns:
        The summary, as in `summary.json`: "rows" of (method, party, split, metric, value, n, seed), "bytes",
        "cpu_seconds".

    Raises:
        FedtandemError: any fault of config, data, models or messages; its class says which.
    """
    folder = Path(output) if output is not None else Path("runs") / config.name
    return run_methods(config, config.methods, folder, resume=resume)
