"""Six architectures with real tokenizers: LoRA goes where it should, alone is trained, and survives the disk."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedtandem.models.language_model import LanguageModel, collate
from fedtandem.models.load import ModelSpec, load_model

ROWS = [("Q: one and two?", " three"), ("Where is the café?", " near the old town square"), ("a", " b")]


def encode(lm: LanguageModel) -> list:
    return lm.tokenizer.encode_many(ROWS, max_length=64)


def test_lora_goes_to_the_paper_s_layers_and_only_it_is_trained(
    lora_model: LanguageModel, family: Any
) -> None:
    trained = {name for name, weight in lora_model.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == family.targets
    layers = {name.split(".lora_")[0] for name in trained}
    assert len(layers) == len(family.targets) * 2  # two blocks


def test_logits_at_are_the_full_forward_s_cut_to_the_real_vocabulary(
    lora_model: LanguageModel, family: Any
) -> None:
    assert lora_model.selects_hidden
    with torch.no_grad():
        for side in ("right", "left"):
            batch = collate(encode(lora_model), lora_model.tokenizer.pad_id, side)  # type: ignore[arg-type]
            positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
            extra = {} if family.architecture == "bloom" else {"position_ids": positions}
            full = lora_model.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, **extra
            ).logits
            assert full.shape[-1] == lora_model.tokenizer.vocab_size + family.padded_rows
            ours = lora_model.logits_at(batch)
            assert ours.shape == (len(batch.targets), lora_model.tokenizer.vocab_size)
            torch.testing.assert_close(
                ours, full[batch.row, batch.col][:, : ours.shape[1]], atol=1e-5, rtol=1e-4
            )


def test_padding_on_either_side_or_none_gives_the_same_logits(lora_model: LanguageModel) -> None:
    encoded = encode(lora_model)
    pad = lora_model.tokenizer.pad_id
    with torch.no_grad():
        right = lora_model.logits_at(collate(encoded, pad, "right"))
        left = lora_model.logits_at(collate(encoded, pad, "left"))
        alone = torch.cat([lora_model.logits_at(collate([text], pad)) for text in encoded])
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone, right, atol=1e-5, rtol=1e-4)


def test_one_step_changes_the_adapter_alone_and_load_state_takes_it_back(lora_model: LanguageModel) -> None:
    before = {name: weight.detach().clone() for name, weight in lora_model.model.named_parameters()}
    state = lora_model.state()
    _step(lora_model)
    changed = {name for name, w in lora_model.model.named_parameters() if not torch.equal(w, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    lora_model.load_state(state)
    assert all(torch.equal(w, before[name]) for name, w in lora_model.model.named_parameters())


def test_a_saved_adapter_is_a_stock_peft_folder_and_loads_back(
    lora_model: LanguageModel, family_folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    state = lora_model.state()
    _step(lora_model)
    batch = collate(encode(lora_model), lora_model.tokenizer.pad_id)
    with torch.no_grad():
        expected = lora_model.logits_at(batch)
    lora_model.save(tmp_path / "adapter")
    lora_model.load_state(state)

    stock = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(family_folder), str(tmp_path / "adapter")
    ).eval()
    ours = load_model(ModelSpec(str(tmp_path / "adapter"), tuning_method="lora"))
    with torch.no_grad():
        logits = stock(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(
            logits[batch.row, batch.col][:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-4
        )
        assert torch.equal(ours.logits_at(batch), expected)
    assert len(ours.trainable_parameters()) == len(lora_model.trainable_parameters())

    lora_model.restore(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(lora_model.logits_at(batch), expected)
    lora_model.load_state(state)


def test_greedy_text_is_what_a_plain_loop_without_a_cache_writes(lora_model: LanguageModel) -> None:
    tokenizer = lora_model.tokenizer
    prompts = [tokenizer.encode_prompt(prompt) for prompt, _ in ROWS]
    written = lora_model.generate(prompts, max_new_tokens=5, batch_size=2)
    for prompt, ids in zip(prompts, written, strict=True):
        text = list(map(int, prompt))
        with torch.no_grad():
            for token in ids:
                logits = lora_model.model(input_ids=torch.tensor([text])).logits[
                    0, -1, : tokenizer.vocab_size
                ]
                # Random weights make near-ties: the token must be the best up to rounding.
                assert float(logits.max() - logits[int(token)]) < 1e-4
                text.append(int(token))
        assert 1 <= len(ids) <= 5
        assert ids.dtype == np.int32


def _step(lm: LanguageModel) -> None:
    """One large step of gradient descent on the rows."""
    batch = collate(encode(lm), lm.tokenizer.pad_id)
    loss = F.cross_entropy(lm.logits_at(batch), batch.targets)
    gradients = torch.autograd.grad(loss, lm.trainable_parameters())
    with torch.no_grad():
        for weight, gradient in zip(lm.trainable_parameters(), gradients, strict=True):
            weight -= 1.0 * gradient
            weight += 0.01  # so that A, whose gradient is zero while B is zero, changes too
