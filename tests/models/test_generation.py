"""Greedy text: ends at EOS, does not depend on its batch, keeps the caller's order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedtandem.errors import ModelError
from fedtandem.models.generation import chooser, greedy
from fedtandem.models.language_model import LanguageModel

Make = Callable[..., LanguageModel]
PROMPTS = ["a", "bcd", "hello there", "xy", "what?", "z" * 20]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bloom", "gpt_neox", "qwen2"])
def test_the_batch_a_prompt_travels_in_does_not_change_its_text(make_tiny: Make, architecture: str) -> None:
    lm = make_tiny(architecture=architecture)
    prompts = [lm.tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    alone = [lm.generate([prompt], max_new_tokens=8)[0].tolist() for prompt in prompts]
    for batch_size in (2, 6):
        together = lm.generate(prompts, max_new_tokens=8, batch_size=batch_size)
        assert [ids.tolist() for ids in together] == alone


def test_drawn_text_follows_the_models_law_and_the_seed(make_tiny: Make) -> None:
    lm = make_tiny()
    prompt = lm.tokenizer.encode_prompt("hello there")
    drawn = lm.generate([prompt] * 2000, max_new_tokens=1, batch_size=512, temperature=0.8, seed=1)
    again = lm.generate([prompt] * 2000, max_new_tokens=1, batch_size=512, temperature=0.8, seed=1)
    other = lm.generate([prompt] * 2000, max_new_tokens=1, batch_size=512, temperature=0.8, seed=2)
    assert [ids.tolist() for ids in drawn] == [ids.tolist() for ids in again]
    assert [ids.tolist() for ids in drawn] != [ids.tolist() for ids in other]
    with torch.no_grad():
        logits = lm.model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1]
    law = torch.softmax(logits[: lm.tokenizer.vocab_size] / 0.8, dim=-1).numpy()
    counts = np.bincount([int(ids[0]) for ids in drawn], minlength=len(law))
    spread = np.sqrt(2000 * law * (1 - law))
    assert (np.abs(counts - 2000 * law) < 5 * spread + 1).all()
    cold = lm.generate([prompt], max_new_tokens=8, temperature=1e-4)[0].tolist()
    assert cold == lm.generate([prompt], max_new_tokens=8)[0].tolist()


class Countdown:
    """A model that writes prompt[0] - 1, then one less each time, down to 0: its text is known beforehand."""

    config = type("Config", (), {"max_position_embeddings": 30})()

    def forward(self) -> None: ...

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, 40)
        logits.scatter_(2, (input_ids - 1).clamp_min(0)[..., None], 1.0)
        logits[..., 39] = 2.0  # a padded row of the head: never to be written
        return type(
            "Output", (), {"logits": logits, "past_key_values": Rows(past_key_values, len(input_ids))}
        )()


class Rows:
    """A cache that only knows how many rows it has: dropping rows must reach it too."""

    def __init__(self, before: "Rows | None", n: int) -> None:
        assert before is None or before.n == n
        self.n = n

    def batch_select_indices(self, rows: torch.Tensor) -> None:
        self.n = len(rows)


def count_down(prompts: list[list[int]], max_new_tokens: int = 30, batch_size: int = 8) -> list[list[int]]:
    written = greedy(
        Countdown(), [np.array(prompt, dtype=np.int32) for prompt in prompts],
        inputs=lambda mask: {"attention_mask": mask}, vocab_size=39, eos_id=0, pad_id=38,
        max_new_tokens=max_new_tokens, batch_size=batch_size, device=torch.device("cpu"), choose=chooser(0.0, 0),
    )  # fmt: skip
    return [ids.tolist() for ids in written]


def test_each_text_ends_with_its_own_eos_in_the_prompts_order() -> None:
    assert count_down([[5], [9, 1], [3], [7, 7, 2]]) == [[4, 3, 2, 1, 0], [0], [2, 1, 0], [1, 0]]
    starts = [20, 3, 9, 1, 14, 2, 2, 17]
    assert count_down([[start] for start in starts], batch_size=3) == [
        list(range(start - 1, -1, -1)) for start in starts
    ]


def test_length_limits() -> None:
    assert count_down([[9]], max_new_tokens=3) == [[8, 7, 6]]
    assert count_down([[9]], max_new_tokens=0) == [[]]
    assert count_down([]) == []
    assert len(count_down([[37] * 20])[0]) == 10  # the context holds 30 tokens
    with pytest.raises(ModelError, match="leaves no room"):
        count_down([[37] * 30])
    with pytest.raises(ModelError, match="prompt 1 has no tokens"):
        count_down([[1], []])


def test_progress_counts_prompts_and_training_mode_is_left_as_it_was(make_tiny: Make) -> None:
    lm = make_tiny()
    seen: list[tuple[int, int]] = []
    prompts = [lm.tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    lm.model.train()
    lm.generate(prompts, max_new_tokens=2, batch_size=4, on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(4, 6), (6, 6)]
    assert lm.model.training
