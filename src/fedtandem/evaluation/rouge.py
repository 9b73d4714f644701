"""Rouge-L of generated texts, by the `rouge-score` library (extra `eval`)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedtandem.errors import ConfigError


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """F-measure of the longest common subsequence of words, the best over a text's references.

    Args:
        predictions: N texts.
        references: N non-empty lists of accepted texts.

    Returns:
        (N,) float64 in [0, 1]. Words are stemmed (Porter), as Super-NaturalInstructions scores them.

    Raises:
        ConfigError: `rouge-score` is not installed.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ConfigError(
            "rouge_l needs the rouge-score library, which is not installed: pip install 'fedtandem[eval]'."
        ) from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.array(
        [
            max(float(scorer.score(reference, text)["rougeL"].fmeasure) for reference in accepted)
            for text, accepted in zip(predictions, references, strict=True)
        ],
        dtype=np.float64,
    )
