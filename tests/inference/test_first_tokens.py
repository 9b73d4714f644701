"""Real models: the first token of 10,000 sampled answers has the LLM's own law, by a chi-square test."""

import numpy as np
import pytest
from scipy.stats import chisquare

from fedtandem.federation.generate import measure
from fedtandem.inference.decode import DecodeSettings, decode
from fedtandem.models.load import ModelSpec, load_model

DRAWS, AT_ONCE = 10_000, 1_000
TEMPERATURE = 4.0
"""A chain's first token is nearly certain; softened, every token comes often enough to be counted."""


def first_tokens(mode: str, uplink: str, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """How often each token came first, and how often the LLM's law says; both (V,)."""
    server = load_model(ModelSpec("embedded:chains-server", tuning_method="none"))
    # Its own layers in another order: a drafter with the same tokenizer that is mostly wrong at this temperature.
    other = load_model(ModelSpec("embedded:chains-server", tuning_method="none"))
    other.model.model.layers = other.model.model.layers[:1]
    prompt = [int(token) for token in server.tokenizer.encode_prompt("Q 3 + 5 * 2 A")]
    counts = np.zeros(server.tokenizer.vocab_size)
    refused = 0
    for start in range(0, DRAWS, AT_ONCE):
        settings = DecodeSettings(
            mode=mode, uplink=uplink, block=1, tau=tau, max_new_tokens=2, seed=start, temperature=TEMPERATURE,
            top_k=64,
        )  # fmt: skip
        answers = decode(
            other.cached_rows(AT_ONCE), server.cached_rows(AT_ONCE), [prompt] * AT_ONCE, settings,
            eos_id=server.tokenizer.eos_id, uncertainty=measure("max_prob"),
        )  # fmt: skip
        for answer in answers:
            counts[answer.ids[0]] += 1
            refused += answer.record.corrected
    assert mode == "fedhlm" or DRAWS / 20 < refused < DRAWS
    (logits,) = server.cached_rows(1).logits([0], [prompt], [1])
    law = (logits[0].double() / TEMPERATURE).softmax(dim=-1).numpy()
    return counts, DRAWS * law


def p_value(counts: np.ndarray, wanted: np.ndarray) -> float:
    """Of equal laws; tokens expected less than five times are one class."""
    often = wanted >= 5
    assert often.sum() > 10
    pooled = [np.append(values[often], values[~often].sum()) for values in (counts, wanted)]
    classes = pooled[1] > 0
    return float(chisquare(*(values[classes] for values in pooled)).pvalue)


@pytest.mark.parametrize("uplink", ["scalar", "shared_noise"])
def test_first_tokens_have_the_llms_law(uplink: str) -> None:
    assert p_value(*first_tokens("exact", uplink, tau=1.0)) > 1e-3


def test_the_test_sees_a_law_that_is_not_the_llms() -> None:
    assert p_value(*first_tokens("fedhlm", "scalar", tau=2.0)) < 1e-6
