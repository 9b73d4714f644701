"""`fedtandem select`: which of your own prompts a model should learn from another, outside of any federation.

Nothing heavy is imported before the command is called.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtandem.atomic import write_text
from fedtandem.errors import ConfigError, DataError
from fedtandem.selection.names import HEURISTICS, LEARNING
from fedtandem.user_code import known_or_own

if TYPE_CHECKING:
    from fedtandem.checking.verdict import Checker
    from fedtandem.models.language_model import LanguageModel
    from fedtandem.selection.items import Pool, ScoreRows

DEFAULT, RHO = "confident_gap", "rho_holdout"


def select_flags(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "rows",
        type=Path,
        metavar="F",
        help='JSON lines with "prompt", maybe "path" (or "completion"), "gold" and "id"',
    )
    parser.add_argument(
        "--receiver", required=True, metavar="MODEL", help="who is to learn (hub name or folder)"
    )
    parser.add_argument(
        "--producer",
        required=True,
        metavar="MODEL",
        help="who teaches; writes the paths that F does not hold",
    )
    parser.add_argument(
        "--selector",
        metavar="NAME",
        help=f'{", ".join(name for name in HEURISTICS if name != RHO)}, or "package.module:function" '
        f"(default {DEFAULT}; with --checker: verified_gap)",
    )
    parser.add_argument(
        "--budget", default="0.5", metavar="K", help="rows to keep: a count, or a share below 1 (default 0.5)"
    )
    parser.add_argument(
        "--checker",
        metavar="NAME",
        help='arithmetic (sums in the path); exact, numeric or choice (its answer against that of column "gold"); '
        'or your own "package.module:function": (prompt, path) -> verdict',
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of a path (default 256)"
    )
    parser.add_argument(
        "--max-length", type=int, default=1024, metavar="N", help="tokens read (default 1024)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--chat-template", action="store_true", help="wrap prompts in each model's template")
    parser.add_argument("--seed", type=int, default=0, help="of ties and of --selector random")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON lines, best first (default: to the screen)"
    )
    parser.add_argument("--json", action="store_true", help="print the sums as JSON for machines")


def select_call(arguments: argparse.Namespace) -> int:
    """Carry the command out; the exit code."""
    selector = arguments.selector or (DEFAULT if arguments.checker is None else "verified_gap")
    request = SelectRequest(
        rows=arguments.rows, receiver=arguments.receiver, producer=arguments.producer, selector=selector,
        budget=read_budget(arguments.budget), checker=arguments.checker, max_new_tokens=arguments.max_new_tokens,
        max_length=arguments.max_length, batch_size=arguments.batch_size, chat_template=arguments.chat_template,
        seed=arguments.seed,
    )  # fmt: skip
    chosen, totals = select_command(request)
    lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
    if arguments.output is not None:
        write_text(arguments.output, "".join(line + "\n" for line in lines))
    elif not arguments.json:
        print("\n".join(lines))
    print(json.dumps(totals) if arguments.json else in_words(totals))
    return 0


@dataclass(frozen=True)
class SelectRequest:
    """What `fedtandem select` was asked."""

    rows: Path
    receiver: str
    producer: str
    selector: str = DEFAULT
    budget: int | float = 0.5
    checker: str | None = None
    max_new_tokens: int = 256
    max_length: int = 1024
    batch_size: int = 16
    chat_template: bool = False
    seed: int = 0


def read_budget(text: str) -> int | float:
    """ "400" is a count, "0.25" and "25%" are shares.

    Raises:
        ConfigError: neither, or out of range.
    """
    try:
        budget: int | float = (
            float(text[:-1]) / 100 if text.endswith("%") else int(text) if text.isdigit() else float(text)
        )
    except ValueError:
        budget = -1
    if not (budget >= 1 if isinstance(budget, int) else 0 < budget <= 1):
        raise ConfigError(f"--budget is {text!r}; give a count of 1 or more (400), or a share (0.25 or 25%).")
    return budget


def select_command(request: SelectRequest) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Score the rows with both models and choose.

    Returns:
        The chosen rows, best first, each with its id, score, reason and losses (nats per byte); and the sums.

    Raises:
        ConfigError: an unknown selector, or one that needs a whole federation.
        DataError: rows that cannot be read.
    """
    from fedtandem.federation.selectors import make_selector
    from fedtandem.selection.items import Pair, count_of

    section = _section(request)
    selector = make_selector(request.selector, section)
    rows = read_rows(request.rows)
    scored, pool, reasons = _scored(request, rows, selector.needs, _checker(request, rows))
    selector.setup(pool)
    chosen = selector.select(1, Pair("rows", "down"), scored, count_of(request.budget, len(rows)))
    order = sorted(
        range(len(chosen.ids)), key=lambda at: (-_number(float(chosen.scores[at])), int(chosen.ids[at]))
    )
    listed = [
        _row(rows, scored, int(chosen.ids[at]), float(chosen.scores[at]), rank, reasons, request.selector)
        for rank, at in enumerate(order, 1)
    ]
    is_kept = [i in set(chosen.ids.tolist()) for i in range(len(rows))]
    totals = {
        "rows": len(rows), "with_path": int(scored.has_path.sum()), "kept": len(listed), "selector": request.selector,
        "refused": sum(not ok for ok, _ in reasons.values() if ok is not None),
        "undecided": sum(ok is None for ok, _ in reasons.values()),
        "kept_gap": _mean(scored.gap, is_kept), "left_gap": _mean(scored.gap, [not kept for kept in is_kept]),
    }  # fmt: skip
    return listed, totals


