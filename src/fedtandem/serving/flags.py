"""`fedtandem serve` as typed."""

import argparse
import sys
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    words = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for what, says in (
        ("device", "the SLM behind OpenAI's API"),
        ("edge", "between devices and the cloud: peers and thresholds"),
        ("cloud", "the LLM that verifies"),
        ("all", "the three on this machine; without CONFIG with the embedded models"),
    ):
        word = words.add_parser(what, help=says, description=says)
        word.add_argument(
            "file", type=Path, nargs="?", metavar="CONFIG", help="TOML with [device], [edge], [cloud] ... ;"
            " without one: defaults on loopback"
        )  # fmt: skip
        word.add_argument("-o", "--override", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                          help="e.g. -o device.port=9000")  # fmt: skip
    said = "print every key of a CONFIG with its default and what it means"
    words.add_parser("config", help=said, description=said)
    key = words.add_parser("key", help="make an API key", description="make an API key and its entry")
    key.add_argument("--name", required=True, help="of the key, for logs and limits")
    key.add_argument("--tenant", required=True, help="whose data it may meet")
    key.add_argument("--scope", action="append", required=True, dest="scopes", metavar="SCOPE",
                     help="infer, verify, report, metrics or relay; repeat")  # fmt: skip


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    if arguments.what == "config":
        from fedtandem.config.serve import default_serve

        print(default_serve())
        return 0
    from fedtandem.errors import ConfigError

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'fedtandem[serve]'.") from error
    if arguments.what == "key":
        from fedtandem.serving.keys import new_key

        key, entry = new_key(arguments.name, arguments.tenant, arguments.scopes)
        print(entry)
        print(
            f"the key, shown this once (what is above goes into keys.toml and holds its hash): {key}",
            file=sys.stderr,
        )
        return 0
    from fedtandem.config.serve import load_serve
    from fedtandem.serving.command import serve_command

    return serve_command(
        arguments.what,
        lambda: load_serve(arguments.file, arguments.overrides),
        lambda line: print(line, flush=True),
    )
