"""Thresholds across sites: the numbers of one process, each site's own law, nothing told twice, nothing lost."""

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, Context, Message

from fedtandem.cli import main
from fedtandem.config.data import DataConfig
from fedtandem.config.party import PartyConfig
from fedtandem.config.site import AllowConfig, SiteCalibration, SiteConfig, load_site
from fedtandem.data.traces import Trace, TraceInfo, joined, make_trace, write_trace
from fedtandem.errors import ConfigError, QuorumError
from fedtandem.evaluation.scored_trace import score_trace
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.frame import decode_frame
from fedtandem.exchange.masking import MaskingRequest, OfferReply
from fedtandem.federation.audit import read_audit
from fedtandem.federation.calibrate import CalibrateRequest, calibrate, settings_of
from fedtandem.federation.calibrate_sites import SitesRequest, check_request
from fedtandem.federation.calibration_result import CalibrationResult
from fedtandem.federation.certificates import site_key
from fedtandem.federation.client_app import site_of_node
from fedtandem.federation.deploy import Place, deploy
from fedtandem.federation.doctor import Visit, doctor
from fedtandem.federation.events import read_events
from fedtandem.federation.flower_names import read_public_key
from fedtandem.federation.masked_edges import STATISTICS
from fedtandem.federation.registered_keys import public_keys, signing_key
from fedtandem.federation.server_app import calibrate as calibrate_at_grid
from fedtandem.federation.server_app import serve
from fedtandem.federation.site import Order, Site
from fedtandem.federation.site_calibration import THRESHOLD, Plan
from fedtandem.federation.submission import read_end, read_submission, write_submission
from fedtandem.inference.policy import policy_to_json
from fedtandem.reports.inspect import inspect_command

NAMES = ("clinic-a", "clinic-b", "clinic-c", "clinic-d")
EDGES = {"clinic-a": "north", "clinic-b": "south", "clinic-c": "north", "clinic-d": "north"}
CLASSES = 4
SENT = ("counts", "masked_counts")


def recorded(name: str, n: int = 300) -> Trace:
    """One site's decisions over four classes: where the SLM is unsure the LLM often answers otherwise."""
    rng = np.random.default_rng([7, NAMES.index(name)])

    def law(sharp: float, z: Any) -> Any:
        e = np.exp(sharp * z)
        return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)

    z = rng.normal(size=(n, CLASSES))
    q, p = law(2.0, z), law(5.0, z + 0.3 * rng.normal(size=z.shape))
    ids = np.tile(np.arange(CLASSES, dtype=np.int32), (n, 1))
    columns = {
        "client": [name] * n, "cluster": [EDGES[name]] * n, "session": [f"s{i // 5}" for i in range(n)],
        "position": np.arange(n) % 5, "draft": q.argmax(axis=1), "answer": p.argmax(axis=1),
        "slm_ids": ids, "slm_probs": q, "llm_ids": ids, "llm_probs": p,
    }  # fmt: skip
    return make_trace(TraceInfo("slm-a", "llm-a", CLASSES), columns)


@dataclass
class Lab:
    """Four sites, each with its trace and its key, and the server's folder."""

    folder: Path
    grid: Any
    sites: dict[str, SiteConfig]

    def calibrate(self, request: CalibrateRequest, *, keys: bool = False, **how: Any) -> CalibrationResult:
        asked = SitesRequest(request, how.pop("members", tuple(self.sites)), **{"deadline_s": 5.0, **how})
        return calibrate_at_grid(self.grid, asked, self.folder, self.folder / "keys" if keys else None)

    def change(self, name: str, **changes: Any) -> None:
        self.sites[name] = self.sites[name].model_copy(update=changes)

    def audit(self, name: str) -> list[dict[str, Any]]:
        return read_audit(self.sites[name].home / "audit.jsonl")


