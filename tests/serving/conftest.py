"""Real tiers on loopback, each with a port of its own, served from a thread; the embedded models behind them."""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

if find_spec("fastapi") is None or find_spec("prometheus_client") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra `serve` is not installed
else:
    from fedtandem.config.serve import ServeConfig
    from fedtandem.serving.command import all_tiers
    from fedtandem.serving.listening import Listening, run, until
    from fedtandem.serving.logs import LOGGER
    from fedtandem.serving.tiers import Tier

PATIENT = {"deadline_ms": 60_000.0, "prompt_deadline_ms": 60_000.0}
"""A busy machine is no outage."""


class Running:
    """Tiers that are being listened for."""

    def __init__(self, tiers: "Sequence[Callable[[dict[str, str]], Tier]]", config: "ServeConfig") -> None:
        self.urls: dict[str, str] = {}
        self.listening: list[Listening] = []
        for build in tiers:
            one = Listening(build(self.urls), config)
            self.listening.append(one)
            self.urls[one.tier.name] = one.url
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        self._begun.set()
        await until(self._told, self.listening)

    def __enter__(self) -> "Running":
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As a signal would; returns when the last answer is finished."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._told.set)
            self._thread.join()


def serve_config(**sections: dict[str, object]) -> "ServeConfig":
    """The defaults on free ports, with patience."""
    tables = {name: {"port": 0} for name in ("device", "edge", "cloud")}
    tables["device"] |= PATIENT
    for name, values in sections.items():
        tables[name] = {**tables.get(name, {}), **values}
    return ServeConfig.model_validate(tables)


def running(**sections: dict[str, object]) -> Running:
    """Cloud, edge and device."""
    config = serve_config(**sections)
    return Running(all_tiers(config), config)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No handler of one test's captured stderr outlives it."""
    yield
    LOGGER.handlers.clear()


@pytest.fixture(scope="session")
def tiers() -> Iterator[Running]:
    """The three with their defaults."""
    with running() as one:
        yield one


@pytest.fixture(scope="session")
def url(tiers: Running) -> str:
    """Of the device's API."""
    return f"{tiers.urls['device']}/v1"


def write_keys(file: Path, *keys: tuple[str, str, list[str]]) -> None:
    """Each key is its name with "-key"."""
    file.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\ntenant = "{tenant}"\nscopes = {scopes}\n'
            f'sha256 = "{hashlib.sha256(f"{name}-key".encode()).hexdigest()}"\n'
            for name, tenant, scopes in keys
        )
    )


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-key"}


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """What tests of several files use."""
    return SimpleNamespace(
        Running=Running, running=running, config=serve_config, write_keys=write_keys, bearer=bearer
    )
