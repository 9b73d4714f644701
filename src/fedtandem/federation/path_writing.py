"""Have paths written for prompts, keep each as soon as it is there, and sort out what a check refuses."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtandem.algorithms.checked_paths import known_answers
from fedtandem.atomic import write_text
from fedtandem.checking.checkers import BUILT_IN, CheckSettings, counts, find_checker, judge
from fedtandem.checking.confidence import Point, confidence_curve, curve_text, read_curve, threshold_for
from fedtandem.checking.user import UserChecker
from fedtandem.checking.verdict import Checker
from fedtandem.data.load import load_samples
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource
from fedtandem.errors import ConfigError, Interrupted, NetworkError
from fedtandem.federation.events import EventLog, read_events
from fedtandem.federation.path_writers import EndpointWriter, ModelWriter, Writer, Written
from fedtandem.federation.paths import PathsRequest
from fedtandem.models.endpoint import Endpoint
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.scratch import cache_folder
from fedtandem.user_code import known_or_own

Progress = Callable[[str, int, int], None]


@dataclass
class Outcome:
    """What came out.

    Attributes:
        rows: accepted paths, in the prompts' order, as written to the output.
        refused: the others, each with its reason.
        failed: (id, reason) of prompts without a path.
        verdicts: how many the check accepted, refused, could not judge, or failed on.
        written, cached: paths there are, and how many of them were known from before.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    written: int = 0
    cached: int = 0
    refused_file: Path = Path()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "paths": len(self.rows), "refused": len(self.refused), "written": self.written, "cached": self.cached,
            "verdicts": self.verdicts, "failed": [{"id": name, "reason": why} for name, why in self.failed],
        }  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A prompt with its path, and the path's key."""

    sample: Sample
    key: str
    path: Written

    def row(self) -> dict[str, Any]:
        """As it is written down; the separator between prompt and answer is the reader's to add."""
        sure = {} if self.path.nats_per_byte is None else {"nats_per_byte": self.path.nats_per_byte}
        answer = self.path.text.removeprefix(" ")
        return {"id": self.sample.id, "prompt": self.sample.prompt, "answer": answer, **sure, "key": self.key}


def write_paths(request: PathsRequest, progress: Progress) -> Outcome:
    """Carry out `fedtandem paths`.

    Every finished path is put down at once, under the hash of writer, template and prompt: an interruption loses
    nothing, and the same prompt is never paid for twice.

    Raises:
        ConfigError, DataError, ModelError: before anything is written.
        NetworkError: the endpoint is gone or refuses; what is finished stands in the output.
    """
    samples = _samples(request)
    settings = _settings(request)
    answers, choices = known_answers(samples, None if request.answers is None else GOLD)
    checker = find_checker(settings, answers=answers, choices=choices)
    threshold = _threshold(request)
    writer = _writer(request, progress)
    keys = [path_key(writer.identity, request.template, sample.prompt) for sample in samples]
    journal = cache_folder() / "paths" / f"{hashlib.sha256(writer.identity.encode()).hexdigest()[:32]}.jsonl"
    done = _known(request, journal)
    outcome = Outcome(cached=sum(key in done for key in keys), refused_file=_refused_file(request))
    stop: BaseException | None = None
    try:
        outcome.failed = _ask(request, writer, samples, keys, done, journal, progress)
    except (NetworkError, KeyboardInterrupt) as error:
        stop = error
    finished = [
        Finished(sample, key, done[key]) for sample, key in zip(samples, keys, strict=True) if key in done
    ]
    _sort_out(outcome, finished, checker, settings, threshold, request)
    _put_down(request, outcome)
    if stop is not None:
        told = f"{len(finished)} of {len(samples)} paths are finished and kept in {request.output}; --resume goes on"
        raise (
            NetworkError(f"{stop} {told}.") if isinstance(stop, NetworkError) else Interrupted(told)
        ) from stop
    return outcome


def path_key(identity: str, template: str, prompt: str) -> str:
    """SHA-256 (hex) of all that decides a path: who writes, what it is shown."""
    return hashlib.sha256(json.dumps([identity, template, prompt]).encode()).hexdigest()


# -- before ------------------------------------------------------------------------------------------------------


def _threshold(request: PathsRequest) -> float | None:
    """The loss up to which a path is trusted without a check; None trusts all."""
    if request.trust is None:
        return None
    threshold = threshold_for(read_curve(request.trust), request.precision)
    if threshold is None:
        raise ConfigError(f"{request.trust} proves no share of paths to be right in {request.precision:.0%}.")
    return threshold


def _refused_file(request: PathsRequest) -> Path:
    return request.output.with_name(f"{request.output.stem}.refused.jsonl")


def _samples(request: PathsRequest) -> list[Sample]:
    if "{prompt}" not in request.template:
        raise ConfigError(f"--template is {request.template!r}; say with {{prompt}} where the prompt goes.")
    # Under a name of its own: a column that is called `answer` is hidden in a set without answers.
    columns = {GOLD: request.answers, "prompt": request.prompt_column}
    source = DataSource(
        path=str(request.prompts),
        labelled=False,
        preset=request.preset,
        limit=request.limit,
        columns={name: column for name, column in columns.items() if column is not None},
    )
    return load_samples(source, where="prompts")


