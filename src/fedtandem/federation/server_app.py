"""The `ServerApp`: opens the run folder it was given, connects the carrier, and runs the methods."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedtandem.config import RunConfig, load_resolved
from fedtandem.errors import ConfigError, FedtandemError
from fedtandem.federation.alone import alone
from fedtandem.federation.calibrate_sites import SitesRequest, calibrate_sites
from fedtandem.federation.calibration_result import CalibrationResult
from fedtandem.federation.client_app import VirtualSites, make_client_app
from fedtandem.federation.flower import FlowerCarrier
from fedtandem.federation.flower_names import Keys, Names, SelfNamed
from fedtandem.federation.plan import plan_of
from fedtandem.federation.registered_keys import public_keys
from fedtandem.federation.remote import Count, Emit, Remote, new_experiment
from fedtandem.federation.runs import run_methods
from fedtandem.federation.site import Order
from fedtandem.federation.site_calibration import CALIBRATE, Plan
from fedtandem.federation.submission import (
    Submission,
    fault_of,
    note_end,
    read_end,
    read_submission,
    write_submission,
)


def make_server_app() -> ServerApp:
    """The app object of a deployment: what to do lies in the run folder named in the run config."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        folder = Path(str(context.run_config["folder"]))
        serve(grid, folder, read_submission(folder))

    return app


def serve(grid: Grid, folder: Path, submission: Submission) -> None:
    """Do what was submitted, and leave a true end in the folder whatever happens.

    Raises:
        FedtandemError: as `run_methods` or `calibrate_sites`; it is written into the folder first.
    """
    try:
        if submission.task == "calibrate":
            calibrate(grid, SitesRequest.from_json(submission.config), folder, submission.keys)
        else:
            config = load_resolved(submission.config)
            run_methods(
                config, config.methods, folder, resume=submission.resume,
                remote=remote(grid, config, submission.carrier, submission.keys),
            )  # fmt: skip
    except BaseException as fault:
        code = fault.exit_code if isinstance(fault, FedtandemError) else 1
        said = str(fault) if isinstance(fault, FedtandemError) else f"{type(fault).__name__}: {fault}"
        note_end(folder, submission.id, code, said)
        raise
    note_end(folder, submission.id, 0, "")


def remote(grid: Grid, config: RunConfig, carrier: str, keys: Path | None) -> Remote:
    """The engine behind a grid.

    Args:
        carrier: what the record calls it.
        keys: the folder of the clients' public keys; None: clients say themselves who they are.
    """
    members = [client.name for client in config.clients]
    names: Names = SelfNamed() if keys is None else Keys(keys, members)
    plan = json.dumps(plan_of(config))
    federation = config.federation

    def connect(experiment: str, method: str, count: Count, emit: Emit) -> FlowerCarrier:
        order = Order("", experiment, method, untouched=method == config.methods[0], plan=plan)
        found = FlowerCarrier(grid, names, members, order, count, emit)
        found.gather(federation.min_clients, federation.deadline_s)
        return found

    return Remote(carrier, connect)


def calibrate(grid: Grid, asked: SitesRequest, folder: Path, keys: Path | None) -> CalibrationResult:
    """Learn thresholds from the sites behind a grid.

    Args:
        keys: the folder of the clients' public keys; None: clients say themselves who they are.

    Raises:
        FedtandemError: as `calibrate_sites`; another process works in the folder.
    """
    names: Names = SelfNamed() if keys is None else Keys(keys, asked.members)
    known = None
    if asked.request.masked:
        if keys is None:
            raise ConfigError("--masked needs --keys: masks are agreed on under the sites' registered keys.")
        known = public_keys(keys, asked.members)
    experiment = new_experiment(CALIBRATE)

    def connect(plan: Plan, members: Sequence[str], count: Count, emit: Emit) -> FlowerCarrier:
        order = Order("", experiment, CALIBRATE, untouched=False, plan=plan.to_json())
        found = FlowerCarrier(grid, names, members, order, count, emit)
        if not plan.measure:  # the first word to the sites
            found.gather(asked.min_clients, asked.deadline_s, "start again")
        return found

    with alone(folder):
        return calibrate_sites(asked, connect, folder, experiment, known)


def simulate(config: RunConfig, folder: Path, *, count: int, resume: bool) -> None:
    """All clients as virtual nodes of Flower's simulation (Ray), one process each, on this machine.

    Args:
        count: of virtual nodes; one per client.

    Raises:
        ConfigError: another number than there are clients.
        FedtandemError: what ended the run.
    """
    if count != len(config.clients):
        raise ConfigError(f"--simulate {count}: the run has {len(config.clients)} clients; give that number.")
    from flwr.simulation import run_simulation

    folder = folder.resolve()
    submission = write_submission(folder, config, resume=resume, carrier="flower simulation", keys=None)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, folder, submission)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    sites = VirtualSites(config, folder / "sites")
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"log_to_driver": False, "include_dashboard": False},
    }
    try:
        run_simulation(app, make_client_app(sites), count, backend_config=backend)  # type: ignore[arg-type]
    except RuntimeError as error:  # what ended the run itself lies in the folder
        if read_end(folder, submission.id) is None:
            raise FedtandemError(
                f"Flower's simulation did not run: {error} See its messages above."
            ) from error
    code, text = read_end(folder, submission.id) or (1, "the simulation ended without a word")
    if code:
        raise fault_of(code, text)
