"""What each key may take in a period, counted on disk so that a restart does not begin it anew."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from fedtandem.atomic import write_text
from fedtandem.errors import ConfigError, DiskFull
from fedtandem.serving.logs import log

Period = Literal["hour", "day", "month"]
LABELS: dict[Period, str] = {"hour": "%Y-%m-%dT%HZ", "day": "%Y-%m-%d", "month": "%Y-%m"}
SAVE_EVERY_S = 1.0
"""A service that is killed forgets at most what was taken in so long."""
VERSION = 1


@dataclass(frozen=True)
class Spent:
    """A quota that is used up.

    Attributes:
        kind: requests or tokens.
        most: the quota.
        period: hour, day or month.
        ends_in_s: when it begins anew.
    """

    kind: Literal["requests", "tokens"]
    most: int
    period: Period
    ends_in_s: float


class Quotas:
    """Requests and tokens per key in the running period; may be used from several threads.

    Args:
        file: where they are kept; None: in memory alone.
        now_s: seconds since 1970.

    Raises:
        ConfigError: the file is there and cannot be read.
    """

    def __init__(self, file: Path | None, now_s: Callable[[], float] = time.time) -> None:
        self._file, self._now_s = file, now_s
        self._lock = threading.Lock()
        self._label, self._used, self._is_new = "", dict[str, list[int]](), False
        if file is not None and file.exists():
            self._label, self._used = _read(file)

    def take(self, key: str, period: Period, requests: int | None, tokens: int | None) -> Spent | None:
        """One request more; None if it may go on, else what is spent (and nothing is taken)."""
        if requests is None and tokens is None:
            return None
        now = datetime.fromtimestamp(self._now_s(), UTC)
        with self._lock:
            label = now.strftime(LABELS[period])
            if label != self._label:
                self._label, self._used = label, {}
            used = self._used.setdefault(key, [0, 0])
            if requests is not None and used[0] >= requests:
                return Spent("requests", requests, period, _left_s(now, period))
            if tokens is not None and used[1] >= tokens:
                return Spent("tokens", tokens, period, _left_s(now, period))
            used[0] += 1
            self._is_new = True
        return None

    def charge(self, key: str, tokens: int) -> None:
        """Tokens that a request took; of no effect for a key without a quota."""
        with self._lock:
            if key in self._used:
                self._used[key][1] += tokens
                self._is_new = True

    def save(self) -> None:
        """Bring what is new to the disk; what cannot be written is said in the log and tried again."""
        with self._lock:
            if not self._is_new or self._file is None:
                return
            text = json.dumps({"version": VERSION, "period": self._label, "used": self._used})
            self._is_new = False
        try:
            write_text(self._file, text)
        except (OSError, DiskFull) as fault:
            self._is_new = True
            log("quotas not saved", level=40, fault=fault)


def _left_s(now: datetime, period: Period) -> float:
    """Until the period's end."""
    start = now.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        end = start + timedelta(hours=1)
    elif period == "day":
        end = start.replace(hour=0) + timedelta(days=1)
    else:
        end = (start.replace(day=1, hour=0) + timedelta(days=32)).replace(day=1)
    return (end - now).total_seconds()


def _read(file: Path) -> tuple[str, dict[str, list[int]]]:
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        if whole["version"] != VERSION:
            raise ValueError(f"version {whole['version']}")
        used = {str(key): [int(n), int(tokens)] for key, (n, tokens) in whole["used"].items()}
        return str(whole["period"]), used
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"limits.quota_folder: {file} cannot be read ({type(error).__name__}: {error}). Move it away to begin the "
            "period's quotas anew."
        ) from error