@pytest.fixture
def lab(tmp_path: Path, make_grid: Callable[..., Any]) -> Lab:
    sites, public = {}, {}
    for name in NAMES:
        own = tmp_path / name
        write_trace(own / "calibration.parquet", recorded(name))
        private, public[name] = site_key()
        (own / "key").write_bytes(private)
        (own / "key").chmod(0o600)
        calibration = SiteCalibration(
            trace=str(own / "calibration.parquet"), key=str(own / "key"), keys=str(own / "keys")
        )
        sites[name] = SiteConfig(
            name=name, edge=EDGES[name], folder=str(own / "state"), client=PartyConfig(model="none"),
            public=DataConfig(path="none"), allow=AllowConfig(send=SENT), calibration=calibration,
        )  # fmt: skip
    for folder in (tmp_path / "server", *(tmp_path / name for name in NAMES)):
        (folder / "keys").mkdir(parents=True)
        for name, key in public.items():
            (folder / "keys" / f"{name}.pub").write_bytes(key)

    def site_of(context: Context) -> SiteConfig:
        return sites[NAMES[int(context.node_config["partition-id"])]]

    nodes = {
        101 + at: read_public_key(tmp_path / "server" / "keys" / f"{name}.pub")
        for at, name in enumerate(NAMES)
    }
    return Lab(tmp_path / "server", make_grid(site_of, len(NAMES), keys=nodes), sites)


def ask(**how: Any) -> CalibrateRequest:
    return CalibrateRequest(
        None, Path("policy.json"), **({"price": "0.3"} | how if "budget" not in how else how)
    )


def one_process(request: CalibrateRequest, last: Any = None) -> Any:
    trace = joined([recorded(name) for name in NAMES])
    scored = score_trace(trace, "expected")
    return calibrate(
        trace, scored, settings_of(request), measure="expected", last=last, masked=request.masked
    )


# -- plain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{"budget": "10%"}, {"price": "0.2", "audit": "auto"}, {"learn": "gradient", "rounds": 2}],
    ids=["a budget", "audits", "gradient steps"],
)
def test_sites_learn_what_one_process_learns_from_all_their_traces(lab: Lab, how: dict[str, Any]) -> None:
    request = ask(**how)
    plain, done = one_process(request), lab.calibrate(request)
    assert policy_to_json(done.policy) == policy_to_json(plain.policy)
    assert {level: done.bytes_up[level] for level in plain.bytes_up} == plain.bytes_up
    assert {level: done.bytes_down[level] for level in plain.bytes_down} == plain.bytes_down
    assert done.counted == {"north": ("clinic-a", "clinic-c", "clinic-d"), "south": ("clinic-b",)}
    for name, site in lab.sites.items():
        told = json.loads((site.home / THRESHOLD).read_text())
        assert told["tau"] == pytest.approx(done.policy.clients[name].tau, abs=1e-6)  # float32 on the wire


def test_a_calibration_goes_on_from_the_policy_in_force(lab: Lab, tmp_path: Path) -> None:
    first = one_process(ask(price="0.05")).policy
    (tmp_path / "first.json").write_text(policy_to_json(first))
    request = ask(price="0.6", last=tmp_path / "first.json")
    done = lab.calibrate(request)
    assert policy_to_json(done.policy) == policy_to_json(one_process(request, first).policy)
    assert done.policy.overall.tau == pytest.approx(first.overall.tau + 0.1)  # no step is larger
    (tmp_path / "first.json").write_text(policy_to_json(replace(first, measure="entropy")))
    with pytest.raises(ConfigError, match="thresholds are on entropy, these are to be on expected"):
        lab.calibrate(request)


