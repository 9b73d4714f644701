"""Study `peers`: a cache of cloud answers under questions that come again, nearly again, or changed.

    python -m fedtandem.studies.peers --questions ../shared/data/gsm8k/train.jsonl.gz \\
        --questions ../shared/data/boolq/train_closed_book.jsonl.gz --output studies/peers

Twenty clients at four edges ask; popular questions more often (Zipf). A quarter of the asks are altered so that the
answer is another one: reversed, negated, with another number or name. A served answer is wrong if it belongs to
another question; answers need no model, only their identity. What is compared was named before any figure was seen:
the gated cache against a cosine alone and against equal text, in wrong answers and in calls saved.
"""

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.data.files import read_file
from fedtandem.data.traces import Trace, TraceInfo, make_trace
from fedtandem.errors import DataError
from fedtandem.evaluation.replay import PeerTries, try_peers
from fedtandem.inference.gates import text_gate
from fedtandem.inference.similarity import START, calibrate_similarity, wilson
from fedtandem.studies.altered import CHANGED, KEPT, names_in
from fedtandem.studies.cells import Figure, Measured
from fedtandem.studies.in_memory import About, write_study
from fedtandem.studies.statistics import Items
from fedtandem.studies.summary import Pattern, Plan

Floats = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats]

SEEDS = (0, 1, 2, 3, 4)
CLIENTS, EDGES = 20, 4
CHANGED_SHARE = 0.25
NEAR_SHARE = 0.3
ZIPF = 1.0
HASHED = 384

CONTEXTS: Mapping[str, Callable[[str], str]] = {
    "gated": lambda text: text_gate(text).hex(),
    "cosine": lambda text: "0" * 32,
    "equal_text": lambda text: hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
}
"""What must be equal besides a cosine."""
ROWS: Mapping[str, tuple[str, bool]] = {
    "equal_text": ("equal_text", False),
    "cosine": ("cosine", False),
    "cosine_calibrated": ("cosine", True),
    "gated": ("gated", False),
    "gated_calibrated": ("gated", True),
}
"""Row -> its context, and whether δ_sim is calibrated on the first half or stays at 0.92."""
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "gated": ("cosine", "cosine_calibrated", "equal_text"),
    "gated_calibrated": ("cosine_calibrated",),
}
CLAIMS = tuple(
    Pattern(method="gated", control=control, split="all", metric=metric)
    for control in ("cosine", "equal_text")
    for metric in ("served", "wrong")
)


@dataclass(frozen=True, eq=False)
class Stream:
    """N asks in order; equal answers belong to one question.

    Attributes:
        text, kind: (N,).
        answer: (N,) int64.
    """

    text: list[str]
    kind: npt.NDArray[np.str_]
    answer: npt.NDArray[np.int64]


def draw_stream(questions: Sequence[str], n: int, rng: np.random.Generator) -> Stream:
    """Asks with popularity 1/rank, some of them in other clothes, some changed into other questions.

    An altered question that happens to read like another one has that one's answer.
    """
    names = names_in(questions)
    popularity = 1 / np.arange(1, len(questions) + 1) ** ZIPF
    chosen = rng.choice(len(questions), n, p=popularity / popularity.sum())
    meanings: dict[str, int] = {question: i for i, question in enumerate(questions)}
    texts, kinds, answers = [], [], []
    for i in chosen.tolist():
        question, kind = questions[i], "same"
        if rng.random() < CHANGED_SHARE:
            # Two versions of each change: a changed question comes again as well.
            version = np.random.default_rng([i, int(rng.integers(2))])
            for kind in rng.permutation(list(CHANGED)).tolist():
                other = CHANGED[kind](question, names, version)
                if other is not None and other != question:
                    question = other
                    break
            else:
                kind = "same"
        answer = meanings.setdefault(question, len(meanings))
        if kind == "same" and rng.random() < NEAR_SHARE:
            question, kind = str(KEPT["near"](question, names, rng)), "near"
        texts.append(question)
        kinds.append(kind)
        answers.append(answer)
    return Stream(texts, np.array(kinds), np.array(answers, dtype=np.int64))


