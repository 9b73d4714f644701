"""The verify service: right answers whatever it remembers, the same reply to the same bytes, nothing across tenants."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.errors import InvalidMessage
from fedtandem.exchange.verification import EMPTY, VerifyReply, VerifyRequest, hash_of
from fedtandem.inference.uplink import Draft, pack_block
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.serving.tiers import build_cloud

PROMPT = "Q 3 + 5 * 2 A"


@cache
def llm() -> LanguageModel:
    return load_model(ModelSpec("embedded:chains-server", tuning_method="none"))


@cache
def prompt() -> list[int]:
    return llm().tokenizer.encode_prompt(PROMPT).tolist()


@cache
def answer() -> list[int]:
    """Greedy, closing EOS included."""
    (ids,) = llm().generate([np.array(prompt(), np.int32)], max_new_tokens=32)
    return ids.tolist()


@cache
def fingerprint_of() -> str:
    lm = llm()
    return fingerprint(lm.name, lm.model, lm.tokenizer.card.hash)


def request(
    session: str,
    ids: list[int],
    place: int,
    drafts: list[int],
    *,
    base: int = 0,
    room: int = 30,
    **more: object,
) -> VerifyRequest:
    made = VerifyRequest(
        session=session, model=fingerprint_of(), tokenizer=llm().tokenizer.card.hash, base=base,
        known=hash_of(ids[:base]) if base else "", place=place, room=room, uplink="greedy", temperature=1.0, seed=0,
        top_k=30, top=-1, more=0, audits=0, scope="", new_ids=np.array(ids[base:], np.int32),
        block=pack_block([Draft(i) for i in drafts], llm().tokenizer.vocab_size), embedding=EMPTY,
    )  # fmt: skip
    return replace(made, **more)


def post(url: str, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/verify", content=body, headers=headers, timeout=120)


def verdict(url: str, asked: VerifyRequest, **headers: str) -> VerifyReply:
    reply = post(url, asked.to_bytes(), **headers)
    assert reply.status_code == 200, reply.text
    return VerifyReply.from_bytes(reply.content)


@pytest.fixture(scope="module")
def cloud(lab) -> Iterator[str]:
    config = lab.config(cloud={"max_sessions": 4, "cache_mb": 0})
    with lab.Running([lambda _: build_cloud(config)], config) as one:
        yield one.urls["cloud"]


def test_a_block_is_judged_as_the_llm_would_write_it(cloud: str) -> None:
    right, wrong = answer()[:4], 200
    said = verdict(cloud, request("a", prompt(), 0, [*right[:2], wrong, right[3]]))
    assert (said.tokens.tolist(), said.accepted) == (right[:3], 2)
    # Going on: only what is new travels.
    text = prompt() + right[:3]
    said = verdict(cloud, request("a", text, 3, answer()[3:6], base=len(text)))
    assert (said.tokens.tolist(), said.accepted) == (answer()[3:7], 3)


def test_a_draft_for_the_last_place_is_judged_and_nothing_follows(cloud: str) -> None:
    for draft, accepted in ((answer()[0], 1), (200, 0)):
        said = verdict(cloud, request(f"last{draft}", prompt(), 0, [draft], room=1))
        assert (said.tokens.tolist(), said.accepted) == (answer()[:1], accepted)


def test_what_is_forgotten_is_asked_for_and_changes_nothing(cloud: str) -> None:
    text = prompt() + answer()[:3]
    for other in "bcdefg":
        verdict(cloud, request(other, prompt(), 0, []))  # more sessions than are remembered
    going_on = request("a", text, 3, [], base=len(text))
    refused = post(cloud, going_on.to_bytes())
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "unknown_prefix")
    whole = request("a", text, 3, [])
    assert verdict(cloud, whole).tokens.tolist() == answer()[3:4]


def test_the_same_bytes_get_the_same_reply_and_an_older_place_is_refused(cloud: str) -> None:
    first = request("r", prompt(), 0, answer()[:2], uplink="shared_noise", seed=7).to_bytes()
    replies = [post(cloud, first) for _ in range(3)]
    assert len({reply.content for reply in replies}) == 1
    tokens = VerifyReply.from_bytes(replies[0].content).tokens.tolist()
    text = prompt() + tokens
    second = request("r", text, len(tokens), [], base=len(text), uplink="shared_noise", seed=7).to_bytes()
    third_text = text + VerifyReply.from_bytes(post(cloud, second).content).tokens.tolist()
    third = request("r", third_text, len(third_text) - len(prompt()), [], base=len(third_text))
    assert post(cloud, third.to_bytes()).status_code == 200
    replayed = post(cloud, second)  # older than what stands
    assert replayed.status_code == 409
    changed = request("r", text, len(tokens), [5], base=len(text), uplink="shared_noise", seed=7)
    assert post(cloud, changed.to_bytes()).status_code == 409


def test_a_hedged_pair_at_once_is_worked_on_once_and_answered_alike(cloud: str) -> None:
    body = request("h", prompt(), 0, [], more=20).to_bytes()
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: post(cloud, body), range(4)))
    assert len({reply.content for reply in replies}) == 1
    assert VerifyReply.from_bytes(replies[0].content).tokens.tolist() == answer()


@pytest.mark.parametrize("uplink", ["shared_noise", "sparse"])
def test_a_verdict_does_not_depend_on_who_shares_the_pass(cloud: str, uplink: str) -> None:
    from fedtandem.inference.uplink import SPARSE_BITS, sparse_law

    law = sparse_law(torch_law(), 4, SPARSE_BITS)
    drafts = [Draft(int(law.token_ids[0]), law if uplink == "sparse" else None)]
    block = pack_block(drafts, llm().tokenizer.vocab_size)
    asked = [
        request(f"{uplink}{i}", prompt() + answer()[:i], i, [], uplink=uplink, seed=i, top_k=4, block=block)
        for i in range(6)
    ]
    alone = [verdict(cloud, replace(one, session=f"alone{uplink}{i}")) for i, one in enumerate(asked)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: verdict(cloud, one), asked))
    assert [one.tokens.tolist() for one in together] == [one.tokens.tolist() for one in alone]


def torch_law():
    import torch

    law = torch.full((llm().tokenizer.vocab_size,), 1e-6, dtype=torch.float64)
    law[answer()[:4]] = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return law / law.sum()


def test_audits_say_where_the_llm_would_have_written_otherwise(cloud: str) -> None:
    kept = [answer()[0], 200, answer()[2]]
    said = verdict(cloud, request("u", prompt() + kept, 3, [], audits=3))
    assert said.disagreed.tolist()[:2] == [0, 1]
    assert len(said.disagreed) == 3


def test_log_probabilities_come_where_they_are_asked_for(cloud: str) -> None:
    said = verdict(cloud, request("l", prompt(), 0, answer()[:2], top=3))
    assert len(said.log_probs) == 3
    assert said.top_ids.reshape(3, 3)[:, 0].tolist() == answer()[:3]
    np.testing.assert_allclose(said.log_probs, said.top_log_probs.reshape(3, 3)[:, 0])


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"tokenizer": "another"}, 409, "another_model"),
        ({"model": "another"}, 409, "another_model"),
        ({"new_ids": np.array([9999], np.int32)}, 400, "bad_request"),
        ({"new_ids": np.array([5] * 513, np.int32)}, 400, "bad_request"),
        ({"block": b"\x02\x01abc"}, 400, "bad_frame"),
        ({"room": 1, "block": pack_block([Draft(5), Draft(5)], 279)}, 400, "bad_request"),
        ({"block": b"\x01\x01\x05\0\0\0\xff\xff"}, 400, "bad_frame"),
    ],
)
def test_what_cannot_be_judged_is_refused(cloud: str, change: dict, status: int, code: str) -> None:
    reply = post(cloud, request("x", prompt(), 0, [], **change).to_bytes())
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_malformed_frames_are_refused_without_a_word_of_theirs(cloud: str) -> None:
    draw = np.random.default_rng(3)
    good = request("m", prompt(), 0, answer()[:2]).to_bytes()
    with httpx.Client() as client:
        for i in range(60):
            bad = bytearray(good)
            if i % 3 == 0:
                bad = bytearray(draw.bytes(int(draw.integers(0, 200))))
            else:
                bad[int(draw.integers(len(bad)))] ^= int(draw.integers(1, 256))
            reply = client.post(f"{cloud}/v1/verify", content=bytes(bad), timeout=60)
            assert reply.status_code in (400, 409), bytes(bad)
        assert client.get(f"{cloud}/readyz").status_code == 200


fields = st.fixed_dictionaries(
    {
        "place": st.integers(0, 3), "room": st.integers(1, 99), "seed": st.integers(0, 2**64 - 1),
        "temperature": st.floats(0.01, 10), "top": st.integers(-1, 20), "more": st.integers(0, 256),
        "scope": st.text(max_size=40), "block": st.binary(max_size=40),
        "new_ids": st.lists(st.integers(0, 2**31 - 1), min_size=4, max_size=9).map(lambda x: np.array(x, np.int32)),
        "embedding": st.lists(st.floats(-9, 9, width=16), max_size=5).map(lambda x: np.array(x, np.float16)),
    }
)  # fmt: skip


@given(values=fields)
def test_a_request_unpacks_to_what_was_packed(values: dict) -> None:
    asked = VerifyRequest(
        session="s", model="m", tokenizer="t", base=0, known="", uplink="sparse", top_k=30, audits=0, **values
    )  # fmt: skip
    again = VerifyRequest.from_bytes(asked.to_bytes())
    assert again.to_bytes() == asked.to_bytes()
    for name, value in vars(asked).items():
        assert np.array_equal(getattr(again, name), value)


def test_a_request_that_contradicts_itself_is_no_request() -> None:
    for change in ({"place": 50}, {"audits": 9}, {"uplink": "scalar"}, {"session": ""}, {"temperature": 0.0}):
        with pytest.raises(InvalidMessage):
            VerifyRequest.from_bytes(replace(request("s", prompt(), 0, []), **change).to_bytes())


# -- keys and tenants --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, lab) -> Iterator[str]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    lab.write_keys(file, ("a", "one", ["verify"]), ("b", "two", ["verify"]), ("edge", "edges", ["verify", "relay"]),
               ("user", "one", ["infer"]))  # fmt: skip
    config = lab.config(security={"keys": str(file)})
    with lab.Running([lambda _: build_cloud(config)], config) as one:
        yield one.urls["cloud"]


def test_no_key_a_wrong_one_and_a_wrong_scope(guarded: str, lab) -> None:
    bearer = lab.bearer
    body = request("s", prompt(), 0, []).to_bytes()
    for headers, status in (({}, 401), ({"authorization": "Bearer nonsense"}, 401), (bearer("user"), 403),
                            ({"authorization": "Basic a-key"}, 401), (bearer("a"), 200)):  # fmt: skip
        reply = post(guarded, body, **headers)
        assert reply.status_code == status
        assert "a-key" not in reply.text
        assert PROMPT not in reply.text
    assert httpx.get(f"{guarded}/healthz").status_code == 200
    assert httpx.get(f"{guarded}/metrics").status_code == 401


def test_a_tenant_cannot_go_on_from_anothers_text(guarded: str, lab) -> None:
    bearer = lab.bearer
    said = verdict(guarded, request("shared", prompt(), 0, []), **bearer("a"))
    text = prompt() + said.tokens.tolist()
    going_on = request("shared", text, len(said.tokens), [], base=len(text)).to_bytes()
    assert post(guarded, going_on, **bearer("b")).status_code == 409
    assert post(guarded, going_on, **bearer("a"), **{"x-fedtandem-tenant": "two"}).status_code == 403
    assert post(guarded, going_on, **bearer("edge"), **{"x-fedtandem-tenant": "one"}).status_code == 200


def test_overload_is_told_to_come_back() -> None:
    """A model that reads nothing until it is let go: the second one waits, the third is refused."""
    import torch

    from fedtandem.models.session_reader import SessionReader
    from fedtandem.serving.batching import Batcher, Overloaded

    go = threading.Event()

    def forward(step, mask, cache, n):
        go.wait(30)
        return torch.zeros(*step.shape, 8), None

    reader = SessionReader(
        forward, vocab_size=8, pad_id=0, limit=None, can_cache=False, cache_bytes=0, name="stopped"
    )
    batcher = Batcher(reader, max_batch=1, max_waiting=1, name="stopped")
    try:
        first = batcher.submit("a", [1], 1, lambda logits: "first")
        while batcher.waiting:
            pass
        second = batcher.submit("b", [1], 1, lambda logits: "second")
        with pytest.raises(Overloaded):
            batcher.submit("c", [1], 1, lambda logits: "third")
        go.set()
        assert (first.result(30), second.result(30)) == ("first", "second")
    finally:
        go.set()
        batcher.close()


class Lone:
    """Reads one batch at a time, and says when two are read at once; the law of a text is its own last token."""

    limit = None

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self.clashes = 0

    def new_tokens(self, session, ids, last):
        return len(ids)

    def logits(self, sessions, ids, last):
        import torch

        if not self._busy.acquire(blocking=False):
            self.clashes += 1
            return []
        answers = [torch.tensor([float(text[-1])]) for text in ids]
        self._busy.release()
        return answers

    def forget(self, session): ...


@pytest.mark.parametrize("max_batch", [1, 4])
def test_who_reads_in_his_own_thread_never_reads_beside_another(max_batch: int) -> None:
    """Threads that wait for their own and threads that hand over: each gets its own, and passes never overlap."""
    from fedtandem.serving.batching import Batcher, Overloaded

    reader = Lone()
    batcher = Batcher(reader, max_batch=max_batch, max_waiting=999, name="lone")

    def ask(who: int) -> list[float]:
        names = [(f"{who}", [place, 10 * who + place]) for place in range(30)]
        if who % 2:
            return [float(batcher.logits(name, ids, 1)) for name, ids in names]
        return [batcher.submit(name, ids, 1, float).result(30) for name, ids in names]

    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(ask, range(6)))
    batcher.close()
    assert said == [[10.0 * who + place for place in range(30)] for who in range(6)]
    assert reader.clashes == 0
    assert batcher.jobs == 180
    with pytest.raises(Overloaded):
        batcher.logits("late", [1], 1)


def test_a_clouds_bounds_change_while_it_runs(lab) -> None:
    config = lab.config()
    with lab.Running([lambda _: build_cloud(config)], config) as one:
        url = one.urls["cloud"]

        def held() -> str:
            lines = httpx.get(f"{url}/metrics").text.splitlines()
            return next(line for line in lines if line.startswith("sessions "))

        for session in "abc":
            assert post(url, request(session, prompt(), 0, []).to_bytes()).status_code == 200
        assert held() == "sessions 3.0"
        one.listening[0].prepare(lab.config(cloud={"max_sessions": 1, "max_batch": 2, "cache_mb": 1}))()
        assert post(url, request("d", prompt(), 0, []).to_bytes()).status_code == 200
        assert held() == "sessions 1.0"
