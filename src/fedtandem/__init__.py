"""fedtandem: a server LLM and client SLMs improve each other without sharing private data.

The public names are listed by hand and loaded on first use, so `import fedtandem` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "FedtandemError": "fedtandem.errors",
    "RunConfig": "fedtandem.config.run",
    "SparseLogits": "fedtandem.knowledge.sparse_logits",
    "align": "fedtandem.models.pairs",
    "choose_teacher": "fedtandem.selection.dual_min_ce",
    "load_config": "fedtandem.config.load",
    "run": "fedtandem.federation.run",
    "sparse_kd_loss": "fedtandem.distillation.kd",
    "vocabulary_map": "fedtandem.models.pairs",
}
"""Public name -> the module that defines it."""

__all__ = [
    "FedtandemError",
    "RunConfig",
    "SparseLogits",
    "__version__",
    "align",
    "choose_teacher",
    "load_config",
    "run",
    "sparse_kd_loss",
    "vocabulary_map",
]

if TYPE_CHECKING:
    from fedtandem.config.load import load_config
    from fedtandem.config.run import RunConfig
    from fedtandem.distillation.kd import sparse_kd_loss
    from fedtandem.errors import FedtandemError
    from fedtandem.federation.run import run
    from fedtandem.knowledge.sparse_logits import SparseLogits
    from fedtandem.models.pairs import align, vocabulary_map
    from fedtandem.selection.dual_min_ce import choose_teacher


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next use is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