def hashed_embedding(texts: Sequence[str]) -> Floats:
    """Words and their letters' triples hashed into 384 places: a stand-in where there is no embedding model."""
    out = np.zeros((len(texts), HASHED), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.casefold().split():
            padded = f" {word} "
            for piece in (word, *(padded[i : i + 3] for i in range(len(padded) - 2))):
                digest = hashlib.blake2b(piece.encode(), digest_size=4).digest()
                out[row, int.from_bytes(digest, "big") % HASHED] += 1
    return np.log1p(out)


def model_embedding(folder: str) -> Embed:
    """The mean of a causal model's last hidden states."""
    from fedtandem.models.load import ModelSpec, load_model

    lm = load_model(ModelSpec(folder, tuning_method="none"))

    def embed(texts: Sequence[str]) -> Floats:
        return lm.embed([lm.tokenizer.encode_prompt(text)[:256] for text in texts])

    return embed


def as_trace(stream: Stream, embedding: Floats, rng: np.random.Generator) -> Trace:
    """The asks of twenty clients at four edges, all of them sent."""
    n, client = len(stream.text), rng.integers(0, CLIENTS, len(stream.text))
    return make_trace(
        TraceInfo(slm="slm", llm="llm", vocabulary=int(stream.answer.max()) + 1, name="peers"),
        {
            "client": [f"client-{i:02d}" for i in client], "cluster": [f"edge-{i % EDGES}" for i in client],
            "session": [str(i) for i in range(n)], "position": np.zeros(n), "draft": stream.answer,
            "answer": stream.answer, "uncertainty": np.ones(n), "embedding": embedding,
            "context": [CONTEXTS["gated"](text) for text in stream.text],
        },
    )  # fmt: skip


def measure_row(row: str, trace: Trace, stream: Stream) -> tuple[dict[Measured, Figure], float | None]:
    """One cache on the second half of a stream, filled by the first; and its δ_sim, None where none is proven."""
    context, calibrated = ROWS[row]
    trace = replace(trace, context=np.array([CONTEXTS[context](text) for text in stream.text]))
    n = len(trace)
    delta: float | None = START
    if calibrated:
        first = trace.rows(np.arange(n // 2))
        tries = try_peers(first, np.ones(n // 2, dtype=bool), delta_sim=-1.0)
        found = calibrate_similarity(tries.similarity, _right(tries, first))
        delta = found.delta if found.is_proven else None
    # Not proven: peers answer nothing. No cosine reaches 2.
    tries = try_peers(trace, np.ones(n, dtype=bool), delta_sim=2.0 if delta is None else delta)
    served, wrong = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    served[tries.index] = True
    wrong[tries.index] = ~_right(tries, trace)
    later = np.arange(n) >= n // 2
    figures: dict[Measured, Figure] = {}
    for split in ("all", *KEPT, *CHANGED):
        mine = later & ((stream.kind == split) if split != "all" else True)
        for metric, value in (("served", served), ("wrong", wrong)):
            items = Items(value[mine].astype(np.float64), np.ones(int(mine.sum())))
            figures["peers", split, metric] = Figure(items.figure, metric == "served", int(mine.sum()), items)
    return figures, delta


def _right(tries: PeerTries, trace: Trace) -> npt.NDArray[np.bool_]:
    return np.asarray(tries.answer == trace.answer[tries.index])


def measure(
    questions: Sequence[str], embed: Embed, *, seeds: Sequence[int], bases: int, asks: int
) -> tuple[dict[tuple[str, int], dict[Measured, Figure]], dict[str, list[float | None]]]:
    """Every cache on every seed's stream, and each cache's δ_sim by seed."""
    figures: dict[tuple[str, int], dict[Measured, Figure]] = {}
    deltas: dict[str, list[float | None]] = {row: [] for row in ROWS}
    for seed in seeds:
        rng = np.random.default_rng([31, seed])
        chosen = [questions[i] for i in rng.choice(len(questions), bases, replace=False)]
        stream = draw_stream(chosen, asks, rng)
        unique, place = np.unique(stream.text, return_inverse=True)
        trace = as_trace(stream, embed(unique.tolist())[place], rng)
        for row in ROWS:
            figures[row, seed], delta = measure_row(row, trace, stream)
            deltas[row].append(delta)
    return figures, deltas


def bound_of_wrong(figures: Mapping[tuple[str, int], Mapping[Measured, Figure]], row: str) -> dict[str, Any]:
    """Wrong answers among all changed questions of all seeds, with the upper end of their 95 % Wilson interval."""
    wrong, n = 0.0, 0
    for (name, _), found in figures.items():
        for split in CHANGED:
            items = found["peers", split, "wrong"].items
            if name == row and items is not None:
                wrong, n = wrong + float(items.value.sum()), n + len(items.value)
    return {"wrong": int(wrong), "asked": n, "upper": float(wilson(n - wrong, n)[0] * -1 + 1)}


def read_texts(files: Sequence[Path]) -> list[str]:
    """The column `question` of some files, each text once.

    Raises:
        DataError: no such file or column.
    """
    texts: dict[str, None] = {}
    for file in files:
        if not file.is_file():
            raise DataError(f"there is no file {file}; give rows with a column `question`.")
        for row in read_file(file, where="peers"):
            question = row.values.get("question")
            if not isinstance(question, str) or not question.strip():
                raise DataError(f"{row.place} has no text under 'question'.")
            texts[question.strip()] = None
    return list(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=Path, action="append", required=True, metavar="F")
    parser.add_argument("--output", type=Path, default=Path("studies/peers"), metavar="DIR")
    parser.add_argument("--model", metavar="FOLDER", help="embed by a causal model's hidden states")
    parser.add_argument("--bases", type=int, default=600, help="different questions (default 600)")
    parser.add_argument("--asks", type=int, default=6000, help="of each seed (default 6000)")
    given = parser.parse_args(argv)
    questions = read_texts(given.questions)
    if len(questions) < given.bases:
        raise DataError(f"{len(questions)} questions, but --bases {given.bases}.")
    embed = hashed_embedding if given.model is None else model_embedding(given.model)
    figures, deltas = measure(questions, embed, seeds=SEEDS, bases=given.bases, asks=given.asks)
    about = About(
        name="peers" if given.model is None else "peers, hidden states", main="gated",
        command="python -m fedtandem.studies.peers --questions .../gsm8k/train.jsonl.gz "
        "--questions .../boolq/train_closed_book.jsonl.gz"
        + ("" if given.model is None else f" --model .../{Path(given.model).name}"),
        data_hash=hashlib.sha256("\n".join(questions).encode()).hexdigest(),
        config={
            "bases": given.bases, "asks": given.asks, "clients": CLIENTS, "edges": EDGES, "changed": CHANGED_SHARE,
            "near": NEAR_SHARE, "zipf": ZIPF, "embedding": "hashed words and letters" if given.model is None
            else Path(given.model).name, "delta_sim": deltas,
            "wrong_of_changed": {row: bound_of_wrong(figures, row) for row in ROWS},
        },
    )  # fmt: skip
    plan = Plan(tuple(ROWS), SEEDS, CONTROLS, claims=CLAIMS)
    summary = write_study(given.output, about, plan, figures)
    for row in ROWS:
        shown = {
            entry["metric"]: entry["mean"]
            for entry in summary["rows"]
            if entry["method"] == row and entry["split"] in ("all",)
        }
        bound = about.config["wrong_of_changed"][row]
        print(f"{row:<18} { ({k: round(v, 4) for k, v in shown.items()}) } changed {bound}")
    print(f"{given.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
