"""A new config for running tiers: read and checked whole, then put in force; what cannot change is named."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedtandem.config.serve import LimitsConfig, ServeConfig
from fedtandem.errors import FedtandemError
from fedtandem.serving.logs import log, set_level

LIVE: Mapping[str, frozenset[str]] = {
    "device": frozenset({
        "mode", "eps", "policy", "tau", "uncertainty", "block", "uplink", "on_outage", "deadline_ms",
        "prompt_deadline_ms", "request_timeout_s", "max_waiting", "max_tokens", "peer", "calls_per_s", "price_step",
    }),
    "edge": frozenset({"price", "policy_valid_s", "deadline_ms", "peer_audit_rate"}),
    "cloud": frozenset({"cache_mb", "max_batch", "max_waiting", "max_sessions"}),
    "security": frozenset({"keys", "key_file", "certificate", "private_key"}),
    "limits": frozenset(LimitsConfig.model_fields) - {"quota_folder"},
    "decisions": frozenset({"folder", "max_mb"}),
    "log": frozenset({"level"}),
}  # fmt: skip
"""Section -> keys that change while a tier runs; all others need a restart."""

Apply = Callable[[], None]
Prepare = Callable[[ServeConfig], Apply]
"""A part of a service: checks a config and returns what puts it in force, which cannot fail."""


def changed(old: ServeConfig, new: ServeConfig) -> tuple[list[str], list[str]]:
    """Keys that differ, dotted: those that can change while running, and those that cannot."""
    live: list[str] = []
    fixed: list[str] = []
    for section in ServeConfig.model_fields:
        one, other = getattr(old, section), getattr(new, section)
        for name in type(one).model_fields:
            if getattr(one, name) != getattr(other, name):
                (live if name in LIVE[section] else fixed).append(f"{section}.{name}")
    return live, fixed


def file_hashes(config: ServeConfig) -> dict[str, str]:
    """Dotted key -> hash of the file it names, of those that are read again."""
    named = {
        f"{section}.{key}": getattr(getattr(config, section), key)
        for section, key in (*(("security", key) for key in sorted(LIVE["security"])), ("device", "policy"))
    }
    return {
        key: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for key, file in named.items()
        if file is not None and Path(file).is_file()
    }


def merged(old: ServeConfig, new: ServeConfig) -> ServeConfig:
    """The old config with what can change taken from the new one."""
    sections = {}
    for section, names in LIVE.items():
        fresh = getattr(new, section)
        sections[section] = getattr(old, section).model_copy(
            update={name: getattr(fresh, name) for name in names}
        )
    return old.model_copy(update=sections)


class Reloading:
    """Reads the config again when it is told to.

    Args:
        config: in force.
        read: reads it anew, whole.
        parts: what has to be prepared for another one, in this order.
    """

    def __init__(
        self, config: ServeConfig, read: Callable[[], ServeConfig], parts: Sequence[Prepare]
    ) -> None:
        self.config, self._read, self._parts = config, read, parts
        self._turn = asyncio.Lock()
        self._files = file_hashes(config)

    async def reload(self) -> bool:
        """Once; files that a config names (keys, policy, certificate) are read again even where no key has changed.

        Returns:
            Whether the new config is in force; if not, the log says why and everything is as it was.
        """
        async with self._turn:
            try:
                new = await asyncio.to_thread(self._read)
                live, fixed = changed(self.config, new)
                config = merged(self.config, new)
                applies = [await asyncio.to_thread(part, config) for part in self._parts]
                files = await asyncio.to_thread(file_hashes, config)
            except (FedtandemError, OSError) as fault:
                log("reload refused", level=40, says=str(fault), in_force="the config of before")
                return False
            for apply in applies:
                apply()
            live += sorted(key for key in files if key not in live and files[key] != self._files.get(key))
            self.config, self._files = config, files
            set_level(config.log.level)
            log("reloaded", level=30 if fixed else 20, changed=live, needs_restart=fixed)
            return True
