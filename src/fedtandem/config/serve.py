"""What a served tier is: device, edge, cloud, and what they share. One file may hold all three."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedtandem.config.faults import Fault, refuse
from fedtandem.config.load import absolute, parse
from fedtandem.config.overrides import apply_overrides, read_overrides
from fedtandem.config.schema import map_paths
from fedtandem.config.section import FilePath, FolderOrName, Section
from fedtandem.config.validate import validated
from fedtandem.errors import ConfigError

Port = Annotated[int, Field(ge=0, le=65535)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class DeviceConfig(Section):
    """[device]: the SLM, and the address an OpenAI client is pointed at."""

    host: str = "127.0.0.1"
    """Address to listen at; another than loopback needs `security.keys`."""
    port: Port = 8801
    """0 takes a free one."""
    name: str = Field("device", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Of this client, for the edge's thresholds."""
    model: FolderOrName = "embedded:chains-client-a"
    """The SLM."""
    served_name: str = Field("fedtandem", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """The model's name in the API."""
    upstream: Url | None = "http://127.0.0.1:8802"
    """The edge, or the cloud itself; null: the SLM alone."""
    fallback: Url | None = None
    """The cloud's own address, for when the edge is gone: no peers and no new thresholds then, but verification."""
    mode: Literal["exact", "bounded", "fedhlm", "local", "cloud"] = "exact"
    """Where a request names none."""
    eps: float | None = Field(None, gt=0, le=1)
    """Of `bounded`, where a request names none."""
    policy: FilePath | None = None
    """Thresholds and bounds of β from `fedtandem calibrate`; the edge's policy goes before it."""
    tau: float | None = Field(None, ge=-1, le=2)
    """Uncertainty above which the LLM is asked; goes before every policy."""
    uncertainty: Literal["expected", "entropy", "margin", "max_prob"] | None = None
    """Default: the policy's, else expected."""
    block: int = Field(6, ge=1, le=64)
    """Drafts per verification."""
    uplink: Literal["shared_noise", "sparse"] = "shared_noise"
    """Of sampled answers; temperature 0 compares with the LLM's likeliest token."""
    on_outage: Literal["error", "stall", "degrade"] = "error"
    """What `exact` and `cloud` do without the LLM: 503; wait for it as long as the request may take; go on alone, said
    in the headers."""
    deadline_ms: float = Field(800.0, gt=0)
    """For each verification, its second try included."""
    prompt_deadline_ms: float = Field(10_000.0, gt=0)
    """For the first one of an answer: there the LLM reads the whole prompt."""
    request_timeout_s: float = Field(120.0, gt=0)
    """For a whole answer."""
    max_streams: int = Field(16, ge=1)
    """Answers written at once."""
    max_waiting: int = Field(64, ge=0)
    """Requests that wait for a place; more are told to come back (429)."""
    max_tokens: int = Field(256, ge=1)
    """Of an answer, where a request does not say."""
    cache_mb: int = Field(256, ge=0)
    """Keys and values of the SLM kept between passes."""
    peer: Literal["off", "draft", "answer"] = "off"
    """Whether the edge is asked for what peers were answered, where a request does not say: as drafts in `exact`, as
    answers to uncertain tokens in `fedhlm` and `bounded` at temperature 0; the other modes ask nobody."""
    calls_per_s: float | None = Field(None, gt=0)
    """Verifications this device should send per second at most in the long run: above it their price rises, and with it
    τ. Without it the price rises with the cloud's queue alone."""
    price_step: float = Field(0.05, ge=0, le=1)
    """η: how fast the price follows, per second at twice the budget; 0 leaves it where the policy has it."""
    report_every_s: float = Field(300.0, gt=0)
    """How often counted feedback goes to the edge."""


class EdgeConfig(Section):
    """[edge]: between the devices of one cluster and the cloud."""

    host: str = "127.0.0.1"
    """As of the device."""
    port: Port = 8802
    """As of the device."""
    name: str = Field("edge", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Of the cluster."""
    upstream: Url = "http://127.0.0.1:8803"
    """The cloud."""
    max_in_flight: int = Field(64, ge=1)
    """Connections to the cloud, shared by all devices."""
    price: float = Field(0.3, gt=0, le=1)
    """λ: of a call over an error."""
    policy_valid_s: float = Field(3600.0, gt=0)
    """How long devices may use a policy without asking again."""
    peer_ttl_s: float = Field(24 * 3600.0, gt=0)
    """How long an answer is shared."""
    peer_quota: int = Field(10_000, ge=0)
    """Answers one key may add."""
    peer_audit_rate: float = Field(0.01, gt=0, le=1)
    """Of peers' answers, how many the LLM is asked about afterwards; every tenth until 500 were."""
    deadline_ms: float = Field(30_000.0, gt=0)
    """For the cloud's reply; devices give up earlier."""


class CloudConfig(Section):
    """[cloud]: the LLM that verifies."""

    host: str = "127.0.0.1"
    """As of the device."""
    port: Port = 8803
    """As of the device."""
    model: FolderOrName = "embedded:chains-server"
    """The LLM; not loaded where `endpoint` is set."""
    endpoint: Url | None = None
    """An OpenAI-compatible server as the LLM (vLLM, SGLang, llama.cpp, hosted): it writes on, equal drafts stand.
    Greedy answers only; the key is the environment's OPENAI_API_KEY."""
    endpoint_model: str = ""
    """The model's name there."""
    tokenizer: FolderOrName | None = None
    """The tokenizer of the model served there."""
    cache_mb: int = Field(1024, ge=0)
    """Keys and values of prefixes kept between passes; the longest unused go first."""
    max_batch: int = Field(32, ge=1)
    """Verifications per forward pass."""
    max_waiting: int = Field(512, ge=1)
    """Verifications that wait; more are told to come back (429)."""
    max_sessions: int = Field(4096, ge=1)
    """Answers whose text is remembered; a forgotten one is asked for again (409)."""

    @model_validator(mode="after")
    def _endpoint_is_whole(self) -> Self:
        if self.endpoint is not None and not (self.endpoint_model and self.tokenizer):
            raise ValueError(
                "endpoint needs endpoint_model and tokenizer: its name there, and how it cuts text"
            )
        return self


class SecurityConfig(Section):
    """[security]: who may come in."""

    keys: FilePath | None = None
    """TOML file of [[keys]] with hashed API keys; `fedtandem serve key` makes one. Without it everybody on loopback
    may do everything, and no other address is listened at."""
    key_file: FilePath | None = None
    """The API key this tier shows its upstream; else the environment's FEDTANDEM_UPSTREAM_KEY."""
    attest_key_file: FilePath | None = None
    """The secret cloud and edge share, with which peers' answers are signed."""
    certificate: FilePath | None = None
    """PEM, for TLS."""
    private_key: FilePath | None = None
    """PEM, of the certificate."""
    client_ca: FilePath | None = None
    """PEM: only callers with a certificate of this authority are let in (mTLS)."""
    upstream_ca: FilePath | None = None
    """PEM: the authority of the upstream's certificate; else the system's."""
    upstream_certificate: FilePath | None = None
    """PEM, shown to the upstream (mTLS)."""
    upstream_private_key: FilePath | None = None
    """PEM, of it."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        for one, other in (("certificate", "private_key"), ("upstream_certificate", "upstream_private_key")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and private_key: mTLS is TLS on both sides")
        return self


class LimitsConfig(Section):
    """[limits]: what one request and one key may take."""

    max_body_bytes: int = Field(4 << 20, ge=1024)
    """Larger bodies are refused (413)."""
    max_header_bytes: int = Field(16 << 10, ge=1024)
    """Larger headers are refused (431)."""
    header_timeout_s: float = Field(10.0, gt=0)
    """For the headers of a request to arrive, from the first byte or, of a first request, from the connection (408)."""
    body_timeout_s: float = Field(30.0, gt=0)
    """For a body to arrive (408)."""
    requests_per_minute: int = Field(6000, ge=1)
    """Per key, where the key has no rate of its own."""
    quota_period: Literal["hour", "day", "month"] = "day"
    """What quotas count in; each begins anew with the clock's, in UTC."""
    quota_requests: int | None = Field(None, ge=1)
    """Requests per key and period, where the key has no quota of its own; null: as many as the rate lets through."""
    quota_tokens: int | None = Field(None, ge=1)
    """Tokens per key and period, read and written together; an answer that has begun is finished."""
    quota_folder: FilePath | None = None
    """Where a tier counts its quotas (a file each), so that a restart does not begin them anew; needed for quotas."""
    shutdown_s: float = Field(30.0, ge=0)
    """How long answers may go on after the service was told to end."""


class DecisionsConfig(Section):
    """[decisions]: what a device writes down of every answer, for `fedtandem explain`; never a text."""

    folder: FilePath | None = None
    """Where; null keeps nothing."""
    max_mb: float = Field(64.0, gt=0)
    """All files together; the oldest entries go first."""


class LogConfig(Section):
    """[log]: lines on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """`info` has a line per request; `warning` what may need somebody."""


class ServeConfig(Section):
    """Tiers in one file; every section has defaults that run the embedded models on loopback."""

    device: DeviceConfig = DeviceConfig()
    """[device]"""
    edge: EdgeConfig = EdgeConfig()
    """[edge]"""
    cloud: CloudConfig = CloudConfig()
    """[cloud]"""
    security: SecurityConfig = SecurityConfig()
    """[security]"""
    limits: LimitsConfig = LimitsConfig()
    """[limits]"""
    decisions: DecisionsConfig = DecisionsConfig()
    """[decisions]"""
    log: LogConfig = LogConfig()
    """[log]"""


def default_serve() -> str:
    """Every key with its default and what it means, as TOML; a key without a default is a comment."""
    lines = []
    for section, field in ServeConfig.model_fields.items():
        values = field.get_default()
        lines.append(f"[{section}]")
        for name, own in type(values).model_fields.items():
            value = getattr(values, name)
            lines += [f"# {line}" for line in textwrap.wrap(own.description or "", 118)]
            lines.append(f"# {name} =" if value is None else f"{name} = {json.dumps(value)}")
        lines.append("")
    return "\n".join(lines)


def load_serve(path: str | Path | None, overrides: Iterable[str] = ()) -> ServeConfig:
    """Read a config of served tiers; None is all defaults.

    Raises:
        ConfigError: all faults in one message, each with its path, its value and what is allowed.
    """
    document: dict[str, object] = {}
    faults: list[Fault] = []
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError(f"there is no config file {str(path)!r} (looked in {Path.cwd()}).")
        folder = file.resolve().parent
        document = map_paths(ServeConfig, parse(file), lambda kind, text: absolute(kind, text, folder))
    faults += apply_overrides(ServeConfig, document, read_overrides(overrides))
    config, more = validated(ServeConfig, document)
    refuse([*faults, *more], "the defaults" if path is None else str(path))
    if config is None:
        raise ConfigError(f"{path} is not a config.")
    return config
