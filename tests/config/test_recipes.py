"""Every shipped recipe loads, says how it is launched, and keeps its claims."""

from pathlib import Path

import pytest

from fedtandem.config import load_config
from fedtandem.config.recipes import recipe_files

PAPER_SIZE = ("heterogeneous", "homogeneous", "one_to_one", "llm2slm")


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_a_recipe_loads_and_its_first_line_launches_it(file: Path) -> None:
    config = load_config(file, ["data.root=/somewhere"])
    first, second = file.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith(f"# fedtandem run recipe:{file.stem}")
    assert second.startswith("# ")
    assert load_config(f"recipe:{file.stem}", {"data.root": "/somewhere"}).hash == config.hash
    assert config.evaluation.sets


@pytest.mark.parametrize("name", PAPER_SIZE)
def test_a_recipe_that_was_never_run_quotes_no_numbers_and_keeps_the_papers_settings(name: str) -> None:
    file = next(file for file in recipe_files() if file.stem == name)
    assert "Never run here: no numbers quoted." in file.read_text(encoding="utf-8")
    config = load_config(file)
    assert config.server.model == "meta-llama/Llama-2-7b-hf"
    tuning = config.server.tuning
    assert (tuning.learning_rate, tuning.per_device_train_batch_size, tuning.warmup_ratio) == (3e-5, 4, 0.008)
    assert (tuning.weight_decay, tuning.max_grad_norm) == (0.1, 1.0)
    assert tuning.peft == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}


def test_the_four_scenarios_are_what_the_paper_calls_them() -> None:
    heterogeneous, homogeneous, one_to_one, llm2slm = (load_config(f"recipe:{name}") for name in PAPER_SIZE)
    assert len({client.model for client in heterogeneous.clients}) == 4
    assert [client.tuning.learning_rate for client in heterogeneous.clients] == [3e-4, 3e-5, 3e-5, 3e-5]
    assert len({client.model for client in homogeneous.clients}) == 1
    assert len(homogeneous.clients) == 4
    assert homogeneous.federation.aggregate_every == 1
    assert len(one_to_one.clients) == len(llm2slm.clients) == 1
    assert (llm2slm.algorithm, llm2slm.federation.train_server) == ("llm2slm", False)


@pytest.mark.parametrize("name", ["heterogeneous", "homogeneous", "one_to_one"])
def test_public_and_private_rows_never_overlap(name: str) -> None:
    config = load_config(f"recipe:{name}")
    shares = [config.public.partition, *(client.data.partition for client in config.clients if client.data)]
    assert None not in shares
    indices = [share.index for share in shares if share]
    assert sorted(indices) == list(range(shares[0].parts if shares[0] else 0))
    assert len({(share.kind, share.parts, share.seed) for share in shares if share}) == 1


def test_mined_is_the_papers_rule() -> None:
    config = load_config("recipe:mined")
    distillation = config.distillation
    assert config.alignment.mode == "mined"
    assert (
        distillation.hard_weight_for("mined", server=False)
        == distillation.hard_weight_for("mined", server=True)
        == 0.9
    )
    assert distillation.untaught_for("mined") == "paper"
    assert distillation.reset_optimizer
    assert config.knowledge.positions == "all"


def test_the_playgrounds_clients_know_one_secret_operator_each() -> None:
    config = load_config("recipe:chains")
    chains = [client.data.chains for client in config.clients if client.data and client.data.chains]
    seen = [set(made.operators + made.must_contain) - set("+-*m") for made in chains]
    # The other's sign occurs too, with a new table every time: nothing can be learnt of it but that it is unknown.
    assert [signs - set(made.noisy) for signs, made in zip(seen, chains, strict=True)] == [{"@"}, {"&"}]
    assert [set(made.noisy) for made in chains] == [{"&"}, {"@"}]
    server = config.server.data
    assert server is not None
    assert server.chains is not None
    assert not set(server.chains.operators) & {"@", "&"}
    assert not config.public.labelled
