"""What an answer took: in the response, in the metrics' words, and as an entry of the decision log."""

from collections.abc import Mapping
from typing import Any

from fedtandem.serving.answering import Answer
from fedtandem.serving.device import Plan
from fedtandem.serving.faults import Refusal
from fedtandem.serving.keys import Caller
from fedtandem.serving.upstream import Outage


def usage(answer: Answer) -> dict[str, int]:
    """OpenAI's `usage`."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def account(answer: Answer) -> dict[str, Any]:
    """Who wrote the answer, and what it took."""
    record = answer.record
    degraded = answer.degraded_tokens
    return {
        "route": {
            "slm": record.kept + record.accepted - degraded, "peer": record.peer,
            "llm": record.own + record.corrected, "degraded": degraded,
        },
        "verified_tokens": record.tokens - record.kept - record.peer, "llm_passes": record.llm_passes,
        "uplink_bytes": record.uplink_bytes, "downlink_bytes": record.downlink_bytes,
        "error_bound": record.charged, "degraded": answer.degraded or "none",
    }  # fmt: skip


def decision(
    *, request_id: str, caller: Caller, path: str, mode: str, plan: Plan | None, answer: Answer | None,
    fault: BaseException | None,
) -> Mapping[str, Any]:  # fmt: skip
    """One answer as an entry of the decision log: no prompt, no answer, no token.

    Args:
        mode: where there is no plan.
        plan, answer: as far as it came.
        fault: why it came no further.
    """
    entry: dict[str, Any] = {
        "id": request_id, "key": caller.name, "tenant": caller.tenant, "path": path, "mode": mode,
    }  # fmt: skip
    if plan is not None:
        steps = [step.as_dict() for step in plan.trail.steps]
        entry |= {**plan.facts, "tokens": plan.trail.tokens, "steps": steps}
    if answer is not None:
        entry |= {
            **account(answer), **usage(answer), "finish": answer.finish, "ms": round(1000 * answer.seconds, 1),
            "first_ms": round(1000 * answer.first_s, 1),
        }  # fmt: skip
    if fault is not None:
        entry["refused"] = _named(fault)
    return entry


def _named(fault: BaseException) -> str:
    if isinstance(fault, Refusal):
        return fault.code
    return f"cloud-{fault.reason}" if isinstance(fault, Outage) else type(fault).__name__
