"""What may be said of a result, in sentences: the headline, and the failure signatures of a whole run.

Pure: contrasts in, sentences out. The signatures seen while a run goes on (no effect of distillation, poor
alignment, ...) are warnings of the run itself; here are those that only the finished table shows.

Source: specification of FedMKT, section 18; specification of studies, sections 2 and 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from fedtandem.reports.contrasts import Contrast
from fedtandem.reports.wording import difference, interval, listed, method_name, metric_name, payload, unit

Level = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Verdict:
    """One thing the report must say.

    Attributes:
        signature: its name in the specification.
        level: `bad` contradicts the method's promise, `note` limits what may be said.
        text: a sentence.
    """

    signature: str
    level: Level
    text: str


@dataclass(frozen=True)
class Payload:
    """Bytes a client sends and receives in one round, beside what FedAvg of its trainable weights would take.

    Attributes:
        method: whose bytes these are.
        per_round: mean over clients and rounds.
        fedavg: the same for FedAvg.
        measured: FedAvg was run; else its bytes are 2 a trainable weight, up and down.
    """

    method: str
    per_round: float
    fedavg: float
    measured: bool


@dataclass(frozen=True)
class Line:
    """A sentence under the headline; `note` where nothing may be claimed."""

    text: str
    level: Level


@dataclass(frozen=True)
class Headline:
    """The first thing a reader sees.

    Attributes:
        title: one plain sentence.
        lines: one per side (server, clients) or comparison.
    """

    title: str
    lines: tuple[Line, ...]


def signatures(contrasts: Sequence[Contrast], bytes_spent: Payload | None = None) -> tuple[Verdict, ...]:
    """The signatures of section 18 that the finished table shows.

    Args:
        contrasts: methods against their controls; those whose control had the same public labels count.
        bytes_spent: what the exchange took; None where nothing was exchanged.
    """
    shared = [
        c
        for c in contrasts
        if c.side == "clients" and c.control == "standalone_public" and c.gain is not None
    ]
    found = [verdict for c in shared if (verdict := _only_more_labels(c)) is not None]
    if one_seed := _added_nothing([c for c in shared if c.interval is None]):
        found.append(one_seed)
    harmed = [
        c for c in contrasts if c.party == "server" and c.control == "server_public" and (c.gain or 0) < 0
    ]
    if harmed:
        whole = [c.gain or 0.0 for c in contrasts if c.party == "server" and c.control == "server_public"]
        where = listed([f"{c.split} ({difference(c.difference, c.metric)} {unit(c.metric)})" for c in harmed])
        level: Level = "bad" if mean(whole) < 0 or any(c.claim for c in harmed) else "note"
        found.append(
            Verdict(
                "server harmed",
                level,
                f"The server is worse than the same model tuned on the public set alone on {where}.",
            )
        )
    if bytes_spent is not None and bytes_spent.per_round > bytes_spent.fedavg > 0:
        source = "measured beside it" if bytes_spent.measured else "2 bytes a weight, up and down"
        found.append(
            Verdict(
                "bytes above FedAvg of adapters",
                "note",
                f"A client's round takes {payload(bytes_spent.per_round)} under {method_name(bytes_spent.method)}; "
                f"averaging its trainable weights would take {payload(bytes_spent.fedavg)} ({source}).",
            )
        )
    return tuple(found)


def _only_more_labels(c: Contrast) -> Verdict | None:
    """Clients that, over seeds, do no better than with the same public set and no exchange."""
    if c.interval is None or c.claim or not (c.includes_zero or (c.gain or 0.0) <= 0):
        return None
    text = (
        f"{method_name(c.method)}, {_who(c.party)}: the gain is only the public set, "
        f"{difference(c.difference, c.metric)} {unit(c.metric)} on {c.split}, "
        f"95 % interval {interval(c.interval, c.metric)}, {c.seeds} seeds."
    )
    return Verdict("gain is only more labels", "bad", text)


def _added_nothing(contrasts: Sequence[Contrast]) -> Verdict | None:
    """The same from one seed: no interval, so only where the difference is not even positive."""
    # Where the control is right everywhere there is nothing to add.
    none = [
        c for c in contrasts if (c.gain or 0.0) <= 0 and not (c.higher_is_better and c.control_value == 1.0)
    ]
    if not none:
        return None
    where = listed(
        [f"{c.split} of {c.party} ({difference(c.difference, c.metric)} {unit(c.metric)})" for c in none]
    )
    text = f"The exchange added nothing to the public set itself on {where}; one seed."
    everywhere = len(none) == len(contrasts)
    return Verdict("gain is only more labels", "bad" if everywhere else "note", text)


def run_headline(contrasts: Sequence[Contrast], *, controls_to_come: bool = False) -> Headline:
    """One seed: what it shows, and that it is no claim.

    Args:
        contrasts: the run's method beside its controls.
        controls_to_come: the run is not finished and its controls have not run yet.
    """
    compared = [c for c in contrasts if c.gain is not None]
    if not contrasts:
        return Headline(
            "Nothing was measured yet." if controls_to_come else "Nothing was measured: no held-out sets.", ()
        )
    name = method_name(contrasts[0].method)
    if not compared:
        title = f"{name} ran without a control, so whether the exchange helped cannot be said."
        if controls_to_come:
            title = f"{name} is under way; the controls it will be judged by have not run yet."
        return Headline(title, _sides(contrasts))
    ahead = sum((c.gain or 0) > 0 for c in compared)
    sets = "test set" if len(compared) == 1 else "test sets"
    if ahead == 0:
        title = f"{name} was ahead of its control on none of {len(compared)} {sets}."
    elif ahead == len(compared):
        title = (
            f"{name} was ahead of its control on all {ahead} {sets}."
            if ahead > 1
            else f"{name} was ahead of its control."
        )
    else:
        title = f"{name} was ahead of its control on {ahead} of {len(compared)} {sets}."
    return Headline(f"{title} One seed is a figure, not a claim.", _sides(contrasts))


def _sides(contrasts: Sequence[Contrast]) -> tuple[Line, ...]:
    """A sentence per side and metric: where it came from, where it is, against what."""
    lines = []
    for side, metric in dict.fromkeys((c.side, c.metric) for c in contrasts):
        mine = [c for c in contrasts if (c.side, c.metric) == (side, metric)]
        compared = [c for c in mine if c.difference is not None]
        who = (
            "Server" if side == "server" else "Clients" if len({c.party for c in mine}) > 1 else mine[0].party
        )
        if not compared:
            continue
        average = mean(c.difference or 0.0 for c in compared)
        controls = listed(list(dict.fromkeys(method_name(c.control or "") for c in compared)))
        text = f"{who}: {difference(average, metric)} {unit(metric)} against {controls}"
        if len(compared) > 1:
            ordered = sorted(compared, key=lambda c: c.gain or 0.0)
            low, high = ordered[0], ordered[-1]
            text += f", the mean of {len(compared)} test sets (from {_at(low, mine)} to {_at(high, mine)})"
        better = "" if mine[0].higher_is_better else "; lower is better"
        gain = mean(c.gain or 0.0 for c in compared)
        lines.append(Line(f"{text}{better}.", "good" if gain > 0 else "bad"))
    return tuple(lines)


def _at(c: Contrast, mine: Sequence[Contrast]) -> str:
    several = len({other.party for other in mine}) > 1
    where = f"{c.split}, {c.party}" if several else c.split
    return f"{difference(c.difference, c.metric)} on {where}"


def study_headline(
    contrasts: Sequence[Contrast], *, not_valid: Sequence[str], seeds: int, needed: int
) -> Headline:
    """Many seeds: how many comparisons hold, or why nothing can be claimed.

    Args:
        contrasts: all comparisons.
        not_valid: requirements that were not met.
        seeds: finished seeds of the study.
        needed: seeds a claim needs.
    """
    if not_valid:
        return Headline(
            "Not valid, so nothing is compared.", tuple(Line(f"{reason}.", "bad") for reason in not_valid)
        )
    family = [c for c in contrasts if c.in_family]
    if not family:
        return Headline("The study compares nothing: no row has a control.", ())
    lines = tuple(Line(sentence(c), _level(c)) for c in family)
    if max(c.seeds for c in family) < needed:
        many = "seed" if seeds == 1 else "seeds"
        return Headline(f"No claim can be made with {seeds} {many}; it takes {needed}.", lines)
    better = [c for c in family if c.claim and (c.gain or 0) > 0]
    worse = [c for c in family if c.claim and (c.gain or 0) < 0]
    open_ = len(family) - len(better) - len(worse)
    if len(family) == 1:
        return Headline(sentence(family[0]), ())
    parts = [
        f"{_count(len(better))} {'shows' if len(better) == 1 else 'show'} a real gain over the control"
        if better
        else "",
        f"{_count(len(worse))} {'shows' if len(worse) == 1 else 'show'} a real loss" if worse else "",
        f"{_count(open_)} {'is' if open_ == 1 else 'are'} undecided" if open_ else "",
    ]
    said = listed([part for part in parts if part])
    return Headline(f"Of {len(family)} comparisons, {said}.", lines)


def _level(c: Contrast) -> Level:
    return "note" if not c.claim else "good" if (c.gain or 0) > 0 else "bad"


def sentence(c: Contrast) -> str:
    """One comparison of a study in words."""
    who = _who(c.party)
    size = f"{difference(c.difference, c.metric)} {unit(c.metric)}"
    spread = f"95 % interval {interval(c.interval, c.metric)}, {c.seeds} seeds" if c.interval else "one seed"
    names = f"{method_name(c.method)} against {method_name(c.control or '')}"
    measured = f"{c.split}, {metric_name(c.metric)}" if c.split else metric_name(c.metric)
    if not c.claim:
        return f"{names}, {who} ({measured}): {size}; {spread}. No claim: {c.why_no_claim}."
    verb = "beats" if (c.gain or 0) > 0 else "loses to"
    return f"{method_name(c.method)} {verb} {method_name(c.control or '')} for {who} ({measured}): {size}; {spread}."


def _who(party: str) -> str:
    return f"the {party}" if party in ("server", "clients") else party


def _count(n: int) -> str:
    words = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[n] if n < len(words) else str(n)
