"""TLS between tiers, on both sides: who has no certificate of the authority is not spoken to."""

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from fedtandem.errors import ConfigError
from fedtandem.serving.command import all_tiers
from fedtandem.serving.tiers import build_edge

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and a certificate of its for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    openssl("req", *ec, "-keyout", "tier.key", "-out", "tier.csr", "-subj", "/CN=tier")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "tier.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "san", "-out", "tier.pem")  # fmt: skip
    return folder


def test_three_tiers_speak_mutual_tls_and_a_stranger_does_not(authority: Path, lab) -> None:
    own = {"certificate": str(authority / "tier.pem"), "private_key": str(authority / "tier.key")}
    table = {**own, "client_ca": str(authority / "ca.pem"), "upstream_ca": str(authority / "ca.pem")}
    table |= {"upstream_certificate": own["certificate"], "upstream_private_key": own["private_key"]}
    config = lab.config(security=table)
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    known = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    known.load_cert_chain(own["certificate"], own["private_key"])
    body = {"model": "fedtandem", "prompt": "Q 3 + 5 A", "temperature": 0}
    with lab.Running(all_tiers(config), config) as one:
        assert all(url.startswith("https://") for url in one.urls.values())
        path = f"{one.urls['device']}/v1/completions"
        with httpx.Client(verify=known, timeout=60) as client:
            reply = client.post(path, json=body)
        assert reply.json()["choices"][0]["text"] == " 3 + 5 = 8 ; # 8"
        for context in (trusting, ssl.create_default_context()):
            with httpx.Client(verify=context, timeout=60) as client, pytest.raises(httpx.HTTPError):
                client.post(path, json=body)


def test_certificates_that_cannot_be_used_are_said(tmp_path: Path, lab) -> None:
    (tmp_path / "no.pem").write_text("this is no certificate")
    with pytest.raises(ConfigError, match="upstream"):
        build_edge(lab.config(security={"upstream_ca": str(tmp_path / "no.pem")}))
    paths = {name: str(tmp_path / "no.pem") for name in ("certificate", "private_key")}
    with pytest.raises(ConfigError, match="TLS"):
        lab.Running([lambda _: build_edge(lab.config())], lab.config(security=paths))
