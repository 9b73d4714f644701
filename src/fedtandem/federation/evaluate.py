"""`fedtandem eval`: measure any model, or a trained party of a run, on a data set."""

from dataclasses import dataclass
from pathlib import Path

from fedtandem.data.load import load_samples
from fedtandem.data.presets import find_preset
from fedtandem.data.source import DataSource
from fedtandem.errors import ConfigError
from fedtandem.evaluation.scorer import Evaluation, evaluate
from fedtandem.models.load import ModelSpec, load_model


@dataclass(frozen=True)
class EvalRequest:
    """What `fedtandem eval` was asked."""

    model: str
    data: Path
    preset: str | None
    metric: str | None
    limit: int | None
    batch_size: int
    max_length: int


def eval_command(request: EvalRequest) -> Evaluation:
    """Score one model on one file.

    Raises:
        ConfigError: no metric is given and the data set's preset names none.
    """
    metric = request.metric
    if metric is None and request.preset is not None:
        metric = find_preset(request.preset).metric
    if metric is None:
        raise ConfigError(
            "no metric: give --metric exact_match, accuracy, bits_per_byte or rouge_l, or a --preset that names one."
        )
    source = DataSource(path=str(request.data), preset=request.preset, limit=request.limit)
    samples = load_samples(source, where="evaluation data")
    lm = load_model(ModelSpec(model=request.model, tuning_method="none"))
    return evaluate(lm, samples, metric, batch_size=request.batch_size, max_length=request.max_length)
