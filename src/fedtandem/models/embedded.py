"""The tiny models that ship with the package: three parties of the chains playground."""

from pathlib import Path

from fedtandem.errors import ModelError

EMBEDDED = ("embedded:chains-server", "embedded:chains-client-a", "embedded:chains-client-b")
"""Made by `python -m fedtandem.models.make_embedded`; different architectures, different tokenizers."""


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model, e.g. of "embedded:chains-server".

    Raises:
        ModelError: no such model in this installation.
    """
    folder = Path(__file__).parent / "embedded" / name.removeprefix("embedded:")
    if name not in EMBEDDED or not (folder / "config.json").is_file():
        raise ModelError(f"there is no embedded model {name!r}; there are {', '.join(EMBEDDED)}.")
    return folder
