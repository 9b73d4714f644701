"""`fedtandem deploy`: one folder for the server and one per site, with everything an operator starts them with."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedtandem.atomic import whole_folder
from fedtandem.config import RunConfig, with_overrides
from fedtandem.config.site import SiteConfig
from fedtandem.errors import ConfigError
from fedtandem.federation import deploy_texts as texts
from fedtandem.federation.consent import exactly
from fedtandem.federation.deployed import require_flower
from fedtandem.federation.plan import site_of_client
from fedtandem.federation.remote import check_methods

MAX_BYTES_PER_ROUND = 100_000_000
LOOPBACK = ("localhost", "127.0.0.1", "superlink")


@dataclass(frozen=True)
class Place:
    """Where a federation is to run.

    Attributes:
        host, port: of the SuperLink.
        node_port: of the first SuperNode's own runtime port; the next has the next.
        connection: the SuperLink's name in Flower's config.toml.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    node_port: int = 9094
    connection: str = "lab"


def deploy(config: RunConfig, output: Path, place: Place) -> list[Path]:
    """Write the folder.

    Returns:
        What was written at its top.

    Raises:
        ConfigError: the folder exists, the run cannot be deployed, or the extra `flower` is missing.
    """
    require_flower()
    check_methods(config.methods)
    if output.exists():
        raise ConfigError(f"{output} exists already; name another folder with --output.")
    from fedtandem.federation.certificates import Authority

    authority = Authority(f"fedtandem {config.name}")
    with whole_folder(output) as folder:
        _server(folder / "server", config, place, authority)
        for at, client in enumerate(config.clients):
            _site(folder, config, client.name, place, authority, place.node_port + at)
        for client in config.clients:  # masks are agreed on under keys that each site knows for itself
            shutil.copytree(folder / "server" / "keys", folder / "sites" / client.name / "keys")
        names = [client.name for client in config.clients]
        _write(folder / "loopback.sh", texts.loopback(names, place), mode=0o755)
        _write(folder / "compose.yaml", texts.compose(names, place))
        _write(folder / "README.md", texts.readme(config.name, names, place))
    return sorted(output.iterdir())


def _server(folder: Path, config: RunConfig, place: Place, authority: Any) -> None:
    config = with_overrides(config, {"federation.carrier": "flower"})
    resolved = config.resolved()
    for client in resolved["clients"]:
        client["data"] = None  # a client's data are its own business
    _write(folder / "run.toml", texts.RUN_HEAD + tomli_w.dumps(_without_none(resolved)))
    _write(folder / "env.sh", texts.environment(_bin()) + texts.connection(place))
    _write(folder / "superlink.sh", texts.superlink(place), mode=0o755)
    names = [client.name for client in config.clients]
    _write(folder / "register.sh", texts.register(names, place), mode=0o755)
    _write(folder / "superlink.service", texts.unit("SuperLink", "superlink.sh"))
    _certificate(folder / "certificates", authority, [place.host, *LOOPBACK])


def _site(folder: Path, config: RunConfig, name: str, place: Place, authority: Any, own_port: int) -> None:
    from fedtandem.federation.certificates import site_key

    own = folder / "sites" / name
    allow = exactly(config, max_bytes_per_round=MAX_BYTES_PER_ROUND)
    site = site_of_client(config, name, "state", allow)
    _write(own / "site.toml", site_text(site))
    _write(own / "env.sh", texts.environment(_bin()))
    _write(own / "supernode.sh", texts.supernode(name, place, own_port), mode=0o755)
    _write(own / "supernode.service", texts.unit(f"SuperNode of {name}", "supernode.sh"))
    private, public = site_key()
    _write(own / "key", private.decode(), mode=0o600)
    _write(own / "key.pub", public.decode())
    _write(folder / "server" / "keys" / f"{name}.pub", public.decode())
    _certificate(own / "certificates", authority, list(LOOPBACK))


def site_text(site: SiteConfig) -> str:
    """A site's file as an operator reads it: the law first."""
    plain = _without_none(
        site.model_dump(mode="json", exclude_defaults=True, exclude={"allow", "folder", "data"})
    )
    top = {key: plain.pop(key) for key in list(plain) if not isinstance(plain[key], dict | list)}
    return (
        texts.SITE_HEAD
        + tomli_w.dumps(top)
        + texts.allow(site.allow)
        + texts.CALIBRATION
        + tomli_w.dumps(plain)
    )


def _certificate(folder: Path, authority: Any, hosts: list[str]) -> None:
    certificate, key = authority.issue(list(dict.fromkeys(hosts)))
    _write(folder / "ca.pem", authority.pem.decode())
    _write(folder / "own.pem", certificate.decode())
    _write(folder / "own.key", key.decode(), mode=0o600)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _bin() -> str:
    return str(Path(sys.executable).parent)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
