"""The check between writing and learning: what a receiver refuses is never trained on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from fedtandem.algorithms.learner import Learner
from fedtandem.checking.checkers import CheckSettings, counts, find_checker, find_form, judge
from fedtandem.checking.path import Fact, PathCheck, known_topics, remembering
from fedtandem.checking.user import UserChecker
from fedtandem.checking.verdict import Checker, Verdict
from fedtandem.data.public import Sample
from fedtandem.data.template import as_text
from fedtandem.errors import DataError
from fedtandem.evaluation.reading import read_answers
from fedtandem.exchange.knowledge import Knowledge

TRUSTED_SHARE = 0.7
"""A producer of which the check lets fewer paths through is called a wrong teacher."""
EXAMPLES = 5
"""Refusals that the record tells by id and reason, per producer and round."""


def accepted_only(
    learner: Learner, round_number: int, sources: Mapping[str, Knowledge]
) -> tuple[dict[str, Knowledge], dict[int, str]]:
    """The paths that the learner's check lets through, and those it vouches for.

    Records per producer how many were accepted and refused. Without a check everything is let through and nothing
    recorded.

    Args:
        learner: the receiver; asked about its own facts as it is now.
        round_number: for the record.
        sources: producer -> its knowledge, with texts.

    Returns:
        The same knowledge with the score +inf where a path is not accepted, so that no rule chooses it; and
        sample -> text of the accepted paths of which every step was verified.
    """
    if learner.check.name == "none":
        return dict(sources), {}
    heard: dict[str, Knowledge] = {}
    vouched: dict[int, str] = {}
    with learner.timed("check", round_number), judging(learner, round_number) as checker:
        for name, knowledge in sources.items():
            verdicts = judge(checker, _pairs(learner, knowledge))
            accepted = np.array([learner.check.accepts(verdict) for verdict in verdicts], dtype=bool)
            _report(learner, round_number, name, knowledge, verdicts, accepted)
            heard[name] = replace(knowledge, scores=np.where(accepted, knowledge.scores, np.float32(np.inf)))
            vouched |= _vouched(checker, _pairs(learner, knowledge), verdicts)
    return heard, vouched


def only_vouched(learner: Learner, round_number: int, texts: Sequence[str]) -> list[str]:
    """The learner's own paths of which its check verifies every step; "" in place of the others.

    Args:
        texts: one per public prompt.
    """
    pairs = [(sample.prompt, text) for sample, text in zip(learner.public, texts, strict=True)]
    with learner.timed("check", round_number), judging(learner, round_number) as checker:
        sent = _vouched(checker, pairs, judge(checker, pairs))
    return [sent.get(i, "") for i in range(len(texts))]


@contextmanager
def judging(learner: Learner, round_number: int) -> Iterator[Checker]:
    """The learner's checker for a while: `checker_of`, and the end of the process of a user's own."""
    checker = checker_of(learner, round_number)
    with closing(checker) if isinstance(checker, UserChecker) else nullcontext():
        yield checker


def checker_of(learner: Learner, round_number: int) -> Checker:
    """The learner's checker, with the facts of its present weights."""
    answers, choices = known_answers(learner.public, learner.check_answers)
    topics: frozenset[str] = frozenset()
    ask = remembering(lambda questions: own_facts(learner, questions, round_number))
    if learner.check.name == "path":
        own = ((sample.prompt, sample.answer or "") for sample in learner.own)
        topics = known_topics(find_form(learner.check.form), own, ask)
    checker = find_checker(
        learner.check,
        answers=answers,
        choices=choices,
        ask=ask,
        topics=topics,
    )
    if checker is None:
        raise RuntimeError(f"{learner.name} has no check")
    return checker


def prepare_check(settings: CheckSettings, public: Sequence[Sample], column: str | None) -> None:
    """Find before any training whether a check can be made.

    Raises:
        ConfigError: a function of the user's own is not there.
        DataError: a public row lacks the column of known answers.
    """
    answers, choices = known_answers(public, column)
    find_checker(settings, answers=answers, choices=choices)