def test_what_left_a_site_stands_in_its_log_in_plain_words(lab: Lab) -> None:
    done = lab.calibrate(ask())
    entries = {name: lab.audit(name) for name in NAMES}
    assert [entry["kind"] for entry in entries["clinic-a"]] == ["card", "calibrate", "calibrate", "calibrate"]
    total = sum(entry["bytes"] for log in entries.values() for entry in log)
    assert total == done.bytes_up["cards"] + done.bytes_up["clients and edges"]
    said = inspect_command(lab.sites["clinic-a"].home)
    assert "clinic-a: 300 decisions of slm-a beside llm-a" in said
    assert "a histogram of each: decisions and refusals by uncertainty, 448 counts" in said
    assert "no text, no token, no single decision" in said
    assert "none of them is told" in said


@pytest.mark.parametrize(
    ("send", "masked", "word"),
    [
        (("masked_counts",), False, "it asks for counts (fedtandem calibrate without --masked)"),
        (("counts",), True, "it asks for masked_counts (fedtandem calibrate with --masked)"),
        (("card", "scores"), False, "but allow.send = [card, scores]"),
    ],
)
def test_a_site_that_does_not_allow_it_is_named_before_anything_is_counted(
    lab: Lab, send: Any, masked: bool, word: str
) -> None:
    lab.change("clinic-b", allow=AllowConfig(send=send))
    with pytest.raises(QuorumError, match="clinic-b does not take part in this calibration") as fault:
        lab.calibrate(ask(masked=masked), keys=masked)
    assert word in str(fault.value)
    assert "start again" in str(fault.value)
    assert [entry["kind"] for entry in lab.audit("clinic-b")] == ["refusal"]
    assert [entry["kind"] for entry in lab.audit("clinic-a")] == ["card"]


def test_gradient_steps_beyond_the_sites_limit_are_refused(lab: Lab) -> None:
    lab.change("clinic-b", allow=AllowConfig(send=SENT, max_rounds=1))
    with pytest.raises(QuorumError, match=r"gradient step 2, but allow\.max_rounds = 1"):
        lab.calibrate(ask(learn="gradient", rounds=2), min_clients=4, on_short="fail")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"calibration": None}, "has no recorded decisions"),
        ({"calibration": SiteCalibration(trace="nowhere.parquet")}, "there is no trace nowhere.parquet"),
    ],
)
def test_a_site_without_a_trace_says_what_to_do(lab: Lab, change: dict[str, Any], says: str) -> None:
    lab.change("clinic-c", **change)
    with pytest.raises(QuorumError, match=says):
        lab.calibrate(ask())


def test_sites_whose_traces_differ_agree_on_what_all_have_or_are_named(lab: Lab) -> None:
    trace = recorded("clinic-d")
    write_trace(Path(lab.sites["clinic-d"].calibration.trace), replace(trace, llm_ids=None, llm_probs=None))
    assert lab.calibrate(ask()).policy.feedback == "agreement"
    with pytest.raises(ConfigError, match=r"--feedback probabilities: not all.*clinic-d has agreement"):
        lab.calibrate(ask(feedback="probabilities"))


def calibrating(site: SiteConfig) -> Callable[[Envelope], Any]:
    order = Order(
        site.name, "calibrate-1", "calibrate", False, Plan(False, "expected", "agreement").to_json()
    )
    return lambda envelope: Site(site).answer(order, envelope.to_bytes())


def job(kind: str, round_number: int, tau: float = 0.5) -> CalibrationRequest:
    return CalibrationRequest(round_number, kind, 1.0, 0.3, (), np.array([tau]))  # type: ignore[arg-type]


