"""The edge: attested answers for peers of one tenant, thresholds from reports, and a way to the cloud."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from fedtandem.inference.policy import policy_from_json
from fedtandem.inference.threshold import BUILT_IN
from fedtandem.serving.command import all_tiers
from fedtandem.serving.ledger import Ledger
from fedtandem.serving.metrics import DeviceMetrics
from fedtandem.serving.policies import Policies
from fedtandem.serving.upstream import Upstream

PROMPT = "Q 3 + 5 * 2 + 4 A"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-key"}


def ask(url: str, **more: object) -> dict:
    body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, **more}
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.json()


def metric(url: str, line: str) -> float:
    found = [row for row in httpx.get(f"{url}/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_a_peers_answer_drafts_for_the_next_and_changes_nothing(tiers) -> None:
    device, edge = tiers.urls["device"], tiers.urls["edge"]
    first = ask(device, peer="draft")
    assert metric(edge, 'peer_insert_total{outcome="taken"}') > 0
    hits = metric(edge, 'peer_lookup_total{outcome="hit"}')
    again = ask(device, peer="draft")
    assert metric(edge, 'peer_lookup_total{outcome="hit"}') > hits
    assert again["choices"][0]["text"] == first["choices"][0]["text"] == ask(device)["choices"][0]["text"]
    assert again["fedtandem"]["llm_passes"] <= first["fedtandem"]["llm_passes"]
    assert metric(device, 'peer_lookup_total{outcome="hit"}') > 0


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, lab) -> Iterator[str]:
    """An edge with keys before a cloud that nobody asks."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    scopes = ["verify", "report", "metrics"]
    lab.write_keys(file, ("a", "one", scopes), ("b", "two", scopes), ("c", "one", scopes))
    config = lab.config(security={"keys": str(file)}, edge={"price": 0.3, "upstream": "http://127.0.0.1:9"})
    with lab.Running([lambda urls: all_tiers(config)[1]({"cloud": "http://127.0.0.1:9"})], config) as one:
        yield one.urls["edge"]


def ledger(beta_at: float, n: int = 2000) -> Ledger:
    """Tokens whose β is 1 exactly above an uncertainty."""
    filled = Ledger(DeviceMetrics())
    for u in np.random.default_rng(1).uniform(0, 1, n):
        (filled.sent if u > 0.5 else filled.audited)(float(u), float(u > beta_at))
    return filled


def report(edge: str, key: str, name: str, beta_at: float, n: int = 2000) -> httpx.Response:
    told = ledger(beta_at, n).report(name, ("slm", "llm"), 0.5)
    assert told is not None
    return httpx.post(
        f"{edge}/v1/fl/report", content=told.to_envelope().to_bytes(), headers=bearer(key), timeout=60
    )


def test_thresholds_come_from_reports_and_have_an_etag(edge: str) -> None:
    asked = {"headers": bearer("a"), "timeout": 60}
    assert httpx.get(f"{edge}/v1/fl/policy", **asked).status_code == 404
    assert report(edge, "a", "few", 0.75, n=100).status_code == 204
    assert httpx.get(f"{edge}/v1/fl/policy", **asked).status_code == 404  # a handful of tokens is chance
    for i in range(3):
        assert report(edge, "a", f"d{i}", 0.75).status_code == 204
    reply = httpx.get(f"{edge}/v1/fl/policy", **asked)
    policy = policy_from_json(reply.text, "it")
    first = policy.overall.tau
    assert first > BUILT_IN  # β = 0 up to 0.75, and the price of a call is 0.3
    assert reply.headers["etag"]
    same = httpx.get(f"{edge}/v1/fl/policy", headers={**bearer("a"), "if-none-match": reply.headers["etag"]})
    assert same.status_code == 304
    assert (
        httpx.get(f"{edge}/v1/fl/policy", headers=bearer("b")).status_code == 404
    )  # another tenant learns nothing
    assert report(edge, "a", "d0", 0.75).status_code == 204  # the same counts again count once
    again = policy_from_json(httpx.get(f"{edge}/v1/fl/policy", **asked).text, "it")
    assert again.overall.tokens == policy.overall.tokens


def test_a_device_cannot_report_for_another(edge: str) -> None:
    assert report(edge, "a", "mine", 0.75).status_code == 204
    refused = report(edge, "c", "mine", 0.1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_yours")
    assert httpx.post(f"{edge}/v1/fl/report", content=b"nonsense", headers=bearer("a")).status_code == 400


def test_a_policy_expires_on_the_device(edge: str) -> None:
    assert report(edge, "b", "d", 0.75).status_code == 204
    now = [0.0]
    policies = Policies(None, now_s=lambda: now[0])
    upstream = Upstream(edge, "b-key", connections=2)
    try:
        assert policies.current() is None
        assert policies.refresh(upstream)
        assert policies.current() is not None
        assert policies.refresh(upstream)  # 304
        assert policies.current() is not None
        # The two clocks are decades apart; a policy lives as long as the edge says, from when it came.
        now[0] = 3599.0
        assert policies.current() is not None
        now[0] = 3601.0
        assert policies.current() is None
    finally:
        upstream.close()


def test_without_a_cloud_the_edge_says_so_and_goes_on_learning(edge: str) -> None:
    for _ in range(7):
        reply = httpx.post(f"{edge}/v1/verify", content=b"x", headers=bearer("a"), timeout=60)
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
    assert "breaker_state 2.0" in httpx.get(f"{edge}/metrics", headers=bearer("a")).text
    assert httpx.get(f"{edge}/readyz").status_code == 503
    assert report(edge, "a", "late", 0.75).status_code == 204


@pytest.mark.parametrize(
    "body",
    [{}, {"scope": "z" * 32}, {"embedding": "not base64"}, {"embedding": ""}, {"context": "../../etc"}],
)
def test_a_malformed_question_is_refused(edge: str, body: dict) -> None:
    good = {"scope": "0" * 32, "model": "m", "tokenizer": "t", "decoding": "greedy 1", "context": "0" * 32,
            "embedding": "ADwAPA=="}  # fmt: skip
    assert httpx.post(f"{edge}/v1/resolve", json=good, headers=bearer("a")).json()["outcome"] == "miss"
    bad = {**good, **body} if body else {}
    assert httpx.post(f"{edge}/v1/resolve", json=bad, headers=bearer("a")).status_code == 400


def test_the_demo_listens_on_loopback_alone(tiers) -> None:
    assert all(url.startswith("http://127.0.0.1:") for url in tiers.urls.values())
