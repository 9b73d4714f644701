"""The decision log: whole lines, a bound, no text; and `fedtandem explain`, which finds an answer and says why."""

import json
from pathlib import Path
from statistics import median
from threading import Thread
from time import process_time

import httpx
import pytest

from fedtandem.cli import main
from fedtandem.errors import ConfigError, DataError
from fedtandem.serving.decisions import FILES, Decisions, name_of
from fedtandem.serving.explaining import find, told
from fedtandem.serving.tiers import build_device

SECRET = "please write a poem about Xanthippe"


def entry(request_id: str, **more: object) -> dict[str, object]:
    return {"id": request_id, "mode": "local", "path": "/v1/completions", "key": "k", "tenant": "t", **more}


def test_the_log_does_not_grow_beyond_its_bound_and_says_what_it_still_holds(tmp_path: Path) -> None:
    most = 40_000
    log = Decisions(tmp_path, most)
    for i in range(400):
        log.keep(entry(f"r{i}", pad="x" * 300))
    log.close()
    files = [file for file in tmp_path.iterdir() if file.suffix == ".jsonl"]
    assert len(files) == FILES
    assert 0.5 * most < sum(file.stat().st_size for file in files) <= most
    assert find(tmp_path, "r399")["id"] == "r399"
    kept = [i for i in range(400) if _is_there(tmp_path, f"r{i}")]
    assert kept == list(range(kept[0], 400))  # the oldest went first, and nothing in between
    with pytest.raises(DataError, match=rf"no answer r0: it holds {len(kept)} answers.*rotated away"):
        find(tmp_path, "r0")


def _is_there(folder: Path, request_id: str) -> bool:
    try:
        return find(folder, request_id)["id"] == request_id
    except DataError:
        return False


def test_an_entry_takes_little_room_and_time(tmp_path: Path) -> None:
    steps = [{"at": 8 * i, "why": "verified", "ms": 10.0 * i, "tiers": "aaaaaaac", "u": [0.1234] * 8, "wait_ms": 30.1,
              "up": 420, "down": 250} for i in range(16)]  # fmt: skip
    log, spent = Decisions(tmp_path, 10**8), []
    for _ in range(9):
        began = process_time()
        for i in range(100):
            log.keep(entry(f"{i:032}", steps=steps, tokens=128))
        spent.append(10 * (process_time() - began))
    log.close()
    n_bytes = (tmp_path / name_of(0)).stat().st_size / 900
    print(f"128 tokens: {n_bytes:.0f} bytes, {median(spent):.2f} ms ({min(spent):.2f}-{max(spent):.2f})")
    assert n_bytes < 24 * 128


