"""Who and what comes in: keys, scopes, sizes, rates; what the log keeps of it, and what it does not."""

import contextlib
import io
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from fedtandem.cli import main
from fedtandem.config.serve import ServeConfig, load_serve
from fedtandem.errors import ConfigError
from fedtandem.serving.admission import Bucket
from fedtandem.serving.keys import Keyring, new_key, read_keyring
from fedtandem.serving.logs import LOGGER, start_logging
from fedtandem.serving.tiers import build_device

SECRET_PROMPT = "the patient called Ms Xanthippe"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, lab) -> Iterator[str]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    lab.write_keys(file, ("good", "one", ["infer", "metrics"]), ("judge", "one", ["verify"]))
    file.write_text(file.read_text() + _slow_key())
    config = lab.config(
        device={"upstream": None, "mode": "local"}, security={"keys": str(file)},
        limits={"max_body_bytes": 20_000, "max_header_bytes": 4000, "body_timeout_s": 1.0,
                "header_timeout_s": 3.0},
    )  # fmt: skip
    with lab.Running([lambda _: build_device(config)], config) as one:
        yield one.urls["device"]


def _slow_key() -> str:
    import hashlib

    digest = hashlib.sha256(b"slow-key").hexdigest()
    return (
        f'[[keys]]\nname="slow"\ntenant="one"\nscopes=["infer"]\nsha256="{digest}"\nrequests_per_minute=6\n'
    )


def ask(device: str, key: str = "good", **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": SECRET_PROMPT, "max_tokens": 2, **more}
    return httpx.post(
        f"{device}/v1/completions", json=body, headers={"authorization": f"Bearer {key}-key"}, timeout=60
    )


def test_a_key_with_its_scope_comes_in_and_no_other(device: str) -> None:
    assert ask(device).status_code == 200
    assert ask(device, "judge").status_code == 403
    for path in ("/v1/completions", "/v1/models", "/metrics", "/nowhere", "/openapi.json"):
        reply = httpx.get(f"{device}{path}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path", ["/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/other", "/v1/nothing", "/../etc"]
)
def test_unknown_paths_and_models_are_404_and_not_repeated(device: str, path: str) -> None:
    reply = httpx.get(f"{device}{path}", headers={"authorization": "Bearer good-key"})
    assert reply.status_code == 404
    assert "etc" not in reply.text


def test_oversized_bodies_are_refused_whether_they_say_so_or_not(device: str) -> None:
    big = json.dumps({"model": "fedtandem", "prompt": "x" * 30_000}).encode()
    headers = {"authorization": "Bearer good-key", "content-type": "application/json"}

    def parts() -> Iterator[bytes]:
        for start in range(0, len(big), 1000):
            yield big[start : start + 1000]

    assert httpx.post(f"{device}/v1/completions", content=big, headers=headers).status_code == 413
    assert httpx.post(f"{device}/v1/completions", content=parts(), headers=headers).status_code == 413
    wide = httpx.get(f"{device}/v1/models", headers={**headers, "x-much": "y" * 5000})
    assert wide.status_code == 431


def test_a_body_that_never_ends_is_not_waited_for(device: str) -> None:
    host, port = device.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good-key\r\n"
            b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"model":'
        )
        assert line.recv(200).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (b"", b""),
        (b"GET /heal", b"HTTP/1.1 408"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"HTTP/1.1 408"),
    ],
)
@pytest.mark.parametrize("keeps_alive", [False, True])
def test_headers_that_never_end_are_not_waited_for(
    device: str, before: bytes, says: bytes, keeps_alive: bool
) -> None:
    host, port = device.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        if keeps_alive:  # the second request of a connection is no other than the first
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += line.recv(4000)
            before = before or b"GET /h"
        line.sendall(before)
        for _ in range(5):  # a drop now and then does not begin the time anew
            time.sleep(0.05)
            line.sendall(b"y" if before else b"")
        came = b""
        while part := line.recv(4000):
            came += part
        assert came.startswith(says or (before and b"HTTP/1.1 408"))


def test_headers_without_end_are_cut_off_before_they_fill_the_memory(device: str) -> None:
    host, port = device.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent = 0
        with contextlib.suppress(ConnectionError):  # hung up
            while sent < 1 << 20:
                sent += line.send(b"z" * 1000)
                time.sleep(0.001)
        assert sent < 1 << 19


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model": 1}', b"\xff\xfe", b'{"prompt": "' + b"[" * 5000]
)
def test_bodies_that_are_no_request_are_400(device: str, body: bytes) -> None:
    headers = {"authorization": "Bearer good-key", "content-type": "application/json"}
    for path in ("completions", "chat/completions", "embeddings"):
        assert httpx.post(f"{device}/v1/{path}", content=body, headers=headers).status_code == 400


def test_a_key_has_its_own_rate(device: str) -> None:
    replies = [ask(device, "slow") for _ in range(8)]
    assert replies[0].status_code == 200
    assert replies[-1].status_code == 429
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 10
    assert ask(device).status_code == 200  # others are not held back


def test_a_bucket_lets_through_its_rate_and_no_more() -> None:
    bucket = Bucket(60, 0.0)
    taken = sum(bucket.wait_s(second / 10) == 0 for second in range(6000))
    assert 600 <= taken <= 600 + 60  # a minute's worth may come at once


