"""What a request gets: its mode, its threshold, its settings; or why it cannot be answered as asked."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedtandem.config.serve import DeviceConfig
from fedtandem.errors import ConfigError
from fedtandem.federation.generate import TAU
from fedtandem.inference.policy import Policy, Resolved
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uncertainty import MEASURES
from fedtandem.serving.faults import Refusal
from fedtandem.serving.openai_wire import ChatRequest, CompletionRequest

Asked = ChatRequest | CompletionRequest
PRICE = 0.3
"""λ behind the built-in threshold."""
PeerUse = Literal["off", "draft", "answer"]


def mode_of(request: Asked, config: DeviceConfig) -> str:
    """The mode to be used.

    Raises:
        Refusal: another model, or fields that contradict each other.
    """
    if request.model != config.served_name:
        raise Refusal(404, f"this device serves {config.served_name!r} and no other model.",
                      "model_not_found", "model")  # fmt: skip
    mode = request.mode or ("local" if request.privacy == "local-only" else config.mode)
    if request.eps is not None and mode != "bounded":
        raise Refusal(400, f"eps goes with mode bounded, not with {mode}.", "contradiction", "eps")
    if request.privacy == "local-only":
        if mode != "local":
            raise Refusal(400, f"privacy local-only lets nothing leave the device; mode {mode} asks the cloud.",
                          "contradiction", "privacy")  # fmt: skip
        return "local"
    if request.max_cloud_fraction is not None and mode in ("exact", "cloud"):
        raise Refusal(400, f"mode {mode} has the LLM see every token; max_cloud_fraction goes with fedhlm and "
                           "bounded.", "contradiction", "max_cloud_fraction")  # fmt: skip
    if mode == "bounded" and (request.eps or config.eps) is None:
        raise Refusal(400, "mode bounded needs eps, e.g. 0.1.", "missing", "eps")
    return mode


def on_outage_of(request: Asked, config: DeviceConfig, mode: str) -> str:
    """What is done without the LLM: error, stall or degrade."""
    if mode in ("fedhlm", "bounded"):
        return request.on_outage or "degrade"
    asked = request.on_outage or config.on_outage
    return "error" if mode == "cloud" and asked == "degrade" else asked


def peer_use(request: Asked, config: DeviceConfig, mode: str) -> PeerUse:
    """How peers are used: as drafts in `exact`, as answers in `fedhlm` and `bounded`, where the answer is greedy.

    Raises:
        Refusal: the request asks for a use that does not go with its mode.
    """
    wanted: PeerUse = request.peer or config.peer
    fits = {"off": True, "draft": mode == "exact", "answer": mode in ("fedhlm", "bounded")}[wanted]
    if not fits and request.peer is not None:
        use = "draft in mode exact" if wanted == "draft" else "answer in modes fedhlm and bounded"
        raise Refusal(400, f"peers {use}, not in {mode}.", "contradiction", "peer")
    if wanted == "answer" and request.temperature != 0:
        if request.peer is not None:
            raise Refusal(400, "peers answer at temperature 0 alone: only there can an audit tell that one was wrong.",
                          "contradiction", "peer")  # fmt: skip
        return "off"
    return wanted if fits else "off"


@dataclass(frozen=True)
class Gate:
    """When the LLM is asked.

    Attributes:
        policy: in force; None: the built-in threshold.
        measure: the uncertainty τ is compared with.
        tau, scope: threshold, and where it comes from.
        price, price_in_force: λ of the threshold as it was learnt, and of a call now.
    """

    policy: Policy | None
    measure: str
    tau: float
    scope: str
    price: float
    price_in_force: float


def gate_of(
    config: DeviceConfig, policy: Policy | None, models: tuple[str, str] | None, mode: str, surcharge: float
) -> Gate:
    """The threshold for an answer.

    Args:
        models: fingerprints of SLM and LLM; None without an LLM.
        surcharge: on the policy's λ, while the cloud is busy. A τ that the config fixes is not moved by it.

    Raises:
        Refusal: mode bounded without bounds for these models.
    """
    name = config.uncertainty or ("expected" if policy is None else policy.measure)
    if policy is not None and (policy.measure != name or name not in MEASURES):
        policy, name = None, config.uncertainty or "expected"
    price = PRICE if policy is None else policy.price
    found = Resolved(TAU, "built-in", "")
    if policy is not None and models is not None:
        found = policy.resolve(config.name, "", models)
        if found.scope == "built-in" and mode == "bounded":
            policy = None  # bounds of other models bound nothing here
    if mode == "bounded" and models is not None and (policy is None or policy.bounds is None):
        raise Refusal(400, "mode bounded needs a policy with bounds for these models; this device has none.",
                      "no_bounds", "mode")  # fmt: skip
    if config.tau is not None:
        return Gate(policy, name, config.tau, "config", price, price)
    price_in_force = price + surcharge
    return Gate(policy, name, found.tau_at(price, price_in_force), found.scope, price, price_in_force)


def settings_of(request: Asked, config: DeviceConfig, mode: str, tau: float, peer: PeerUse) -> DecodeSettings:
    """How to generate.

    Raises:
        Refusal: values that do not go together.
    """
    temperature = 1.0 if request.temperature is None else request.temperature
    limit = request.max_tokens or config.max_tokens
    if isinstance(request, ChatRequest):
        limit = request.max_completion_tokens or limit
    seed = secrets.randbits(63) if request.seed is None else request.seed % 2**64
    try:
        return DecodeSettings(
            mode=mode,  # type: ignore[arg-type]
            uplink="greedy" if temperature == 0 else config.uplink, block=config.block, tau=tau,
            eps=request.eps or config.eps, max_new_tokens=limit, seed=seed, temperature=temperature or 1.0,
            audit="none" if mode in ("local", "cloud") else "passing", peer="answer" if peer == "answer" else "draft",
        )  # fmt: skip
    except ConfigError as fault:
        raise Refusal(400, str(fault), "invalid_request") from fault


def facts_of(asked_mode: str, gate: Gate, settings: DecodeSettings, peer: PeerUse) -> Mapping[str, Any]:
    """The decision for the log: numbers and names, no text."""
    return {
        "asked_mode": asked_mode, "tau": gate.tau, "scope": gate.scope, "measure": gate.measure,
        "price": gate.price, "price_in_force": round(gate.price_in_force, 4), "eps": settings.eps,
        "uplink": settings.uplink, "block": settings.block, "peer": peer,
    }  # fmt: skip
