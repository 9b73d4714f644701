"""A new config while tiers run: all of it or nothing; what can change does, what cannot is named."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedtandem.config.serve import ServeConfig, load_serve
from fedtandem.serving.logs import LOGGER, start_logging
from fedtandem.serving.reloading import LIVE, Reloading, changed, merged
from fedtandem.serving.tiers import build_device


def ask(url: str, key: str = "good", **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": "Q 3 + 5 A", "max_tokens": 4, **more}
    return httpx.post(
        f"{url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}-key"}, timeout=60
    )


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the log says."""
    start_logging()
    kept = io.StringIO()
    handler = LOGGER.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(kept)
    yield kept
    handler.setStream(sys.stderr)


def last(lines: io.StringIO, event: str) -> dict[str, object]:
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [row for row in rows if row["event"] == event][-1]


def test_every_key_of_a_section_is_live_or_needs_a_restart() -> None:
    for section, names in LIVE.items():
        assert names <= set(type(getattr(ServeConfig(), section)).model_fields)
    assert set(LIVE) == set(ServeConfig.model_fields)
    old = ServeConfig()
    new = ServeConfig.model_validate(
        {"device": {"tau": 0.4, "port": 9}, "edge": {"price": 0.5}, "log": {"level": "error"}}
    )
    assert changed(old, new) == (["device.tau", "edge.price", "log.level"], ["device.port"])
    assert changed(old, merged(old, new))[1] == []


def test_what_can_change_does_and_the_rest_is_named(tmp_path: Path, lab, lines: io.StringIO) -> None:
    keys, file = tmp_path / "keys.toml", tmp_path / "device.toml"

    def write(
        device: str = "", *, names: tuple[str, ...] = ("good",), limits: str = "", more: str = ""
    ) -> None:
        lab.write_keys(keys, *((name, "one", ["infer", "metrics"]) for name in names))
        file.write_text(
            f'[device]\nport = 0\nupstream = "http://127.0.0.1:9"\nmode = "local"\n{device}\n'
            f'[security]\nkeys = "keys.toml"\n[limits]\n{limits}\n{more}\n'
        )

    write()
    config = load_serve(file)
    with lab.Running([lambda _: build_device(config)], config) as one:
        url = one.urls["device"]
        reloading = Reloading(config, lambda: load_serve(file), [each.prepare for each in one.listening])

        def reload() -> bool:
            # In the loop that serves, as the signal's handler does it.
            return asyncio.run_coroutine_threadsafe(reloading.reload(), one._loop).result(60)

        assert ask(url).status_code == 200
        assert ask(url, "fresh").status_code == 401
        write("max_tokens = 3\nname = \"other\"", names=("fresh",), limits="max_body_bytes = 2000",
              more='[decisions]\nfolder = "log"')  # fmt: skip
        assert reload()
        assert last(lines, "reloaded")["needs_restart"] == ["device.name"]
        assert set(last(lines, "reloaded")["changed"]) == {  # type: ignore[call-overload]
            "device.max_tokens", "limits.max_body_bytes", "decisions.folder", "security.keys",
        }  # fmt: skip
        assert ask(url).status_code == 401  # the key is gone
        reply = ask(url, "fresh", max_tokens=None)
        assert reply.json()["usage"]["completion_tokens"] == 3
        assert ask(url, "fresh", prompt="x" * 3000).status_code == 413
        assert (tmp_path / "log" / "decisions.jsonl").read_text().count("\n") == 1

        for fault, says in (
            ("max_tokens = 0", "device.max_tokens = 0"),
            ("policy = 'gone.json'", "gone.json"),
            ("max_tokens = 9\nsurprise = 1", "surprise"),
        ):
            write(fault, names=("good",))
            assert not reload()
            assert says in str(last(lines, "reload refused")["says"])
            # Nothing of it: neither its keys nor its limits, nor that the log of decisions is gone.
            assert ask(url, "good").status_code == 401
            assert ask(url, "fresh", prompt="x" * 3000).status_code == 413
            assert ask(url, "fresh", max_tokens=None).json()["usage"]["completion_tokens"] == 3
        write(names=("fresh",), more='[decisions]\nfolder = "elsewhere"\n[log]\nlevel = "error"')
        assert reload()
        assert ask(url, "fresh").status_code == 200
        assert (tmp_path / "elsewhere" / "decisions.jsonl").read_text().count("\n") == 1
        assert LOGGER.level == logging.ERROR


def test_a_policy_and_a_price_move_the_threshold_at_once(tmp_path: Path, lab) -> None:
    file = tmp_path / "device.toml"
    file.write_text("[device]\nport = 0\nupstream = 'http://127.0.0.1:9'\nmode = 'fedhlm'\n")
    config = load_serve(file)
    with lab.Running([lambda _: build_device(config)], config) as one:
        reloading = Reloading(config, lambda: load_serve(file), [each.prepare for each in one.listening])
        file.write_text(file.read_text() + "tau = 0.9\n")
        assert asyncio.run_coroutine_threadsafe(reloading.reload(), one._loop).result(60)
        reply = httpx.post(
            f"{one.urls['device']}/v1/completions", timeout=60,
            json={"model": "fedtandem", "prompt": "Q 3 + 5 A", "max_tokens": 4, "trace": True, "mode": "local"},
        )  # fmt: skip
        assert {token["tau"] for token in reply.json()["fedtandem"]["tokens"]} == {0.9}


def test_sighup_reloads_a_running_service(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text("[edge]\nport = 0\nprice = 0.3\n")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    served = subprocess.Popen(
        [sys.executable, "-m", "fedtandem", "serve", "edge", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    try:
        assert served.stdout is not None and served.stderr is not None  # noqa: PT018
        url = next(line for line in served.stdout if line.startswith("edge")).split()[1]
        for _ in range(600):  # the handlers are there once it answers
            try:
                if httpx.get(f"{url}/healthz").status_code == 200:
                    break
            except httpx.ConnectError:
                time.sleep(0.1)
        for text, event in (("price = 0.6", "reloaded"), ("price = 7", "reload refused")):
            file.write_text(f"[edge]\nport = 0\n{text}\n")
            served.send_signal(signal.SIGHUP)
            while (row := json.loads(served.stderr.readline()))["event"] != event:
                pass
            assert "lambda_effective 0.6" in httpx.get(f"{url}/metrics").text
        assert "edge.price = 7" in row["says"]
        assert httpx.get(f"{url}/healthz").status_code == 200
    finally:
        served.terminate()
        served.communicate(timeout=60)
    assert served.returncode == 0
