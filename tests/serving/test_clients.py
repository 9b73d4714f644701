"""What people have: the official client, LangChain, curl; unchanged, against the device."""

import base64
import json
import subprocess

import numpy as np
import pytest

openai = pytest.importorskip("openai")
PROMPT = "Q 3 + 5 * 2 A"
ANSWER = " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"


@pytest.fixture(scope="module")
def client(url: str):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as one:
        yield one


def chat(client, **more):
    asked = {"model": "fedtandem", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    return client.chat.completions.create(**{**asked, **more})


def test_a_chat_has_its_text_its_end_and_its_cost(client) -> None:
    reply = client.chat.completions.with_raw_response.create(
        model="fedtandem", messages=[{"role": "user", "content": PROMPT}], temperature=0
    )
    whole = reply.parse()
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens == 22
    assert reply.headers["x-mode"] == "exact"
    assert reply.headers["x-degraded"] == "none"
    assert int(reply.headers["x-verified-tokens"]) == whole.usage.completion_tokens
    route = dict(part.split("=") for part in reply.headers["x-route"].split(", "))
    assert sum(map(int, route.values())) == whole.usage.completion_tokens
    assert int(route["slm"]) > 0


@pytest.mark.parametrize("mode", ["exact", "fedhlm", "local", "cloud"])
def test_a_stream_is_the_whole_answer_in_parts(client, mode: str) -> None:
    more = {"seed": 5, "temperature": 1, "extra_body": {"mode": mode}}
    whole = chat(client, **more)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **more))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert sum(map(bool, parts)) > 1
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    account = next(chunk.fedtandem for chunk in chunks if getattr(chunk, "fedtandem", None))
    assert account == whole.fedtandem | {name: account[name] for name in ("uplink_bytes", "downlink_bytes")}


def test_max_tokens_ends_with_length_and_a_seed_repeats(client) -> None:
    more = {"temperature": 1, "max_tokens": 4}
    first, again = (chat(client, seed=11, **more) for _ in range(2))
    assert first.choices[0].finish_reason == "length"
    assert first.usage.completion_tokens == 4
    assert first.choices[0].message == again.choices[0].message


@pytest.mark.parametrize("stop", ["; 8", [";", "#"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_never_shown(client, stop, stream: bool) -> None:
    reply = chat(client, stop=stop, stream=stream)
    if stream:
        chunks = list(reply)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        text, finish = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert (text, finish) == (" 3 + 5 = 8 ", "stop")


def test_log_probabilities_are_the_llms(client) -> None:
    reply = chat(client, logprobs=True, top_logprobs=3, extra_body={"mode": "exact"})
    content = reply.choices[0].logprobs.content
    assert "".join(token.token for token in content) == ANSWER
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert token.logprob <= 0
        assert [one.logprob for one in token.top_logprobs] == sorted(
            (one.logprob for one in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].token == token.token  # greedy
    alone = chat(client, logprobs=True, top_logprobs=3, extra_body={"mode": "cloud"})
    for ours, theirs in zip(content, alone.choices[0].logprobs.content, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    old = client.completions.create(model="fedtandem", prompt=PROMPT, temperature=0, logprobs=2)
    assert "".join(old.choices[0].logprobs.tokens) == old.choices[0].text == ANSWER
    assert old.choices[0].logprobs.text_offset[1] == len(old.choices[0].logprobs.tokens[0])


def test_embeddings_in_both_encodings(client, url: str) -> None:
    reply = client.embeddings.create(model="fedtandem", input=["Q 3 + 5 A", "Q 3 + 5 A", "another"])
    vectors = np.array([one.embedding for one in reply.data])  # the client asks for base64
    plain = client.embeddings.create(model="fedtandem", input="Q 3 + 5 A", encoding_format="float")
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-6)
    np.testing.assert_allclose(vectors[0], plain.data[0].embedding, rtol=1e-5)
    assert not np.allclose(vectors[0], vectors[2])
    assert base64.b64decode(base64.b64encode(vectors.astype("<f4")[0].tobytes()))


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"model": "../../etc/passwd"}, "NotFoundError", "no other model"),
        ({"temperature": 3}, "BadRequestError", "temperature"),
        ({"extra_body": {"mode": "sideways"}}, "BadRequestError", "mode"),
        ({"extra_body": {"surprise": 1}}, "BadRequestError", "surprise"),
        ({"extra_body": {"mode": "bounded"}}, "BadRequestError", "eps"),
        (
            {"extra_body": {"mode": "exact", "max_cloud_fraction": 0.5}},
            "BadRequestError",
            "max_cloud_fraction",
        ),
        ({"extra_body": {"mode": "cloud", "privacy": "local-only"}}, "BadRequestError", "local-only"),
        ({"n": 2}, "BadRequestError", "n:"),
        ({"messages": []}, "BadRequestError", "messages"),
        ({"messages": [{"role": "user", "content": "Q " * 600}]}, "BadRequestError", "context holds 512"),
    ],
)
def test_what_cannot_be_served_is_said(client, more, error: str, says: str) -> None:
    with pytest.raises(getattr(openai, error)) as caught:
        chat(client, **more)
    assert says in caught.value.message


def test_local_only_never_asks_the_cloud(client) -> None:
    reply = chat(client, extra_body={"privacy": "local-only"})
    assert reply.fedtandem["llm_passes"] == reply.fedtandem["uplink_bytes"] == 0


def test_the_clouds_share_of_the_tokens_is_held(client) -> None:
    for fraction in (0.0, 0.3):
        reply = chat(
            client, temperature=1, seed=3, extra_body={"mode": "fedhlm", "max_cloud_fraction": fraction}
        )
        assert reply.fedtandem["verified_tokens"] <= fraction * reply.usage.completion_tokens


def test_control_characters_and_marks_in_a_prompt_are_text(client) -> None:
    reply = chat(
        client,
        messages=[{"role": "user", "content": "\x00\x1b[31m</s><pad>\u202e\ud7ff Q 3 + 5 A"}],
        max_tokens=8,
    )
    assert reply.usage.prompt_tokens > 10


def test_langchain_invokes_and_streams(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="fedtandem", base_url=url, api_key="none", temperature=0, max_retries=0
    )
    assert model.invoke(PROMPT).content == ANSWER
    chunks = [chunk.content for chunk in model.stream(PROMPT)]
    assert "".join(chunks) == ANSWER
    assert sum(map(bool, chunks)) > 1
    batched = model.batch([PROMPT, "Q 9 - 1 + 6 A"], config={"max_concurrency": 2})
    assert batched[1].content == " 9 - 1 = 8 ; 8 + 6 = 4 ; # 4"


def test_curl_streams_server_sent_events(url: str) -> None:
    body = {"model": "fedtandem", "prompt": PROMPT, "temperature": 0, "stream": True}
    shown = subprocess.run(
        ["curl", "-sN", f"{url}/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    lines = [line.removeprefix("data: ") for line in shown.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == ANSWER
