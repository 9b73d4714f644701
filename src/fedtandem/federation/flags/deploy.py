"""`fedtandem deploy` as typed."""

import argparse
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("file", help='config (.toml, .yaml), or "recipe:NAME" for a shipped one')
    parser.add_argument(
        "-o", "--override", dest="overrides", metavar="KEY=VALUE", action="append", default=[]
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--host", default="127.0.0.1", help="of the SuperLink, as sites reach it")
    parser.add_argument("--port", type=int, default=8000, help="of the SuperLink (default 8000)")
    parser.add_argument(
        "--node-port",
        type=int,
        default=9094,
        metavar="PORT",
        help="of the first SuperNode; the next has the next",
    )
    parser.add_argument(
        "--connection", default="lab", metavar="NAME", help="what the SuperLink is called (lab)"
    )


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.config import load_config
    from fedtandem.federation.deploy import Place, deploy

    config = load_config(arguments.file, arguments.overrides)
    place = Place(arguments.host, arguments.port, arguments.node_port, arguments.connection)
    deploy(config, arguments.output, place)
    sites = ", ".join(client.name for client in config.clients)
    print(f"{arguments.output}: a server and the sites {sites}")
    print(f"read {arguments.output / 'README.md'}; try it here with {arguments.output / 'loopback.sh'}")
    return 0
