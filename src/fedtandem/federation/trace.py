"""`fedtandem trace`: two models decide on a user's rows, and a trace keeps what they said."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedtandem.data.items import Assignment, Columns, Item, assigned, read_documents, read_prompts
from fedtandem.data.traces import Trace, make_trace, write_trace
from fedtandem.errors import ConfigError, NetworkError
from fedtandem.evaluation.record_answers import AnswerRecorder, EndpointAnswers, LocalAnswers
from fedtandem.evaluation.record_classes import ClassRecorder, EndpointCloud, LocalCloud
from fedtandem.evaluation.record_tokens import TokenRecorder
from fedtandem.evaluation.recording import Recorder
from fedtandem.federation.progress import Watch
from fedtandem.federation.recording import Recording
from fedtandem.models.chat_endpoint import ChatEndpoint
from fedtandem.models.endpoint import Endpoint
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model, locate
from fedtandem.models.sequence_classifier import has_classification_head, load_classifier

Kind = Literal["auto", "classify", "tokens", "answers"]
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class TraceRequest:
    """What `fedtandem trace` was asked.

    Attributes:
        slm, llm: folders, hub names or embedded:NAME; `llm` the server's name for it where `url` is given.
        url: of an OpenAI-compatible endpoint, up to /v1, or "env" for OPENAI_BASE_URL; None loads `llm`.
        kind: classes of documents, tokens of generated answers, whole answers; "auto" asks the SLM's config.
        clients, clusters, alpha: draw clients for the rows; None takes the data's columns.
        mark: of `answers`: what the compared part of an answer follows.
        allow_missing: write the trace without the items the cloud has no answer to.
    """

    slm: str
    llm: str
    data: Path
    output: Path
    url: str | None = None
    kind: Kind = "auto"
    columns: Columns = field(default_factory=Columns)
    preset: str | None = None
    clients: int | None = None
    clusters: int = 1
    alpha: float | None = None
    limit: int | None = None
    batch_size: int = 16
    max_length: int = 512
    max_new_tokens: int = 64
    draft: Literal["greedy", "sampled"] = "greedy"
    top_k: int = 64
    embeds: bool = False
    mark: str = ""
    parallel: int = 4
    tries: int = 4
    timeout_s: float = 60.0
    seed: int = 0
    resume: bool = False
    allow_missing: bool = False


def trace_command(request: TraceRequest, *, json_output: bool = False) -> str:
    """Record, write the trace, and say what is in it.

    Raises:
        ConfigError: options that contradict each other, or an unfinished recording without `--resume`.
        DataError, ModelError: rows or models that cannot be used.
        NetworkError: the endpoint refuses us, or has no answer to some items; what it answered is kept.
    """
    _check(request)
    kind = _kind(request)
    recorder, items = _opened(request, kind)
    recording = Recording(
        request.output.with_name(request.output.name + ".parts"), _key(request, kind, recorder, items)
    )
    recording.open(resume=request.resume)
    failed = record(recorder, items, recording, request.batch_size, quiet=json_output)
    if failed and not (request.allow_missing and len(failed) < len(items)):
        raise NetworkError(_failures(failed, len(items), recording))
    trace = recording.whole([item.id for item in items])
    if kind == "answers":
        trace = numbered(trace)
    write_trace(request.output, trace)
    recording.remove()
    told = _summary(trace, kind, failed) | {"output": str(request.output), "note": recorder.note}
    return json.dumps(told) if json_output else _in_words(told)


def record(
    recorder: Recorder, items: Sequence[Item], recording: Recording, batch_size: int, *, quiet: bool = False
) -> dict[str, str]:
    """Record what the recording does not hold yet, batch by batch.

    Returns:
        Id -> reason of the items the cloud has no answer to.

    Raises:
        NetworkError: a whole batch was not answered: the endpoint is down, the rest need not be asked.
    """
    done = recording.done()
    left = [item for item in items if item.id not in done]
    failed: dict[str, str] = {}
    with Watch(quiet=quiet) as watch:
        for start in range(0, len(left), batch_size):
            watch("recording", len(items) - len(left) + start, len(items))
            batch = left[start : start + batch_size]
            came = recorder.record(batch)
            if len(came.failed) < len(batch):
                recording.add(make_trace(recorder.info, came.columns))
            failed |= came.failed
            if len(came.failed) == len(batch) and start + batch_size < len(left):
                raise NetworkError(_failures(failed, len(items), recording))
    return failed


def numbered(trace: Trace) -> Trace:
    """Answers that are named by hashes, numbered from 0 instead."""
    names, place = np.unique(np.concatenate([trace.draft, trace.answer]), return_inverse=True)
    n = len(trace)
    columns = trace.columns() | {"draft": place[:n], "answer": place[n:]}
    return make_trace(replace(trace.info, vocabulary=len(names)), columns)


def _check(request: TraceRequest) -> None:
    for flag, value in (
        ("--batch-size", request.batch_size), ("--max-new-tokens", request.max_new_tokens),
        ("--top-k", request.top_k), ("--parallel", request.parallel), ("--tries", request.tries),
        ("--max-length", request.max_length), ("--limit", 1 if request.limit is None else request.limit),
    ):  # fmt: skip
        if value < 1:
            raise ConfigError(f"{flag} {value}; expected at least 1.")
    if not request.timeout_s > 0:
        raise ConfigError(f"--timeout {request.timeout_s:g}; expected seconds above 0.")
    if request.clients is None and (request.clusters != 1 or request.alpha is not None):
        raise ConfigError("--clusters and --alpha draw clients for the rows: say how many with --clients.")


def _kind(request: TraceRequest) -> Kind:
    if request.kind != "auto":
        kind: Kind = request.kind
    elif request.slm.startswith("embedded:"):
        kind = "tokens" if request.url is None else "answers"
    else:
        headed = has_classification_head(locate(request.slm))
        kind = "classify" if headed else "tokens" if request.url is None else "answers"
    if kind == "tokens" and request.url is not None:
        raise ConfigError(
            "--kind tokens needs the LLM's whole law at every place, which a chat endpoint does not give; use "
            "--kind answers, or load the model with --llm FOLDER and no --llm-url."
        )
    return kind


def _opened(request: TraceRequest, kind: Kind) -> tuple[Recorder, list[Item]]:
    """The models and the rows they are to decide on."""
    name = request.output.stem
    if kind == "classify":
        slm = load_classifier(request.slm, max_length=request.max_length)
        items = _items(request, read_documents(request.data, request.columns, slm.labels, request.limit))
        endpoint = _endpoint(request)
        if endpoint is not None:
            return ClassRecorder(slm, EndpointCloud(endpoint, slm.labels, request.parallel), name), items
        llm = load_classifier(request.llm, max_length=request.max_length)
        return ClassRecorder(slm, LocalCloud(llm, slm.labels), name), items
    rows = read_prompts(
        request.data, request.columns, preset=request.preset, answered=kind == "answers", limit=request.limit
    )
    items = _items(request, rows)
    small, endpoint = _causal(request.slm), _endpoint(request)
    if kind == "tokens":
        recorder = TokenRecorder(
            small, _causal(request.llm), draft=request.draft, max_new_tokens=request.max_new_tokens,
            top_k=request.top_k, seed=request.seed, embeds=request.embeds, name=name,
        )  # fmt: skip
        return recorder, items
    cloud = (
        LocalAnswers(_causal(request.llm), request.max_new_tokens)
        if endpoint is None
        else EndpointAnswers(endpoint, request.max_new_tokens, request.parallel)
    )
    return AnswerRecorder(
        small, cloud, max_new_tokens=request.max_new_tokens, mark=request.mark, name=name
    ), items


def _items(request: TraceRequest, items: list[Item]) -> list[Item]:
    if request.clients is None:
        return items
    return assigned(items, Assignment(request.clients, request.clusters, request.alpha, request.seed))


def _endpoint(request: TraceRequest) -> ChatEndpoint | None:
    if request.url is None:
        return None
    url = None if request.url == "env" else request.url
    return ChatEndpoint(
        Endpoint.from_environment(url, request.llm, timeout_s=request.timeout_s, attempts=request.tries)
    )


def _causal(name: str) -> LanguageModel:
    return load_model(ModelSpec(model=name, tuning_method="none"))


def _key(request: TraceRequest, kind: Kind, recorder: Recorder, items: Sequence[Item]) -> str:
    """What must be equal for two recordings to be one: models, rows and how they are asked."""
    whole = hashlib.blake2b(digest_size=16)
    for item in items:
        whole.update(json.dumps(asdict(item)).encode() + b"\n")
    asked = [kind, request.max_length, request.max_new_tokens, request.draft, request.top_k, request.embeds,
             request.mark, request.seed]  # fmt: skip
    return json.dumps({"asked": asked, "info": asdict(recorder.info), "items": whole.hexdigest()})


def _failures(failed: dict[str, str], n: int, recording: Recording) -> str:
    shown = "; ".join(f"item {name!r}: {reason}" for name, reason in list(failed.items())[:SHOWN_FAILURES])
    more = f"; and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    return (
        f"{len(failed)} of {n} items have no answer from the cloud: {shown}{more}. {len(recording.done())} are "
        f"kept in {recording.folder}; --resume asks for the others, --allow-missing then writes the trace "
        "without them."
    )


def _summary(trace: Trace, kind: Kind, failed: dict[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": kind, "decisions": len(trace), "clients": len(np.unique(trace.client)),
        "clusters": len(np.unique(trace.cluster)), "agreement": float((trace.draft == trace.answer).mean()),
        "slm": trace.info.slm, "llm": trace.info.llm, "columns": list(trace.columns()), "failed": failed,
    }  # fmt: skip
    if trace.slm_score is not None and trace.llm_score is not None:
        told |= {"slm_right": float(trace.slm_score.mean()), "llm_right": float(trace.llm_score.mean())}
    elif trace.label is not None and (trace.label >= 0).any():
        known = trace.label >= 0
        told["slm_right"], told["llm_right"] = (
            float((answer == trace.label)[known].mean()) for answer in (trace.draft, trace.answer)
        )
    if trace.slm_ms is not None and trace.llm_ms is not None:
        told |= {"slm_ms": float(trace.slm_ms.mean()), "llm_ms": float(trace.llm_ms.mean())}
    return told


def _in_words(told: dict[str, Any]) -> str:
    things = {"classify": "documents", "tokens": "tokens", "answers": "questions"}[told["kind"]]
    lines = [
        f"{told['output']}: {told['decisions']:,} {things} of {told['clients']} clients behind {told['clusters']} "
        f"edges; {told['slm']} and {told['llm']} say the same in {told['agreement']:.1%}",
    ]
    if "slm_right" in told:
        lines.append(f"right: SLM {told['slm_right']:.1%}, LLM {told['llm_right']:.1%}")
    if "slm_ms" in told:
        lines.append(
            f"took {told['slm_ms']:.2f} ms (SLM) and {told['llm_ms']:.2f} ms (LLM) each, inside batches"
        )
    if told["note"]:
        lines.append(told["note"])
    if "llm_probs" not in told["columns"] and told["kind"] != "answers":
        lines.append(
            "the cloud told no whole law: calibrate learns from agreement, not from how likely a draft was refused"
        )
    if told["failed"]:
        lines.append(f"left out, not answered by the cloud: {', '.join(told['failed'])}")
    lines.append(
        f"next: fedtandem calibrate {told['output']} --budget 10%; or, to try a policy of other rows on these, "
        f"fedtandem route {told['output']} --policy FILE"
    )
    return "\n".join(lines)
