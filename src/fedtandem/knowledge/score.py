"""Per-sample cross-entropy: the one number by which parties compare what they know of a sample."""

import numpy as np
import numpy.typing as npt


def bytes_score(
    token_nll: npt.NDArray[np.floating], is_eos: npt.NDArray[np.bool_], n_answer_bytes: int
) -> float:
    """Nats per byte of the answer: comparable across tokenizers.

    The closing EOS is left out: it has no bytes, and some models never learnt it.

    Args:
        token_nll: -log p of each answer token, EOS included, in nats; (P,) float32.
        is_eos: which of them is the closing EOS; (P,) bool.
        n_answer_bytes: UTF-8 length of the answer.

    Raises:
        ValueError: NaN, another length, or an answer without bytes.

    Source: our reading of FedMKT, arXiv:2406.02224v4, section 3 ("cross-entropy"); per byte is our choice.
    """
    token_nll = _checked(token_nll)
    if token_nll.shape != np.shape(is_eos):
        raise ValueError(
            f"token_nll is {token_nll.shape} but is_eos is {np.shape(is_eos)}; expected (P,) both"
        )
    if n_answer_bytes < 1:
        raise ValueError(f"n_answer_bytes = {n_answer_bytes}; an answer has at least one byte")
    return float(token_nll[~np.asarray(is_eos, bool)].sum() / n_answer_bytes)


def token_score(token_nll: npt.NDArray[np.floating]) -> float:
    """Nats per token of the answer, EOS included: the plain reading, alignment mode `mined`.

    Args:
        token_nll: -log p of each answer token in nats; (P,) float32.

    Raises:
        ValueError: NaN, or no token.

    Source: FedMKT, arXiv:2406.02224v4, section 3.
    """
    token_nll = _checked(token_nll)
    if len(token_nll) == 0:
        raise ValueError("token_nll is empty; an answer has at least its EOS")
    return float(token_nll.mean())


def _checked(token_nll: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    values = np.asarray(token_nll, np.float64)
    if values.ndim != 1:
        raise ValueError(f"token_nll is {values.shape}; expected (P,)")
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        raise ValueError(
            f"token_nll is NaN at token {bad[0]}; lower the learning rate, or load the model in float32"
        )
    return values
