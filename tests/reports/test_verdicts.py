"""What may be said of a result: nothing more than the figures allow."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.reports.contrasts import Contrast, run_contrasts, study_contrasts
from fedtandem.reports.record import read_run, read_study
from fedtandem.reports.verdicts import Payload, run_headline, sentence, signatures, study_headline

CLIENT = Contrast(
    "fedmkt", "standalone_public", "clients", "own", "accuracy", True, 0.74, 0.73, difference=0.01
)
SERVER = Contrast("fedmkt", "server_public", "server", "own", "accuracy", True, 0.80, 0.82, difference=-0.02)
SEEDS = {"seeds": 5, "why_no_claim": ""}


def names(verdicts):
    return [verdict.signature for verdict in verdicts]


def test_an_interval_around_zero_means_only_more_labels():
    unsure = replace(CLIENT, interval=(-0.01, 0.03), **SEEDS)
    assert names(signatures([unsure])) == ["gain is only more labels"]
    sure = replace(CLIENT, interval=(0.005, 0.015), claim=True, **SEEDS)
    assert not signatures([sure])


def test_one_seed_says_only_more_labels_where_there_is_no_gain():
    assert not signatures([CLIENT])
    (verdict,) = signatures([replace(CLIENT, difference=-0.01)])
    assert "added nothing" in verdict.text
    assert verdict.level == "bad"
    full = replace(CLIENT, value=1.0, control_value=1.0, difference=0.0)
    assert not signatures([full])  # nothing was left to add
    # Where another test set shows a gain, it is a limit, not a refutation.
    (verdict,) = signatures([replace(CLIENT, difference=-0.01), replace(CLIENT, split="other")])
    assert verdict.level == "note"


def test_a_server_below_its_own_public_tuning_is_harmed():
    (verdict,) = signatures([SERVER])
    assert verdict.signature == "server harmed"
    assert "own (−2.0 points)" in verdict.text
    # Bits per byte: lower is better, so a negative difference is a gain.
    assert not signatures([replace(SERVER, metric="bits_per_byte", higher_is_better=False)])


def test_bytes_above_fedavg_are_stated():
    assert names(signatures([], Payload("fedmkt", 2e6, 1e6, measured=False))) == [
        "bytes above FedAvg of adapters"
    ]
    assert not signatures([], Payload("fedmkt", 1e6, 2e6, measured=True))
    assert not signatures([], Payload("fedmkt", 1e6, 0, measured=False))  # nothing to compare with


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_one_seed_is_never_called_a_claim(differences):
    headline = run_headline([replace(CLIENT, difference=d, split=str(i)) for i, d in enumerate(differences)])
    assert "One seed is a figure, not a claim" in headline.title
    ahead = sum(d > 0 for d in differences)
    assert ("none of" in headline.title) == (ahead == 0)


def test_a_run_without_a_control_says_so():
    assert "cannot be said" in run_headline([replace(CLIENT, control=None, difference=None)]).title
    assert (
        "have not run yet"
        in run_headline([replace(CLIENT, control=None, difference=None)], controls_to_come=True).title
    )
    assert "Nothing was measured" in run_headline([]).title


def test_few_seeds_make_no_claim_in_the_headline():
    few = replace(CLIENT, interval=(0.005, 0.015), seeds=3, why_no_claim="3 seeds, a claim needs 5")
    headline = study_headline([few], not_valid=(), seeds=3, needed=5)
    assert headline.title == "No claim can be made with 3 seeds; it takes 5."
    assert headline.lines[0].level == "note"


def test_gains_losses_and_open_questions_are_counted_apart():
    gain = replace(CLIENT, interval=(0.005, 0.015), claim=True, **SEEDS)
    loss = replace(CLIENT, difference=-0.02, interval=(-0.03, -0.01), claim=True, **SEEDS)
    open_ = replace(CLIENT, interval=(-0.01, 0.03), **SEEDS)
    headline = study_headline([gain, loss, open_], not_valid=(), seeds=5, needed=5)
    assert headline.title == (
        "Of 3 comparisons, one shows a real gain over the control, one shows a real loss and one is undecided."
    )
    assert [line.level for line in headline.lines] == ["good", "bad", "note"]


def test_an_invalid_study_compares_nothing():
    headline = study_headline([], not_valid=("accuracy of standalone is 0.4",), seeds=5, needed=5)
    assert headline.title == "Not valid, so nothing is compared."


def test_a_sentence_says_who_won_by_how_much():
    won = replace(CLIENT, interval=(0.006, 0.014), claim=True, **SEEDS)
    assert sentence(won) == (
        "FedMKT beats Standalone + public for the clients (own, accuracy): +1.0 points; "
        "95 % interval +0.6 to +1.4, 5 seeds."
    )


def test_a_run_is_judged_by_the_control_of_each_side(run_folder):
    contrasts = run_contrasts(read_run(run_folder))
    assert {c.control for c in contrasts if c.party == "server"} == {"server_public"}
    assert {c.control for c in contrasts if c.party != "server"} == {"standalone_public"}
    at = next(c for c in contrasts if c.split == "at-1-step")
    assert (at.before, at.value, at.control_value) == (0.0, 0.931, 0.004)
    assert at.difference == pytest.approx(0.927)
    assert at.equal_updates


def test_a_study_keeps_the_sign_of_its_metric(study_folder):
    (mixed,) = [
        c
        for c in study_contrasts(read_study(study_folder))
        if (c.method, c.control, c.party, c.split) == ("fedmkt", "standalone_public", "clients", "mixed")
    ]
    assert mixed.difference < 0 < mixed.gain
    assert mixed.claim
