"""The winner among noisy scores, found without most of the noise, is the one that all of it would give."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.inference import shared_noise
from fedtandem.inference.shared_noise import best_two, gumbel_noise, noise_at
from fedtandem.inference.uncertainty import expected, expected_of_best, top_logits


@given(st.integers(0, 10**6), st.integers(1, 5000), st.sampled_from([0.0, 0.3, 3.0, 30.0]), st.booleans())
def test_the_best_of_few_is_the_best_of_all(seed: int, vocab_size: int, spread: float, masked: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(vocab_size, generator=generator)
    if masked:
        scores[torch.rand(vocab_size, generator=generator) < 0.9] = -torch.inf
        scores[seed % vocab_size] = 1.0
    noisy = scores + gumbel_noise(seed, 3, vocab_size)
    token, margin = best_two(scores, noise_at(seed, 3, vocab_size))
    assert token == int(noisy.argmax())
    top = noisy.topk(min(2, vocab_size)).values.tolist()
    assert margin == (top[0] - top[1] if vocab_size > 1 and math.isfinite(top[1]) else math.inf)


def test_the_loud_and_the_likely_are_enough_in_a_large_vocabulary(monkeypatch) -> None:
    looked_at = []
    whole = shared_noise.gumbel

    def counted(bits: np.ndarray) -> np.ndarray:
        looked_at.append(len(bits))
        return whole(bits)

    scores = 3 * torch.randn(150_000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(shared_noise, "gumbel", counted)
    for place in range(20):
        noise = noise_at(1, place, len(scores))
        assert best_two(scores, noise)[0] == int((scores + torch.from_numpy(whole(noise.bits))).argmax())
    assert sum(looked_at) < 0.1 * 20 * len(scores)


@given(st.integers(0, 10**6), st.sampled_from([1, 63, 20_000, 20_001, 20_063]), st.sampled_from([30, 64]))
def test_the_largest_logits_are_the_largest(seed: int, vocab_size: int, k: int) -> None:
    logits = torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(seed))
    values, ids = top_logits(logits, k)
    assert torch.equal(values, logits.topk(min(k, vocab_size)).values)
    assert torch.equal(logits.gather(-1, ids), values)
    torch.testing.assert_close(expected_of_best(values), expected(values, values.argmax(dim=-1)))
