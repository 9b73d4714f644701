"""`fedtandem serve`: which tiers, and in which order they are built."""

from collections.abc import Callable

from fedtandem.config.serve import ServeConfig
from fedtandem.serving.listening import serve
from fedtandem.serving.tiers import Tier, build_cloud, build_device, build_edge, new_attest_key

Build = Callable[[dict[str, str]], Tier]


def serve_command(what: str, read: Callable[[], ServeConfig], say: Callable[[str], None]) -> int:
    """Serve one tier, or all three on this machine, until told to end.

    Args:
        read: reads the config; again on every SIGHUP.

    Raises:
        ConfigError, ModelError, NetworkError: it cannot be served so.
    """
    config = read()
    if what != "all":
        one: dict[str, Callable[[ServeConfig], Tier]] = {
            "device": build_device, "edge": build_edge, "cloud": build_cloud,
        }  # fmt: skip
        return serve(config, [lambda _: one[what](config)], say, read)
    return serve(config, all_tiers(config), say, read)


def all_tiers(config: ServeConfig) -> list[Build]:
    """Cloud, edge, device: each is pointed at the one before, and cloud and edge share a fresh secret."""
    has_secret = config.security.attest_key_file is not None
    attest_key = None if has_secret else new_attest_key()

    def edge(urls: dict[str, str]) -> Tier:
        pointed = config.edge.model_copy(update={"upstream": urls["cloud"]})
        return build_edge(config.model_copy(update={"edge": pointed}), attest_key)

    def device(urls: dict[str, str]) -> Tier:
        pointed = config.device.model_copy(update={"upstream": urls["edge"], "fallback": urls["cloud"]})
        return build_device(config.model_copy(update={"device": pointed}))

    return [lambda _: build_cloud(config, attest_key), edge, device]
