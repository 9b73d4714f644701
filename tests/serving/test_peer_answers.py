"""Peers as answers over HTTP: behind gates, charged to the budget, audited by the cloud, out when they are wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import sleep

import httpx
import numpy as np
import pytest

from fedtandem.exchange.verification import EMPTY, VerifyReply, VerifyRequest
from fedtandem.inference.gates import namespace, token_gate
from fedtandem.inference.peers import Attested, Found, sign
from fedtandem.inference.policy import Entry, Policy, policy_to_json
from fedtandem.inference.similarity import wilson
from fedtandem.inference.uplink import pack_ids
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.serving.auditing import PeerAudits
from fedtandem.serving.verifying import PEER_WINDOW

PROMPT = "please write a poem about the sea"
KEY = b"k" * 32


def ask(url: str, **more: object) -> httpx.Response:
    body = {
        "model": "fedtandem",
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": 24,
        "mode": "fedhlm",
        **more,
    }
    return httpx.post(f"{url}/v1/completions", json=body, timeout=120)


def metric(url: str, line: str) -> float:
    found = [row for row in httpx.get(f"{url}/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.fixture(scope="module")
def urls(lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Every answer audited; a policy under which this SLM doubts much and may err by 0.4 at most where it is kept."""
    file: Path = tmp_path_factory.mktemp("policy") / "policy.json"
    models = tuple(
        fingerprint(lm.name, lm.model, lm.tokenizer.card.hash)
        for lm in (
            load_model(ModelSpec(f"embedded:chains-{n}", tuning_method="none"))
            for n in ("client-a", "server")
        )
    )
    entry = Entry(0.01, None, "fixed", 500, 1000, 1000, (models,))  # type: ignore[arg-type]
    file.write_text(policy_to_json(Policy(
        "expected", "probabilities", "fixed", {"kind": "price", "value": 0.3}, 0.3, 1.0, 0.2, 0.01, entry, {}, {},
        bounds={"u": [0.01, 1.0], "beta_upper": [0.0, 1.0]},
    )))  # fmt: skip
    with lab.running(device={"policy": str(file)}, edge={"peer_audit_rate": 1.0}) as one:
        yield one.urls


def test_the_llms_answer_for_a_peer_is_shown_and_asked_about_no_more(urls: dict[str, str]) -> None:
    device, edge = urls["device"], urls["edge"]
    alone = ask(device).json()
    first = ask(device, peer="answer").json()
    again = ask(device, peer="answer", trace=True)
    assert alone["choices"] == first["choices"] == again.json()["choices"]
    account = again.json()["fedtandem"]
    assert account["route"]["peer"] > 0
    assert account["verified_tokens"] < first["fedtandem"]["verified_tokens"]
    assert account["llm_passes"] < first["fedtandem"]["llm_passes"]
    assert sum(account["route"].values()) == again.json()["usage"]["completion_tokens"]
    assert f"peer={account['route']['peer']}" in again.headers["x-route"]
    assert "peer" in {token["tier"] for token in account["tokens"]}
    # Another prompt that ends with the same words has other content words: none of it is used.
    other = ask(device, peer="answer", prompt="do not " + PROMPT).json()["fedtandem"]
    assert other["route"]["peer"] == 0
    # Each answer that was served is put to the LLM, and was right: the cloud is greedy here, as it was for the peer.
    for _ in range(200):
        right = metric(edge, 'peer_audits_total{outcome="right"}')
        if right >= 1:
            break
        sleep(0.05)
    assert metric(edge, 'peer_audits_total{outcome="wrong"}') == 0
    bound = metric(edge, 'peer_precision_lower_bound{tenant="local"}')
    assert bound == pytest.approx(float(wilson(int(right), int(right))[0]), abs=0.2)
    assert bound > 0


def test_in_bounded_peers_are_charged_what_audits_leave_open(urls: dict[str, str]) -> None:
    device, edge = urls["device"], urls["edge"]
    for _ in range(3):
        reply = ask(device, mode="bounded", eps=0.9, peer="answer")
        assert reply.status_code == 200, reply.text
        account = reply.json()["fedtandem"]
        assert account["error_bound"] <= 0.9
        sleep(0.2)
    bound = 1 - metric(edge, 'peer_precision_lower_bound{tenant="local"}')
    few = ask(device, mode="bounded", eps=min(0.05, bound / 2), peer="answer").json()["fedtandem"]
    assert few["route"]["peer"] == 0  # one of them would cost more than there is