def known_answers(
    public: Sequence[Sample], column: str | None
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Prompt -> known answer, and prompt -> options, from a column of the public rows that no party is taught.

    Raises:
        DataError: a row lacks the column.
    """
    if column is None:
        return {}, {}
    answers: dict[str, str] = {}
    choices: dict[str, tuple[str, ...]] = {}
    for sample in public:
        value = sample.fields.get(column)
        if value is None:
            raise DataError(
                f"public set: sample {sample.id!r} has no column {column!r} (public.check_answers); its columns are "
                f"{', '.join(sample.fields) or 'none'}. An `answer` column is hidden in an unlabelled set: give it "
                f'another name with columns.{column} = "answer".'
            )
        answers[sample.prompt] = as_text(value)
        options = sample.fields.get("choices")
        if isinstance(options, list | tuple):
            choices[sample.prompt] = tuple(as_text(option) for option in options)
    return answers, choices


def own_facts(learner: Learner, questions: Sequence[str], round_number: int) -> list[Fact]:
    """What the learner's present model answers, greedily, and the probability of that whole answer."""
    lm, longest = learner.lm, learner.unlabelled.max_new_tokens if learner.unlabelled else 64
    tokenizer = lm.tokenizer
    prompts = [tokenizer.encode_prompt(text, chat_template=learner.chat_template) for text in questions]
    written = lm.generate(
        prompts,
        max_new_tokens=longest,
        batch_size=learner.eval_batch_size * 2,
        on_progress=lambda done, of: learner.progress(f"{learner.name}: asking itself", done, of),
    )
    answers = [tokenizer.decode_answer(ids) for ids in written]
    said = [i for i, answer in enumerate(answers) if answer]
    texts = learner.encode([Sample(str(i), questions[i], answers[i]) for i in said])
    losses = dict(zip(said, read_answers(lm, texts, batch_size=learner.eval_batch_size), strict=True))
    return [
        Fact(answer, math.exp(-float(losses[i].sum())) if i in losses else 0.0)
        for i, answer in enumerate(answers)
    ]


def _pairs(learner: Learner, knowledge: Knowledge) -> list[tuple[str, str]]:
    texts = knowledge.texts or ("",) * len(learner.public)
    return [(sample.prompt, text) for sample, text in zip(learner.public, texts, strict=True)]


def _vouched(
    checker: Checker, pairs: Sequence[tuple[str, str]], verdicts: Sequence[Verdict]
) -> dict[int, str]:
    return {
        i: pairs[i][1]
        for i, verdict in enumerate(verdicts)
        if verdict.ok is True and (not isinstance(checker, PathCheck) or checker.vouches(*pairs[i]))
    }


def _by_stratum(
    learner: Learner, knowledge: Knowledge, accepted: np.ndarray
) -> dict[str, dict[str, int | None]]:
    """Per kind of prompt (column `stratum` of the public rows) how many paths were written, used and, where the right
    ones are known at home (column `gold`), right among those used. {} where the rows are of no kinds."""
    places: dict[str, list[int]] = {}
    for i, (sample, text) in enumerate(zip(learner.public, knowledge.texts or (), strict=True)):
        if text and sample.fields.get("stratum") is not None:
            places.setdefault(str(sample.fields["stratum"]), []).append(i)
    told: dict[str, dict[str, int | None]] = {}
    for stratum, at in sorted(places.items()):
        used = [i for i in at if accepted[i]]
        known = [i for i in used if learner.public[i].fields.get("gold") is not None]
        right = sum(learner.public[i].fields["gold"] == (knowledge.texts or ())[i] for i in known)
        told[stratum] = {
            "written": len(at), "used": len(used), "right": right if len(known) == len(used) > 0 else None,
        }  # fmt: skip
    return told


def _report(
    learner: Learner,
    round_number: int,
    producer: str,
    knowledge: Knowledge,
    verdicts: Sequence[Verdict],
    accepted: np.ndarray,
) -> None:
    """Record the counts, a few refusals by prompt, and every kind of fault of the checker itself."""
    written = np.array([bool(text) for text in knowledge.texts or ()], dtype=bool)
    mine = [verdict for verdict, there in zip(verdicts, written, strict=True) if there]
    told = [
        {"id": learner.public[i].id, "reason": verdict.reason}
        for i, verdict in enumerate(verdicts)
        if written[i] and not accepted[i]
    ]
    learner.emit(
        "check", round=round_number, party=learner.name, teacher=producer, checker=learner.check.name,
        written=int(written.sum()), used=int(accepted.sum()), **counts(mine), examples=told[:EXAMPLES],
        strata=_by_stratum(learner, knowledge, accepted),
    )  # fmt: skip
    failed = [(learner.public[i].id, verdict) for i, verdict in enumerate(verdicts) if verdict.failed]
    if failed:
        learner.emit(
            "warning", round=round_number, party=learner.name, signature="the checker failed",
            text=f"{learner.check.name} failed on {len(failed)} of {len(mine)} paths of {producer}; they are not used: "
            + "; ".join(f"prompt {name}: {verdict.reason}" for name, verdict in failed[:EXAMPLES]),
        )  # fmt: skip
    share = float(accepted.sum() / len(mine)) if mine else 1.0
    if 0 < share < TRUSTED_SHARE:
        learner.emit(
            "warning", round=round_number, party=learner.name, teacher=producer, signature="wrong teachers",
            text=f"{producer} to {learner.name}: {learner.check.name} lets {share:.0%} of {len(mine)} paths through; "
            "the others are not learnt",
        )  # fmt: skip
    if len(mine) and not accepted.any():
        learner.emit(
            "warning", round=round_number, party=learner.name, signature="the check refuses everything",
            text=f"none of {len(mine)} paths of {producer} passes {learner.check.name}"
            + (f", e.g. prompt {told[0]['id']}: {told[0]['reason']}" if told else ""),
        )  # fmt: skip
