"""Listen for tiers until told to end; then finish what is being answered, devices first."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import uvicorn

from fedtandem.config.serve import SecurityConfig, ServeConfig
from fedtandem.errors import ConfigError, NetworkError
from fedtandem.serving.arriving import patient_protocol
from fedtandem.serving.logs import LOGGER, log, set_level, start_logging
from fedtandem.serving.reloading import Apply, Reloading
from fedtandem.serving.tiers import Tier

KEEP_ALIVE_S = 30
BACKLOG = 1024
FAREWELL_S = 3
"""After `limits.shutdown_s`, for answers that are cut short to say so."""


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
        self.shutdown_s = config.limits.shutdown_s
        security, limits = config.security, config.limits
        settings = uvicorn.Config(
            tier.app, http=patient_protocol(tier.admission), log_config=None,
            access_log=False, lifespan="off", ws="none", timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(limits.shutdown_s) + FAREWELL_S, h11_max_incomplete_event_size=64 << 10,
            server_header=False, date_header=False, proxy_headers=False, ssl_certfile=security.certificate,
            ssl_keyfile=security.private_key, ssl_ca_certs=security.client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if security.client_ca else ssl.CERT_NONE,
        )  # fmt: skip
        try:
            settings.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(_no_tls(security, error)) from error
        self.server = _Server(settings)
        self._socket = bound(tier.host, tier.port)
        host = f"[{tier.host}]" if ":" in tier.host else tier.host
        scheme = "https" if security.certificate else "http"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"

    def prepare(self, config: ServeConfig) -> Apply:
        """What puts another config in force here: the tier's part, and for new connections the certificate.

        Raises:
            ConfigError: it cannot be; nothing has changed.
        """
        security, context = config.security, self.server.config.ssl
        if context is not None and security.certificate is not None:
            _load_certificate(ssl.create_default_context(), security)
        apply = self.tier.prepare(config)

        def put_in_force() -> None:
            apply()
            if context is not None and security.certificate is not None:
                _load_certificate(context, security)
            self.server.config.timeout_graceful_shutdown = round(config.limits.shutdown_s) + FAREWELL_S
            self.shutdown_s = config.limits.shutdown_s

        return put_in_force

    async def serve(self) -> None:
        """Until told to end; then lets go of what the tier held."""
        try:
            await self.server.serve(sockets=[self._socket])
        finally:
            await self.tier.close()


def _load_certificate(context: ssl.SSLContext, security: SecurityConfig) -> None:
    try:
        context.load_cert_chain(str(security.certificate), security.private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(_no_tls(security, error)) from error


def _no_tls(security: SecurityConfig, error: Exception) -> str:
    files = ", ".join(
        file for file in (security.certificate, security.private_key, security.client_ca) if file
    )
    return f"security.certificate: TLS cannot be served with {files}: {error}."


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
    config: ServeConfig,
    tiers: Sequence[Callable[[dict[str, str]], Tier]],
    say: Callable[[str], None],
    read: Callable[[], ServeConfig],
) -> int:
    """Build tiers one after the other and listen for all until SIGINT or SIGTERM; SIGHUP reads the config again.

    Args:
        tiers: each is given the addresses of those before it, by name. The last ones are told to end first.
        say: shows a line to who started it.
        read: reads the config anew.

    Returns:
        0.
    """
    start_logging()
    set_level(config.log.level)
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
    run(_until_signalled(listening, config, read))
    return 0


def run(service: Coroutine[Any, Any, None]) -> None:
    """Run it to its end, in uvloop where that is there."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(service)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # it is not made for every system
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _until_signalled(
    listening: Sequence[Listening], config: ServeConfig, read: Callable[[], ServeConfig]
) -> None:
    """SIGINT and SIGTERM end it, a second one at once; SIGHUP reloads."""
    told = asyncio.Event()
    reloading = Reloading(config, read, [one.prepare for one in listening])
    running: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(reloading.reload())
        running.add(task)
        task.add_done_callback(running.discard)

    def end() -> None:
        if told.is_set():
            for one in listening:
                one.tier.cut_short()
                one.server.force_exit = True
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    await until(told, listening)


async def until(told: asyncio.Event, listening: Sequence[Listening]) -> None:
    """Serve until told; then end the last tier first, so that its answers still find the others."""
    running = [asyncio.create_task(one.serve()) for one in listening]
    working = [asyncio.create_task(_again(*work)) for one in listening for work in one.tier.works]
    watching = asyncio.create_task(told.wait())
    await asyncio.wait([watching, *running], return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    for task in working:
        task.cancel()
    for one, task in reversed(list(zip(listening, running, strict=True))):
        log("ending", tier=one.tier.name)
        one.server.should_exit = True
        late = asyncio.get_running_loop().call_later(one.shutdown_s, one.tier.cut_short)
        await task
        late.cancel()


async def _again(every_s: float, work: Callable[[], None]) -> None:
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception as fault:  # one bad turn, e.g. a reply that is nonsense: the next one may do
            log("work failed", level=40, fault=fault)
        await asyncio.sleep(every_s)
