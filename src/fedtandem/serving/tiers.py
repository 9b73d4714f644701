"""From a config to a tier: models loaded, lines laid, an app to be listened for."""

import asyncio
import os
import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from fedtandem.config.serve import (
    LOOPBACK,
    CloudConfig,
    DeviceConfig,
    EdgeConfig,
    SecurityConfig,
    ServeConfig,
)
from fedtandem.errors import ConfigError
from fedtandem.inference.policy import Policy, read_policy
from fedtandem.models.endpoint import Endpoint
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model, locate
from fedtandem.models.tokenizer import TextTokenizer
from fedtandem.serving.admission import Admission, quotas_of, refuse_uncounted
from fedtandem.serving.batching import Batcher
from fedtandem.serving.breaker import Breaker
from fedtandem.serving.cloud import cloud_app
from fedtandem.serving.comparing import CompareService
from fedtandem.serving.decisions import Decisions
from fedtandem.serving.device import Device
from fedtandem.serving.device_app import device_app
from fedtandem.serving.edge import EdgeState, edge_app
from fedtandem.serving.keys import Keyring, read_keyring
from fedtandem.serving.ledger import Ledger
from fedtandem.serving.metrics import CloudMetrics, DeviceMetrics, EdgeMetrics
from fedtandem.serving.policies import Policies
from fedtandem.serving.pricing import Price
from fedtandem.serving.quotas import SAVE_EVERY_S
from fedtandem.serving.reloading import LIVE, Apply, Prepare
from fedtandem.serving.sessions import Sessions
from fedtandem.serving.syncing import sync
from fedtandem.serving.upstream import Upstream
from fedtandem.serving.verifying import VerifyService

KEY_VARIABLE = "FEDTANDEM_UPSTREAM_KEY"
MIB = 1 << 20


@dataclass(frozen=True)
class Tier:
    """One service, ready to be listened for.

    Attributes:
        name: device, edge or cloud.
        host, port: to listen at; port 0 takes a free one.
        app: its routes.
        says: one line for who starts it.
        admission: the rules at its door.
        close: lets threads and connections go; in the loop that served.
        cut_short: ends answers that took longer than a service that ends may wait for.
        prepare: checks another config and returns what puts it in force.
        works: what is done again and again beside, in a thread, each every so many seconds.
    """

    name: str
    host: str
    port: int
    app: FastAPI
    says: str
    admission: Admission
    close: Callable[[], Awaitable[None]]
    prepare: Prepare
    cut_short: Callable[[], None] = lambda: None
    works: tuple[tuple[float, Callable[[], None]], ...] = ()


def build_cloud(config: ServeConfig, attest_key: bytes | None = None) -> Tier:
    """The LLM's tier.

    Args:
        attest_key: signs what peers may share; None reads `security.attest_key_file`.

    Raises:
        ConfigError, ModelError: it cannot be served so.
    """
    own = config.cloud
    admission = _admission(config, "cloud", own.host, own.port)
    service = (
        _comparing(own)
        if own.endpoint is not None
        else _verifying(own, attest_key or _attest_key(config.security))
    )
    app = cloud_app(service, admission=admission, metrics=CloudMetrics())

    def prepare(new: ServeConfig) -> Apply:
        return lambda: service.bound(new.cloud)

    return _tier("cloud", own, app, f"verifies with {service.fingerprint}", admission, service.close, prepare)


def _verifying(own: CloudConfig, attest_key: bytes | None) -> VerifyService:
    lm = _load(own.model)
    reader = lm.session_reader(own.cache_mb * MIB)
    batcher = Batcher(reader, max_batch=own.max_batch, max_waiting=own.max_waiting, name="llm")
    return VerifyService(lm, batcher, Sessions(own.max_sessions), attest_key=attest_key)


def _comparing(own: CloudConfig) -> CompareService:
    tokenizer = TextTokenizer.from_pretrained(locate(str(own.tokenizer)))
    endpoint = Endpoint.from_environment(own.endpoint, own.endpoint_model, attempts=2, backoff_s=0.2)
    return CompareService(endpoint, tokenizer, Sessions(own.max_sessions))


def build_edge(config: ServeConfig, attest_key: bytes | None = None) -> Tier:
    """The tier between.

    Raises:
        ConfigError: as `build_cloud`.
    """
    own = config.edge
    admission = _admission(config, "edge", own.host, own.port)
    limits = httpx.Limits(max_connections=own.max_in_flight, max_keepalive_connections=own.max_in_flight)
    key = _upstream_key(config.security)
    client = httpx.AsyncClient(
        base_url=own.upstream, limits=limits, trust_env=False,
        headers={"Authorization": f"Bearer {key}"} if key else {}, **_tls(config.security),
    )  # fmt: skip
    state = EdgeState(own, client, attest_key or _attest_key(config.security), Breaker(name=own.upstream))
    app = edge_app(state, admission=admission, metrics=EdgeMetrics())
    peers = "peers may share" if state.attest_key is not None else "no attest_key_file: peers share nothing"

    def prepare(new: ServeConfig) -> Apply:
        shown = _upstream_key(new.security)

        def apply() -> None:
            state.reconfigure(_live(state.config, new.edge, "edge"))
            if shown:
                client.headers["Authorization"] = f"Bearer {shown}"

        return apply

    says = f"goes on to {own.upstream}; {peers}"
    return _tier("edge", own, app, says, admission, client.aclose, prepare)


