"""Endpoints over a real HTTP connection: what is asked and read, and every way in which a server may fail."""

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedtandem import cli
from fedtandem.data.traces import read_trace
from fedtandem.errors import NetworkError
from fedtandem.evaluation.record_classes import class_law, class_of
from fedtandem.models.chat_endpoint import ChatEndpoint, Reply, Unusable
from fedtandem.models.endpoint import Endpoint

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class Server:
    """An HTTP server on loopback; `answers` says what becomes of the n-th request about a text."""

    def __init__(self, answers: Callable[[dict, int], Answer]) -> None:
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        asked: Counter[str] = Counter()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = body["messages"][-1]["content"]
                with lock:
                    asked[text] += 1
                    outer.bodies.append({**body, "path": self.path})
                    outer.headers.append(dict(self.headers))
                    tried = asked[text]
                status, headers, content = answers(body, tried)
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answers: Callable[[dict, int], Answer]) -> Server:
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def said(text: str, tops: list[dict[str, float]] | None = None) -> Answer:
    """A chat completion as servers write it."""
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tops is not None:
        choice["logprobs"] = {
            "content": [
                {
                    "token": max(top, key=top.__getitem__),
                    "logprob": math.log(max(top.values())),
                    "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()],
                }
                for top in tops
            ]
        }
    return 200, {"content-type": "application/json"}, json.dumps({"choices": [choice]}).encode()


def failing(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    return status, headers, body


def endpoint(server: Server, tries: int = 4) -> ChatEndpoint:
    return ChatEndpoint(Endpoint(server.url, "large", "secret", timeout_s=5, attempts=tries, backoff_s=0.0))


QUESTION = [{"role": "user", "content": "2 + 2?"}]


def text_of(reply: Reply) -> str:
    if not reply.text.isdigit():
        raise Unusable(f"{reply.text!r} is no number")
    return reply.text


# -- one question ------------------------------------------------------------------------------------------------


def test_what_is_sent_and_what_is_read(serve):
    server = serve(lambda body, tried: said("4", [{"4": 0.9, "5": 0.1}]))
    text, reply = endpoint(server).ask(QUESTION, text_of, max_tokens=3, logprobs=True)
    assert text == "4"
    assert reply.tokens == ("4",)
    assert reply.top[0] == pytest.approx({"4": math.log(0.9), "5": math.log(0.1)})
    body = server.bodies[0]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("large", 3, 0)
    assert (body["logprobs"], body["top_logprobs"], body["messages"]) == (True, 20, QUESTION)
    assert {k.lower(): v for k, v in server.headers[0].items()}["authorization"] == "Bearer secret"
    assert reply.request_bytes == len(
        json.dumps({k: v for k, v in body.items() if k != "path"}, separators=(",", ":"))
    )
    assert reply.ms > 0


@pytest.mark.parametrize("fault", [
    failing(429), failing(500), failing(503, b"<html>down</html>"), failing(200, b"not json"),
    failing(200, b"{}"), failing(200, b'{"choices": []}'), failing(200, b'{"choices": [{"message": {"content": 4}}]}'),
    failing(200, b'{"choices": [{"message": {"content": "4"}, "logprobs": {"content": [{"token": "4", "top_logprobs": '
            b'[{"token": "4", "logprob": NaN}]}]}}]}'),
    said("four"),
], ids=str)  # fmt: skip
def test_a_passing_fault_is_asked_again(serve, fault):
    server = serve(lambda body, tried: fault if tried < 3 else said("4"))
    assert endpoint(server).ask(QUESTION, text_of, max_tokens=3)[0] == "4"
    assert len(server.bodies) == 3
    for tries in (1, 2):
        other = serve(lambda body, tried: fault)
        with pytest.raises(NetworkError, match=f"{tries} attempts"):
            endpoint(other, tries=tries).ask(QUESTION, text_of, max_tokens=3)
        assert len(other.bodies) == tries


def test_a_server_without_log_probabilities_is_asked_without_them_from_then_on(serve):
    def answers(body: dict, tried: int) -> Answer:
        return failing(400, b'{"error": "logprobs is not supported"}') if "logprobs" in body else said("4")

    server = serve(answers)
    asked = endpoint(server)
    for _ in range(2):
        assert asked.ask(QUESTION, text_of, max_tokens=3, logprobs=True)[1].top == ()
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]


# -- classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [("1", 1), (" 2.", 2), ("**0**", 0), ("sports", 1), ("Sci/Tech.", 2),
                                             ("1 because", 1)])  # fmt: skip
def test_a_class_is_named_by_number_or_name(text, found):
    assert class_of(text, ["World", "Sports", "Sci/Tech"]) == found


@pytest.mark.parametrize("text", ["3", "Worldly", "", "I cannot tell", "-"])
def test_what_names_no_class_is_garbage(text):
    with pytest.raises(Unusable):
        class_of(text, ["World", "Sports", "Sci/Tech"])


def reply_with(*tops: dict[str, float]) -> Reply:
    logs = tuple({token: math.log(p) for token, p in top.items()} for top in tops)
    return Reply("", tuple(max(top, key=top.__getitem__) for top in tops), logs, 1.0, 1)


