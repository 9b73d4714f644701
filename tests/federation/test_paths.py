"""`fedtandem paths`: a shipped model, and a real endpoint on loopback that fails in every way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtandem import cli
from fedtandem.config import DataConfig
from fedtandem.data.load import load_samples

Loopback = Any
"""The server of tests/conftest.py."""
Lines = list[dict[str, Any]]


def lines(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six prompts with known answers, and a cache of their own."""
    monkeypatch.setenv("FEDTANDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = [{"id": f"p-{i}", "prompt": f"Q {i} + 1 A", "final": str(i + 1)} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def paths(
    folder: Path, loopback: Loopback, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command against the endpoint; (exit code, stdout, stderr)."""

    def call(*flags: str) -> tuple[int, str, str]:
        code = cli.main(
            ["paths", str(folder / "prompts.jsonl"), "--output", str(folder / "paths.jsonl"),
             "--endpoint", loopback.url, "--served-model", "m", "--attempts", "1", "--parallel", "1", *flags]
        )  # fmt: skip
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def solve(loopback: Loopback) -> Callable[[dict[str, Any]], tuple[int, bytes]]:
    """An endpoint that can add, but takes 3 + 1 for 5."""

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        digit = int(next(word for word in body["messages"][-1]["content"].split() if word.isdigit()))
        said = 5 if digit == 3 else digit + 1
        return tuple(loopback.chat(f"{digit} + 1 = {said}\n#### {said}"))  # type: ignore[return-value]

    return answer


def test_text_of_an_endpoint_is_checked_and_becomes_a_public_set(
    paths: Callable[..., tuple[int, str, str]], folder: Path, loopback: Loopback
) -> None:
    loopback.otherwise = solve(loopback)
    code, out, _ = paths("--check", "numeric", "--answers", "final", "--template", "{prompt} Step by step.")
    assert code == 0
    assert "check numeric: 5 accepted, 1 refused" in out
    rows, refused = lines(folder / "paths.jsonl"), lines(folder / "paths.refused.jsonl")
    assert [row["id"] for row in rows] == ["p-0", "p-1", "p-2", "p-4", "p-5"]
    assert [(row["id"], row["reason"]) for row in refused] == [
        ("p-3", "the path ends in '5', the answer is '4'")
    ]
    assert loopback.requests[0].body["messages"][-1]["content"] == "Q 0 + 1 A Step by step."
    assert rows[0]["prompt"] == "Q 0 + 1 A"
    samples = load_samples(DataConfig(path=(str(folder / "paths.jsonl"),)).to_source(), where="public set")
    assert samples[0].answer == " 0 + 1 = 1\n#### 1"
    # The check is not part of the cache: another one costs no request.
    assert paths("--resume", "--check", "arithmetic", "--template", "{prompt} Step by step.")[0] == 0
    assert len(loopback.requests) == 6


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((429, b""), "HTTP 429"),
        ((500, b"oops"), "HTTP 500: oops"),
        ((200, b"garbage"), "no answer in the reply 'garbage'"),
        (None, "1 attempts, the last: "),
        ((400, b'{"error": "too long"}'), "HTTP 400: too long"),
    ],
    ids=str,
)
def test_a_prompt_that_fails_is_named_the_others_are_kept_and_resume_asks_for_it_alone(
    paths: Callable[..., tuple[int, str, str]], folder: Path, loopback: Loopback, fault: Any, says: str
) -> None:
    right = solve(loopback)
    loopback.otherwise = right
    loopback.script = [right, fault]
    code, out, _ = paths()
    assert code == 5
    assert f"no path for prompt p-1: {says}" in out or ("no path for prompt p-1: " in out and says in out)
    assert [row["id"] for row in lines(folder / "paths.jsonl")] == ["p-0", "p-2", "p-3", "p-4", "p-5"]
    before = len(loopback.requests)
    code, out, _ = paths("--resume", "--json")
    assert (code, len(loopback.requests) - before) == (0, 1)
    assert json.loads(out)["cached"] == 5
    assert [row["id"] for row in lines(folder / "paths.jsonl")] == [f"p-{i}" for i in range(6)]


def test_an_endpoint_that_refuses_stops_and_keeps_what_is_finished(
    paths: Callable[..., tuple[int, str, str]], folder: Path, loopback: Loopback
) -> None:
    right = solve(loopback)
    loopback.script = [right, right, (401, b'{"error": {"message": "who are you"}}')]
    loopback.otherwise = right
    code, _, err = paths()
    assert code == 5
    assert "who are you" in err
    assert "2 of 6 paths are finished and kept" in err
    assert "--resume goes on" in err
    assert [row["id"] for row in lines(folder / "paths.jsonl")] == ["p-0", "p-1"]
    assert paths("--resume")[0] == 0
    assert len(lines(folder / "paths.jsonl")) == 6


def test_an_output_that_exists_and_flags_that_do_not_fit_are_refused(
    paths: Callable[..., tuple[int, str, str]], folder: Path, loopback: Loopback
) -> None:
    (folder / "paths.jsonl").write_text("")
    for flags, says in (
        ((), "Give --resume"),
        (("--resume", "--model", "embedded:chains-server"), "one of both"),
        (("--resume", "--keep", "0.5"), "use --model"),
        (("--resume", "--check", "numerik"), "must be one of none, exact, numeric"),
        (("--resume", "--check", "numeric"), "name their column"),
        (("--resume", "--template", "no place"), "{prompt}"),
    ):
        code, _, err = paths(*flags)
        assert (code, says in err) == (2, True), (flags, err)
    assert loopback.requests == []


def test_a_model_writes_in_batches_is_surest_where_it_is_right_and_is_not_asked_twice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"c-{i}", "messages": [{"role": "user", "content": f"Q {i} {sign} 3 A"}]}
            for i in range(10) for sign in "+@"]  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "paths",
        str(folder / "prompts.jsonl"),
        "--model",
        "embedded:chains-client-a",
        "--max-new-tokens",
        "24",
    ]
    curve = folder / "curve.json"
    checks = ["--check", "path", "--curve", str(curve), "--batch-size", "8", "--json"]
    assert cli.main([*words, "--output", str(folder / "a.jsonl"), *checks]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], told["cached"], told["failed"]) == (20, 0, [])
    written = {row["prompt"]: row for row in lines(folder / "a.jsonl")}
    assert written["Q 4 + 3 A"]["answer"] == "4 + 3 = 7 ; # 7"
    plus, at = ([row["nats_per_byte"] for prompt, row in written.items() if sign in prompt] for sign in "+@")
    assert max(plus) < min(at)  # nobody taught it @, and it knows that
    points = json.loads(curve.read_text())
    assert [point["n"] for point in points] == sorted(point["n"] for point in points)
    assert cli.main([*words, "--output", str(folder / "b.jsonl"), "--keep", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cached"] == 20
    assert {row["prompt"] for row in lines(folder / "b.jsonl")} == {
        prompt for prompt in written if "+" in prompt
    }