def test_a_message_that_comes_twice_gets_the_same_bytes_and_an_old_one_nothing(lab: Lab) -> None:
    say = calibrating(lab.sites["clinic-a"])
    first = say(job("count", 2).to_envelope())
    trace = Path(lab.sites["clinic-a"].calibration.trace)
    write_trace(
        trace, recorded("clinic-a", 50)
    )  # a repeated message does no work: it does not see the new trace
    assert say(job("count", 2).to_envelope()).envelope == first.envelope != b""
    assert "another one of it" in say(job("count", 2, tau=0.4).to_envelope()).refusal
    assert say(job("publish", 3, tau=0.25).to_envelope()).envelope
    assert "or a later one (0003)" in say(job("publish", 1, tau=0.75).to_envelope()).refusal
    told = json.loads((lab.sites["clinic-a"].home / THRESHOLD).read_text())
    assert told == {"tau": 0.25, "measure": "expected", "feedback": "agreement"}
    assert say(job("count", 2).to_envelope()).envelope == first.envelope
    assert len(lab.audit("clinic-a")) == 6  # a repeated reply left again, and so did two refusals


def lost(names: set[str], types: str = "query.calibrate") -> Any:
    """A network on which these clients' messages vanish."""

    def meddle(request: Message, client: Callable[[Message], Message]) -> list[Message]:
        gone = NAMES[request.metadata.dst_node_id - 101] in names and request.metadata.message_type == types
        return [] if gone else [client(request)]

    return meddle


def test_a_lost_site_is_left_out_while_enough_answer_and_named_when_not(lab: Lab) -> None:
    lab.grid.meddle = lost({"clinic-d"})
    done = lab.calibrate(ask(), deadline_s=0.3, min_clients=3)
    assert sorted(done.policy.clients) == ["clinic-a", "clinic-b", "clinic-c"]
    events = read_events(lab.folder / "events.jsonl")
    assert {event["party"] for event in events if event["event"] == "absence"} == {"clinic-d"}
    with pytest.raises(
        QuorumError, match=r"3 of 4 clients gave a valid reply but 4 are needed. Missing: clinic-d: late"
    ):
        lab.calibrate(ask(), deadline_s=0.3, min_clients=4, on_short="fail")
    lab.grid.offline = {102}
    with pytest.raises(QuorumError, match=r"Missing: clinic-b\. Start their SuperNodes .* and start again"):
        lab.calibrate(ask(), deadline_s=0.3, min_clients=4)