def build_device(config: ServeConfig) -> Tier:
    """The tier that OpenAI clients talk to.

    Raises:
        ConfigError, ModelError: as `build_cloud`.
    """
    own = config.device
    admission = _admission(config, "device", own.host, own.port)
    policy = _policy(own)
    decisions = _decisions(config)
    lm = _load(own.model)
    upstream, price = None, Price(own.price_step, own.calls_per_s)
    if own.upstream is not None:
        upstream = Upstream(
            own.upstream, _upstream_key(config.security), connections=own.max_streams, fallback=own.fallback,
            tls=_tls(config.security), own_tokenizer=lm.tokenizer, price=price,
        )  # fmt: skip
    metrics = DeviceMetrics()
    batcher = Batcher(
        lm.session_reader(own.cache_mb * MIB), max_batch=own.max_streams,
        max_waiting=4 * (own.max_streams + own.max_waiting), name="slm",
    )  # fmt: skip
    device = Device(own, lm, batcher, upstream, Policies(policy), Ledger(metrics), price, decisions)
    app = device_app(device, admission=admission, metrics=metrics)
    beyond = "alone" if own.upstream is None else f"with {own.upstream}"
    says = (
        f"OpenAI's API under /v1, model {own.served_name!r}: {device.fingerprint} {beyond}, mode {own.mode}"
    )

    def prepare(new: ServeConfig) -> Apply:
        fresh = _live(device.config, new.device, "device")
        shown, own_policy = _upstream_key(new.security), _policy(fresh)
        log_book, last = _decisions(new, device.decisions), device.decisions

        def apply() -> None:
            device.config, device.decisions = fresh, log_book
            device.policies.own(own_policy)
            price.set(fresh.price_step, fresh.calls_per_s)
            if upstream is not None and shown:
                upstream.show(shown)
            if log_book is not None and log_book is last:
                log_book.bound(round(new.decisions.max_mb * MIB))
            elif last is not None:
                last.close()

        return apply

    works = () if upstream is None else ((own.report_every_s, lambda: sync(device)),)
    close = partial(asyncio.to_thread, device.close)
    return _tier("device", own, app, says, admission, close, prepare, device.cut_short, works)


def _tier(
    name: str,
    own: DeviceConfig | EdgeConfig | CloudConfig,
    app: FastAPI,
    says: str,
    admission: Admission,
    close: Callable[[], Awaitable[None]],
    prepare_own: Prepare = lambda _: lambda: None,
    cut_short: Callable[[], None] = lambda: None,
    works: tuple[tuple[float, Callable[[], None]], ...] = (),
) -> Tier:
    """With what every tier has: rules that may be replaced, quotas that are saved."""
    save = admission.quotas.save

    def prepare(new: ServeConfig) -> Apply:
        keyring = _keyring(new, own.host)
        refuse_uncounted(keyring, new.limits)
        apply_own = prepare_own(new)

        def apply() -> None:
            admission.replace(keyring, new.limits)
            apply_own()

        return apply

    async def close_all() -> None:
        await close()
        await asyncio.to_thread(save)

    works = (*works, (SAVE_EVERY_S, save))
    return Tier(name, own.host, own.port, app, says, admission, close_all, prepare, cut_short, works)


OwnConfig = TypeVar("OwnConfig", DeviceConfig, EdgeConfig)


def _live(now: OwnConfig, new: OwnConfig, section: str) -> OwnConfig:
    """A tier's own section, which may be pointed elsewhere than the file says, with what can change."""
    return now.model_copy(update={name: getattr(new, name) for name in LIVE[section]})


def _policy(own: DeviceConfig) -> Policy | None:
    return None if own.policy is None else read_policy(Path(own.policy))


def _decisions(config: ServeConfig, held: Decisions | None = None) -> Decisions | None:
    """The log a config wants; the one that is held where it is that one."""
    folder = config.decisions.folder
    if folder is None:
        return None
    if held is not None and held.folder == Path(folder):
        return held
    return Decisions(Path(folder), round(config.decisions.max_mb * MIB))


def _admission(config: ServeConfig, tier: str, host: str, port: int) -> Admission:
    return Admission(_keyring(config, host), config.limits, quotas_of(config.limits, tier, port))


def _load(model: str) -> LanguageModel:
    lm = load_model(ModelSpec(model, tuning_method="none"))
    # Made once, here: threads ask for both.
    _ = lm.tokenizer.card.hash, lm.tokenizer.continue_ids(" ")
    return lm


def _keyring(config: ServeConfig, host: str) -> Keyring:
    if config.security.keys is None and host not in LOOPBACK:
        raise ConfigError(
            f"host = {host!r} can be reached by others, and there are no API keys: set security.keys (`fedtandem serve "
            "key` makes one), or listen at 127.0.0.1."
        )
    return read_keyring(config.security.keys)


def _secret(file: str, what: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: {file} cannot be read ({type(error).__name__}).") from error
    if len(text) < 16:
        raise ConfigError(f"{what}: {file} holds {len(text)} characters; a secret has 16 at least.")
    return text


def _upstream_key(security: SecurityConfig) -> str:
    if security.key_file is not None:
        return _secret(security.key_file, "security.key_file")
    return os.environ.get(KEY_VARIABLE, "")


def _attest_key(security: SecurityConfig) -> bytes | None:
    if security.attest_key_file is None:
        return None
    return _secret(security.attest_key_file, "security.attest_key_file").encode()


def new_attest_key() -> bytes:
    """For a cloud and an edge in one process."""
    return secrets.token_bytes(32)


def _tls(security: SecurityConfig) -> dict[str, Any]:
    """How an upstream is trusted, and what it is shown, as httpx's arguments."""
    if security.upstream_ca is None and security.upstream_certificate is None:
        return {}
    try:
        context = ssl.create_default_context(cafile=security.upstream_ca)
        if security.upstream_certificate is not None:
            context.load_cert_chain(security.upstream_certificate, security.upstream_private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"security.upstream_*: the certificates cannot be used: {error}.") from error
    return {"verify": context}
