"""`doctor` names what is amiss, thing by thing, against a real TLS server."""

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedtandem.cli import main
from fedtandem.config import RunConfig
from fedtandem.federation.audit import append_audit
from fedtandem.federation.certificates import Authority
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.doctor import Finding, Visit, doctor

Tiny = Callable[..., RunConfig]


class Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class Server:
    """An HTTPS server whose certificate can be anything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, Authority("test")
        (folder / "ca.pem").write_bytes(self.authority.pem)

    def start(self, *hosts: str, days: float = 1) -> int:
        certificate, key = self.authority.issue(hosts, days=days)
        (self.folder / "own.pem").write_bytes(certificate + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "own.pem")
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        threading.Thread(target=self.http.serve_forever, args=(0.02,)).start()
        return int(self.http.server_port)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "tls").mkdir()
    made = Server(tmp_path / "tls")
    yield made
    if hasattr(made, "http"):
        made.http.shutdown()
        made.http.server_close()


@pytest.fixture
def site(tiny: Tiny, tmp_path: Path) -> Path:
    deploy(tiny(), tmp_path / "lab", Place())
    return tmp_path / "lab" / "sites" / "clinic-a"


def found(visit: Visit, what: str) -> Finding:
    return next(one for one in doctor(visit) if one.what == what)


def test_a_good_site_has_nothing_to_mend(
    site: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = server.start("127.0.0.1")
    words = [
        "doctor",
        str(site / "site.toml"),
        "--superlink",
        f"127.0.0.1:{port}",
        "--ca",
        str(tmp_path / "tls/ca.pem"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "nothing to mend" in said
    assert "MEND" not in said
    assert [line.split(":")[0].split()[-1] for line in said.splitlines()[:-1]].count("clock") == 1


@pytest.mark.parametrize(
    ("hosts", "days", "own_ca", "says"),
    [
        (("127.0.0.1",), -1, True, "needs a new certificate"),
        (("elsewhere.example",), 1, True, "must carry this name or address as SAN"),
        (("127.0.0.1",), 1, False, "issued by another CA"),
    ],
)
def test_a_bad_certificate_is_named(
    site: Path, server: Server, tmp_path: Path, hosts: tuple[str, ...], days: float, own_ca: bool, says: str
) -> None:
    port = server.start(*hosts, days=days)
    ca = tmp_path / "tls" / "ca.pem" if own_ca else site / "certificates" / "ca.pem"
    finding = found(Visit(site / "site.toml", f"127.0.0.1:{port}", ca), "superlink")
    assert not finding.ok
    assert says in finding.text


def test_what_is_amiss_at_the_site_is_named(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "key").chmod(0o644)
    log = site / "state" / "audit.jsonl"
    append_audit(
        log, [], experiment="x", method="m", round=1, kind="work", bytes=3, sha256="0" * 64, says=["a"]
    )
    log.write_text(log.read_text().replace('"bytes":3', '"bytes":2'))
    assert main(["doctor", str(site / "site.toml"), "--superlink", "127.0.0.1:1"]) == 2
    said = capsys.readouterr().out
    assert "chmod 600" in said
    assert "the chain of hashes breaks here" in said
    assert "nobody listens there" in said
    assert said.endswith("3 of 8 to mend\n")