def test_lines_of_many_threads_are_whole(tmp_path: Path) -> None:
    log = Decisions(tmp_path, 10**7)

    def write(who: int) -> None:
        for i in range(50):
            log.keep(entry(f"{who}-{i}", pad="y" * 100 * who))

    threads = [Thread(target=write, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = (tmp_path / name_of(0)).read_bytes().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {f"{w}-{i}" for w in range(6) for i in range(50)}


def test_a_half_line_is_taken_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    log = Decisions(tmp_path, 10**6)
    log.keep(entry("first"))
    log.close()
    file = tmp_path / name_of(0)
    file.write_bytes(file.read_bytes() + b'{"v":1,"id":"half')
    with pytest.raises(DataError, match="line 2: the line names half and is damaged"):
        find(tmp_path, "half")
    log = Decisions(tmp_path, 10**6)  # as after a crash
    log.keep(entry("next"))
    log.close()
    assert [json.loads(line)["id"] for line in file.read_bytes().splitlines()] == ["first", "next"]
    file.write_bytes(file.read_bytes().replace(b'"tenant"', b'"ten\xffant"', 1))
    with pytest.raises(DataError, match="line 1: the line names first and is damaged"):
        find(tmp_path, "first")
    with pytest.raises(DataError, match="1 damaged lines were passed over"):
        find(tmp_path, "nobody")
    assert find(tmp_path, "next")["id"] == "next"


def test_two_devices_do_not_share_a_folder(tmp_path: Path) -> None:
    log = Decisions(tmp_path, 10**6)
    with pytest.raises(ConfigError, match="another device"):
        Decisions(tmp_path, 10**6)
    log.close()
    Decisions(tmp_path, 10**6).close()


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [("nowhere", 3, "no decision log"), ("none.toml", 3, "decisions.folder"), ("gone.toml", 2, "gone.toml")],
)
def test_where_there_is_no_log_it_says_what_to_do(
    tmp_path: Path, where: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none.toml").write_text("[device]\nport = 0\n")
    assert main(["explain", "abc", str(tmp_path / where)]) == code
    assert says in capsys.readouterr().err


def ask(url: str, request_id: str, **more: object) -> httpx.Response:
    body = {"model": "fedtandem", "prompt": SECRET, "temperature": 1.9, "seed": 3, "max_tokens": 20, **more}
    return httpx.post(f"{url}/v1/completions", json=body, headers={"x-request-id": request_id}, timeout=120)


def test_an_answer_is_explained_token_by_token(
    tmp_path: Path, lab, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    config = tmp_path / "device.toml"
    config.write_text('[decisions]\nfolder = "log"\n')
    with lab.running(decisions={"folder": str(folder)}, device={"tau": 0.05}) as one:
        device = one.urls["device"]
        for mode in ("fedhlm", "exact", "cloud", "local"):
            reply = ask(device, f"in-{mode}", mode=mode, trace=True)
            assert reply.status_code == 200, reply.text
            kept = find(folder, f"in-{mode}")
            said = reply.json()["fedtandem"]
            tiers = "".join(step["tiers"] for step in kept["steps"])
            us = [u for step in kept["steps"] for u in step["u"]]
            names = {"k": "slm", "a": "slm-verified", "p": "peer", "l": "llm", "c": "llm-corrected"}
            traced = said["tokens"]  # without the closing mark
            assert [names[letter] for letter in tiers][: len(traced)] == [one["tier"] for one in traced]
            assert us[: len(traced)] == pytest.approx([one["u"] for one in traced], abs=1e-4)
            assert kept["tokens"] == len(tiers) == reply.json()["usage"]["completion_tokens"]
            for name in ("llm_passes", "uplink_bytes", "downlink_bytes", "route"):
                assert kept[name] == said[name]
            if mode == "fedhlm":
                assert {"k"} < set(tiers)
            if mode != "local":
                assert sum(step.get("up", 0) for step in kept["steps"]) == said["uplink_bytes"]
        ask(device, "alone", mode="fedhlm", max_cloud_fraction=0)
        assert ask(device, "wrong", mode="bounded", eps=0.1).status_code == 400
        capsys.readouterr()
        assert main(["explain", "in-fedhlm", str(config)]) == 0
        shown = capsys.readouterr().out
    for said_so in (
        "threshold τ = 0.050",
        "fixed by the device's config",
        "≤ τ",
        "> τ",
        "asked the LLM",
        "bytes up",
    ):
        assert said_so in shown
    kept = "\n".join(told(find(folder, "alone")))
    assert "the LLM may verify no more of this answer" in kept
    assert "no_bounds" in "\n".join(told(find(folder, "wrong")))
    assert main(["explain", "in-local", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "local"
    for file in folder.iterdir():
        assert b"Xanth" not in file.read_bytes()


def test_without_the_llm_the_entry_says_why(tmp_path: Path, lab) -> None:
    config = lab.config(
        decisions={"folder": str(tmp_path)}, device={"upstream": "http://127.0.0.1:9", "mode": "exact"}
    )
    with lab.Running([lambda _: build_device(config)], config) as one:
        assert ask(one.urls["device"], "gone").status_code == 503
        reply = ask(one.urls["device"], "degraded", on_outage="degrade")
        assert reply.headers["x-degraded"] == "cloud-down"
    assert "before anything was written: the cloud did not answer" in "\n".join(told(find(tmp_path, "gone")))
    said = "\n".join(told(find(tmp_path, "degraded")))
    assert "exact was asked for" in said
    assert "declared as degraded: the cloud did not answer" in said
