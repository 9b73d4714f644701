"""Who may come in, and how much of what: keys, sizes, rates, quotas. Replaced while running by a new config."""

import time
from pathlib import Path

from fedtandem.config.serve import LimitsConfig
from fedtandem.errors import ConfigError
from fedtandem.serving.faults import too_busy
from fedtandem.serving.keys import Caller, Keyring
from fedtandem.serving.quotas import Quotas


class Bucket:
    """A rate limit: one token per request, refilled evenly; a minute's worth may come at once."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._rate, self._most = per_minute / 60, float(per_minute)
        self._left, self._then = self._most, now

    def wait_s(self, now: float) -> float:
        """0 and a token taken, or how long until there is one."""
        self._left = min(self._most, self._left + (now - self._then) * self._rate)
        self._then = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Admission:
    """The rules at one tier's door.

    Attributes:
        keyring, limits: in force.
        quotas: what was taken of them.
    """

    def __init__(self, keyring: Keyring, limits: LimitsConfig, quotas: Quotas | None = None) -> None:
        refuse_uncounted(keyring, limits)
        self.keyring, self.limits = keyring, limits
        self.quotas = quotas or Quotas(None)
        self._buckets: dict[str, Bucket] = {}

    def replace(self, keyring: Keyring, limits: LimitsConfig) -> None:
        """Other rules, from the next request on; what was taken of quotas stays taken."""
        self.keyring, self.limits = keyring, limits
        names = keyring.names()
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in names}

    def hold_back(self, caller: Caller, *, is_counted: bool = True) -> None:
        """Count one request of a key.

        Args:
            is_counted: whether it is one of the quota's.

        Raises:
            Refusal: 429, with when to come back and of which bound.
        """
        now = time.monotonic()
        rate = caller.requests_per_minute or self.limits.requests_per_minute
        bucket = self._buckets.get(caller.name)
        if bucket is None or bucket.per_minute != rate:
            bucket = self._buckets[caller.name] = Bucket(rate, now)
        wait = bucket.wait_s(now)
        if wait > 0:
            raise too_busy(
                wait, f"this key may ask {rate} times a minute; come back later.", "rate_limit_exceeded"
            )
        limits = self.limits
        if not is_counted:
            return
        spent = self.quotas.take(
            caller.name, limits.quota_period, caller.quota_requests or limits.quota_requests,
            caller.quota_tokens or limits.quota_tokens,
        )  # fmt: skip
        if spent is not None:
            text = f"this key's quota of {spent.most:,} {spent.kind} a {spent.period} is spent; it begins anew then."
            raise too_busy(spent.ends_in_s, text, code=f"quota_{spent.kind}")


def refuse_uncounted(keyring: Keyring, limits: LimitsConfig) -> None:
    """Quotas need a place to be counted.

    Raises:
        ConfigError: they have none.
    """
    whose = "[limits]" if limits.quota_requests or limits.quota_tokens else keyring.with_quota
    if whose and limits.quota_folder is None:
        raise ConfigError(
            f"limits.quota_folder was not set when this service was started: there are quotas ({whose}), and without a "
            "folder to count them in a restart would begin them anew. Start it with one, or take the quotas out."
        )


def quotas_of(limits: LimitsConfig, tier: str, port: int) -> Quotas:
    """A tier's counts; tiers that share a folder have a file each.

    Raises:
        ConfigError: the file cannot be read.
    """
    folder = limits.quota_folder
    return Quotas(None if folder is None else Path(folder) / f"{tier}-{port}.json")
