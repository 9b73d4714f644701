"""A site's own file: what this client is, and what it allows. No server can widen it."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from fedtandem.config.data import DataConfig, DataRootConfig
from fedtandem.config.evaluation import EvaluationSet, named_tables
from fedtandem.config.faults import refuse
from fedtandem.config.load import ROOT, data_root, locate, read_document
from fedtandem.config.party import PartyConfig
from fedtandem.config.schema import map_paths
from fedtandem.config.section import FilePath, Section
from fedtandem.config.validate import validated
from fedtandem.errors import ConfigError

Sent = Literal[
    "card", "scores", "rows", "texts", "requests", "weights", "measurements", "counts", "masked_counts"
]
SENT: tuple[Sent, ...] = get_args(Sent)
"""What can leave a site: its vocabulary and sizes, scores of public samples, sparse next-token rows, texts it wrote for
public prompts, which items it asks to be taught, trainable weights, and means on its own test sets with times; for
thresholds, counts of its decisions by uncertainty, or the same under masks, of which only sums of sites can be read."""


class AllowConfig(Section):
    """[allow]: the site's law."""

    send: tuple[Sent, ...] = ("card", "scores", "rows", "texts", "requests", "measurements")
    """What may leave: card, scores, rows, texts, requests, weights, measurements, counts, masked_counts."""
    max_bytes_per_round: int = Field(100_000_000, ge=0)
    """Bytes of envelopes this site sends in one round at most."""
    max_rounds: int = Field(100, ge=1)
    """Longest run it takes part in."""
    functions: tuple[str, ...] = ()
    """Functions of your own ("package.module:function") that a server may name as checks or selectors."""


class SiteCalibration(Section):
    """[calibration]: what `fedtandem calibrate` may ask this site about."""

    trace: FilePath
    """This site's recorded decisions (.parquet). All of them count as its own, whatever client they name."""
    key: FilePath = "key"
    """--masked: this site's registered private key, which signs its keys for masks."""
    keys: FilePath = "keys"
    """--masked: NAME.pub of every other site, as this site's operator got them; who is not there is not believed."""


class SiteConfig(Section):
    """One client at its own machine."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """The client's name, as in the server's [[clients]]; bound there to this site's key."""
    edge: str = Field("", max_length=100)
    """The edge this client belongs to, for thresholds; may stand in the node config instead. "": with all others."""
    folder: FilePath = "state"
    """Where its states, replies and the audit log are kept."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads of torch; None takes the server's word. The same number gives the same bits."""
    client: PartyConfig
    """Model, training and private data: as one entry of [[clients]], without the name."""
    public: DataConfig
    """This site's copy of the public set; compared with the server's by hash."""
    tests: Annotated[tuple[EvaluationSet, ...], BeforeValidator(named_tables)] = ()
    """[[tests]]: what this client is measured on, here; only means are told, and only if allowed."""
    allow: AllowConfig = AllowConfig()
    """What may leave."""
    calibration: SiteCalibration | None = None
    """What thresholds are learnt from."""
    data: DataRootConfig = DataRootConfig()
    """Where `{data.root}` in a path points."""

    @property
    def home(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)


def load_site(path: str | Path) -> SiteConfig:
    """Read a site's file.

    Raises:
        ConfigError: all faults in one message, each with its path, its value and what is allowed.
    """
    file = locate(path)
    document: dict[str, Any] = read_document(SiteConfig, file)
    beside = file.resolve().parent
    document.setdefault("folder", str(beside / "state"))
    if isinstance(document.get("calibration"), dict):
        for key in ("key", "keys"):
            document["calibration"].setdefault(key, str(beside / key))
    root = data_root(document)
    document = map_paths(SiteConfig, document, lambda _, text: text.replace(ROOT, root))
    site, faults = validated(SiteConfig, document)
    refuse(faults, str(path))
    if site is None:
        raise ConfigError(f"{path} is not a site's file.")
    return site
