"""A whole run: the sections together, and what must hold between them."""

import hashlib
import json
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from fedtandem.config.alignment import AlignmentConfig
from fedtandem.config.data import DataRootConfig, PublicConfig
from fedtandem.config.defence import DefenceConfig
from fedtandem.config.distillation import DistillationConfig
from fedtandem.config.evaluation import EvaluationConfig, named_tables
from fedtandem.config.federation import FederationConfig
from fedtandem.config.knowledge import KnowledgeConfig
from fedtandem.config.party import ClientConfig, PartyConfig
from fedtandem.config.privacy import PrivacyConfig
from fedtandem.config.report import ReportConfig
from fedtandem.config.section import Section
from fedtandem.config.seeds import with_seeds
from fedtandem.config.selection import SelectionConfig, with_selector

MethodName = Literal[
    "zero_shot",
    "standalone",
    "standalone_public",
    "server_public",
    "llm2slm",
    "fedavg",
    "fedmkt_no_selection",
    "fedmkt_all",
    "fedmkt_random",
    "lada",
    "fedmkt_mined",
    "fedmkt_bytes",
    "fedmkt",
    "centralised",
]
METHODS: tuple[str, ...] = get_args(MethodName)


class RunConfig(Section):
    """One method and its controls, on one set of parties and data."""

    name: str = Field(min_length=1, pattern=r"^[^/\\]+$")
    """Names the run's folder."""
    algorithm: MethodName = "fedmkt"
    """The method `run` is about."""
    seed: int = Field(0, ge=0)
    """Draws everything that is random."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads of torch; None leaves them as they are. The same number gives the same bits."""
    controls: tuple[MethodName, ...] = ()
    """Methods run beside it on the same data, updates and seeds."""
    server: PartyConfig
    """The party with the LLM."""
    clients: Annotated[tuple[ClientConfig, ...], BeforeValidator(named_tables), Field(min_length=1)]
    """[[clients]]: the parties with SLMs and private data."""
    public: PublicConfig
    """The public set."""
    alignment: AlignmentConfig = AlignmentConfig()
    """Tokens across tokenizers."""
    knowledge: KnowledgeConfig = KnowledgeConfig()
    """What is exchanged."""
    distillation: DistillationConfig = DistillationConfig()
    """How it is learnt."""
    selection: SelectionConfig = SelectionConfig()
    """From whom."""
    federation: FederationConfig = FederationConfig()
    """Rounds."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Privacy of every client."""
    defence: DefenceConfig | None = None
    """The server's defence against clients that lie; None: none."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Measurements."""
    report: ReportConfig = ReportConfig()
    """What is shown."""
    data: DataRootConfig = DataRootConfig()
    """Where `{data.root}` points."""

    _document: dict[str, Any] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        return with_selector(with_seeds(value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        from fedtandem.config.agreement import Disagreement, disagreements

        found = disagreements(self)
        if found:
            raise Disagreement(found)
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """The algorithm, then its controls, each once."""
        return tuple(dict.fromkeys((self.algorithm, *self.controls)))

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults and seeds filled in, as JSON values; `load_resolved` reads it back.

        None where a value follows the alignment mode or the kind of public set.
        """
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of all that can change a result.

        Not the report, the threads, how memory is used, what carries the messages, or where the folder of shared data
        stands.
        """
        plain = self.resolved()
        for key in ("report", "num_threads", "data"):
            plain.pop(key)
        for key in ("deadline_s", "keep_models"):
            plain["federation"].pop(key)
        plain["federation"]["carrier"] = "local"
        text = json.dumps(plain, sort_keys=True)
        if self.data.root is not None:
            text = text.replace(json.dumps(self.data.root)[1:-1] + "/", "{data.root}/")
        return hashlib.sha256(text.encode()).hexdigest()
