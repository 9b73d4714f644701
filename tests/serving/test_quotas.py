"""Quotas: of a period, counted over restarts; rates and tokens told apart; other keys untouched."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.config.serve import LimitsConfig
from fedtandem.errors import ConfigError
from fedtandem.serving.admission import Admission
from fedtandem.serving.keys import Keyring, read_keyring
from fedtandem.serving.quotas import Quotas
from fedtandem.serving.tiers import build_device

NOON = datetime(2026, 12, 31, 12, 30, tzinfo=UTC).timestamp()


@given(asked=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50)), max_size=60))
def test_a_key_gets_its_quota_and_no_more_whatever_others_take(asked: list[tuple[str, int]]) -> None:
    quotas = Quotas(None, now_s=lambda: NOON)
    taken = {"a": [0, 0], "b": [0, 0]}
    for key, tokens in asked:
        spent = quotas.take(key, "day", 10, 200)
        assert (spent is None) == (taken[key][0] < 10 and taken[key][1] < 200)
        if spent is None:
            quotas.charge(key, tokens)
            taken[key] = [taken[key][0] + 1, taken[key][1] + tokens]
    assert all(n <= 10 and tokens < 200 + 50 for n, tokens in taken.values())


@pytest.mark.parametrize(("period", "left_s"), [("hour", 1800), ("day", 11.5 * 3600), ("month", 11.5 * 3600)])
def test_a_quota_begins_anew_with_its_period(period, left_s: float) -> None:
    now = [NOON]
    quotas = Quotas(None, now_s=lambda: now[0])
    assert quotas.take("a", period, 1, None) is None
    spent = quotas.take("a", period, 1, None)
    assert spent is not None
    assert (spent.kind, spent.ends_in_s) == ("requests", left_s)
    now[0] += left_s - 1
    assert quotas.take("a", period, 1, None) is not None
    now[0] += 1
    assert quotas.take("a", period, 1, None) is None


def test_counts_outlive_the_process_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "counts" / "device-1.json"
    first = Quotas(file, now_s=lambda: NOON)
    for _ in range(3):
        assert first.take("a", "day", 4, 100) is None
    first.charge("a", 99)
    first.save()
    again = Quotas(file, now_s=lambda: NOON + 60)
    assert again.take("a", "day", 4, 100) is None
    assert again.take("a", "day", 4, 100) is not None
    assert Quotas(file, now_s=lambda: NOON + 86400).take("a", "day", 4, 100) is None
    for damage in ("{", "[]", '{"version":1,"period":"x","used":{"a":[1]}}', '{"version":2}'):
        file.write_text(damage)
        with pytest.raises(ConfigError, match=r"device-1\.json cannot be read"):
            Quotas(file)


def test_quotas_without_a_place_to_count_them_are_refused(tmp_path: Path, lab) -> None:
    keys = tmp_path / "keys.toml"
    lab.write_keys(keys, ("a", "one", ["infer"]))
    keys.write_text(keys.read_text() + "quota_tokens = 5\n")
    for keyring, limits in ((Keyring(None), LimitsConfig(quota_requests=3)),
                            (read_keyring(str(keys)), LimitsConfig())):  # fmt: skip
        with pytest.raises(ConfigError, match="quota_folder"):
            Admission(keyring, limits)
    keys.write_text(keys.read_text().replace("quota_tokens = 5", "quota_tokens = 0"))
    with pytest.raises(ConfigError, match="quota_tokens = 0; must be 1 or more"):
        read_keyring(str(keys))


@pytest.fixture
def config(tmp_path: Path, lab):
    keys = tmp_path / "keys.toml"
    lab.write_keys(
        keys, ("few", "one", ["infer"]), ("much", "one", ["infer", "metrics"]), ("long", "one", ["infer"])
    )
    text = keys.read_text().replace('name = "few"', 'name = "few"\nquota_requests = 2')
    keys.write_text(text.replace('name = "long"', 'name = "long"\nquota_tokens = 20'))
    return lab.config(
        device={"upstream": None, "mode": "local"}, security={"keys": str(keys)},
        limits={"quota_folder": str(tmp_path / "quotas"), "quota_period": "month"},
    )  # fmt: skip


def ask(url: str, key: str, **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": "Q 3 + 5 A", "max_tokens": 4, "stop": "never", **more}
    return httpx.post(
        f"{url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}-key"}, timeout=60
    )


def test_a_spent_quota_is_429_over_a_restart_and_says_which(config, lab) -> None:
    def statuses(url: str) -> Iterator[int]:
        for key, more in (("few", {}), ("few", {}), ("few", {}), ("much", {}), ("long", {"stream": True}),
                          ("long", {"stream": True}), ("long", {})):  # fmt: skip
            yield ask(url, key, **more).status_code

    with lab.Running([lambda _: build_device(config)], config) as one:
        assert list(statuses(one.urls["device"])) == [200, 200, 429, 200, 200, 200, 429]
    with lab.Running([lambda _: build_device(config)], config) as one:
        for key, kind in (("few", "requests"), ("long", "tokens")):
            reply = ask(one.urls["device"], key)
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, f"quota_{kind}")
            assert f"{kind} a month" in reply.json()["error"]["message"]
            assert 1 <= int(reply.headers["retry-after"]) <= 31 * 86400
        assert ask(one.urls["device"], "much").status_code == 200
