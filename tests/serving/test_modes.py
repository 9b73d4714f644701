"""Modes and uplinks of the device beyond the defaults."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedtandem.inference.policy import Entry, Policy, policy_to_json
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.load import ModelSpec, load_model

PROMPT = "Q 3 + 5 * 2 A"


def policy(models: tuple[str, str]) -> Policy:
    """Kept up to u = 0.6, with an upper bound of β of 0.05 there."""
    entry = Entry(0.6, None, "fixed", 500, 1000, 1000, (models,))
    return Policy(
        "expected", "probabilities", "fixed", {"kind": "price", "value": 0.3}, 0.3, 1.0, 0.2, 0.01, entry, {}, {},
        bounds={"u": [0.6, 1.0], "beta_upper": [0.05, 1.0]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def urls(lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Three devices: with a policy, with one of other models, and with another uplink."""
    folder: Path = tmp_path_factory.mktemp("policies")
    models = fingerprint_of("client-a"), fingerprint_of("server")
    (folder / "own.json").write_text(policy_to_json(policy(models)))
    (folder / "other.json").write_text(policy_to_json(policy(("another", "pair"))))
    with_policy = lab.running(device={"policy": str(folder / "own.json"), "mode": "fedhlm"})
    of_others = lab.running(device={"policy": str(folder / "other.json"), "mode": "fedhlm"})
    sparse = lab.running(device={"uplink": "sparse"})
    with with_policy, of_others, sparse:
        yield {
            "own": with_policy.urls["device"], "other": of_others.urls["device"], "sparse": sparse.urls["device"],
        }  # fmt: skip


def fingerprint_of(name: str) -> str:
    lm = load_model(ModelSpec(f"embedded:chains-{name}", tuning_method="none"))
    return fingerprint(lm.name, lm.model, lm.tokenizer.card.hash)


def ask(url: str, **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": PROMPT, "seed": 2, "max_tokens": 24, **more}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=120)


def test_bounded_spends_no_more_than_it_was_given(urls: dict[str, str]) -> None:
    spent = []
    for eps in (0.01, 0.11, 1.0):
        came = ask(urls["own"], mode="bounded", eps=eps)
        assert came.status_code == 200, came.text
        reply = came.json()
        assert reply["fedtandem"]["error_bound"] <= eps
        kept = reply["usage"]["completion_tokens"] - reply["fedtandem"]["verified_tokens"]
        assert reply["fedtandem"]["error_bound"] == pytest.approx(0.05 * kept)
        spent.append(kept)
    assert spent[0] == 0
    assert spent[1] <= 2 < spent[2]


def test_bounds_of_other_models_bound_nothing(urls: dict[str, str]) -> None:
    reply = ask(urls["other"], mode="bounded", eps=0.5)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_bounds")
    assert ask(urls["other"]).status_code == 200  # fedhlm goes by the built-in threshold


def test_the_thresholds_scope_is_told(urls: dict[str, str]) -> None:
    ask(urls["own"])
    ask(urls["other"])
    assert 'tau{scope="global"} 0.6' in httpx.get(f"{urls['own']}/metrics").text
    assert 'tau{scope="built-in"} 0.5' in httpx.get(f"{urls['other']}/metrics").text


@pytest.mark.parametrize("mode", ["exact", "fedhlm"])
def test_another_uplink_answers_and_repeats(urls: dict[str, str], mode: str) -> None:
    first, again = (ask(urls["sparse"], mode=mode, temperature=1).json() for _ in range(2))
    assert first["choices"] == again["choices"]
    assert first["choices"][0]["text"]
    greedy = ask(urls["sparse"], mode="exact", temperature=0).json()["choices"][0]["text"]
    assert greedy == " 3 + 5 = 8 ; 8 * 2 = 6 ; # 6"


def test_a_peers_guess_needs_no_law(urls: dict[str, str]) -> None:
    for _ in range(2):
        assert ask(urls["sparse"], mode="exact", temperature=1, peer="draft").status_code == 200