def test_a_law_is_read_where_it_is_whole_and_never_made_up():
    whole = reply_with({" ": 1.0}, {"1": 0.7, " 1": 0.1, "0": 0.15, "2": 0.05})
    assert class_law(whole, 3) == pytest.approx([0.15, 0.8, 0.05])
    # The third class is not listed, but nothing unlisted can be likelier than the last of the list.
    assert class_law(reply_with({"1": 0.9, "0": 0.0995, "the": 0.0005}), 3) == pytest.approx([0.0995, 0.9, 0])
    # One alternative alone says nothing about the others: no point mass is made of it.
    assert class_law(reply_with({"1": 0.6}), 3) is None
    assert class_law(reply_with({"1": 0.6, "the": 0.3}), 3) is None
    assert class_law(reply_with({"World": 0.9}), 3) is None
    assert class_law(Reply("1", (), (), 1.0, 1), 3) is None


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small(save_classifier: Callable[..., Path]) -> Path:
    return save_classifier("small", 1)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("fedtandem.models.endpoint.LONGEST_WAIT_S", 0.01)
    file = tmp_path / "d.jsonl"
    rows = [{"id": f"d{i}", "text": f"document {i:02d}", "label": i % 3} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def number_in(body: dict) -> int:
    return int(body["messages"][-1]["content"].split("document ")[1][:2])


def trace(server: Server, small: Path, data: Path, output: Path, *more: object) -> int:
    words = ["trace", "--slm", small, "--llm", "large", "--llm-url", server.url, "--data", data, "--output", output,
             "--batch-size", 4, "--tries", 2, "--timeout", 5, *more]  # fmt: skip
    return cli.main([str(word) for word in words])


def test_an_endpoint_s_answers_and_laws_are_recorded(serve, small: Path, data: Path, tmp_path: Path):
    def answers(body: dict, tried: int) -> Answer:
        i = number_in(body) % 3
        law = {str(j): 0.8 if j == i else 0.1 for j in range(3)}
        return said(str(i), [law])

    server = serve(answers)
    assert trace(server, small, data, tmp_path / "t.parquet") == 0
    recorded = read_trace(tmp_path / "t.parquet")
    assert recorded.answer.tolist() == recorded.label.tolist() == [i % 3 for i in range(12)]
    np.testing.assert_allclose(recorded.llm_probs[1], [0.1, 0.8, 0.1], atol=1e-6)
    assert recorded.info.llm == "large@127.0.0.1"
    assert recorded.request_bytes.min() > 100
    assert "0: World" in server.bodies[0]["messages"][0]["content"]


def test_without_whole_laws_only_answers_are_recorded(serve, small: Path, data: Path, tmp_path: Path, capsys):
    def answers(body: dict, tried: int) -> Answer:
        i = number_in(body)
        return said(str(i % 3), [{str(i % 3): 0.9}] if i == 7 else [{"0": 0.4, "1": 0.3, "2": 0.3}])

    assert trace(serve(answers), small, data, tmp_path / "t.parquet") == 0
    assert read_trace(tmp_path / "t.parquet").llm_probs is None
    assert "learns from agreement" in capsys.readouterr().out
    assert (
        cli.main(
            ["calibrate", str(tmp_path / "t.parquet"), "--price", "0.2", "--output", str(tmp_path / "p")]
        )
        == 0
    )


def test_items_without_an_answer_are_named_the_others_kept_and_not_asked_again(
    serve, small: Path, data: Path, tmp_path: Path, capsys
):
    output = tmp_path / "t.parquet"
    broken = {3: failing(500), 6: said("no idea")}

    def answers(body: dict, tried: int) -> Answer:
        i = number_in(body)
        return broken.get(i, said(str(i % 3)))

    server = serve(answers)
    assert trace(server, small, data, output) == 5
    told = capsys.readouterr().err
    assert "2 of 12 items have no answer" in told
    assert "item 'd3'" in told
    assert "HTTP 500" in told
    assert "item 'd6'" in told
    assert "'no idea' names no class" in told
    assert "10 are kept" in told
    assert not output.exists()
    del broken[3]
    before = len(server.bodies)
    # The server has mended one of the two; the trace is written without the other.
    assert trace(server, small, data, output, "--resume", "--allow-missing") == 0
    assert {number_in(body) for body in server.bodies[before:]} == {3, 6}
    assert read_trace(output).session.tolist() == [f"d{i}" for i in range(12) if i != 6]
    assert "left out, not answered by the cloud: d6" in capsys.readouterr().out


def test_a_server_that_goes_down_is_not_asked_about_every_row(
    serve, small: Path, data: Path, tmp_path: Path, capsys
):
    def answers(body: dict, tried: int) -> Answer:
        return said("1") if number_in(body) < 4 else failing(503)

    server = serve(answers)
    assert trace(server, small, data, tmp_path / "t.parquet") == 5
    assert {number_in(body) for body in server.bodies} == set(range(8))
    assert "4 are kept" in capsys.readouterr().err


def test_a_refusal_ends_the_recording(serve, small: Path, data: Path, tmp_path: Path, capsys):
    server = serve(lambda body, tried: failing(401, b"no key"))
    assert trace(server, small, data, tmp_path / "t.parquet") == 5
    assert "HTTP 401: no key" in capsys.readouterr().err
    assert len(server.bodies) <= 4


def test_whole_answers_of_an_endpoint(serve, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": f"Q {a} + 1 A", "answer": f"# {a + 1}"} for a in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answers(body: dict, tried: int) -> Answer:
        a = int(body["messages"][-1]["content"].split()[1])
        return said(f"I think # {a + 1 if a else 9}.")

    monkeypatch.setenv("OPENAI_BASE_URL", serve(answers).url)
    words = ["trace", "--slm", "embedded:chains-server", "--llm", "large", "--llm-url", "env", "--data", str(data),
             "--output", str(tmp_path / "t.parquet"), "--after", "#", "--max-new-tokens", "12"]  # fmt: skip
    assert cli.main(words) == 0
    recorded = read_trace(tmp_path / "t.parquet")
    assert recorded.llm_score.tolist() == [0, 1, 1, 1]
    assert recorded.slm_score.tolist() == [1, 1, 1, 1]
    assert (recorded.draft == recorded.answer).tolist() == [False, True, True, True]
