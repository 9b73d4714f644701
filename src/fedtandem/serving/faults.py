"""Every refusal as HTTP: a status, and the body an OpenAI client reads. Messages never repeat what was sent."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from fedtandem.errors import (
    DataError,
    FedtandemError,
    InvalidMessage,
    ModelError,
    NetworkError,
    VocabularyMismatch,
)
from fedtandem.serving.batching import Overloaded
from fedtandem.serving.sessions import UnknownPrefix


@dataclass(eq=False)
class Refusal(Exception):
    """One request that is not answered.

    Attributes:
        status: of HTTP.
        message: what was wrong and what to do.
        code: a short word for programs.
        param: the field at fault.
        headers: of the response, besides.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As OpenAI's services write it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status in (401, 403):
            kind = "authentication_error" if self.status == 401 else "permission_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The body as JSON."""
        return json.dumps(self.body()).encode()


def too_busy(
    retry_after_s: float,
    message: str = "too many requests wait already; come back later.",
    code: str = "overloaded",
) -> Refusal:
    """429 with the time to come back."""
    seconds = str(max(1, math.ceil(retry_after_s)))
    return Refusal(429, message, code, headers={"Retry-After": seconds})


def refusal_of(fault: FedtandemError) -> Refusal:
    """What a fault of ours is over HTTP."""
    if isinstance(fault, Overloaded):
        return too_busy(1.0)
    if isinstance(fault, UnknownPrefix):
        return Refusal(409, str(fault), "unknown_prefix")
    if isinstance(fault, VocabularyMismatch):
        return Refusal(409, str(fault), "another_model")
    if isinstance(fault, InvalidMessage):
        return Refusal(
            400, "the frame is not one this service reads; run the same version on both sides.", "bad_frame"
        )
    if isinstance(fault, DataError):
        return Refusal(400, str(fault), "bad_request")
    if isinstance(fault, NetworkError):
        return Refusal(503, "the model behind this service does not answer now.", "model_unreachable",
                       headers={"Retry-After": "2"})  # fmt: skip
    if isinstance(fault, ModelError):
        return Refusal(500, "the model failed on this text; the service's log says how.", "model_error")
    return Refusal(500, "the service failed on this request; its log says how.", "internal_error")
