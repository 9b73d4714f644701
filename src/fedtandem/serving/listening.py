"""Listen for tiers until told to end; then finish what is being answered, devices first."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from fedtandem.config.serve import ServeConfig
from fedtandem.errors import ConfigError, NetworkError
from fedtandem.serving.logs import LOGGER, log, start_logging
from fedtandem.serving.tiers import Tier

KEEP_ALIVE_S = 30
BACKLOG = 1024


class _Server(uvicorn.Server):
    """uvicorn's, with its signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listening:
    """One tier with its socket.

    Attributes:
        tier: what is served.
        url: where.
    """

    def __init__(self, tier: Tier, config: ServeConfig) -> None:
        self.tier = tier
        security, limits = config.security, config.limits
        settings = uvicorn.Config(
            tier.app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(limits.shutdown_s), h11_max_incomplete_event_size=64 << 10,
            server_header=False, date_header=False, proxy_headers=False, ssl_certfile=security.certificate,
            ssl_keyfile=security.private_key, ssl_ca_certs=security.client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if security.client_ca else ssl.CERT_NONE,
        )  # fmt: skip
        try:
            settings.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"security.certificate: TLS cannot be served: {error}.") from error
        self.server = _Server(settings)
        self._socket = bound(tier.host, tier.port)
        host = f"[{tier.host}]" if ":" in tier.host else tier.host
        scheme = "https" if security.certificate else "http"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"

    async def serve(self) -> None:
        """Until told to end; then lets go of what the tier held."""
        try:
            await self.server.serve(sockets=[self._socket])
        finally:
            await self.tier.close()


def bound(host: str, port: int) -> socket.socket:
    """A listening address.

    Raises:
        NetworkError: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise NetworkError(
            f"{host}:{port} cannot be listened at: {error.strerror}. Stop what listens there, or choose another port."
        ) from error
    taken.listen(BACKLOG)
    return taken


def serve(
    config: ServeConfig, tiers: Sequence[Callable[[dict[str, str]], Tier]], say: Callable[[str], None]
) -> int:
    """Build tiers one after the other and listen for all until SIGINT or SIGTERM.

    Args:
        tiers: each is given the addresses of those before it, by name. The last ones are told to end first.
        say: shows a line to who started it.

    Returns:
        0.
    """
    start_logging()
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.handlers[:], uvicorn_log.propagate = LOGGER.handlers, False
    uvicorn_log.setLevel(logging.WARNING)
    listening: list[Listening] = []
    urls: dict[str, str] = {}
    say("loading the models; the addresses follow")
    for build in tiers:
        tier = build(urls)
        listening.append(Listening(tier, config))
        urls[tier.name] = listening[-1].url
    for one in listening:
        say(f"{one.tier.name:<7}{one.url}  {one.tier.says}")
    if config.security.keys is None:
        say("no API keys are asked for; only this machine can reach these addresses")
    say("Ctrl-C ends it, once what is being answered is finished")
    asyncio.run(_until_signalled(listening))
    return 0


async def _until_signalled(listening: Sequence[Listening]) -> None:
    """SIGINT and SIGTERM end it; a second one at once."""
    told = asyncio.Event()

    def end() -> None:
        if told.is_set():
            for one in listening:
                one.server.force_exit = True
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    await until(told, listening)


async def until(told: asyncio.Event, listening: Sequence[Listening]) -> None:
    """Serve until told; then end the last tier first, so that its answers still find the others."""
    running = [asyncio.create_task(one.serve()) for one in listening]
    working = [asyncio.create_task(_again(one.tier)) for one in listening if one.tier.work is not None]
    watching = asyncio.create_task(told.wait())
    await asyncio.wait([watching, *running], return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    for task in working:
        task.cancel()
    for one, task in reversed(list(zip(listening, running, strict=True))):
        log("ending", tier=one.tier.name)
        one.server.should_exit = True
        await task


async def _again(tier: Tier) -> None:
    assert tier.work is not None
    while True:
        try:
            await asyncio.to_thread(tier.work)
        except Exception as fault:  # one bad turn, e.g. a reply that is nonsense: the next one may do
            log("work failed", level=40, fault=fault, tier=tier.name)
        await asyncio.sleep(tier.every_s)