def _section(request: SelectRequest) -> Any:
    from pydantic import ValidationError

    from fedtandem.config.selection import SelectionConfig

    if request.selector in LEARNING or request.selector == RHO:
        raise ConfigError(
            f"--selector {request.selector} learns from training rounds, which there are none of here; use it in "
            f"`fedtandem run`, or take {DEFAULT}."
        )
    if request.selector == "verified_gap" and request.checker is None:
        raise ConfigError(
            "--selector verified_gap keeps paths that a checker accepts: name one with --checker."
        )
    try:
        return SelectionConfig(selector=request.selector)
    except ValidationError as error:
        said = error.errors()[0]
        flag = "--" + str(said["loc"][0])
        why = said["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigError(f"{flag} {said['input']!r} {why}.") from error


def _checker(request: SelectRequest, rows: Sequence[Mapping[str, Any]]) -> "Checker | None":
    """The checker of that name; those by answer compare with what the rows' right paths end in.

    Raises:
        ConfigError: it needs right paths and no row has one, needs a client's own facts, or cannot be imported.
    """
    from fedtandem.checking.answers import final_answer
    from fedtandem.checking.checkers import BY_ANSWER, CheckSettings, find_checker

    name = request.checker
    if name is None:
        return None
    if name == "path":
        raise ConfigError(
            "--checker path asks a client what it knows, which is none here; use it as public.check in `fedtandem run`."
        )
    try:
        settings = CheckSettings(known_or_own(name, ("arithmetic", *BY_ANSWER)))
    except ValueError as error:
        raise ConfigError(f"--checker {name!r} {str(error).rstrip('.')}.") from error
    answers = {row["prompt"]: final_answer(row["gold"]) for row in rows if row["gold"] is not None}
    if name in BY_ANSWER and not answers:
        raise ConfigError(
            f'--checker {name} compares with right answers, but no row of {request.rows} has a column "gold".'
        )
    return find_checker(settings, answers=answers)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows with `prompt`, and `path` (or `completion`), `id` and `gold` where they are there; else an id is the number.

    Raises:
        DataError: no file, no row, a column of the wrong type, or an id twice.
    """
    from fedtandem.data.files import read_file

    if not file.is_file():
        raise DataError(f'there is no file {file}; give JSON lines with a column "prompt".')
    rows: list[dict[str, Any]] = []
    found: dict[str, Any]
    for at, row in enumerate(read_file(file, where="rows")):
        found = {"id": str(at), **{key: row.values.get(key) for key in ("prompt", "path", "gold")}}
        if found["path"] is None:
            found["path"] = row.values.get("completion")
        if row.values.get("id") is not None:
            found["id"] = str(row.values["id"])
        for key, needed in (("prompt", True), ("path", False), ("gold", False)):
            value = found[key]
            if not (isinstance(value, str) or (value is None and not needed)):
                raise DataError(
                    f"{row.place} has {value!r} under {key!r}; a text is needed. Its columns are "
                    f"{', '.join(row.values)}."
                )
        rows.append(found)
    if not rows:
        raise DataError(f'{file} holds no row; every line must be like {{"prompt": "...", "path": "..."}}.')
    seen: set[str] = set()
    for found in rows:
        if found["id"] in seen:
            raise DataError(f"{file}: the id {found['id']!r} stands twice; ids must be unique.")
        seen.add(found["id"])
    return rows


def _scored(
    request: SelectRequest, rows: Sequence[Mapping[str, Any]], needs: frozenset[Any], checker: Any
) -> "tuple[ScoreRows, Pool, dict[int, tuple[bool | None, str]]]":
    """Both models' view of every row; the models are loaded one after the other."""
    import numpy as np

    from fedtandem.selection.items import RIGHT, UNKNOWN, WRONG, Pool, ScoreRows

    prompts = [row["prompt"] for row in rows]
    paths = [row["path"] or "" for row in rows]
    producer = _load(request.producer)
    missing = [i for i, path in enumerate(paths) if not path]
    if missing:
        print(
            f"{len(missing)} of {len(rows)} rows have no path: {request.producer} writes them, of up to "
            f"{request.max_new_tokens} tokens", file=sys.stderr,
        )  # fmt: skip
    for i, text in zip(missing, _written(producer, request, [prompts[i] for i in missing]), strict=True):
        paths[i] = text
    of_producer, _ = _losses(producer, request, prompts, paths)
    del producer
    receiver = _load(request.receiver)
    of_receiver, tokens = _losses(receiver, request, prompts, paths)
    alone = of_receiver * np.nan
    if "alone" in needs:
        alone, _ = _losses(receiver, request, [""] * len(paths), paths)
    reasons = _judged(checker, rows, prompts, paths)
    n_bytes = np.array([len(path.encode()) for path in paths])
    empty = np.zeros(0, np.int64)
    gold = [row["gold"] for row in rows]
    scored = ScoreRows.of(
        np.arange(len(rows)), prompts=prompts, paths=paths, gold=gold, n_bytes=n_bytes, n_tokens=tokens,
        receiver_pos=-of_receiver * n_bytes, producer_pos=-of_producer * n_bytes, alone=-alone * n_bytes,
        verdict=[
            UNKNOWN if reasons.get(i, (None, ""))[0] is None else RIGHT if reasons[i][0] else WRONG
            for i in range(len(rows))
        ],
    )  # fmt: skip
    return scored, Pool(prompts, gold, empty, 1, request.seed), reasons


def _load(model: str) -> "LanguageModel":
    from fedtandem.models.load import ModelSpec, load_model

    return load_model(ModelSpec(model=model, tuning_method="none"))


def _written(lm: "LanguageModel", request: SelectRequest, prompts: Sequence[str]) -> list[str]:
    """Greedy paths."""
    if not prompts:
        return []
    ids = lm.generate(
        [lm.tokenizer.encode_prompt(prompt, chat_template=request.chat_template) for prompt in prompts],
        max_new_tokens=request.max_new_tokens,
        batch_size=request.batch_size,
    )
    return [lm.tokenizer.decode_answer(written) for written in ids]


def _losses(
    lm: "LanguageModel", request: SelectRequest, prompts: Sequence[str], paths: Sequence[str]
) -> tuple[Any, Any]:
    """Nats per byte of every path, (n,), NaN where there is none or it is cut off; and its tokens."""
    import numpy as np

    from fedtandem.algorithms.public_pass import public_pass
    from fedtandem.algorithms.sequence_scores import n_path_tokens
    from fedtandem.algorithms.settings import KnowledgeSettings

    at = [i for i, path in enumerate(paths) if path]
    texts = lm.tokenizer.encode_many(
        [(prompts[i], paths[i]) for i in at],
        max_length=request.max_length,
        chat_template=request.chat_template and any(prompts),
    )
    settings = KnowledgeSettings(batch_size=request.batch_size)
    losses, tokens = np.full(len(paths), np.nan), np.zeros(len(paths), np.int64)
    found, _ = public_pass(lm, texts, settings, want_rows=False, party=lm.name)
    losses[at], tokens[at] = np.where(np.isfinite(found), found, np.nan), n_path_tokens(texts)
    return losses, tokens


def _judged(
    checker: "Checker | None", rows: Sequence[Mapping[str, Any]], prompts: Sequence[str], paths: Sequence[str]
) -> dict[int, tuple[bool | None, str]]:
    """Verdicts with their reasons.

    Raises:
        DataError: the checker itself failed; names the row.
    """
    from fedtandem.checking.checkers import judge
    from fedtandem.checking.user import UserChecker

    if checker is None:
        return {}
    at = [i for i, path in enumerate(paths) if path]
    with closing(checker) if isinstance(checker, UserChecker) else nullcontext():
        verdicts = judge(checker, [(prompts[i], paths[i]) for i in at])
    for i, verdict in zip(at, verdicts, strict=True):
        if verdict.failed:
            raise DataError(
                f"the checker failed on row {rows[i]['id']!r}: {verdict.reason}. Mend it, or let it answer None for "
                "what it cannot judge."
            )
    return {i: (verdict.ok, verdict.reason) for i, verdict in zip(at, verdicts, strict=True)}


def _row(
    rows: Sequence[Mapping[str, Any]], scored: "ScoreRows", i: int, score: float, rank: int,
    reasons: Mapping[int, tuple[bool | None, str]], selector: str,
) -> dict[str, Any]:  # fmt: skip
    """One line of the answer."""
    gap = _plain(scored.gap[i])
    why = f"{selector} ranks it {rank} of {len(rows)}"
    if gap is not None:
        why += f": the receiver loses {gap:+.3f} nats per byte against the producer"
    if reasons.get(i, (None, ""))[1]:
        why += f"; checker: {reasons[i][1]}"
    return {
        "id": rows[i]["id"], "prompt": rows[i]["prompt"], "path": scored.paths[i], "score": _plain(score), "rank": rank,
        "reason": why, "receiver_loss": _plain(scored.receiver_loss[i]),
        "producer_loss": _plain(scored.producer_loss[i]), "gap": gap,
    }  # fmt: skip


def _plain(value: float) -> float | None:
    """A number JSON can hold."""
    return float(value) if value == value and abs(value) != float("inf") else None


def _number(value: float) -> float:
    return float(value) if value == value else float("-inf")


def _mean(values: Any, mask: Sequence[bool]) -> float | None:
    known = [float(v) for v, m in zip(values, mask, strict=True) if m and v == v]
    return sum(known) / len(known) if known else None


def in_words(totals: Mapping[str, Any]) -> str:
    """The sums as one line."""
    said = f"kept {totals['kept']} of {totals['rows']} rows by {totals['selector']}"
    if totals["kept_gap"] is not None:
        said += f"; mean gap {totals['kept_gap']:.3f} nats per byte"
        if totals["left_gap"] is not None:
            said += f" (the others {totals['left_gap']:.3f})"
    if totals["refused"]:
        said += f"; the checker refused {totals['refused']}"
    if totals["undecided"]:
        said += f"; the checker could not tell of {totals['undecided']}, which are not kept by verified_gap"
    if totals["with_path"] < totals["rows"]:
        said += f"; {totals['rows'] - totals['with_path']} rows have no path"
    return said
