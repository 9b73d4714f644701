"""A client's privacy spendings on disk, and the key of its noise: both outlive a killed run."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fedtandem.algorithms.noised_knowledge import KnowledgeNoise
from fedtandem.atomic import write_bytes
from fedtandem.config.privacy import PrivacyConfig
from fedtandem.errors import DataError
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.federation.secret_key import secret_key
from fedtandem.tuning.accountant import Spending, require_opacus
from fedtandem.tuning.dp_sgd import DPSettings, PrivateTraining

LEDGER, KEY = "privacy.jsonl", "privacy.key"


class PrivacyLedger:
    """One line of JSON per private phase, on the disk before the phase begins.

    Args:
        folder: of the client; `privacy.jsonl` in it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER

    def read(self) -> list[Spending]:
        """All of them, oldest first.

        Raises:
            DataError: a line is no spending; nothing is guessed about a budget.
        """
        if not self.path.is_file():
            return []
        found = []
        for at, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                found.append(Spending(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{self.path}, line {at}: {line[:60]!r} is no privacy spending ({error}). What was spent is not "
                    "known any more: restore the file, or begin in a new folder if that is what the data's owner wants."
                ) from error
        return found

    def add(self, spending: Spending) -> None:
        """Append one, unless it is there.

        Raises:
            DiskFull: the old ledger stands.
        """
        known = self.read()
        if spending not in known:
            lines = [json.dumps(asdict(one)) + "\n" for one in [*known, spending]]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, "".join(lines).encode())


def noise_key(folder: Path) -> bytes:
    """The client's secret key, drawn once; who has it can take the noise off.

    Raises:
        DataError: the file holds something else.
    """
    return secret_key(folder / KEY)


@dataclass(frozen=True)
class Vault:
    """Where a client keeps its privacy budget and the key of its noise.

    Attributes:
        folder: of the client.
        scope: names run and method, where one ledger serves several.
    """

    folder: Path
    scope: str = ""

    def training(self, privacy: PrivacyConfig) -> PrivateTraining | None:
        """What its DP-SGD needs; None without [privacy.dp].

        Raises:
            ConfigError: opacus is not installed.
        """
        if privacy.dp is None:
            return None
        require_opacus()
        settings = DPSettings(**privacy.dp.model_dump())
        return PrivateTraining(settings, PrivacyLedger(self.folder), noise_key(self.folder), self.scope)

    def noise(self, privacy: PrivacyConfig) -> Callable[[Knowledge], Knowledge]:
        """What its knowledge becomes before it leaves."""
        values = privacy.model_dump(exclude={"dp"})
        if not any(values.values()):
            return KnowledgeNoise()
        return KnowledgeNoise(**values, key=noise_key(self.folder))
