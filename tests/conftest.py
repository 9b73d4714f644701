"""What every test may rely on: the shared data, one torch thread, no user cache touched."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("shared-cores", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("shared-cores")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests' caches inside pytest's own folder, never in the user's home."""
    cache = config.rootpath / ".pytest_cache" / "fedtandem"
    os.environ.setdefault("FEDTANDEM_CACHE", str(cache))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: FEDTANDEM_SHARED, else ../shared beside the checkout.

    Skips where it is absent; fails instead when FEDTANDEM_REQUIRE_SHARED=1.
    """
    folder = Path(os.environ.get("FEDTANDEM_SHARED") or ROOT.parent / "shared").resolve()
    if not (folder / "data").is_dir():
        message = f"no shared data in {folder}; set FEDTANDEM_SHARED to its folder"
        if os.environ.get("FEDTANDEM_REQUIRE_SHARED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Fix the thread count where torch is loaded: sums must not depend on the machine's cores."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@dataclass(frozen=True)
class Request:
    """What an endpoint was asked."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Loopback:
    """A real HTTP server on loopback. It answers with its script, one entry a request, then with `otherwise`.

    An entry is (status, body) or (status, body, headers), None (the connection is dropped), "hang" (nothing comes),
    or a function of the request's body that gives one of these.
    """

    otherwise: Any = None
    script: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    @staticmethod
    def chat(text: str) -> tuple[int, bytes]:
        """A well-formed chat reply."""
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()

    def __enter__(self) -> "Loopback":
        self._ending, self._lock = threading.Event(), threading.Lock()
        outer = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        request = Request(
            handler.path,
            {k.lower(): v for k, v in handler.headers.items()},
            json.loads(body) if body else None,
        )
        with self._lock:
            self.requests.append(request)
            entry = self.script.pop(0) if self.script else self.otherwise
        if callable(entry):
            entry = entry(request.body)
        if entry == "hang":
            self._ending.wait()
        if not isinstance(entry, tuple):
            return
        status, data, *headers = entry
        handler.send_response(status)
        for name, value in (headers[0] if headers else {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """An endpoint that does as it is told."""
    with Loopback() as server:
        yield server
