"""Who may do what: API keys, kept as hashes.

    [[keys]]
    name = "ward-3"
    tenant = "clinic"
    scopes = ["infer"]                  # infer, verify, report, metrics, relay
    sha256 = "..."                      # of the key; the key itself is shown once, when it is made
    requests_per_minute = 600           # optional, as are the two quotas; their period is limits.quota_period
    quota_requests = 10_000
    quota_tokens = 1_000_000

Two entries of one name, say while a key is being replaced, share its rate and quotas.
A key is 256 random bits, so a plain hash cannot be searched; every comparison takes the same time.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedtandem.config.load import parse
from fedtandem.errors import ConfigError

SCOPES = ("infer", "verify", "report", "metrics", "relay")
"""Ask a device; have blocks judged and look for peers; report feedback and read policies;
read metrics; speak for other tenants (an edge to its cloud)."""

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Of keys and tenants."""
NEEDED = ("name", "tenant", "scopes", "sha256")
BOUNDS = ("requests_per_minute", "quota_requests", "quota_tokens")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key, for logs and limits.
        tenant: whose data it may meet.
        scopes: of SCOPES.
        requests_per_minute, quota_requests, quota_tokens: None takes the service's.
    """

    name: str
    tenant: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    quota_requests: int | None = None
    quota_tokens: int | None = None


ANYBODY = Caller("anybody", "local", frozenset(SCOPES))
"""Where no keys are asked for: on loopback alone."""


class Keyring:
    """The keys of a service; None as the hashes' table lets anybody in."""

    def __init__(self, callers: dict[str, Caller] | None) -> None:
        self._callers = callers

    @property
    def with_quota(self) -> str:
        """The keys that have a quota of their own, by name; "" if none has."""
        callers = (self._callers or {}).values()
        return ", ".join(one.name for one in callers if one.quota_requests or one.quota_tokens)

    def names(self) -> set[str]:
        """Of the keys."""
        return {ANYBODY.name} if self._callers is None else {one.name for one in self._callers.values()}

    def caller(self, authorization: str) -> Caller | None:
        """Whose key an `Authorization` header holds; None for nobody's.

        Every stored hash is compared, so that the time says nothing of where a key would stand.
        """
        if self._callers is None:
            return ANYBODY
        kind, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).hexdigest()
        found = None
        for stored, caller in self._callers.items():
            if hmac.compare_digest(stored, digest):
                found = caller
        return found if kind.lower() == "bearer" else None


def read_keyring(file: str | None) -> Keyring:
    """The keys of a file; without one anybody is let in.

    Raises:
        ConfigError: no file, or an entry that cannot be; never shows a hash.
    """
    if file is None:
        return Keyring(None)
    if not Path(file).is_file():
        raise ConfigError(
            f"security.keys: there is no file {file}; `fedtandem serve key` makes entries for it."
        )
    whole = parse(Path(file))
    entries = whole.get("keys")
    if set(whole) != {"keys"} or not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{file}: expected tables [[keys]] and nothing else; `fedtandem serve key` prints one."
        )
    callers: dict[str, Caller] = {}
    for i, entry in enumerate(entries):
        where = f"{file}: keys[{i}]"
        if not isinstance(entry, dict) or set(entry) - {*NEEDED, *BOUNDS} or set(NEEDED) - set(entry):
            raise ConfigError(
                f"{where}: expected {', '.join(NEEDED)}, and maybe {', '.join(BOUNDS)}; nothing else."
            )
        if not all(isinstance(entry[k], str) and NAME.fullmatch(entry[k]) for k in ("name", "tenant")):
            raise ConfigError(f"{where}: name and tenant are 1 to 64 letters, digits, dots, dashes.")
        if not isinstance(entry["scopes"], list) or not set(entry["scopes"]) <= set(SCOPES):
            raise ConfigError(f"{where} ({entry['name']}): scopes must be a list of {', '.join(SCOPES)}.")
        if not _HASH.fullmatch(str(entry["sha256"])) or entry["sha256"] in callers:
            raise ConfigError(
                f"{where} ({entry['name']}): sha256 must be 64 hex digits, another for each key."
            )
        bounds = {name: entry.get(name) for name in BOUNDS}
        for name, bound in bounds.items():
            if bound is not None and not (type(bound) is int and bound > 0):
                raise ConfigError(f"{where} ({entry['name']}): {name} = {bound}; must be 1 or more.")
        callers[entry["sha256"]] = Caller(
            entry["name"], entry["tenant"], frozenset(entry["scopes"]), **bounds
        )
    return Keyring(callers)


def new_key(name: str, tenant: str, scopes: list[str]) -> tuple[str, str]:
    """A fresh key, and the TOML that admits it.

    Raises:
        ConfigError: a name that cannot be, or an unknown scope.
    """
    if not NAME.fullmatch(name) or not NAME.fullmatch(tenant):
        raise ConfigError(f"name {name!r} and tenant {tenant!r}: 1 to 64 letters, digits, dots, dashes each.")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise ConfigError(f"scopes {', '.join(scopes) or 'none'}: choose of {', '.join(SCOPES)}.")
    key = f"ft-{secrets.token_urlsafe(32)}"
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    entry = (
        f'[[keys]]\nname = "{name}"\ntenant = "{tenant}"\nscopes = [{listed}]\n'
        f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    )
    return key, entry
