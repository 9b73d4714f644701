"""From rows to samples: which columns are prompt and answer, and how the two are separated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedtandem.data.files import Row
from fedtandem.data.messages import prompt_and_reply
from fedtandem.data.public import Sample
from fedtandem.data.source import DataSource
from fedtandem.data.template import as_text, fill, placeholders
from fedtandem.errors import DataError

Found = Literal["prompt_completion", "messages", "text", "multiple_choice"]

ANSWER_COLUMNS = ("answer", "completion", "answerKey", "label")
"""Where an answer is looked for, in this order; the last two in multiple choice only."""


@dataclass(frozen=True)
class Decision:
    """How rows are read, and why: printed by `check`."""

    format: Found
    reason: str
    columns: tuple[str, ...]
    """The first row's columns, remapped names included."""
    dropped: int = 0
    """Rows left out for their empty answer (`on_empty = "drop"`)."""


class EmptyAnswer(DataError):
    """A labelled row whose answer, or one of whose options, is blank."""


def decide(source: DataSource, rows: Sequence[Row], *, where: str) -> Decision:
    """The format a source states, or the one its first row's columns show.

    Raises:
        DataError: no format fits; names the columns there are.
    """
    columns = tuple(renamed(rows[0], source, where=where).values)
    if source.format != "auto":
        return Decision(source.format, f'format = "{source.format}"', columns)
    if source.template is not None and not {"question", "choices"} <= set(columns):
        return Decision("prompt_completion", "a template is given", columns)
    for needed, found in _SIGNS:
        if set(needed) <= set(columns):
            answer = [name for name in ANSWER_COLUMNS[:2] if needed == ("prompt",) and name in columns]
            return Decision(found, f"the first row has {' and '.join([*needed, *answer])}", columns)
    raise DataError(
        f"{where}: {rows[0].place} has the columns {', '.join(columns)}, which show no known format. Name "
        "them with "
        "`columns` (e.g. prompt = ..., answer = ...), or give a `template`. Known: prompt with answer or "
        "completion; messages; conversations; question with choices; text."
    )


_SIGNS: tuple[tuple[tuple[str, ...], Found], ...] = (
    (("messages",), "messages"),
    (("conversations",), "messages"),
    (("question", "choices"), "multiple_choice"),
    (("prompt",), "prompt_completion"),
    (("text",), "text"),
)


def renamed(row: Row, source: DataSource, *, where: str) -> Row:
    """The row with `columns` applied: each expected name added with its column's value.

    Raises:
        DataError: a column of the remap is not in the row (the answer's may be, in an unlabelled set).
    """
    if not source.columns:
        return row
    values = dict(row.values)
    for name, column in source.columns.items():
        if column in row.values:
            values[name] = row.values[column]
        elif source.labelled or name not in ANSWER_COLUMNS:
            raise DataError(
                f"{where}: {row.place} has no column {column!r} (columns.{name}); its columns are "
                f"{', '.join(row.values)}."
            )
    return replace(row, values=values)


def convert(row: Row, source: DataSource, found: Found, *, where: str) -> Sample:
    """One row as a sample. Text rows are read in `windows`, not here.

    Args:
        row: with its columns renamed.

    Raises:
        DataError: a missing column, an empty prompt or answer, an answer that is none of the options.
    """
    return _CONVERTERS[found](row, source, where)


def separated(prompt: str, answer: str, separator: str) -> tuple[str, str]:
    """Give the separator to the answer: ("Q: ", "yes") and ("Q:", " yes") both become ("Q:", " yes")."""
    if not separator:
        return prompt, answer
    return prompt.removesuffix(separator), separator + answer.removeprefix(separator)


def _prompt_completion(row: Row, source: DataSource, where: str) -> Sample:
    if source.template is not None:
        prompt = fill(source.template, row.values, place=row.place, where=where)
    else:
        prompt = as_text(_column(row, "prompt", where))
    bare = _sample(row, source, prompt.removesuffix(source.separator) if source.separator else prompt)
    column = next((name for name in ("answer", "completion") if name in row.values), "answer")
    if not source.labelled:
        if row.values.get(column) == "":  # an empty string is no way to say "unlabelled"
            raise _empty(row, column, where)
        return bare
    if source.answer_template is not None:
        column = "answer_template"
        answers = [fill(source.answer_template, row.values, place=row.place, where=where)]
    else:
        value = _column(row, column, where)
        answers = [as_text(item) for item in value] if isinstance(value, list | tuple) else [as_text(value)]
    if source.answers:
        return _with_label_word(bare, prompt, answers[0], row, source, where)
    if not answers or not all(answer.strip() for answer in answers):
        raise _empty(row, column, where)
    return _answered(bare, prompt, answers, source.separator)


def _with_label_word(
    bare: Sample, prompt: str, value: str, row: Row, source: DataSource, where: str
) -> Sample:
    if value not in source.answers:
        raise DataError(
            f"{where}: {row.place} has the answer {value!r}, which `answers` does not map; it maps "
            f"{', '.join(source.answers)}."
        )
    words = list(dict.fromkeys(source.answers.values()))
    return _chosen(bare, prompt, words, words.index(source.answers[value]), row, source, where)


