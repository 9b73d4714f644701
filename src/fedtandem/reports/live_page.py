"""The live page of a run: this machine alone, the standard library's server, nothing from elsewhere."""

import threading
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedtandem.errors import ConfigError, FedtandemError
from fedtandem.reports.figures import bytes_by_round, colours_of, learning_curves, who_taught
from fedtandem.reports.html import render
from fedtandem.reports.live import look, taught, took
from fedtandem.reports.record import is_run, read_run

HOST = "127.0.0.1"
GUARDS = {
    # The drawings carry their colours as style attributes; nothing else stands in the page itself.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_MOODS = {"answered": "gain", "at work": "gain", "asked": "gain", "not connected": "loss", "absent": "loss"}
_STATES = {"running": "up", "finished": "up", "failed": "down", "stopped": "down"}


def serve_command(folder: Path, *, port: int) -> int:
    """Serve the page until Ctrl-C.

    Args:
        port: on 127.0.0.1; 0 takes a free one.

    Raises:
        ConfigError: the port is taken.
    """
    with open_page(folder, port) as server:
        print(f"http://{HOST}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever(0.2)
        except KeyboardInterrupt:
            return 0
    return 0


def open_page(folder: Path, port: int) -> ThreadingHTTPServer:
    """The server, listening; `serve_forever` answers.

    Raises:
        ConfigError: the port is taken.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Answers, Page(folder)))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--serve {port}: cannot listen on {HOST}:{port} ({error}). Give another port, or 0 for a free one."
        ) from error


class Page:
    """The view of one run; its drawings are made again only when the record has grown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # matplotlib draws one at a time
        self._drawn: tuple[object, dict[str, Any]] = (None, {})

    def view(self, template: str) -> str:
        """The whole page (`live.html.j2`) or what changes in it (`live_view.html.j2`)."""
        live = look(self._folder, datetime.now(UTC))
        with self._lock:
            drawings = self._drawings(live.method, (live.method, live.heard))
        return render(template, {
            "live": live, "title": f"{live.name}: {live.state}", "mood": _STATES.get(live.state, "dim"),
            "moods": _MOODS, "versions": {}, "taught": taught, "took": took, **drawings,
        })  # fmt: skip

    def _drawings(self, method: str, key: object) -> dict[str, Any]:
        if self._drawn[0] == key:
            return self._drawn[1]
        found: dict[str, Any] = {"by_teacher": [], "traffic": [], "curves": [], "colours": []}
        if is_run(self._folder):
            run = read_run(self._folder)
            colours = colours_of(run.parties)
            traffic = [t for t in run.traffic if t.method == method and t.up + t.down]
            found = {
                "by_teacher": who_taught([one for one in run.lessons if one.method == method], colours),
                "traffic": bytes_by_round(traffic, colours),
                "curves": learning_curves([p for p in run.points if p.method == method], method, []),
                "colours": [(party, colours[party] + 1) for party in run.parties],
            }
        self._drawn = (key, found)
        return found


class _Answers(BaseHTTPRequestHandler):
    """GET / , /view and /live.js; nothing else is known, and no other host name is answered."""

    def __init__(self, page: Page, *arguments: Any) -> None:
        self._page = page
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer one request."""
        port = self.connection.getsockname()[1]
        if self.headers.get("host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            return self._send(403, "text/plain", "this page answers to 127.0.0.1 and localhost alone")
        try:
            if self.path == "/":
                return self._send(200, "text/html", self._page.view("live.html.j2"))
            if self.path == "/view":
                return self._send(200, "text/html", self._page.view("live_view.html.j2"))
        except FedtandemError as fault:
            return self._send(500, "text/plain", str(fault))
        if self.path == "/live.js":
            script = (files("fedtandem.reports") / "templates" / "live.js").read_text(encoding="utf-8")
            return self._send(200, "text/javascript", script)
        return self._send(404, "text/plain", "there is /, and nothing else")

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**GUARDS, "content-type": f"{kind}; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are not worth a line."""
