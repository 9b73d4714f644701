"""A run handed to an engine: what is asked for lies in the run folder, and so does how it ended."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedtandem.atomic import write_text
from fedtandem.config import RunConfig, with_overrides
from fedtandem.data.load import load_samples
from fedtandem.errors import ConfigError, FedtandemError, error_classes
from fedtandem.federation.calibrate_sites import SitesRequest
from fedtandem.federation.estimate import knowledge_bytes

ONE_PHASE_BYTES = 4 * 2**20
"""Where a whole upload takes at most so much, rows go with the scores: a second message costs seconds.

Source: specification of FedMKT, section 11.
"""


@dataclass(frozen=True)
class Submission:
    """What the server's process is to do.

    Attributes:
        id: of this submission; a resumed run has another.
        config: as `RunConfig.resolved`; of a calibration, as `SitesRequest.to_json`.
        resume: go on with what the folder holds.
        carrier: what the record calls the engine.
        keys: the folder of the clients' public keys; None: clients say themselves who they are.
        task: what kind of work it is.
    """

    id: str
    config: Mapping[str, Any]
    resume: bool
    carrier: str
    keys: Path | None
    task: Literal["run", "calibrate"] = "run"

    @property
    def again(self) -> str:
        """How the user takes it up after a fault, for messages."""
        return "go on with --resume" if self.task == "run" else "start again"


def write_submission(
    folder: Path, config: RunConfig | SitesRequest, *, resume: bool, carrier: str, keys: Path | None
) -> Submission:
    """Put a submission into the run folder."""
    task: Literal["run", "calibrate"] = "run" if isinstance(config, RunConfig) else "calibrate"
    told = config.resolved() if isinstance(config, RunConfig) else config.to_json()
    submission = Submission(secrets.token_hex(8), told, resume, carrier, keys, task)
    written = {**vars(submission), "keys": None if keys is None else str(keys.resolve())}
    write_text(folder / "submission.json", json.dumps(written, indent=1))
    return submission


def read_submission(folder: Path) -> Submission:
    """What the run folder asks for.

    Raises:
        ConfigError: the folder is not on this machine.
    """
    path = folder / "submission.json"
    if not path.is_file():
        raise ConfigError(
            f"there is no run folder {folder} on this machine. Start `fedtandem run` (or `calibrate`) where the "
            "SuperLink runs: its server process works in that folder."
        )
    told = json.loads(path.read_text())
    return Submission(**{**told, "keys": None if told["keys"] is None else Path(told["keys"])})


def note_end(folder: Path, submission_id: str, exit_code: int, text: str) -> None:
    """Write down how it ended; a failed run's record says so too."""
    record = folder / "run.json"
    if exit_code and record.is_file():
        about = json.loads(record.read_text())
        about["status"] = "failed"
        write_text(record, json.dumps(about, indent=1))
    write_text(
        folder / "end.json", json.dumps({"id": submission_id, "exit_code": exit_code, "text": text}, indent=1)
    )


def read_end(folder: Path, submission_id: str) -> tuple[int, str] | None:
    """(exit code, message) of a submission that ended; None while it has not."""
    path = folder / "end.json"
    if not path.is_file():
        return None
    told = json.loads(path.read_text())
    return (told["exit_code"], told["text"]) if told["id"] == submission_id else None


def fault_of(exit_code: int, text: str) -> FedtandemError:
    """The error that ends this program as the server's process ended."""
    for kind in error_classes():
        if kind.exit_code == exit_code:
            return kind(text)
    return FedtandemError(text)


def with_exchange(config: RunConfig) -> RunConfig:
    """`knowledge.exchange = "auto"` decided for an engine where every message costs seconds.

    The upload is estimated from above: a position for every byte of the public answers.
    """
    if config.knowledge.exchange != "auto":
        return config
    public = load_samples(config.public.to_source(), where="public set")
    written = config.public.max_new_tokens if not config.public.labelled else 0
    positions = sum(len((sample.answer or "").encode()) + 1 + written for sample in public)
    upload = knowledge_bytes(
        len(public), positions, top_k=config.knowledge.top_k_for(config.alignment.mode),
        values=config.knowledge.values, text_bytes=len(public) * 4 * written,
    )  # fmt: skip
    small = upload <= ONE_PHASE_BYTES
    return with_overrides(config, {"knowledge.exchange": "one_phase" if small else "two_phase"})