@pytest.mark.parametrize(
    ("more", "says"),
    [({"mode": "exact"}, "fedhlm and bounded"), ({"mode": "local"}, "fedhlm and bounded"),
     ({"temperature": 1}, "temperature 0"), ({"mode": "fedhlm", "peer": "draft"}, "exact")],
)  # fmt: skip
def test_a_use_that_does_not_go_with_the_mode_is_refused(urls: dict[str, str], more: dict, says: str) -> None:
    reply = ask(urls["device"], **{"peer": "answer", **more})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "peer")
    assert says in reply.json()["error"]["message"]


# -- the audit itself --------------------------------------------------------------------------------------------------

IDS = list(range(3, 40))


def hit(answer: list[int]) -> Found:
    scope = namespace("t", "m", "tok", "s", "greedy 1")
    entry = Attested("t", "m", scope, token_gate(IDS, PEER_WINDOW), pack_ids(answer), 0.0)
    return Found("hit", 1.0, sign(entry, KEY), "who")


def request(ids: list[int] = IDS, **more: object) -> VerifyRequest:
    made = VerifyRequest(
        session="s", model="m", tokenizer="tok", base=0, known="", place=2, room=9, uplink="greedy", temperature=1.0,
        seed=0, top_k=30, top=-1, more=0, audits=0, scope="s", new_ids=np.array(ids, np.int32), block=b"",
        embedding=EMPTY,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def reply(tokens: list[int], near: tuple[int, ...] = ()) -> VerifyReply:
    nothing = np.zeros(0, np.int32)
    return VerifyReply(np.array(tokens, np.int32), len(tokens) - 1, 1, np.array(near, np.int32), np.zeros(0, np.uint8),
                       np.zeros(0, np.float32), nothing, np.zeros(0, np.float32))  # fmt: skip


def test_only_the_clouds_own_words_about_the_very_place_count() -> None:
    audits = PeerAudits(KEY)
    ticket = audits.ticket(hit([7, 8]), 1.0)
    assert ticket
    for told in (
        ("forged", request(), reply([9])),
        (ticket, request([1, *IDS[1:-1], 99]), reply([9])),  # another place
        (ticket, request(base=5), reply([9])),  # what the cloud is said to remember
        (ticket, request(uplink="shared_noise"), reply([9])),
        (ticket, request(scope="other"), reply([9])),
        (ticket, request(), reply([7])),  # not the whole answer
        (ticket, request(), reply([7, 9], near=(3,))),  # rounding may decide it
    ):
        assert audits.judge(*told)[0] == "unusable"
    assert (audits.n, audits.lower_bound) == (0, 0.0)
    assert audits.judge(ticket, request(), reply([7, 8, 5])) == ("right", "who")
    assert audits.judge(ticket, request(), reply([7, 8, 5])) == ("unusable", "")  # counted once
    wrong = audits.ticket(hit([7, 8]), 1.0)
    assert audits.judge(wrong, request(), reply([7, 9])) == ("wrong", "who")
    assert (audits.right, audits.n) == (1, 2)


def test_one_in_a_hundred_is_drawn_once_enough_were_and_more_before() -> None:
    audits = PeerAudits(KEY)
    early = sum(bool(audits.ticket(hit([i]), 0.01)) for i in range(3000))
    audits.n = audits.right = 500
    late = sum(bool(audits.ticket(hit([i]), 0.01)) for i in range(20_000))
    assert abs(early - 300) < 4 * 300**0.5
    assert abs(late - 200) < 4 * 200**0.5


def test_wrong_answers_quarantine_who_brought_them() -> None:
    from fedtandem.config.serve import EdgeConfig
    from fedtandem.serving.edge import EdgeState, _judge

    with httpx.Client() as client:
        state = EdgeState(EdgeConfig(), client, KEY)  # type: ignore[arg-type]
        cache = state.cache("t", 4)
        assert cache is not None
        for i in range(3):
            assert not cache.is_quarantined("who")
            ticket = state.audits_of("t").ticket(hit([7, i]), 1.0)
            assert _judge(state, "t", ticket, request().to_bytes(), reply([7, 99]).to_bytes()) == "wrong"
        assert cache.is_quarantined("who")
        assert _judge(state, "other", ticket, request().to_bytes(), reply([7, 99]).to_bytes()) == "unusable"
