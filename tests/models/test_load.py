"""Loading: devices, number formats, adapters, and faults that say what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedtandem.errors import ModelError, VocabularyMismatch
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, choose_device, choose_dtype, load_model, locate

Make = Callable[..., LanguageModel]


@pytest.fixture
def folder(make_tiny: Make, tmp_path: Path) -> Path:
    """A tiny Llama on disk."""
    make_tiny().save(tmp_path / "llama")
    return tmp_path / "llama"


def test_lora_starts_as_the_base_model_and_its_first_weights_follow_the_seed(folder: Path) -> None:
    base = load_model(ModelSpec(str(folder), tuning_method="none"))
    state = torch.random.get_rng_state()
    first, again, other = (load_model(ModelSpec(str(folder), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert base.trainable_parameters() == []
    assert all(torch.equal(value, again.state()[name]) for name, value in first.state().items())
    assert any(not torch.equal(value, other.state()[name]) for name, value in first.state().items())
    prompts = [base.tokenizer.encode_prompt("hello")]
    assert (
        first.generate(prompts, max_new_tokens=4)[0].tolist()
        == base.generate(prompts, max_new_tokens=4)[0].tolist()
    )


def test_the_paper_s_lora_unless_told_otherwise(folder: Path) -> None:
    default = load_model(ModelSpec(str(folder))).model.peft_config["default"]
    assert (default.r, default.lora_alpha, default.lora_dropout) == (8, 16, 0.05)
    changed = load_model(ModelSpec(str(folder), peft={"r": 4, "target_modules": ["up_proj"]}))
    assert changed.model.peft_config["default"].r == 4
    assert all("up_proj" in name for name in changed.state())


def test_an_architecture_without_a_rule_gets_every_linear_layer(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from fedtandem.models.scratch_tokenizer import train_tokenizer

    tokenizer = train_tokenizer("bytes", [], 0)
    config = AutoConfig.for_model(
        "stablelm", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    state = load_model(ModelSpec(str(tmp_path))).state()
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in state}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"peft": {"rank": 8}}, "unexpected keyword argument 'rank'"),
        ({"peft": {"target_modules": ["nowhere"]}}, "could be targets: .*q_proj"),
        ({"dtype": "fp32"}, "dtype 'fp32' is unknown"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"tuning_method": "half"}, "use lora, full or none"),
        ({"load_in_4bit": True, "tuning_method": "full"}, "cannot go with"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(
    folder: Path, spec: dict[str, object], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(ModelSpec(str(folder), **spec))  # type: ignore[arg-type]


def test_4_bit_without_its_extra_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"fedtandem\[quant\]"):
        load_model(ModelSpec(str(folder), load_in_4bit=True))


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="folder /nowhere/at/all does not exist"):
        locate("/nowhere/at/all")
    with pytest.raises(ModelError, match="no embedded model 'embedded:llama-70b'"):
        locate("embedded:llama-70b")
    with pytest.raises(ModelError, match="nobody/no-such-model"):
        load_model(ModelSpec("nobody/no-such-model"))


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    from fedtandem.models.scratch_tokenizer import train_tokenizer

    (folder / "fedtandem.json").unlink()  # a stock folder: no hash to compare
    train_tokenizer("bpe", ["abab abab cdcd"] * 3, 264).save(folder)
    with pytest.raises(VocabularyMismatch, match="the model only 259"):
        load_model(ModelSpec(str(folder)))


def test_a_broken_sidecar_is_named(folder: Path) -> None:
    (folder / "fedtandem.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(ModelSpec(str(folder)))
    (folder / "fedtandem.json").write_text(
        json.dumps({"vocabulary_hash": "", "method": "", "base": "", "schema": 9})
    )
    with pytest.raises(ModelError, match="schema 9"):
        load_model(ModelSpec(str(folder)))


def test_an_adapter_of_a_stock_peft_folder_finds_its_base(folder: Path, tmp_path: Path) -> None:
    adapted = load_model(ModelSpec(str(folder), seed=5))
    adapted.model.save_pretrained(
        tmp_path / "adapter", save_embedding_layers=False
    )  # no sidecar, no tokenizer
    again = load_model(ModelSpec(str(tmp_path / "adapter")))
    assert again.source == str(folder)
    assert all(torch.equal(value, again.state()[name]) for name, value in adapted.state().items())


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    from fedtandem.models.language_model import collate

    gradients = []
    for checkpointing in (False, True):
        lm = load_model(
            ModelSpec(str(folder), gradient_checkpointing=checkpointing, peft={"lora_dropout": 0.0})
        )
        lm.model.train()
        batch = collate(lm.tokenizer.encode_many([("ab", " c")]), lm.tokenizer.pad_id)
        gradients.append(
            torch.autograd.grad(lm.logits_at(batch).logsumexp(-1).sum(), lm.trainable_parameters())
        )
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_half_precision_models_load_and_keep_their_adapter_in_fp32(folder: Path) -> None:
    lm = load_model(ModelSpec(str(folder), dtype="bfloat16"))
    assert next(lm.model.parameters()).dtype == torch.bfloat16
    assert {weight.dtype for weight in lm.trainable_parameters()} == {torch.float32}
    assert lm.selects_hidden


def test_full_tuning_in_half_precision_keeps_fp32_weights(folder: Path) -> None:
    lm = load_model(ModelSpec(str(folder), dtype="bfloat16", tuning_method="full"))
    assert {weight.dtype for weight in lm.trainable_parameters()} == {torch.float32}


def test_the_cpu_computes_in_fp32() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
