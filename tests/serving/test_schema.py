"""The published schema, and random requests made from it: never a 5xx. FEDTANDEM_SCHEMA_CASES=2000 for a long look."""

import os

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis")
CASES = int(os.environ.get("FEDTANDEM_SCHEMA_CASES", "60"))
OPERATIONS = {
    ("device", "/v1/chat/completions", "POST"): 0.35,
    ("device", "/v1/completions", "POST"): 0.3,
    ("device", "/v1/embeddings", "POST"): 0.1,
    ("device", "/v1/models/{model}", "GET"): 0.05,
    ("edge", "/v1/resolve", "POST"): 0.1,
    ("edge", "/v1/fl/policy", "GET"): 0.05,
    ("edge", "/v1/fl/report", "POST"): 0.05,
}


@pytest.mark.parametrize(("tier", "path", "method"), OPERATIONS)
def test_no_request_the_schema_allows_breaks_a_tier(tiers, tier: str, path: str, method: str) -> None:
    base = tiers.urls[tier]
    document = httpx.get(f"{base}/openapi.json", timeout=60).json()
    operation = schemathesis.openapi.from_dict(document)[path][method]
    statuses: dict[int, int] = {}

    @settings(
        max_examples=max(2, round(CASES * OPERATIONS[(tier, path, method)])), deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def holds(case) -> None:
        if isinstance(case.body, dict):
            # Short answers by the served model: the point is what comes in.
            case.body |= {"max_tokens": 2} if "ompletions" in path else {}
            if "model" in case.body and len(case.body["model"]) % 2:
                case.body["model"] = "fedtandem"
        reply = case.call(base_url=base, timeout=120)
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        assert reply.status_code < 500, reply.text

    holds()
    print(tier, path, statuses)
    assert statuses
