"""A policy: narrow scopes first, other models never, and what is no policy is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtandem.errors import ConfigError
from fedtandem.inference.policy import Entry, Policy, policy_from_json, policy_to_json
from fedtandem.inference.threshold import BUILT_IN

OLD, NEW = ("slm-1", "llm"), ("slm-2", "llm")


def entry(tau, *models, interval=(0.1, 0.9), cluster=""):
    return Entry(tau, interval, "client", 200, 400, 1000, models, cluster)


def policy(client=(OLD,), cluster=(OLD,), everyone=(OLD,)):
    return Policy(
        measure="expected", feedback="agreement", learn="histogram", goal={"kind": "share", "value": 0.1}, price=0.3,
        audit_rate=0.01, share=0.1, error=0.02, overall=entry(0.3, *everyone, interval=None),
        clusters={"e": entry(0.2, *cluster)}, clients={"c": entry(0.1, *client, cluster="e")},
        similarity={"delta": 0.92, "audits": 0, "lower_bound": 0.0, "is_proven": False},
    )  # fmt: skip


def test_the_narrowest_scope_made_for_these_models_holds_and_says_why():
    assert policy().resolve("c", "e", OLD).scope == "client"
    found = policy(cluster=(OLD, NEW)).resolve("c", "e", NEW)
    assert (found.tau, found.scope) == (0.2, "cluster")
    assert "made for slm-1 with llm, not for slm-2" in found.reason
    found = policy(everyone=(NEW,)).resolve("c", "e", NEW)
    assert (found.tau, found.scope) == (0.3, "global")
    found = policy().resolve("c", "e", NEW)
    assert (found.tau, found.scope) == (BUILT_IN, "built-in")
    assert policy().resolve("new", "e", OLD).tau == 0.2
    found = policy().resolve("new", "elsewhere", OLD)
    assert (found.tau, found.scope) == (0.3, "global")
    assert "new is not in the policy" in found.reason


@given(st.text(max_size=5), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=25)
def test_a_policy_comes_back_from_its_file(name, tau, n):
    whole = policy()
    odd = Policy(**{**vars(whole), "clients": {name: Entry(tau, None, "last", n, n, n, (OLD, NEW), name)}})
    assert policy_from_json(policy_to_json(odd), "p") == odd


@pytest.mark.parametrize(("change", "told"), [
    (lambda p: p.update(version=2), "version = 2; this program reads"),
    (lambda p: p.pop("overall"), "KeyError: 'overall'"),
    (lambda p: p["overall"].update(tau=float("nan")), "tau = nan"),
    (lambda p: p["overall"].update(tau=7), "tau = 7"),
    (lambda p: p["clients"]["c"].update(models=["slm"]), "ValueError"),
    (lambda p: p.update(clusters=3), "AttributeError"),
])  # fmt: skip
def test_what_is_no_policy_is_refused(change, told):
    whole = json.loads(policy_to_json(policy()))
    change(whole)
    with pytest.raises(ConfigError, match=told):
        policy_from_json(json.dumps(whole), "p.json")
    for junk in ("", "[]", "{", "null"):
        with pytest.raises(ConfigError, match=r"p\.json"):
            policy_from_json(junk, "p.json")
