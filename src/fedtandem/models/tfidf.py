"""TF-IDF and logistic regression: the strongest small classifier of topics that needs no pretraining."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch

from fedtandem.errors import ModelError
from fedtandem.models.classifier import ClassLaws, checked_labels


@dataclass(frozen=True)
class TfidfSpec:
    """Features and regularisation, in scikit-learn's terms.

    Attributes:
        analyzer: "word", or "char_wb": characters inside words.
        ngrams: shortest and longest.
        min_count: texts a feature must occur in.
        inverse_regularisation: scikit-learn's C.
        dimension: of the embedding.
        seed: of the embedding's projection.
    """

    analyzer: Literal["word", "char_wb"] = "word"
    ngrams: tuple[int, int] = (1, 2)
    min_count: int = 2
    inverse_regularisation: float = 10.0
    dimension: int = 32
    seed: int = 0


class TfidfClassifier:
    """Logistic regression on TF-IDF features; its embedding of a text is their random projection, which keeps cosines.

    It is fitted and asked inside one process: there is no file format for it that is not a pickle.
    """

    def __init__(
        self, vectorizer: Any, regression: Any, labels: Sequence[str], spec: TfidfSpec, name: str
    ) -> None:
        self.name, self.labels = name, tuple(labels)
        self._vectorizer, self._regression = vectorizer, regression
        n = len(vectorizer.vocabulary_)
        noise = np.random.default_rng(spec.seed)
        self._projection = noise.standard_normal((n, spec.dimension)).astype(np.float32) / spec.dimension**0.5
        whole = blake2b(repr(sorted(asdict(spec).items())).encode(), digest_size=8)
        whole.update("\n".join(vectorizer.get_feature_names_out()).encode())
        for array in (vectorizer.idf_, regression.coef_, regression.intercept_):
            whole.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = f"{name}:{whole.hexdigest()}"

    def read(self, texts: Sequence[str]) -> ClassLaws:
        """The law of every text; a class that training never showed has probability 0."""
        features = self._vectorizer.transform(texts)
        probs = np.zeros((len(texts), len(self.labels)), dtype=np.float32)
        probs[:, self._regression.classes_] = self._regression.predict_proba(features)
        embedding = np.asarray(features @ self._projection, dtype=np.float32)
        return ClassLaws(torch.from_numpy(probs), torch.from_numpy(embedding))


def train_tfidf(
    spec: TfidfSpec, texts: Sequence[str], label: Sequence[int], labels: Sequence[str], name: str = "tfidf"
) -> TfidfClassifier:
    """Fit on N texts; classes weigh alike, however many texts each has.

    Raises:
        ModelError: scikit-learn is not installed, labels that do not fit, or only one class.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ModelError(
            "TF-IDF with logistic regression needs scikit-learn: pip install 'fedtandem[study]'."
        ) from error
    y = checked_labels(texts, label, labels).numpy()
    if len(np.unique(y)) < 2:
        raise ModelError(
            f"all {len(y)} texts have the label {labels[int(y[0])]}; a classifier needs two classes."
        )
    vectorizer = TfidfVectorizer(
        analyzer=spec.analyzer, ngram_range=spec.ngrams, min_df=min(spec.min_count, len(texts)), sublinear_tf=True,
        dtype=np.float32,
    )  # fmt: skip
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise ModelError(
            f"no feature occurs in {spec.min_count} of the {len(texts)} texts: {error}."
        ) from error
    regression = LogisticRegression(C=spec.inverse_regularisation, class_weight="balanced", max_iter=500)
    return TfidfClassifier(vectorizer, regression.fit(features, y), labels, spec, name)