def test_swapped_keys_and_tampered_counts_are_not_believed(lab: Lab) -> None:
    def swapped(request: Message, client: Callable[[Message], Message]) -> list[Message]:
        reply = client(request)
        if request.metadata.dst_node_id == 102 and request.metadata.message_type == "query.calibrate":
            body = reply.content["envelope"]["body"].numpy().copy()
            body[len(body) // 2] ^= 0xFF
            reply.content["envelope"]["body"] = Array(body)
        return [reply]

    lab.grid.meddle = swapped
    assert sorted(lab.calibrate(ask()).policy.clients) == ["clinic-a", "clinic-c", "clinic-d"]
    lab.grid.meddle = lost(set())
    lab.grid.keys[101], lab.grid.keys[102] = lab.grid.keys[102], lab.grid.keys[101]
    with pytest.raises(QuorumError, match="bind each name to the key"):
        lab.calibrate(ask(), keys=True)


def test_what_is_submitted_is_done_and_its_end_is_told(lab: Lab, tmp_path: Path) -> None:
    asked = SitesRequest(ask(), NAMES, deadline_s=5.0)
    submission = write_submission(lab.folder, asked, resume=False, carrier="flower", keys=None)
    assert SitesRequest.from_json(read_submission(lab.folder).config).members == NAMES
    serve(lab.grid, lab.folder, read_submission(lab.folder))
    assert read_end(lab.folder, submission.id) == (0, "")
    assert (lab.folder / "policy.json").read_text() == policy_to_json(one_process(ask()).policy)
    lab.change("clinic-a", allow=AllowConfig())
    submission = write_submission(lab.folder, asked, resume=False, carrier="flower", keys=None)
    with pytest.raises(QuorumError):
        serve(lab.grid, lab.folder, submission)
    code, text = read_end(lab.folder, submission.id) or (0, "")
    assert (code, "clinic-a does not take part" in text) == (6, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no trace: name the file"),
        (["--keys", "keys"], "--keys: is for sites; give --connection"),
        (["--connection", "lab"], "needs --keys DIR"),
        (["--connection", "lab", "--insecure"], "Name the server's run.toml"),
        (["--connection", "lab", "--insecure", "--masked"], "--masked needs --keys"),
        (["--connection", "lab", "--keys", "nothing"], "nothing holds no public key"),
        (["--connection", "lab", "--keys", "keys", "--min-clients", "2"], "--min-clients 2; expected 1 to 1"),
        (
            ["--connection", "lab", "--keys", "keys", "--deadline", "0"],
            "--deadline 0; expected seconds above 0",
        ),
        (["--connection", "lab", "--keys", "keys"], "FLWR_HOME is not set"),
        (["--connection", "lab", "--keys", "nothing", "--clusters", "2"], "`edge` in its site.toml"),
        (["--connection", "lab", "--keys", "nothing", "--measure", "learned"], "fitted on single decisions"),
    ],
)
def test_what_cannot_be_asked_of_sites_is_refused_at_the_door(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLWR_HOME", raising=False)
    Path("keys").mkdir()
    Path("keys/clinic-a.pub").touch()
    assert main(["calibrate", "--price", "0.3", *words]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_sites_file_says_edge_and_trace_and_the_node_may_say_the_edge(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "clinic-a"\n[client]\nmodel = "none"\n[public]\npath = "rows.jsonl"\n'
        '[calibration]\ntrace = "mine.parquet"\n[allow]\nsend = ["masked_counts"]\n'
    )
    site = load_site(tmp_path / "site.toml")
    assert site.calibration == SiteCalibration(
        trace=str(tmp_path / "mine.parquet"), key=str(tmp_path / "key"), keys=str(tmp_path / "keys")
    )
    config: dict[str, Any] = {"config": str(tmp_path / "site.toml"), "edge": "north"}
    assert site_of_node(Context(1, 2, config, None, {})).edge == "north"  # type: ignore[arg-type]
    (tmp_path / "site.toml").write_text('edge = "south"\n' + (tmp_path / "site.toml").read_text())
    with pytest.raises(ConfigError, match="'south', its SuperNode's --node-config says 'north'"):
        site_of_node(Context(1, 2, config, None, {}))  # type: ignore[arg-type]


# -- under masks -------------------------------------------------------------------------------------------------


@pytest.fixture
def together(lab: Lab) -> Iterator[Lab]:
    """The same sites at one edge, whose sum the server reads."""
    for name in NAMES:
        lab.change(name, edge="")
    return lab


def pooled(request: CalibrateRequest) -> Any:
    trace = joined([recorded(name) for name in NAMES])
    trace = replace(trace, cluster=np.full(len(trace), ""))
    return calibrate(
        trace, score_trace(trace, "expected"), settings_of(request), measure="expected", masked=request.masked
    )


def test_masked_sites_learn_the_edges_thresholds_and_no_message_holds_one_sites_counts(together: Lab) -> None:
    replies: list[bytes] = []

    def listen(request: Message, client: Callable[[Message], Message]) -> list[Message]:
        reply = client(request)
        for body in (request.content["envelope"]["body"], reply.content["envelope"]["body"]):
            data = body.numpy().tobytes()
            header, arrays = decode_frame(Envelope.from_bytes(data).body)
            unpacked = b"".join(array.tobytes() for array in arrays.values())
            replies.append(data + json.dumps(header).encode() + unpacked)
        return [reply]

    together.grid.meddle = listen
    done = together.calibrate(ask(masked=True), keys=True)
    assert policy_to_json(done.policy) == policy_to_json(pooled(ask(masked=True)).policy)
    plain = pooled(ask()).policy
    assert done.policy.overall.tau == pytest.approx(plain.overall.tau, abs=1e-9)
    assert done.policy.clusters["all"].tau == pytest.approx(plain.clusters["all"].tau, abs=1e-9)
    assert done.policy.bounds["beta_upper"] == pytest.approx(plain.bounds["beta_upper"], abs=1e-5)
    assert done.counted == {"all": NAMES}
    assert done.policy.clients == {}
    said = done.put(together.folder / "out.json", json_output=False)
    assert "for 4 sites, one for each of 1 edges" in said
    assert "edge all: clinic-a, clinic-b, clinic-c, clinic-d, as one sum under masks" in said
    for site in together.sites.values():
        own = CalibrationReply.from_envelope(
            Envelope.from_bytes(
                calibrating(site.model_copy(update={"folder": site.folder + "-plain"}))(
                    job("count", 2).to_envelope()
                ).envelope
            )
        )
        counts = own.counts.reshape(-1)
        marks = [counts.astype(kind).tobytes() for kind in (np.float32, np.float64, np.int64)]
        marks.append(STATISTICS.encode(counts).tobytes())
        assert not [reply for reply in replies for mark in marks if mark in reply]
        assert json.loads((site.home / THRESHOLD).read_text())["tau"] == pytest.approx(
            done.policy.clusters["all"].tau, abs=1e-6
        )
        assert not list(site.home.rglob("*.key"))
        assert "under the masks of attempt 0" in inspect_command(site.home)


def masking(site: SiteConfig, experiment: str = "calibrate-1") -> Callable[[Envelope], Any]:
    order = Order(site.name, experiment, "calibrate", False, Plan(True, "expected", "agreement").to_json())
    return lambda envelope: Site(site).answer(order, envelope.to_bytes())


def test_a_key_for_masks_outlives_the_process_until_it_was_used_once(together: Lab) -> None:
    """Every answer is a fresh `Site`: what connects them lies in the state folder."""
    site = together.sites["clinic-a"]
    say, run = masking(site), "calibrate-1"
    offer = say(MaskingRequest(1, run, 0).to_envelope())
    (secret,) = site.home.rglob("*.key")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert say(MaskingRequest(1, run, 0).to_envelope()).envelope == offer.envelope
    offers = tuple(
        OfferReply.from_envelope(
            Envelope.from_bytes(
                masking(together.sites[name])(MaskingRequest(1, run, 0).to_envelope()).envelope
            )
        ).offer
        for name in NAMES
    )
    count = MaskingRequest(1, run, 0, offers, job("count", 1)).to_envelope()
    drawn = secret.read_bytes()
    words = say(count)
    assert words.envelope
    assert not secret.exists()
    secret.write_bytes(drawn)  # killed after the reply was committed, before the key was deleted
    assert say(count).envelope == words.envelope
    assert not secret.exists()
    secret.write_bytes(drawn)  # killed before: done again, it is the same reply
    shutil.rmtree(next(site.home.rglob("*-2-sums")))
    assert say(count).envelope == words.envelope
    other = MaskingRequest(1, run, 0, offers, job("count", 1, tau=0.2)).to_envelope()
    assert "another one of it" in say(other).refusal  # other numbers under the same masks would show
    later = MaskingRequest(1, run, 1, offers, job("count", 1)).to_envelope()
    assert "no key was offered for attempt 1" in say(later).refusal
    assert "keys for 'another' were asked for" in say(MaskingRequest(2, "another", 0).to_envelope()).refusal
    assert (
        "masking_request" in say(job("count", 3).to_envelope()).refusal
    )  # a plain question under a masked plan


def test_a_key_that_was_given_up_is_deleted_with_the_next_one(together: Lab) -> None:
    site = together.sites["clinic-a"]
    for attempt in (0, 1):
        assert masking(site)(MaskingRequest(1, "calibrate-1", attempt).to_envelope()).envelope
    assert [path.name for path in site.home.rglob("*.key")] == ["0001-0000001.key"]


def test_a_site_that_drops_out_leads_to_fresh_masks_without_it(together: Lab) -> None:
    """clinic-b's masked counts are lost: all others begin anew, and the sum is theirs."""
    keys: list[tuple[int, str]] = []

    def meddle(request: Message, client: Callable[[Message], Message]) -> list[Message]:
        reply = client(request)
        if request.metadata.message_type != "query.calibrate":
            return [reply]
        said = MaskingRequest.from_envelope(
            Envelope.from_bytes(request.content["envelope"]["body"].numpy().tobytes())
        )
        keys.extend((said.attempt, offer.public_key.hex()) for offer in said.offers)
        gone = said.job is not None and said.round > 1 and request.metadata.dst_node_id == 102
        return [] if gone else [reply]

    together.grid.meddle = meddle
    done = together.calibrate(ask(masked=True), keys=True, deadline_s=0.5)
    assert done.counted == {"all": ("clinic-a", "clinic-c", "clinic-d")}
    assert done.policy.overall.tokens == 900
    first, second = ({key for attempt, key in keys if attempt == at} for at in (0, 1))
    assert second
    assert not first & second
    together.grid.meddle = meddle
    with pytest.raises(QuorumError, match=r"3 sites were summed .*, but 4 are needed"):
        together.calibrate(ask(masked=True), keys=True, deadline_s=0.5, min_clients=4)


def test_fewer_than_three_sites_refuse(together: Lab) -> None:
    with pytest.raises(QuorumError, match=r"2 clients are left for a masked sum \(clinic-a, clinic-b\)"):
        together.calibrate(ask(masked=True), keys=True, members=NAMES[:2])


def test_a_site_believes_the_keys_its_own_operator_has(together: Lab) -> None:
    """clinic-d signs with a key that only the server has been told of: the others do not answer a list with it."""
    private, public = site_key()
    own = Path(together.sites["clinic-d"].calibration.key)
    own.write_bytes(private)
    (together.folder / "keys" / "clinic-d.pub").write_bytes(public)
    together.grid.keys[104] = read_public_key(together.folder / "keys" / "clinic-d.pub")
    assert isinstance(signing_key(own), ec.EllipticCurvePrivateKey)
    with pytest.raises(QuorumError, match="masked sum"):
        together.calibrate(ask(masked=True), keys=True)
    for name in NAMES:
        assert "masked_reply" not in str(together.audit(name)) or name == "clinic-d"
    own.chmod(0o644)
    with pytest.raises(QuorumError, match="can be read by others"):
        together.calibrate(ask(masked=True), keys=True)


def test_gradient_steps_are_no_sums() -> None:
    with pytest.raises(ConfigError, match="no sum to be masked"):
        check_request(ask(masked=True, learn="gradient"))


def test_a_deployed_site_takes_part_once_its_owner_uncomments_it(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    deploy(tiny(), tmp_path / "lab", Place())
    own = tmp_path / "lab" / "sites" / "clinic-a"
    file = own / "site.toml"
    assert load_site(file).calibration is None
    text = (
        file.read_text()
        .replace("# [calibration]\n# trace", "[calibration]\ntrace")
        .replace("# keys =", "keys =")
    )
    file.write_text(text.replace('"measurements"]', '"measurements", "masked_counts"]'))
    write_trace(own / "calibration.parquet", recorded("clinic-b"))
    found = [
        (one.ok, one.text) for one in doctor(Visit(file)) if "decisions" in one.what or "sites" in one.what
    ]
    assert found == [
        (
            True,
            "300, uncertainty expected, entropy, margin, max_prob, feedback probabilities, agreement; they name "
            "clinic-b, and count as clinic-a's all the same",
        ),
        (False, "clinic-b; a masked sum needs two"),
    ]
    site = load_site(file)
    assert site.calibration is not None
    assert signing_key(Path(site.calibration.key)).public_key().public_numbers() == (
        public_keys(Path(site.calibration.keys))["clinic-a"].public_numbers()
    )
