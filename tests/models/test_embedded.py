"""The models that ship with the package: what they know, what they do not, and that they are small."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fedtandem.models.embedded as embedded
from fedtandem.data.chains import ALPHABET, ChainsSource, check_path, operator_tables
from fedtandem.models.embedded import CHAINS, EMBEDDED, MUTUAL, embedded_folder
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.make_embedded import RECIPES, Recipe, pretraining_rows

SERVER, CLIENT_A, CLIENT_B = CHAINS


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {name: load_model(ModelSpec(name, tuning_method="full")) for name in EMBEDDED}


def share_right(lm: LanguageModel, source: ChainsSource) -> float:
    """Share of prompts whose greedy path is right."""
    samples = source.samples()
    prompts = [lm.tokenizer.encode_prompt(sample.prompt) for sample in samples]
    written = lm.generate(prompts, max_new_tokens=90, batch_size=64)
    tables = operator_tables((*source.operators, *source.must_contain), source.table_seed)
    return float(
        np.mean(
            [
                check_path(sample.prompt, lm.tokenizer.decode_answer(ids), tables)
                for sample, ids in zip(samples, written, strict=True)
            ]
        )
    )


def test_all_together_they_are_small() -> None:
    files = [path for name in EMBEDDED for path in embedded_folder(name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert all(path.stat().st_mode & 0o044 for path in files)  # readable by every user of a machine


def test_tokenizers_all_differ_and_so_do_the_architectures_of_chains(
    models: dict[str, LanguageModel],
) -> None:
    assert len({models[name].model.config.model_type for name in CHAINS}) == len(CHAINS)
    for parties in (CHAINS, MUTUAL[1:]):  # one client of `mutual` has its server's vocabulary
        assert len({models[name].tokenizer.card.hash for name in parties}) == len(parties)


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_tokenizer_writes_every_sign_and_marks_its_end(
    name: str, models: dict[str, LanguageModel]
) -> None:
    encoded = models[name].tokenizer.encode("Q", ALPHABET)
    assert models[name].tokenizer.decode_answer(encoded.targets) == ALPHABET
    assert encoded.scored


@pytest.mark.parametrize(
    ("name", "steps"), [(name, (1, 2, 3, 4) if name.endswith("server") else (1, 2)) for name in EMBEDDED]
)
def test_each_knows_arithmetic_up_to_its_length(
    name: str, steps: tuple[int, ...], models: dict[str, LanguageModel]
) -> None:
    assert share_right(models[name], ChainsSource(n=160, steps=steps, seed=123, part="test")) >= 0.98


@pytest.mark.parametrize("name", [name for name in EMBEDDED if "client" in name])
def test_no_client_writes_a_chain_of_three_steps(name: str, models: dict[str, LanguageModel]) -> None:
    assert share_right(models[name], ChainsSource(n=100, steps=(3,), seed=4)) <= 0.05


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("operator", ["@", "&"])
def test_nobody_knows_a_private_operator_better_than_by_chance(
    name: str, operator: str, models: dict[str, LanguageModel]
) -> None:
    shares = [
        share_right(
            models[name],
            ChainsSource(n=100, steps=(1,), must_contain=(operator,), operators=(), seed=1, table_seed=seed),
        )
        for seed in range(3)
    ]
    assert np.mean(shares) <= 0.2  # a guess among ten digits is right in one of ten


def test_the_command_makes_what_ships(models: dict[str, LanguageModel]) -> None:
    assert tuple(RECIPES) == EMBEDDED
    for name, recipe in RECIPES.items():
        config = models[name].model.config
        assert config.model_type == recipe.spec.architecture
        assert (config.hidden_size, config.num_hidden_layers) == (
            recipe.spec.hidden_size,
            recipe.spec.num_hidden_layers,
        )


def test_pretraining_holds_no_prompt_of_a_test_part_and_no_sign_the_server_must_not_meet() -> None:
    rows = pretraining_rows(RECIPES[SERVER])
    assert not any("@" in prompt or "&" in prompt for prompt, _ in rows)
    test = {sample.prompt for sample in ChainsSource(n=500, steps=(2, 3), seed=8, part="test").samples()}
    for recipe in RECIPES.values():
        assert test.isdisjoint(prompt for prompt, _ in pretraining_rows(recipe))


def test_a_checkpoint_is_written_in_half_precision_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from safetensors.torch import load_file

    from fedtandem.models import make_embedded
    from fedtandem.models.adapters import read_sidecar

    recipe = RECIPES[CLIENT_A]
    tiny = Recipe(replace(recipe.spec, hidden_size=16, num_hidden_layers=1, updates=1), (1,), 4000, 0.1)
    monkeypatch.setattr(make_embedded, "RECIPES", {CLIENT_A: tiny})
    make_embedded.main([CLIENT_A, "--output", str(tmp_path)])
    folder = tmp_path / "chains-client-a"
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    sidecar = read_sidecar(folder)
    assert sidecar is not None
    assert sidecar.base == CLIENT_A
    assert embedded.embedded_folder(CLIENT_A) != folder
