"""Which thresholds are in force on a device: the edge's until they expire, else those of its file."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedtandem.inference.policy import Policy, policy_from_json
from fedtandem.serving.upstream import Outage, Upstream

UNTIL = "x-valid-until"
"""Header: seconds since 1970 at which a policy expires, by the edge's clock: for people. Devices count from when
it came (`max-age`), so that two clocks that disagree make no policy live longer or shorter."""
MOST_S = 7 * 24 * 3600.0
"""However long an edge says a policy may be used."""


@dataclass(frozen=True)
class _Held:
    policy: Policy
    etag: str
    until_s: float


class Policies:
    """Thresholds in force.

    Args:
        own: of the device's file, or None.
        now_s: any clock that goes evenly.
    """

    def __init__(self, own: Policy | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._own, self._now_s = own, now_s
        self._held: _Held | None = None

    def current(self) -> Policy | None:
        """The edge's while it is valid, else the file's."""
        held = self._held
        return held.policy if held is not None and self._now_s() < held.until_s else self._own

    def named(self) -> str:
        """Where the policy in force comes from, and which it is."""
        held = self._held
        if held is not None and self._now_s() < held.until_s:
            return f"edge {held.etag}"
        return "none" if self._own is None else "file"

    def own(self, policy: Policy | None) -> None:
        """Another file's, from now on."""
        self._own = policy

    def refresh(self, upstream: Upstream) -> bool:
        """Ask the edge for a newer one; False where it has none or cannot be asked.

        A policy that cannot be read is as if none had come: the last one holds until it expires.
        """
        held = self._held
        headers = {"If-None-Match": held.etag} if held is not None else {}
        try:
            reply = upstream.get("/v1/fl/policy", headers, edge_only=True)
            until_s = self._now_s() + _max_age_s(reply.headers)
            if reply.status_code == 304 and held is not None:
                self._held = _Held(held.policy, held.etag, until_s)
                return True
            if reply.status_code != 200:
                return False
            policy = policy_from_json(reply.text, "the edge's policy")
            self._held = _Held(policy, reply.headers.get("etag", ""), until_s)
            return True
        except (Outage, ValueError):
            return False


def _max_age_s(headers: Mapping[str, str]) -> float:
    """Seconds for which a reply may be used; 0 where it does not say."""
    for part in headers.get("cache-control", "").split(","):
        name, _, value = part.strip().partition("=")
        if name == "max-age" and value.isdecimal():
            return min(MOST_S, float(value))
    return 0.0
