"""The tiny models that ship with the package: the parties of the playground's two recipes, `chains` and `mutual`."""

from pathlib import Path

from fedtandem.errors import ModelError

CHAINS = ("embedded:chains-server", "embedded:chains-client-a", "embedded:chains-client-b")
"""Different architectures, different tokenizers."""
MUTUAL = ("embedded:mutual-server", "embedded:mutual-client-a", "embedded:mutual-client-b")
"""The server has met the private signs with tables of no worth; the clients' positions are rotary, so that chains
longer than any they have seen are within reach. The clients' tokenizers differ; B's is the server's."""
EMBEDDED = (*CHAINS, *MUTUAL)
"""Made by `python -m fedtandem.models.make_embedded`."""


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model, e.g. of "embedded:chains-server".

    Raises:
        ModelError: no such model in this installation.
    """
    folder = Path(__file__).parent / "embedded" / name.removeprefix("embedded:")
    if name not in EMBEDDED or not (folder / "config.json").is_file():
        raise ModelError(f"there is no embedded model {name!r}; there are {', '.join(EMBEDDED)}.")
    return folder
