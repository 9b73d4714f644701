"""A server that does not learn tells each client once what it knows; a word then stands for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtandem.algorithms.downlink import Downlink
from fedtandem.config import RunConfig
from fedtandem.errors import QuorumError
from fedtandem.exchange.carrier import Envelope
from fedtandem.federation.local import Fault
from fedtandem.federation.runs import run_methods

from .test_fedmkt import assert_same, weights

Tiny = Callable[..., RunConfig]
ROUNDS = "federation.num_rounds=3"


def down(summary: dict[str, Any], party: str) -> list[int]:
    """Bytes to a party by message, from the first that carries knowledge."""
    return [row["down"] for row in summary["bytes"] if row["party"] == party and row["round"] >= 2]


@pytest.mark.parametrize("labelled", ["true", "false"])
def test_told_once_or_every_round_the_clients_end_in_the_same_bits(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: str
) -> None:
    config = tiny(ROUNDS, f"public.labelled={labelled}", "public.max_new_tokens=16")
    once = run_methods(config, ["llm2slm"], tmp_path / "once")
    monkeypatch.setattr(Downlink, "has_told", lambda *_: False)
    anew = run_methods(config, ["llm2slm"], tmp_path / "anew")
    assert once["rows"] == anew["rows"]
    assert_same(weights(tmp_path / "once", "llm2slm"), weights(tmp_path / "anew", "llm2slm"))
    for party in ("clinic-a", "clinic-b"):
        first, *later = down(once, party)
        assert len(later) == 2
        assert all(size < 1000 < first for size in later)
        assert all(size > 1000 for size in down(anew, party))


def test_a_client_that_did_not_answer_is_told_again(tiny: Tiny, tmp_path: Path) -> None:
    def lose(party: str, envelope: Envelope) -> Fault | None:
        return Fault("lost") if (party, envelope.kind, envelope.round) == ("clinic-b", "work", 2) else None

    summary = run_methods(tiny(ROUNDS), ["llm2slm"], tmp_path / "run", faults=lose)
    assert [size > 1000 for size in down(summary, "clinic-a")] == [True, False, False]
    assert [size > 1000 for size in down(summary, "clinic-b")] == [True, True, False]


def test_a_client_whose_folder_was_lost_says_so_and_resume_heals_it(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(ROUNDS, "federation.keep_models=false", "federation.min_clients=2")
    whole = run_methods(config, ["llm2slm"], tmp_path / "whole")
    told: list[Path] = []

    def lose(party: str, envelope: Envelope) -> Fault | None:
        if (party, envelope.kind, envelope.round) == ("clinic-b", "work", 3) and not told:
            told.extend((tmp_path / "run").rglob("clinic-b/.lasting-told"))
            shutil.rmtree(told[0])
        return None

    with pytest.raises(QuorumError, match=r"clinic-b.*holds none.*--resume"):
        run_methods(config, ["llm2slm"], tmp_path / "run", faults=lose)
    resumed = run_methods(config, ["llm2slm"], tmp_path / "run", resume=True)
    assert resumed["rows"] == whole["rows"]
    assert_same(weights(tmp_path / "whole", "llm2slm"), weights(tmp_path / "run", "llm2slm"))
