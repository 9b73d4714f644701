"""Version skew between a device and its cloud: never silent."""

from fedtandem.errors import VocabularyMismatch
from fedtandem.exchange.verification import VerifyRequest


def refuse_another_model(request: VerifyRequest, fingerprint: str, tokenizer: str) -> None:
    """Thresholds, peers and seeds are of one model: what was meant for another is not judged.

    Raises:
        VocabularyMismatch: the request means another model, or its ids are of another tokenizer.
    """
    if request.tokenizer != tokenizer or request.model != fingerprint:
        raise VocabularyMismatch(
            "another model is served here than the one that is meant; ask /v1/model again."
        )