def _multiple_choice(row: Row, source: DataSource, where: str) -> Sample:
    options, names = _options(row, where)
    values = {**row.values, "options": [f"{name}. {text}" for name, text in zip(names, options, strict=True)]}
    template = source.template or "Question: {question}\nAnswer:"
    prompt = fill(template, values, place=row.place, where=where)
    bare = _sample(row, source, prompt.removesuffix(source.separator) if source.separator else prompt)
    if not source.labelled:
        return bare
    column = next((name for name in ANSWER_COLUMNS if name in row.values), "answer")
    label = _label(_column(row, column, where), options, names, row, where)
    return _chosen(bare, prompt, options, label, row, source, where)


def _options(row: Row, where: str) -> tuple[list[str], list[str]]:
    """The options and their names (A, B, ...): a list, or {"text": [...], "label": [...]} as on the hub."""
    value = _column(row, "choices", where)
    names: object = None
    if isinstance(value, Mapping):
        names = value.get("label")
        value = value.get("text")
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise DataError(
            f"{where}: {row.place} needs a list of two or more `choices`, but holds {value!r:.80}."
        )
    options = [as_text(option) for option in value]
    if not isinstance(names, list | tuple) or len(names) != len(options):
        names = [chr(ord("A") + i) for i in range(len(options))]
    return options, [str(name) for name in names]


def _label(value: object, options: list[str], names: list[str], row: Row, where: str) -> int:
    """The right option's index, from its name (A, B, ...), its index from 0, or its text."""
    text = as_text(value)
    if text in names:
        return names.index(text)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    if text in options:
        return options.index(text)
    raise DataError(
        f"{where}: {row.place} has the answer {value!r}, which names none of its {len(options)} choices; "
        "give one "
        f"of {', '.join(names)}, an index from 0 to {len(options) - 1}, or the choice's text."
    )


def _messages(row: Row, source: DataSource, where: str) -> Sample:
    column = "messages" if "messages" in row.values else "conversations"
    prompt, reply = prompt_and_reply(
        _column(row, column, where), labelled=source.labelled, place=row.place, where=where
    )
    bare = _sample(row, source, prompt.removesuffix(source.separator) if source.separator else prompt)
    if reply is None:
        return bare
    if not reply.strip():
        raise _empty(row, column, where)
    return _answered(bare, prompt, [reply], source.separator)


def _not_here(row: Row, source: DataSource, where: str) -> Sample:
    raise DataError(f"{where}: {row.place}: text rows are cut into windows, not converted one by one.")


_CONVERTERS: Mapping[Found, Callable[[Row, DataSource, str], Sample]] = {
    "prompt_completion": _prompt_completion,
    "multiple_choice": _multiple_choice,
    "messages": _messages,
    "text": _not_here,
}


def _sample(row: Row, source: DataSource, prompt: str) -> Sample:
    """The unlabelled sample: prompt, id, and the columns that are neither."""
    used = {"id", "prompt", "answer", "completion", "messages", "conversations", "choices"}
    if not source.labelled:  # the answer must not stay in sight under the file's own name for it
        used |= {column for name, column in source.columns.items() if name in ANSWER_COLUMNS}
        used |= set(placeholders(source.answer_template or "", where=row.place))
    others = {name: value for name, value in row.values.items() if name not in used}
    return Sample(row_id(row), prompt, None, fields=others)


def row_id(row: Row) -> str:
    """The `id` column as text, or file stem and number."""
    value = row.values.get("id")
    return row.default_id if value is None else str(value)


def _answered(bare: Sample, prompt: str, answers: list[str], separator: str) -> Sample:
    prompt, answer = separated(prompt, answers[0], separator)
    return replace(bare, prompt=prompt, answer=answer, references=tuple(answers) if len(answers) > 1 else ())


def _chosen(
    bare: Sample, prompt: str, options: Sequence[str], label: int, row: Row, source: DataSource, where: str
) -> Sample:
    if not all(option.strip() for option in options):
        raise _empty(row, "choices", where)
    pairs = [separated(prompt, option, source.separator) for option in options]
    choices = tuple(answer for _, answer in pairs)
    return replace(bare, prompt=pairs[0][0], answer=choices[label], choices=choices, label=label)


def _column(row: Row, name: str, where: str) -> object:
    value = row.values.get(name)
    if value is None:
        state = "is null" if name in row.values else "is missing"
        remedy = ""
        if name in ANSWER_COLUMNS:
            remedy = " Unlabelled rows have no answer in the whole set: then set labelled = false."
        raise DataError(
            f"{where}: {row.place}: column {name!r} {state}; its columns are {', '.join(row.values)}. Map "
            "another "
            f"one with columns.{name}.{remedy}"
        )
    return value


def _empty(row: Row, column: str, where: str) -> EmptyAnswer:
    return EmptyAnswer(
        f"{where}: {row.place}: the answer (column {column!r}) is empty. An empty answer cannot be learnt or "
        'scored: remove the row (on_empty = "drop" does), or leave the key out of every row and set '
        "labelled = false."
    )