def test_no_other_site_may_ask_from_a_browser(device: str) -> None:
    reply = httpx.options(
        f"{device}/v1/completions",
        headers={"origin": "http://evil.example", "access-control-request-method": "POST"},
    )
    assert reply.status_code in (401, 405)
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_the_log_holds_ids_and_counts_but_no_text_and_no_key(device: str) -> None:
    start_logging()
    lines = io.StringIO()
    handler = LOGGER.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(lines)
    try:
        httpx.get(f"{device}/v1/models/{SECRET_PROMPT}", headers={"authorization": "Bearer good-key"})
        reply = ask(device, stop=["Xanth"])
        refused = ask(device, temperature=SECRET_PROMPT)
        for _ in range(100):  # a line is written after its answer has gone out
            if lines.getvalue().count("\n") == 3:
                break
            time.sleep(0.05)
    finally:
        handler.setStream(sys.stderr)
        LOGGER.handlers.clear()
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["request_id"] for row in rows[1:]] == [
        one.headers["x-request-id"] for one in (reply, refused)
    ]
    assert rows[1]["completion_tokens"] <= 2
    assert rows[1]["key"] == "good"
    for secret in ("Xanth", "patient", "good-key"):
        assert secret not in lines.getvalue()
        assert secret not in refused.text


def test_a_request_id_is_taken_over_unless_it_could_do_harm(device: str) -> None:
    for sent, kept in (("abc-1", True), ("a b", False), ("x" * 65, False)):
        reply = httpx.get(f"{device}/healthz", headers={"x-request-id": sent})
        assert (reply.headers["x-request-id"] == sent) == kept


# -- keys and configs --------------------------------------------------------------------------------------------------


def test_a_made_key_is_admitted_and_its_file_does_not_hold_it(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "key", "--name", "ward", "--tenant", "clinic", "--scope", "infer"]) == 0
    shown = capsys.readouterr()
    entry, key = shown.out, shown.err.rpartition(": ")[2].strip()  # `>> keys.toml` takes the entry alone
    file = tmp_path / "keys.toml"
    file.write_text(entry)
    assert key not in entry
    caller = read_keyring(str(file)).caller(f"Bearer {key}")
    assert caller is not None
    assert (caller.name, caller.tenant, caller.scopes) == ("ward", "clinic", {"infer"})
    assert read_keyring(str(file)).caller(f"Bearer {key}x") is None
    assert read_keyring(str(file)).caller("") is None
    assert Keyring(None).caller("") is not None


@pytest.mark.parametrize(
    "text",
    ["", "keys = []", "[[keys]]\nname = 'a'", "other = 1", new_key("a", "t", ["infer"])[1] * 2,
     new_key("a", "t", ["infer"])[1].replace('"infer"', '"root"'),
     new_key("a", "t", ["infer"])[1] + "requests_per_minute = 0"],
)  # fmt: skip
def test_a_faulty_file_of_keys_is_refused(tmp_path, text: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="keys"):
        read_keyring(str(file))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[device]\nprot = 1", "did you mean"),
        ("[devise]\nport = 1", "did you mean"),
        ("[device]\nport = 99999", "device.port = 99999"),
        ("[device]\nmode = 'fast'\n[cloud]\nmax_batch = 0", "2 faults"),
        ("[security]\ncertificate = 'c.pem'", "go together"),
        ("[security]\nclient_ca = 'c.pem'", "mTLS"),
        ("[edge]\nupstream = 'ftp://x'", "edge.upstream"),
    ],
)
def test_a_faulty_config_says_where(tmp_path, text: str, says: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_serve(file)


def test_paths_belong_to_the_file_and_overrides_to_the_line(tmp_path) -> None:
    (tmp_path / "serve.toml").write_text("[device]\npolicy = 'p.json'\n[security]\nkeys = 'k.toml'\n")
    config = load_serve(tmp_path / "serve.toml", ["device.port=9000", "device.upstream=null"])
    assert config.device.policy == str(tmp_path / "p.json")
    assert config.security.keys == str(tmp_path / "k.toml")
    assert (config.device.port, config.device.upstream) == (9000, None)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["edge", "-o", "edge.host=0.0.0.0"], 2, "security.keys"),
        (["cloud", "nosuch.toml"], 2, "nosuch.toml"),
        (["cloud", "-o", "cloud.model=embedded:nosuch"], 4, "embedded:nosuch"),
        (["edge", "-o", "security.keys=nosuch.toml"], 2, "nosuch.toml"),
        (["device", "-o", "device.policy=nosuch.json"], 2, "nosuch.json"),
    ],
)
def test_what_cannot_be_served_ends_with_its_code(
    flags: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *flags]) == code
    assert says in capsys.readouterr().err


def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "edge", "-o", f"edge.port={port}"]) == 5
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_without_the_extra_serving_says_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from fedtandem.cli import main; sys.exit(main(['serve', 'all']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "fedtandem[serve]" in done.stderr


def test_the_printed_config_is_the_defaults(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "config"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "serve.toml").write_text(text)
    assert load_serve(tmp_path / "serve.toml") == ServeConfig()
    for section in ServeConfig().model_dump().values():
        for key in section:
            assert f"\n{key} = " in text or f"\n# {key} =" in text


def test_a_body_that_any_web_page_could_send_is_refused(device: str) -> None:
    body = '{"model": "fedtandem", "prompt": "Q 3 + 5 A"}'
    headers = {"authorization": "Bearer good-key", "content-type": "text/plain"}
    reply = httpx.post(f"{device}/v1/completions", content=body, headers=headers)
    assert reply.status_code == 400
    assert "application/json" in reply.json()["error"]["message"]
