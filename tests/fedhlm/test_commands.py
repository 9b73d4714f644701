"""`calibrate` and `route` from file to sentence: goals, fallbacks, peers, refusals, exit codes; twice the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedtandem import cli
from fedtandem.algorithms.fedhlm import Settings
from fedtandem.data.traces import TraceInfo, make_trace, write_trace
from fedtandem.evaluation.replay import replay, try_peers
from fedtandem.evaluation.scored_trace import score_trace
from fedtandem.federation.calibrate import calibrate, share_of
from fedtandem.federation.route import route
from fedtandem.inference.policy import policy_from_json
from fedtandem.inference.routing import CLOUD, LOCAL, PEER
from fedtandem.inference.similarity import wilson
from fedtandem.inference.threshold import BUILT_IN, Goal


@pytest.fixture
def files(tmp_path: Path, build) -> Path:
    write_trace(tmp_path / "cal.parquet", build(3000, 0))
    write_trace(tmp_path / "test.parquet", build(3000, 1))
    return tmp_path


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def routed(capsys, *words) -> dict:
    capsys.readouterr()
    assert run("route", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_budget_is_learnt_written_and_kept(files: Path, capsys):
    policy = files / "deep" / "policy.json"
    assert run("calibrate", files / "cal.parquet", "--budget", "15%", "--output", policy) == 0
    said = capsys.readouterr().out
    assert "20 clients in 4 clusters" in said
    assert "bytes: clients and edges" in said
    first = policy.read_bytes()
    assert run("calibrate", files / "cal.parquet", "--budget", "0.15", "--output", policy) == 0
    assert policy.read_bytes() == first
    on_calibration = routed(capsys, files / "cal.parquet", "--policy", policy)
    assert 0.12 < on_calibration["answered"]["cloud"] <= 0.15
    told = routed(capsys, files / "test.parquet", "--policy", policy)
    assert told["answered"]["cloud"] == pytest.approx(0.15, abs=0.03)
    q = told["quality"]
    assert q["slm"] < q["random"] < q["routed"] < q["oracle"]
    assert q["loss_interval"][0] < q["loss"] < q["loss_interval"][1]
    assert q["loss"] == pytest.approx(q["llm"] - q["routed"])
    assert told["sentence"].startswith(f"At most {told['calls_interval'][1]:.1%} of calls go to the cloud")
    assert "you lose" in told["sentence"]
    assert [sign["code"] for sign in told["signs"]] == [f"E{i}" for i in range(1, 15)]
    capsys.readouterr()
    assert run("route", files / "test.parquet", "--policy", policy) == 0
    assert capsys.readouterr().out.splitlines()[-1] == told["sentence"]


def test_the_figures_are_those_of_the_definition(files: Path, build, capsys):
    assert run("calibrate", files / "cal.parquet", "--price", "0.3", "--output", files / "p.json") == 0
    policy = policy_from_json((files / "p.json").read_text(), "p")
    trace = build(3000, 1)
    told = routed(capsys, files / "test.parquet", "--policy", files / "p.json")
    scored = score_trace(trace, "expected")
    tau = np.array([policy.clients[name].tau for name in trace.client])
    sent = scored.u > tau
    assert told["answered"]["cloud"] == pytest.approx(sent.mean())
    right = np.where(sent, trace.answer, trace.draft) == trace.label
    assert told["quality"]["routed"] == pytest.approx(right.mean())
    assert told["price_cost"] == pytest.approx((np.where(sent, 0, scored.beta) + 0.3 * sent).mean())


def test_a_loss_in_points_is_kept(files: Path, capsys):
    assert run("calibrate", files / "cal.parquet", "--max-loss", "4", "--output", files / "p.json") == 0
    policy = policy_from_json((files / "p.json").read_text(), "p")
    assert policy.feedback == "quality"
    assert policy.error <= 0.04
    told = routed(capsys, files / "cal.parquet", "--policy", files / "p.json")
    assert told["quality"]["loss"] <= 0.05
    assert told["answered"]["cloud"] < 0.9


def test_learning_beats_one_built_in_threshold(files: Path, capsys):
    costs = {}
    for name, more in {
        "histogram": [],
        "gradient": ["--learn", "gradient"],
        "fixed": ["--learn", "fixed"],
    }.items():
        words = ["calibrate", files / "cal.parquet", "--price", "0.3", "--output", files / "p.json", *more]
        assert run(*words) == 0
        costs[name] = routed(capsys, files / "test.parquet", "--policy", files / "p.json")["price_cost"]
    assert costs["histogram"] < costs["fixed"]
    assert costs["histogram"] <= 1.02 * costs["gradient"]


@pytest.mark.parametrize("price", [0.05, 0.2, 0.3, 0.5])
def test_learnt_thresholds_come_near_the_best_in_hindsight(build, price):
    learnt_on, used_on = build(10_000, 0), build(10_000, 1)
    scored = score_trace(learnt_on, "expected")
    policy = calibrate(learnt_on, scored, Settings(goal=Goal("price", price), audit_rate=1.0, draws=0),
                       measure="expected").policy  # fmt: skip
    again = score_trace(used_on, "expected")
    played = replay(used_on, again, policy)
    cost = np.where(played.sent, price, again.beta).mean()
    hindsight = min(np.where(again.u > tau, price, again.beta).mean() for tau in np.linspace(0, 1, 201))
    assert cost <= 1.02 * hindsight


def test_no_gap_no_savings(tmp_path: Path, build, capsys):
    trace = build(2000, 0, strong=1.5)  # the cloud is no better than the SLM
    write_trace(tmp_path / "t.parquet", trace)
    assert run("calibrate", tmp_path / "t.parquet", "--budget", "10%", "--output", tmp_path / "p.json") == 0
    told = routed(capsys, tmp_path / "t.parquet", "--policy", tmp_path / "p.json")
    assert told["signs"][0]["alarm"]
    assert told["sentence"].startswith("No savings are claimed")
    assert run("route", tmp_path / "t.parquet", "--policy", tmp_path / "p.json") == 0
    shown = capsys.readouterr().out
    assert "you lose" not in shown
    assert "gap recovered" not in shown


def test_other_models_fall_back_and_say_so(files: Path, build, capsys):
    assert run("calibrate", files / "cal.parquet", "--price", "0.3", "--output", files / "p.json") == 0
    one = np.where(np.array(build(3000, 1).client) == "c00", "slm-z", "")
    write_trace(files / "one.parquet", build(3000, 1, {"slm_model": one.tolist()}))
    told = routed(capsys, files / "one.parquet", "--policy", files / "p.json")
    assert list(told["fallbacks"]) == ["c00"]
    assert told["fallbacks"]["c00"].startswith("built-in: c00's threshold was made for slm-a")
    assert told["signs"][6]["alarm"]
    write_trace(files / "all.parquet", build(500, 1, info=TraceInfo("slm-a", "llm-b", 4)))
    told = routed(capsys, files / "all.parquet", "--policy", files / "p.json")
    assert len(told["fallbacks"]) == 20
    scored = score_trace(build(500, 1), "expected")
    assert told["answered"]["cloud"] == pytest.approx((scored.u > BUILT_IN).mean())
    assert run("route", files / "all.parquet", "--policy", files / "p.json") == 0
    assert "20 clients fall back" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code", "told"), [
    (["--budget", "120%"], 2, "expected a share"), (["--budget", "ten"], 2, "expected a share"),
    ([], 2, "no goal given"), (["--budget", "1%", "--price", "0.1"], 2, "--budget and --price given"),
    (["--price", "3"], 2, "--price 3"), (["--max-loss", "-1"], 2, "--max-loss -1"),
    (["--price", "0.1", "--measure", "vibes"], 2, "measure = 'vibes'"),
    (["--price", "0.1", "--audit", "2"], 2, "--audit 2"),
    (["--price", "0.1", "--tau", "4", "--learn", "fixed"], 2, "--tau 4"),
    (["--budget", "10%", "--learn", "gradient"], 2, "knows a price only"),
])  # fmt: skip
def test_a_goal_that_makes_no_sense_writes_nothing(files: Path, capsys, words, code, told):
    assert run("calibrate", files / "cal.parquet", *words, "--output", files / "p.json") == code
    assert told in capsys.readouterr().err
    assert not (files / "p.json").exists()


def test_clients_are_grouped_anew_by_what_they_write_about(tmp_path: Path, build, capsys):
    rng = np.random.default_rng(0)
    trace = build(2000)
    topic = np.array([int(name[1:]) % 5 // 3 for name in trace.client])  # not the trace's edges: c % 4
    write_trace(
        tmp_path / "t.parquet", build(2000, 0, {"embedding": rng.normal(size=(2000, 4)) + 3 * topic[:, None]})
    )
    words = ["calibrate", tmp_path / "t.parquet", "--price", "0.3", "--output", tmp_path / "p.json"]
    assert run(*words, "--clusters", "5") == 0
    assert sorted(policy_from_json((tmp_path / "p.json").read_text(), "p").clusters) == [
        f"cluster-{c}" for c in range(5)
    ]
    assert run(*words, "--clusters", "2") == 0
    policy = policy_from_json((tmp_path / "p.json").read_text(), "p")
    of = [
        {int(name[1:]) % 5 // 3 for name, e in policy.clients.items() if e.cluster == c}
        for c in policy.clusters
    ]
    assert {0} in of or {1} in of  # eight clients of one topic, twelve of the other, in two groups of ten
    assert policy.resolve("c00", "edge0", ("slm-x", "llm-a")).scope == "built-in"
    assert run(*words, "--clusters", "99") == 2
    assert "the number of clients" in capsys.readouterr().err


def test_the_page_says_what_the_command_says(files: Path, capsys):
    from xml.etree import ElementTree

    words = ["calibrate", files / "cal.parquet", "--price", "0.3", "--learn", "gradient", "--rounds", "4"]
    assert run(*words, "--output", files / "p.json") == 0
    told = routed(capsys, files / "test.parquet", "--policy", files / "p.json", "--report", files / "r.html")
    page = (files / "r.html").read_text()
    assert told["sentence"] in page
    assert f"{100 * told['quality']['routed']:.2f} %" in page
    assert all(f"{sign['code']}<" in page for sign in told["signs"])
    assert "http" not in page.replace("http://www.w3.org/", "")  # complete in itself
    drawings = [part.split("</svg>")[0] + "</svg>" for part in page.split("<figure>")[1:]]
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing[drawing.index("<svg") :].replace("xlink:href", "href"))
    policy = policy_from_json((files / "p.json").read_text(), "p")
    assert [len(taus) for taus in policy.history.values()] == [5] * 4
    for name, taus in policy.history.items():
        assert policy.clusters[name].tau == taus[-1]


@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_smallest_traces_are_routed_as_the_search_counted(tmp_path: Path, build, capsys, n):
    """An SLM that is certain of everything (u = 0) and always wrong: all or nothing, and no crash on one row."""
    certain = np.zeros((n, 4), np.float32)
    certain[:, 0] = 1
    wrong = {"slm_probs": certain, "draft": np.zeros(n, int), "label": np.ones(n, int), "answer": np.ones(n, int),
             "llm_probs": np.roll(certain, 1, axis=1)}  # fmt: skip
    write_trace(tmp_path / "t.parquet", build(n, 0, wrong, clients=1))
    for goal, calls in ((["--price", "0.3"], 1.0), (["--budget", "0"], 0.0), (["--max-loss", "0"], 1.0)):
        assert run("calibrate", tmp_path / "t.parquet", *goal, "--output", tmp_path / "p.json") == 0
        told = routed(
            capsys, tmp_path / "t.parquet", "--policy", tmp_path / "p.json", "--report", tmp_path / "r.html"
        )
        assert told["answered"]["cloud"] == calls
        assert policy_from_json((tmp_path / "p.json").read_text(), "p").share == calls


def test_missing_and_broken_files(files: Path, capsys):
    assert run("calibrate", files / "no.parquet", "--price", "0.1") == 3
    assert "there is no trace" in capsys.readouterr().err
    assert run("route", files / "test.parquet", "--policy", files / "no.json") == 2
    assert "there is no policy" in capsys.readouterr().err
    (files / "bad.json").write_text("{}")
    assert run("route", files / "test.parquet", "--policy", files / "bad.json") == 2
    assert "version = None" in capsys.readouterr().err


def test_shares_are_read_as_typed():
    assert share_of("10%") == pytest.approx(0.1)
    assert share_of(" 12.5 %") == pytest.approx(0.125)
    assert share_of("0.1") == 0.1


def test_black_boxes_and_unknown_truth(tmp_path: Path, build, capsys):
    trace = build(1500)
    keep = {n: c for n, c in trace.columns().items() if not n.startswith("llm_") and n != "label"}
    write_trace(tmp_path / "t.parquet", make_trace(trace.info, keep))
    assert run("calibrate", tmp_path / "t.parquet", "--budget", "20%", "--output", tmp_path / "p.json") == 0
    told = routed(capsys, tmp_path / "t.parquet", "--policy", tmp_path / "p.json")
    assert told["quality"] is None
    assert "cannot be told" in told["sentence"]
    assert policy_from_json((tmp_path / "p.json").read_text(), "p").feedback == "agreement"
    assert run("route", tmp_path / "t.parquet", "--policy", tmp_path / "p.json") == 0


def test_only_proven_peers_answer_and_never_a_negated_question(repeated):
    trace = repeated()
    scored = score_trace(trace, "expected")
    settings = Settings(goal=Goal("share", 1.0), audit_rate=1.0, draws=0)
    done = calibrate(trace, scored, settings, measure="expected")
    similarity = done.policy.similarity
    assert similarity is not None
    assert similarity["is_proven"]
    played = replay(trace, scored, done.policy)
    assert (played.tier == PEER).mean() > 0.5
    assert played.served_right.all()  # the negated twin lies at the same place and is never taken for it
    assert 1 - wilson(played.served_right.sum(), len(played.served))[0] < 0.01
    assert set(played.tier) <= {LOCAL, PEER, CLOUD}
    from dataclasses import replace

    shy = replace(done.policy, similarity={**similarity, "is_proven": False})
    assert not (replay(trace, scored, shy).tier == PEER).any()
    # The same search without the gate, to show what it is worth: half of the twins would be served wrongly.
    blind = trace.rows(np.arange(len(trace)))
    object.__setattr__(blind, "context", np.array(["0" * 32] * len(trace)))
    tries = try_peers(blind, np.ones(len(trace), dtype=bool), delta_sim=0.92)
    wrong = tries.answer != trace.answer[tries.index]
    assert wrong.mean() > 0.1


def test_signatures_fire_on_planted_faults(build):
    def of(trace):
        settings = Settings(goal=Goal("price", 0.3), audit_rate=1.0, draws=0)
        policy = calibrate(trace, score_trace(trace, "expected"), settings, measure="expected").policy
        return {sign.code: sign for sign in route(trace, policy).signs}

    healthy = of(build(3000))
    assert not any(healthy[code].alarm for code in ("E1", "E2", "E3", "E7", "E12"))
    # Thresholds that ran away: nothing is sent, though a third is refused.
    trace = build(3000)
    policy = calibrate(trace, score_trace(trace, "expected"), Settings(learn="fixed", start=0.98, audit_rate=1.0),
                       measure="expected").policy  # fmt: skip
    assert {s.code: s for s in route(trace, policy).signs}["E2"].alarm
    # Uncertainty by lot: it says nothing, and what is surest is wrong as often as all.
    rng = np.random.default_rng(0)
    lots = build(3000, 0, {"uncertainty": rng.random(3000)})
    policy = calibrate(lots, score_trace(lots, "recorded"), Settings(goal=Goal("price", 0.1), audit_rate=1.0),
                       measure="recorded").policy  # fmt: skip
    fired = {s.code: s for s in route(lots, policy).signs}
    assert fired["E3"].alarm
    assert fired["E4"].alarm
    assert fired["E12"].alarm
    # A slow SLM: the hybrid takes longer than the cloud alone, and u costs next to nothing.
    slow = of(build(3000, 0, {"slm_ms": np.full(3000, 500.0), "llm_ms": np.full(3000, 30.0)}))
    assert slow["E11"].alarm
    assert not slow["E14"].alarm
    # Errors that grow along a session without a call.
    position = np.tile(np.arange(30), 100)
    sessions = [f"s{i // 30}" for i in range(3000)]
    drifting = build(3000, 0, {
        "client": [f"c{i // 30 % 20:02d}" for i in range(3000)], "cluster": [f"e{i // 30 % 4}" for i in range(3000)],
        "session": sessions, "position": position,
        "answer": np.where(rng.random(3000) < position / 30, (build(3000).draft + 1) % 4, build(3000).draft),
    })  # fmt: skip
    scored = score_trace(drifting, "expected", "agreement")
    policy = calibrate(
        drifting, scored, Settings(learn="fixed", start=0.98, audit_rate=1.0), measure="expected"
    ).policy
    assert {s.code: s for s in route(drifting, policy).signs}["E5"].alarm


# -- measure, start, bounds, tiers -------------------------------------------------------------------------------


def read(path: Path):
    return policy_from_json(path.read_text(), "p")


def test_a_learned_measure_travels_with_its_policy(files: Path, capsys):
    words = [
        "calibrate",
        files / "cal.parquet",
        "--budget",
        "20%",
        "--measure",
        "learned",
        "--output",
        files / "p.json",
    ]
    assert run(*words) == 0
    policy = read(files / "p.json")
    assert (policy.measure, len(policy.clients)) == ("learned", 20)
    told = routed(capsys, files / "test.parquet", "--policy", files / "p.json")
    assert told["answered"]["cloud"] == pytest.approx(0.2, abs=0.05)
    assert told["quality"]["routed"] > told["quality"]["random"]
    whole = json.loads((files / "p.json").read_text())
    whole["scorer"]["w2"] = whole["scorer"]["w2"][:3]
    (files / "bad.json").write_text(json.dumps(whole))
    assert run("route", files / "test.parquet", "--policy", files / "bad.json") == 2
    assert "scorer cannot be read" in capsys.readouterr().err
    assert run(*words, "--audit", "1%") == 2
    assert "--audit all only" in capsys.readouterr().err


def test_a_new_policy_starts_from_the_one_in_force(files: Path, capsys):
    first, second = files / "first.json", files / "second.json"
    assert run("calibrate", files / "cal.parquet", "--price", "0.05", "--output", first) == 0
    words = ["calibrate", files / "cal.parquet", "--price", "0.6", "--from", first, "--output", second]
    assert run(*words) == 0
    before, after = read(first), read(second)
    free = files / "free.json"
    assert run("calibrate", files / "cal.parquet", "--price", "0.6", "--output", free) == 0
    assert read(free).overall.tau - before.overall.tau > 0.15  # far away without a policy to start from
    for name, entry in after.clients.items():
        assert abs(entry.tau - before.clients[name].tau) <= 0.1 + 1e-9
    # Gradient steps begin where the policy stands: two rounds are not enough from 0.5.
    short = ["calibrate", files / "cal.parquet", "--price", "0.05", "--learn", "gradient", "--rounds", "2"]
    assert run(*short, "--output", files / "cold.json") == 0
    assert run(*short, "--from", first, "--output", files / "warm.json") == 0
    best = before.overall.tau
    cold, warm = (abs(read(files / f"{name}.json").overall.tau - best) for name in ("cold", "warm"))
    assert warm < cold
    assert run(*words, "--measure", "entropy") == 2
    assert "thresholds are on expected" in capsys.readouterr().err
    assert run("calibrate", files / "cal.parquet", "--price", "0.1", "--from", files / "no.json") == 2


@pytest.mark.parametrize("learn", ["gradient", "fixed", "line"])
def test_every_way_of_learning_has_intervals(tmp_path: Path, build, learn):
    rng = np.random.default_rng(2)
    u, draft = rng.random(4000), np.zeros(4000, int)
    answer = np.where(rng.random(4000) < 0.8 * u, 1, 0)  # rejections rise along a line
    keep = {
        n: c for n, c in build(4000).columns().items() if not n.startswith(("llm_", "slm_")) and n != "label"
    }
    trace = make_trace(build(40).info, keep | {"uncertainty": u, "draft": draft, "answer": answer})
    write_trace(tmp_path / "t.parquet", trace)
    words = ["calibrate", tmp_path / "t.parquet", "--price", "0.3", "--learn", learn, "--tau", "0.45"]
    assert run(*words, "--output", tmp_path / "p.json") == 0
    policy = read(tmp_path / "p.json")
    for entry in (policy.overall, *policy.clusters.values(), *policy.clients.values()):
        assert entry.interval is not None
        assert entry.interval[0] <= entry.tau <= entry.interval[1]
        assert entry.interval[0] < entry.interval[1]
    low, high = policy.overall.interval
    assert low <= 0.375 <= high  # where 0.8 u = 0.3


def test_bounds_in_a_policy_are_above_the_truth(files: Path, build):
    assert run("calibrate", files / "cal.parquet", "--price", "0.3", "--output", files / "p.json") == 0
    policy = read(files / "p.json")
    scored = score_trace(build(60_000, 7), "expected")
    checked = 0
    for low in np.arange(0, 1, 1 / 64):
        mine = (scored.u > low) & (scored.u <= low + 1 / 64)
        if mine.sum() > 200:
            checked += 1
            assert scored.beta[mine].mean() <= policy.beta_upper(low + 1 / 64) < 1
    assert checked > 30
    assert policy.beta_upper(1 / 64) > policy.beta_upper(
        8 / 64
    )  # this SLM is confident and wrong; the bound knows
    assert run("calibrate", files / "cal.parquet", "--max-loss", "4", "--output", files / "q.json") == 0
    assert read(files / "q.json").bounds is None  # quality may be below 0: nothing to bound


def test_peers_are_asked_only_where_that_is_cheaper(repeated):
    from dataclasses import replace

    trace = repeated()
    scored = score_trace(trace, "expected")
    policy = calibrate(trace, scored, Settings(goal=Goal("price", 0.3), audit_rate=1.0, draws=0),
                       measure="expected").policy  # fmt: skip
    rate = policy.similarity["hit_rate"]
    assert 0.5 < rate < 1
    error = (1 - policy.similarity["lower_bound"]) / 0.3
    worth = rate * (1 - error)  # what a look-up saves of a call
    for cost, asked in ((0.9 * worth, True), (1.1 * worth, False)):
        assert bool((replay(trace, scored, policy, cost).tier == PEER).any()) is asked
    dear = replace(
        policy, price=(1 - policy.similarity["lower_bound"]) / 2
    )  # an error costs more than two calls save
    assert not (replay(trace, scored, dear).tier == PEER).any()
