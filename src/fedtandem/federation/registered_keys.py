"""The sites' registered P-384 keys as files: NAME.pub of all, and one site's own private key."""

import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedtandem.errors import ConfigError


def names_in(folder: Path) -> list[str]:
    """Whose public keys lie in a folder, sorted.

    Raises:
        ConfigError: none.
    """
    found = sorted(path.stem for path in folder.glob("*.pub"))
    if not found:
        raise ConfigError(
            f"{folder} holds no public key (NAME.pub). `fedtandem deploy` writes them; each site sends its own."
        )
    return found


def public_keys(folder: Path, names: Iterable[str] | None = None) -> dict[str, ec.EllipticCurvePublicKey]:
    """P-384 public keys by name, to check signatures with.

    Args:
        names: whose; None: all that are there.

    Raises:
        ConfigError: one is missing, or is no P-384 key.
    """
    found = {}
    for name in names_in(folder) if names is None else sorted(names):
        path = folder / f"{name}.pub"
        try:
            key = serialization.load_ssh_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"the public key {path} cannot be used: {error}. Put {name}'s key.pub there, as that site sent it."
            ) from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
            raise ConfigError(f"{path} is no P-384 key; sites make theirs with ssh-keygen -t ecdsa -b 384.")
        found[name] = key
    return found


def signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's own private key.

    Raises:
        ConfigError: there is none, it is no P-384 key, or others can read it.
    """
    make = "make one: ssh-keygen -t ecdsa -b 384 -N '' -f key"
    if not path.is_file():
        raise ConfigError(f"there is no {path}; {make}")
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {make}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
        raise ConfigError(f"{path} is no P-384 key; {make}")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} can be read by others: chmod 600 {path}")
    return key
