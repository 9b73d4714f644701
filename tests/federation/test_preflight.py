"""`check` and `init`: what will happen is shown before any weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedtandem import cli
from fedtandem.config import load_config
from fedtandem.federation import preflight

SHAPE = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 300}


def rows(file: Path, n: int, *, answers: bool = True) -> Path:
    texts = [
        {"prompt": f"What is {i} plus 1?", **({"answer": str(i + 1)} if answers else {})} for i in range(n)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "public.jsonl", 80)
    rows(tmp_path / "hospital.jsonl", 60)
    rows(tmp_path / "practice.jsonl", 70)
    return tmp_path


def init(*more: str, public: str = "public.jsonl") -> int:
    return cli.main(
        ["init", "--public", public, "--private", "hospital.jsonl", "--private", "practice.jsonl", *more]
    )


def checked(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["check", "fedtandem.toml", "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_init_writes_a_config_that_check_accepts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0
    said = capsys.readouterr().out
    assert "80 rows, with answers" in said
    assert "no model was named" in said
    config = load_config(folder / "fedtandem.toml")
    assert [client.name for client in config.clients] == ["hospital", "practice"]
    assert (
        len({party.scratch.architecture for party in (config.server, *config.clients) if party.scratch}) == 3
    )
    assert {test.name for test in config.evaluation.sets} == {"shared", "own-hospital", "own-practice"}
    found = checked(capsys)
    assert [party["party"] for party in found["parties"]] == ["server", "hospital", "practice"]
    server = found["parties"][0]
    assert server["trainable"] == server["parameters"] > 0
    assert server["down_bytes"] == sum(client["up_bytes"] for client in found["parties"][1:])
    assert found["total_seconds"] > 0


def test_what_is_held_out_is_not_trained_on(folder: Path) -> None:
    from fedtandem.data.load import load_samples

    assert init() == 0
    config = load_config(folder / "fedtandem.toml")
    held_out = {
        test.name: load_samples(test.data.to_source(), where=test.name) for test in config.evaluation.sets
    }
    trained = {
        "shared": config.public,
        "own-hospital": config.clients[0].data,
        "own-practice": config.clients[1].data,
    }
    for party in (config.server, *config.clients):
        assert party.scratch is not None
        assert party.scratch.data.part == config.public.part == "train"  # nor pretrained on
    for name, data in trained.items():
        assert data is not None
        prompts = {sample.prompt for sample in load_samples(data.to_source(), where=name)}
        assert prompts
        assert not prompts & {sample.prompt for sample in held_out[name]}


def test_init_sees_prompts_without_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(folder / "prompts.jsonl", 60, answers=False)
    assert init(public="prompts.jsonl") == 0
    assert "60 rows, without answers" in capsys.readouterr().out
    assert not load_config(folder / "fedtandem.toml").public.labelled
    assert checked(capsys)["parties"][1]["up_bytes"] > 0


def test_init_does_not_take_an_empty_answer_for_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": ""}\n')
    assert init(public="broken.jsonl") == 3
    assert "empty answer" in capsys.readouterr().err
    assert not (folder / "fedtandem.toml").exists()


def test_init_keeps_a_file_that_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fedtandem.toml").write_text("mine")
    assert init() == 2
    assert (folder / "fedtandem.toml").read_text() == "mine"
    assert init("--force") == 0


def test_init_takes_the_users_models_and_test_rows(folder: Path) -> None:
    rows(folder / "test.jsonl", 5)
    assert init("--server", "org/llm", "--client-model", "org/slm", "--test", "test.jsonl") == 0
    config = load_config(folder / "fedtandem.toml")
    assert (config.server.model, config.clients[1].model) == ("org/llm", "org/slm")
    assert config.server.scratch is None
    assert [(test.name, test.parties) for test in config.evaluation.sets] == [("test", ("*",))]
    assert config.public.part is None


def test_few_rows_are_not_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(folder / "public.jsonl", 10)
    assert init() == 0
    assert "nothing is held out" in capsys.readouterr().out
    assert load_config(folder / "fedtandem.toml").evaluation.sets == ()


def test_check_shows_what_each_party_learns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0
    capsys.readouterr()
    assert cli.main(["check", "fedtandem.toml"]) == 0
    shown = capsys.readouterr().out
    assert "read as prompt_completion" in shown
    tokens = next(line for line in shown.splitlines() if "[" in line and "plus" in line)
    assert "[</s>]" in tokens
    assert "[W" not in tokens  # the prompt is not learnt
    assert "FedAvg sends" in shown


def test_check_says_that_rows_will_be_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert init() == 0
    assert cli.main(["check", "fedtandem.toml"]) == 0
    assert "refuses" not in capsys.readouterr().out
    monkeypatch.setattr(preflight, "MAX_ROWS_BYTES", 1 << 10)
    assert cli.main(["check", "fedtandem.toml"]) == 0
    assert "unpacks at most 1.0 KiB and refuses more. Lower knowledge.top_k" in capsys.readouterr().out


def test_check_counts_an_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0
    found = checked(capsys, "-o", "server.tuning.method=lora", "-o", "server.tuning.peft.r=2")
    server = found["parties"][0]
    # Llama, width 96, 3 layers: q, k, v, o each 96 x 96, so 2 * (96 + 96) a matrix
    assert server["trainable"] == 3 * 4 * 2 * (96 + 96)
    assert server["adapter_bytes"] == 2 * server["trainable"]


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("public.path=nosuch.jsonl", 3, "nosuch.jsonl"),
        ("clients.hospital.data.path=nosuch.jsonl", 3, "hospital, own data"),
        ("public.columns.prompt=qestion", 3, "qestion"),
        ("server.tuning.lerning_rate=1", 2, "learning_rate"),
    ],
)
def test_check_stops_where_the_run_would(
    folder: Path, capsys: pytest.CaptureFixture[str], override: str, code: int, says: str
) -> None:
    assert init() == 0
    assert cli.main(["check", "fedtandem.toml", "-o", override]) == code
    assert says in capsys.readouterr().err


def test_check_of_a_model_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init("--server", "./nosuch-model") == 0
    assert cli.main(["check", "fedtandem.toml"]) == 4
    assert "nosuch-model" in capsys.readouterr().err


def test_check_prints_the_schema_for_editors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0
    capsys.readouterr()
    assert cli.main(["check", "fedtandem.toml", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "RunConfig"


@pytest.mark.parametrize("key", ["selection.selector", "selection.teacher"])
def test_check_imports_functions_of_ones_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    init()
    module = "own_" + key.partition(".")[2]
    override = f"{key}={module}:best"
    assert cli.main(["check", "fedtandem.toml", "-o", override]) == 2
    said = capsys.readouterr().err
    assert key in said
    assert "PYTHONPATH" in said
    (folder / f"{module}.py").write_text("def best(*asked): ...\n")
    monkeypatch.syspath_prepend(str(folder))
    checked(capsys, "-o", override)
