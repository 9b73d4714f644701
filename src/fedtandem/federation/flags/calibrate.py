"""`fedtandem calibrate` as typed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedtandem.errors import ConfigError
from fedtandem.federation.flags.carrier import add_connection, check_names

if TYPE_CHECKING:
    from fedtandem.federation.calibrate import CalibrateRequest
    from fedtandem.federation.calibrate_sites import SitesRequest


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="recorded decisions (.parquet); with --connection the server's run.toml, for its clients and [federation] "
        "(left out: every site in --keys)",
    )
    parser.add_argument("--budget", metavar="SHARE", help="at most this share of calls, e.g. 10%%")
    parser.add_argument("--max-loss", type=float, metavar="POINTS", help="lose at most so many points")
    parser.add_argument("--price", type=float, metavar="λ", help="a call's price over an error's, e.g. 0.05")
    parser.add_argument("--output", type=Path, default=Path("policy.json"), metavar="POLICY")
    parser.add_argument("--learn", choices=["histogram", "line", "gradient", "fixed"], default="histogram")
    parser.add_argument("--tau", type=float, default=0.5, help="of --learn fixed, and where others start")
    parser.add_argument(
        "--measure", help="expected (default), entropy, margin, max_prob, recorded or learned"
    )
    parser.add_argument(
        "--feedback", choices=["auto", "probabilities", "agreement", "quality"], default="auto"
    )
    parser.add_argument(
        "--audit",
        default="all",
        metavar="RATE",
        help="all (default): learn from every recorded answer; auto or 1%%: see only what a deployment would",
    )
    parser.add_argument("--clusters", type=int, metavar="K", help="group clients anew, by mean embedding")
    parser.add_argument(
        "--from", type=Path, dest="last", metavar="POLICY", help="start from the policy in force"
    )
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of --learn gradient")
    parser.add_argument(
        "--masked",
        action="store_true",
        help="experimental: edges (with --connection: the server) see sums of at least 3 clients, no single one's",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    sites = parser.add_argument_group("across sites", "each site counts its own decisions (docs/sites.md)")
    add_connection(sites)
    sites.add_argument(
        "--min-clients", type=int, metavar="N", help="sites that must answer, in place of the file's"
    )
    sites.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="for each answer, in place of the file's"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON for machines")


def call(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    from fedtandem.federation.calibrate import CalibrateRequest, calibrate_command

    for_sites = ("keys", "insecure", "min_clients", "deadline")
    given = [f"--{name}" for name in for_sites if getattr(arguments, name) not in (None, False)]
    if arguments.connection is None and given:
        told = ", ".join(given).replace("_", "-")
        raise ConfigError(f"{told}: is for sites; give --connection NAME (a SuperLink) too, or leave it out.")
    request = CalibrateRequest(
        trace=arguments.file if arguments.connection is None else None,
        output=arguments.output,
        budget=arguments.budget,
        max_loss=arguments.max_loss,
        price=arguments.price,
        measure=arguments.measure,
        feedback=arguments.feedback,
        learn=arguments.learn,
        audit=arguments.audit,
        rounds=arguments.rounds,
        tau=arguments.tau,
        clusters=arguments.clusters,
        last=arguments.last,
        seed=arguments.seed,
        masked=arguments.masked,
    )
    if arguments.connection is None:
        print(calibrate_command(request, json_output=arguments.json))
    else:
        print(_across_sites(request, arguments))
    return 0


def _across_sites(request: "CalibrateRequest", arguments: argparse.Namespace) -> str:
    from fedtandem.federation.calibrate_sites import check_request
    from fedtandem.federation.deployed import calibrate_deployed
    from fedtandem.federation.progress import Watch

    check_names(arguments)
    check_request(request)
    if request.masked and arguments.keys is None:
        raise ConfigError("--masked needs --keys DIR: masks are agreed on under the sites' registered keys.")
    asked = _asked(request, arguments)
    folder = request.output.with_name(f"{request.output.stem}-calibration")
    with Watch(quiet=arguments.json) as watch:
        done = calibrate_deployed(
            asked, folder, connection=arguments.connection, keys=arguments.keys, watch=watch
        )
    return done.put(request.output, json_output=arguments.json)


def _asked(request: "CalibrateRequest", arguments: argparse.Namespace) -> "SitesRequest":
    """Who is asked: the clients of the server's file, or whose keys are there; when it is enough."""
    from fedtandem.config import load_config
    from fedtandem.config.federation import FederationConfig
    from fedtandem.federation.calibrate_sites import SitesRequest
    from fedtandem.federation.deployed import require_flower

    federation = FederationConfig()
    if arguments.file is not None:
        config = load_config(arguments.file)
        federation, members = config.federation, [client.name for client in config.clients]
    elif arguments.keys is not None:
        require_flower()
        from fedtandem.federation.registered_keys import names_in

        members = names_in(arguments.keys)
    else:
        raise ConfigError(
            "--insecure: nobody says whom to ask. Name the server's run.toml: fedtandem calibrate run.toml "
            "--connection NAME --insecure ..."
        )
    if arguments.min_clients is not None and not 1 <= arguments.min_clients <= len(members):
        raise ConfigError(
            f"--min-clients {arguments.min_clients}; expected 1 to {len(members)}, the number of sites that are asked."
        )
    if arguments.deadline is not None and not arguments.deadline > 0:
        raise ConfigError(f"--deadline {arguments.deadline:g}; expected seconds above 0.")
    return SitesRequest(
        request, tuple(sorted(members)), arguments.min_clients or federation.min_clients,
        arguments.deadline or federation.deadline_s, federation.on_short,
    )  # fmt: skip
