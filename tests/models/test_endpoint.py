"""A real HTTP server on loopback, in a thread, that misbehaves in every way a teacher endpoint does."""

import socket
from typing import Any

import pytest

from fedtandem.errors import ConfigError, NetworkError
from fedtandem.models.endpoint import LONGEST_WAIT_S, Endpoint, NoAnswer

Loopback = Any
"""The server of tests/conftest.py."""


def endpoint(server: Loopback, **settings: Any) -> tuple[Endpoint, list[float]]:
    """An endpoint that notes how long it would have waited."""
    waits: list[float] = []
    return Endpoint(server.url, "m", sleep=waits.append, **settings), waits


def test_a_chat_reply_is_its_text_and_the_request_says_what_was_asked(loopback: Loopback) -> None:
    loopback.script = [loopback.chat("48/2 = 24")]
    asked, waits = endpoint(loopback, api_key="secret")
    assert asked.chat("how many?", max_tokens=7, system="be brief") == "48/2 = 24"
    seen = loopback.requests[0]
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "how many?"},
        ],
        "max_tokens": 7,
        "temperature": 0.0,
    }
    assert waits == []
    assert "secret" not in repr(asked)


@pytest.mark.parametrize(
    "fault",
    [
        (429, b'{"error": {"message": "slow down"}}'),
        (500, b"oops"),
        (503, b""),
        (200, b"<html>garbage"),
        (200, b"{}"),
        (200, b""),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"message": {"content": null}}]}'),
        (200, b'{"choices": [{"message": {"content": "  "}}]}'),
        (200, b"[1, 2]"),
        None,
    ],
    ids=str,
)
def test_a_passing_fault_is_asked_again_and_a_lasting_one_is_said(
    loopback: Loopback, fault: tuple[int, bytes] | None
) -> None:
    asked, waits = endpoint(loopback, attempts=3)
    loopback.script = [fault, fault, loopback.chat("yes")]
    assert asked.chat("q", max_tokens=4) == "yes"
    assert waits == [1.0, 2.0]
    loopback.script = [fault] * 3
    with pytest.raises(NoAnswer, match="3 attempts, the last: "):
        asked.chat("q", max_tokens=4)
    assert len(loopback.requests) == 6


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_every_request_would_meet_stops_at_once(loopback: Loopback, status: int) -> None:
    loopback.script = [(status, b'{"error": {"message": "no"}}')]
    asked, waits = endpoint(loopback)
    with pytest.raises(NetworkError, match=f"refuses with HTTP {status}: no") as caught:
        asked.chat("q", max_tokens=4)
    assert not isinstance(caught.value, NoAnswer)
    assert waits == []


def test_what_is_wrong_with_one_request_is_not_asked_again(loopback: Loopback) -> None:
    loopback.script = [(400, b'{"error": "the prompt is too long"}')]
    asked, _ = endpoint(loopback)
    with pytest.raises(NoAnswer, match="HTTP 400: the prompt is too long"):
        asked.chat("q", max_tokens=4)
    assert len(loopback.requests) == 1


@pytest.mark.parametrize(("header", "wait"), [("3", 3.0), ("86400", LONGEST_WAIT_S), ("soon", 1.0)])
def test_the_server_says_how_long_to_wait(loopback: Loopback, header: str, wait: float) -> None:
    loopback.script = [(429, b"", {"Retry-After": header}), loopback.chat("yes")]
    asked, waits = endpoint(loopback)
    assert asked.chat("q", max_tokens=4) == "yes"
    assert waits == [wait]


def test_a_silent_server_times_out(loopback: Loopback) -> None:
    loopback.script = ["hang"]
    asked, _ = endpoint(loopback, attempts=1, timeout_s=0.2)
    with pytest.raises(NoAnswer, match="1 attempts, the last: ReadTimeout"):
        asked.chat("q", max_tokens=4)


def test_nobody_there_is_a_network_fault() -> None:
    with socket.socket() as held:  # bound and not listening: its port refuses
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with pytest.raises(NetworkError, match="nobody answers at") as caught:
            Endpoint(url, attempts=2, sleep=lambda _: None).chat("q", max_tokens=1)
    assert caught.value.exit_code == 5


def test_models_are_listed_and_completions_read(loopback: Loopback) -> None:
    loopback.script = [
        (200, b'{"data": [{"id": "a"}, {"id": "b"}]}'),
        (200, b'{"choices": [{"text": " 8"}]}'),
    ]
    asked, _ = endpoint(loopback)
    assert asked.models() == ["a", "b"]
    assert asked.complete("3 + 5 =", max_tokens=2) == " 8"
    assert [seen.path for seen in loopback.requests] == ["/v1/models", "/v1/completions"]


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        Endpoint.from_environment()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert (Endpoint.from_environment().url, Endpoint.from_environment().api_key) == (
        "http://127.0.0.1:1/v1",
        "k",
    )
    with pytest.raises(ConfigError, match="http://"):
        Endpoint("localhost:8000")