GOLD = "known answer"
"""The column a check compares with."""


def _settings(request: PathsRequest) -> CheckSettings:
    try:
        return CheckSettings(known_or_own(request.check, BUILT_IN), request.form, undecided=request.undecided)
    except ValueError as error:
        raise ConfigError(f"--check is {request.check!r}; it {error}.") from error


def _writer(request: PathsRequest, progress: Progress) -> Writer:
    if request.model is None:
        endpoint = Endpoint.from_environment(
            request.endpoint or None,
            request.served_model,
            attempts=request.attempts,
            timeout_s=request.timeout_s,
        )
        return EndpointWriter(endpoint, request.template, request.max_new_tokens, request.parallel)
    progress("loading the model", 0, 1)
    lm = load_model(ModelSpec(model=request.model, tuning_method="none"))
    progress("loading the model", 1, 1)
    return ModelWriter(
        lm, request.template, request.max_new_tokens, request.batch_size, request.chat_template
    )


def _known(request: PathsRequest, journal: Path) -> dict[str, Written]:
    """Paths of earlier commands, by key: those of the cache, and those the output of this one holds."""
    lines = [event for event in read_events(journal) if event["event"] == "path"]
    for file in (request.output, _refused_file(request)) if request.resume else ():
        if file.is_file():
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
            lines += [{**row, "text": row["answer"]} for row in rows if "key" in row]
    return {line["key"]: Written(line["text"], line.get("nats_per_byte")) for line in lines}


# -- asking ------------------------------------------------------------------------------------------------------


def _ask(
    request: PathsRequest,
    writer: Writer,
    samples: Sequence[Sample],
    keys: Sequence[str],
    done: dict[str, Written],
    journal: Path,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Have the missing paths written into `done` and the journal; (id, reason) of those that did not come."""
    missing = [at for at in dict(zip(keys, range(len(keys)), strict=True)).values() if keys[at] not in done]
    journal.parent.mkdir(parents=True, exist_ok=True)
    log = EventLog(journal)
    failed: dict[str, str] = {}
    try:
        progress("writing paths", 0, len(missing))
        shown = [request.template.replace("{prompt}", samples[at].prompt) for at in missing]
        for count, (place, path) in enumerate(writer.write(shown), start=1):
            at = missing[place]
            if path.fault:
                failed[keys[at]] = path.fault
            else:
                done[keys[at]] = path
                # The key stands where an event's identity is looked for, so that none hides another.
                log.emit(
                    "path", key=keys[at], text=path.text, nats_per_byte=path.nats_per_byte, teacher=keys[at]
                )
            progress("writing paths", count, len(missing))
    finally:
        log.close()
    return [(sample.id, failed[key]) for sample, key in zip(samples, keys, strict=True) if key in failed]


# -- after -------------------------------------------------------------------------------------------------------


def _sort_out(
    outcome: Outcome,
    finished: Sequence[Finished],
    checker: Checker | None,
    settings: CheckSettings,
    threshold: float | None,
    request: PathsRequest,
) -> None:
    """Put every finished path among the rows or the refused."""
    outcome.written = len(finished)
    losses = [one.path.nats_per_byte or 0.0 for one in finished]
    if checker is None:
        for one, loss in zip(finished, losses, strict=True):
            if threshold is not None and loss > threshold:
                outcome.refused.append(
                    {**one.row(), "reason": f"less sure than {threshold:.4f} nats per byte"}
                )
            else:
                outcome.rows.append(one.row())
    else:
        with closing(checker) if isinstance(checker, UserChecker) else nullcontext():
            verdicts = judge(checker, [(one.sample.prompt, one.path.text) for one in finished])
        outcome.verdicts = counts(verdicts)
        for one, verdict in zip(finished, verdicts, strict=True):
            if settings.accepts(verdict):
                outcome.rows.append({**one.row(), "check": verdict.reason})
            else:
                outcome.refused.append({**one.row(), "reason": verdict.reason})
        if request.model is not None and finished:
            outcome.curve = confidence_curve(losses, [verdict.ok is True for verdict in verdicts])
    _keep_surest(outcome, request.keep)


def _keep_surest(outcome: Outcome, keep: float) -> None:
    """Move all but the surest share of the rows to the refused."""
    if keep == 1 or not outcome.rows:
        return
    ranked = sorted(row["nats_per_byte"] for row in outcome.rows)
    limit = ranked[max(1, round(keep * len(ranked))) - 1]
    less_sure = [row for row in outcome.rows if row["nats_per_byte"] > limit]
    outcome.rows = [row for row in outcome.rows if row["nats_per_byte"] <= limit]
    outcome.refused += [{**row, "reason": f"not among the surest {keep:.0%}"} for row in less_sure]


def _put_down(request: PathsRequest, outcome: Outcome) -> None:
    write_text(request.output, _lines(outcome.rows))
    if outcome.refused or outcome.refused_file.is_file():
        write_text(outcome.refused_file, _lines(outcome.refused))
    if request.curve is not None and outcome.curve:
        write_text(request.curve, curve_text(outcome.curve))


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
