"""`fedtandem select` on rows of one's own."""

import json
from pathlib import Path

import pytest

from fedtandem.cli import main
from fedtandem.errors import ConfigError, DataError
from fedtandem.federation.select import in_words, read_budget, read_rows

MODELS = ("--receiver", "embedded:chains-client-a", "--producer", "embedded:chains-server")
ROWS = [
    {"id": "easy", "prompt": "Q 3 + 5 A", "path": " 3 + 5 = 8 ; # 8"},
    {"id": "longer", "prompt": "Q 3 + 5 * 2 - 1 A"},
    {"id": "wrong", "prompt": "Q 1 + 1 A", "path": " 1 + 1 = 7 ; # 7"},
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_chosen_with_scores_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "chosen.jsonl"
    flags = (*MODELS, "--selector", "gap", "--budget", "2", "--max-new-tokens", "40", "--output", str(out))
    assert main(["select", str(file), *flags]) == 0
    chosen = [json.loads(line) for line in out.read_text().splitlines()]
    # The server knows three steps, the client two; neither likes the wrong sum.
    assert chosen[0]["id"] == "longer"
    assert chosen[0]["path"] == " 3 + 5 = 8 ; 8 * 2 = 6 ; 6 - 1 = 5 ; # 5"
    assert chosen[0]["score"] == pytest.approx(chosen[0]["receiver_loss"] - chosen[0]["producer_loss"])
    assert [row["rank"] for row in chosen] == [1, 2]
    assert chosen[0]["score"] >= chosen[1]["score"]
    assert "nats per byte against the producer" in chosen[0]["reason"]
    assert "kept 2 of 3 rows by gap" in capsys.readouterr().out


def test_a_checker_refuses_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_checks.py").write_text(
        "def sums(prompt, path):\n    return '= 7' not in path, 'fine' if '= 7' not in path else 'no sum'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = write(tmp_path / "rows.jsonl", [ROWS[0], ROWS[2]])
    flags = (
        *MODELS,
        "--selector",
        "verified_gap",
        "--checker",
        "my_checks:sums",
        "--budget",
        "1.0",
        "--json",
    )
    assert main(["select", str(file), *flags]) == 0
    totals = json.loads(capsys.readouterr().out)
    assert totals["kept"] == 1
    assert totals["refused"] == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--selector", "confidentgap"), "did you mean \"confident_gap\"?"),
        (("--selector", "lada"), "learns from training rounds"),
        (("--selector", "verified_gap"), "name one with --checker"),
        (("--checker", "numerics"), "did you mean \"numeric\"?"),
        (("--checker", "path"), "asks a client what it knows"),
        (("--checker", "numeric"), 'has a column "gold"'),
        (("--budget", "0"), "--budget is '0'"),
    ],
)  # fmt: skip
def test_a_wrong_flag_ends_with_2_before_any_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    assert main(["select", str(file), "--receiver", "none", "--producer", "none", *flags]) == 2
    assert said in capsys.readouterr().err


def test_budgets_as_one_writes_them() -> None:
    assert [read_budget(text) for text in ("400", "0.25", "25%", "1.0")] == [400, 0.25, 0.25, 1.0]
    for text in ("-3", "2.5", "half", "0%", "120%"):
        with pytest.raises(ConfigError, match="count of 1 or more"):
            read_budget(text)


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="under 'prompt'; a text is needed"):
        read_rows(write(tmp_path / "a.jsonl", [{"question": "x"}]))
    with pytest.raises(DataError, match="the id 'x' stands twice"):
        read_rows(write(tmp_path / "b.jsonl", [{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}]))


def test_a_completion_is_a_path_and_what_nobody_could_tell_is_said(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "c", "completion": "d", "path": "e"},
        {"prompt": "f"},
    ]
    assert [row["path"] for row in read_rows(write(tmp_path / "rows.jsonl", rows))] == ["b", "e", None]
    totals = {"kept": 0, "rows": 3, "selector": "verified_gap", "kept_gap": None, "refused": 0, "undecided": 2,
              "with_path": 3}  # fmt: skip
    assert "could not tell of 2" in in_words(totals)
