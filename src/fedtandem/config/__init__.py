"""What a run is: frozen typed models, one file per section; knows neither torch nor an engine."""

from fedtandem.config.alignment import AlignmentConfig
from fedtandem.config.data import ChainsConfig, DataConfig, DataRootConfig, PartitionConfig, PublicConfig
from fedtandem.config.distillation import DistillationConfig
from fedtandem.config.evaluation import EvaluationConfig, EvaluationSet
from fedtandem.config.federation import FederationConfig
from fedtandem.config.knowledge import KnowledgeConfig
from fedtandem.config.load import (
    cell_config,
    load_config,
    load_either,
    load_resolved,
    load_study,
    with_overrides,
)
from fedtandem.config.party import ClientConfig, PartyConfig
from fedtandem.config.report import ReportConfig
from fedtandem.config.run import METHODS, RunConfig
from fedtandem.config.scratch import ScratchConfig
from fedtandem.config.selection import SelectionConfig
from fedtandem.config.study import ArmConfig, StudyConfig, StudySection
from fedtandem.config.tuning import TuningConfig, TuningOverride

__all__ = [
    "METHODS",
    "AlignmentConfig",
    "ArmConfig",
    "ChainsConfig",
    "ClientConfig",
    "DataConfig",
    "DataRootConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "EvaluationSet",
    "FederationConfig",
    "KnowledgeConfig",
    "PartitionConfig",
    "PartyConfig",
    "PublicConfig",
    "ReportConfig",
    "RunConfig",
    "ScratchConfig",
    "SelectionConfig",
    "StudyConfig",
    "StudySection",
    "TuningConfig",
    "TuningOverride",
    "cell_config",
    "load_config",
    "load_either",
    "load_resolved",
    "load_study",
    "with_overrides",
]
