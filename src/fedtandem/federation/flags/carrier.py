"""What carries a run's messages, as typed after `fedtandem run FILE`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtandem.errors import ConfigError

if TYPE_CHECKING:
    from fedtandem.config import RunConfig
    from fedtandem.federation.progress import Watch
    from fedtandem.federation.runs import Engine


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--carrier",
        choices=["local", "flower"],
        help="clients in this process, or at their sites through Flower",
    )
    add_connection(parser)
    parser.add_argument(
        "--simulate", type=int, metavar="N", help="flower: N virtual clients on this machine (needs Ray)"
    )


def add_connection(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say where clients are, and who is who."""
    parser.add_argument("--connection", metavar="NAME", help="flower: a SuperLink of $FLWR_HOME/config.toml")
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help="flower: the clients' registered keys, NAME.pub"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="flower, loopback only: clients say themselves who they are"
    )


def overrides(arguments: argparse.Namespace) -> list[str]:
    """The flags as overrides of the config."""
    if arguments.carrier is None and (arguments.connection or arguments.simulate is not None):
        return ["federation.carrier=flower"]
    return [f"federation.carrier={arguments.carrier}"] if arguments.carrier else []


def engine(config: "RunConfig", arguments: argparse.Namespace) -> "Engine":
    """The engine that was asked for.

    Raises:
        ConfigError: flags that do not go together; an extra that is not installed.
    """
    from fedtandem.federation.runs import here

    asked = [
        f"--{name}" for name in ("connection", "keys", "insecure", "simulate") if getattr(arguments, name)
    ]
    if config.federation.carrier == "local":
        if asked:
            raise ConfigError(f"{', '.join(asked)}: is for --carrier flower; the carrier is local.")
        return here
    if arguments.simulate is not None:
        return _simulated(arguments)
    if arguments.connection is None:
        raise ConfigError("--carrier flower needs --connection NAME (a SuperLink), or --simulate N.")
    check_names(arguments)
    return _deployed(arguments)


def check_names(arguments: argparse.Namespace) -> None:
    """Refuse a connection on which nobody knows who is who.

    Raises:
        ConfigError: neither keys nor --insecure, or both.
    """
    if (arguments.keys is None) != arguments.insecure:
        raise ConfigError(
            "--connection needs --keys DIR, the clients' public keys that names are bound to (`fedtandem deploy` "
            "writes them), or, on loopback, --insecure in its place: clients then say themselves who they are."
        )


def _simulated(arguments: argparse.Namespace) -> "Engine":
    from fedtandem.federation.deployed import OFF, require_flower

    require_flower(simulation=True)

    def run(config: "RunConfig", folder: Path, resume: bool, watch: "Watch") -> dict[str, Any]:
        import json
        import os

        os.environ.update(OFF)
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine is no fault
        os.environ.setdefault("FLWR_HOME", str(folder.resolve() / "flwr"))
        from fedtandem.federation.server_app import simulate

        simulate(config, folder, count=arguments.simulate, resume=resume)
        return dict(json.loads((folder / "summary.json").read_text()))

    return run


def _deployed(arguments: argparse.Namespace) -> "Engine":
    from fedtandem.federation.deployed import run_deployed

    def run(config: "RunConfig", folder: Path, resume: bool, watch: "Watch") -> dict[str, Any]:
        return run_deployed(
            config, folder, connection=arguments.connection, keys=arguments.keys, resume=resume, watch=watch
        )

    return run
