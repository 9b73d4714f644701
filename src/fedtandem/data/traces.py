"""Recorded decisions of an SLM beside the LLM's: a Parquet file that routing is studied on without either model.

One row is one decision: a token in generation, a document in classification, a question where whole answers are
compared. Columns (R: required; the others may be absent as a whole, never row by row unless said so):

    client, cluster    R  text          who decided, and its edge
    session            R  text          conversation or document; with position it names the decision for audits
    position           R  int           inside the session, from 0
    draft              R  int           the SLM's token or class
    answer             R  int           the LLM's
    slm_ids, slm_probs    lists         the SLM's law q: top k or whole; required unless `uncertainty` is there
    llm_ids, llm_probs    lists         the LLM's law p
    label                 int           the truth; null or -1 where unknown
    slm_score, llm_score  float         how good each answer is, in [0, 1]; else 1 where it equals the label
    uncertainty           float         a score in [0, 1] made elsewhere, instead of q
    embedding             list          of the text or token
    context               text          32 hex digits, `inference.gates`: what must be equal for reuse
    slm_ms, llm_ms        float         time each took
    request_bytes         int           what a call would send
    slm_model             text          fingerprint of a personalised SLM, where it is not the file's

The file's metadata holds `fedtandem.trace`: JSON with the version, the fingerprints of SLM, LLM and embedding model,
the size of the vocabulary and how drafts were made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedtandem.errors import DataError

VERSION = 1
KEY = b"fedtandem.trace"

Array = npt.NDArray[Any]

_TEXTS = ("client", "cluster", "session")
_LAWS = (("slm_ids", "slm_probs"), ("llm_ids", "llm_probs"))
_REQUIRED = (*_TEXTS, "position", "draft", "answer")
_FLOATS = ("slm_score", "llm_score", "uncertainty", "slm_ms", "llm_ms")
_OPTIONAL = (
    "slm_ids", "slm_probs", "llm_ids", "llm_probs", "label", *_FLOATS, "embedding", "context", "request_bytes",
    "slm_model",
)  # fmt: skip


@dataclass(frozen=True)
class TraceInfo:
    """What holds for a whole trace.

    Attributes:
        slm, llm: fingerprints of the models.
        vocabulary: number of tokens or classes.
        draft: how drafts were made from q; a greedy one is judged as the one-hot law it comes from.
        embedding: fingerprint of the embedding model; empty without one.
        name: for reports.
    """

    slm: str
    llm: str
    vocabulary: int
    draft: Literal["greedy", "sampled"] = "greedy"
    embedding: str = ""
    name: str = "trace"


@dataclass(frozen=True, eq=False)
class Trace:
    """N recorded decisions, column by column; the file's columns are described at the top of this module.

    Laws are (N, K) with K entries each, ids int32 and probabilities float32; the embedding is (N, D) float32. A
    `label` of -1 is unknown.
    """

    info: TraceInfo
    client: Array
    cluster: Array
    session: Array
    position: Array
    draft: Array
    answer: Array
    slm_ids: Array | None = None
    slm_probs: Array | None = None
    llm_ids: Array | None = None
    llm_probs: Array | None = None
    label: Array | None = None
    slm_score: Array | None = None
    llm_score: Array | None = None
    uncertainty: Array | None = None
    embedding: Array | None = None
    context: Array | None = None
    slm_ms: Array | None = None
    llm_ms: Array | None = None
    request_bytes: Array | None = None
    slm_model: Array | None = None

    def __len__(self) -> int:
        return len(self.client)

    def columns(self) -> dict[str, Array]:
        """The columns that are there."""
        every = {name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL)}
        return {name: column for name, column in every.items() if column is not None}

    def rows(self, index: Array) -> "Trace":
        """Some decisions, in the order of the index."""
        return Trace(self.info, **{name: column[index] for name, column in self.columns().items()})

    def models(self) -> list[tuple[str, str]]:
        """(SLM, LLM) fingerprints of each decision."""
        if self.slm_model is None:
            return [(self.info.slm, self.info.llm)] * len(self)
        return [(str(slm) or self.info.slm, self.info.llm) for slm in self.slm_model]


def make_trace(info: TraceInfo, columns: Mapping[str, Any], *, where: str = "the trace") -> Trace:
    """Build and check a trace from arrays.

    Args:
        info: of the whole trace.
        columns: by name; numpy arrays or lists.
        where: for errors.

    Raises:
        DataError: empty, a column is missing, unknown, of another length, NaN or out of range, or an LLM answer is
            missing.
    """
    unknown = sorted(set(columns) - set(_REQUIRED) - set(_OPTIONAL))
    if unknown:
        raise DataError(
            f"{where} has a column {unknown[0]!r} that no trace has; columns are {', '.join((*_REQUIRED, *_OPTIONAL))}."
        )
    for name in _REQUIRED:
        if name not in columns:
            if name == "answer":
                raise DataError(
                    f"{where} has no column 'answer': without the cloud's answers nothing can be said about routing. "
                    "Record them, if only for a sample."
                )
            raise DataError(f"{where} has no column {name!r}; it needs {', '.join(_REQUIRED)}.")
    n = len(columns["client"])
    if n == 0:
        raise DataError(f"{where} has no rows. Record some decisions first.")
    typed = {name: _typed(name, column, where) for name, column in columns.items()}
    for name, column in typed.items():
        if len(column) != n:
            raise DataError(f"{where}: column {name!r} has {len(column)} rows, 'client' has {n}.")
    trace = Trace(info, **typed)
    _check(trace, where)
    return trace


def _typed(name: str, column: Any, where: str) -> Array:
    try:
        if name in (*_TEXTS, "context", "slm_model"):
            return np.asarray([str(value) for value in column], dtype=np.str_)
        if name in ("position", "draft", "answer", "label", "request_bytes"):
            values = np.asarray(column)
            if values.dtype.kind == "f":
                values = _whole_numbers(name, values, where)
            return values.astype(np.int64)
        if name in ("slm_ids", "llm_ids"):
            return np.asarray(column, dtype=np.int32)
        return np.asarray(column, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: column {name!r} cannot be read: {error}.") from error


def _whole_numbers(name: str, values: Array, where: str) -> Array:
    """Floats that hold whole numbers; only a label may be missing."""
    bad = np.isnan(values) if name != "label" else np.zeros(len(values), dtype=bool)
    filled = np.nan_to_num(values, nan=-1)
    bad |= filled != np.round(filled)
    expected = "a whole number"
    if name == "answer":
        expected += "; a decision without the cloud's answer cannot be replayed: leave it out"
    _refuse(bad, values, name, where, expected)
    return filled


def _check(trace: Trace, where: str) -> None:
    info = trace.info
    _refuse(trace.answer < 0, trace.answer, "answer", where, "the cloud's answer, 0 or more; a decision without one "
            "cannot be replayed: leave it out")  # fmt: skip
    _refuse(trace.draft < 0, trace.draft, "draft", where, "a token or class, 0 or more")
    _refuse(trace.position < 0, trace.position, "position", where, "0 or more")
    for ids, probs in _LAWS:
        _check_law(getattr(trace, ids), getattr(trace, probs), ids, probs, info.vocabulary, where)
    for name in _FLOATS:
        column = getattr(trace, name)
        if column is None:
            continue
        high = np.inf if name.endswith("_ms") else 1.0
        _refuse(~((column >= 0) & (column <= high)), column, name, where, f"a number in [0, {high:g}]")
    if trace.slm_probs is None and trace.uncertainty is None:
        raise DataError(
            f"{where} has neither slm_ids and slm_probs nor uncertainty: nothing says how unsure the SLM was."
        )
    if (trace.slm_score is None) != (trace.llm_score is None):
        raise DataError(f"{where} has one of slm_score and llm_score; give both or neither.")
    if trace.embedding is not None:
        if trace.embedding.ndim != 2 or trace.embedding.shape[1] == 0:
            raise DataError(f"{where}: embedding has the shape {trace.embedding.shape}; expected (N, D).")
        _refuse(
            ~np.isfinite(trace.embedding).all(axis=1), trace.embedding, "embedding", where, "finite numbers"
        )
    if trace.context is not None:
        bad = np.array([not _is_context(str(value)) for value in trace.context])
        _refuse(bad, trace.context, "context", where, "32 hex digits (inference.gates.text_gate(...).hex())")
    _check_names(trace, where)


def _check_law(
    ids: Array | None, probs: Array | None, ids_name: str, probs_name: str, vocabulary: int, where: str
) -> None:
    if (ids is None) != (probs is None):
        raise DataError(f"{where} has one of {ids_name} and {probs_name}; a law needs both.")
    if ids is None or probs is None:
        return
    if ids.ndim != 2 or ids.shape != probs.shape or ids.shape[1] == 0:
        raise DataError(
            f"{where}: {ids_name} {ids.shape} and {probs_name} {probs.shape}; expected the same (N, K)."
        )
    _refuse(~np.isfinite(probs).all(axis=1), probs, probs_name, where,
            "finite probabilities; NaN comes from diverged or half-precision logits")  # fmt: skip
    _refuse((probs < 0).any(axis=1) | (probs.sum(axis=1, dtype=np.float64) > 1.001), probs, probs_name, where,
            "probabilities that are not negative and sum to at most 1")  # fmt: skip
    _refuse(probs.sum(axis=1) <= 0, probs, probs_name, where, "some probability above 0")
    _refuse(((ids < 0) | (ids >= vocabulary)).any(axis=1), ids, ids_name, where, f"ids in [0, {vocabulary})")
    ranked = np.sort(ids, axis=1)
    _refuse((ranked[:, 1:] == ranked[:, :-1]).any(axis=1), ids, ids_name, where, "each id once")


def _check_names(trace: Trace, where: str) -> None:
    _refuse(trace.client == "", trace.client, "client", where, "a name")
    pairs = sorted(set(zip(trace.client.tolist(), trace.cluster.tolist(), strict=True)))
    for (one, first), (other, second) in pairwise(pairs):
        if one == other:
            raise DataError(
                f"{where}: client {one!r} is in the clusters {first!r} and {second!r}; give it one."
            )


def _is_context(value: str) -> bool:
    return len(value) == 32 and all(letter in "0123456789abcdef" for letter in value)


def _refuse(bad: Any, column: Array, name: str, where: str, expected: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        shown = str(np.asarray(column[row]).tolist())
        raise DataError(
            f"{where}, row {row}: {name} = {shown if len(shown) < 80 else shown[:77] + '...'}; expected {expected}. "
            f"{int(bad.sum())} of {len(bad)} rows are like this."
        )


def joined(traces: Sequence[Trace]) -> Trace:
    """Traces of the same models one after the other; a column that one of them lacks is left out.

    Raises:
        DataError: none, or of other models.
    """
    if not traces:
        raise DataError("there is no trace to join.")
    for other in traces[1:]:
        if other.info != traces[0].info:
            raise DataError(f"traces of {traces[0].info} and of {other.info} cannot be joined.")
    common = [name for name in traces[0].columns() if all(name in trace.columns() for trace in traces)]
    columns = {name: np.concatenate([trace.columns()[name] for trace in traces]) for name in common}
    return make_trace(traces[0].info, columns)


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace as Parquet, wholly or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fedtandem.atomic import write_bytes

    columns: dict[str, Any] = {}
    for name, column in trace.columns().items():
        if column.ndim == 2:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        elif column.dtype.kind == "U":
            columns[name] = pa.array(column.tolist()).dictionary_encode()
        else:
            columns[name] = pa.array(column)
    told = json.dumps({"version": VERSION, **asdict(trace.info)})
    table = pa.table(columns).replace_schema_metadata({KEY: told.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_trace(path: Path) -> Trace:
    """Read and check a trace.

    Raises:
        DataError: no such file, no Parquet, no trace, or a column that cannot be used.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"there is no trace {path}.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no Parquet file, or a damaged one; `fedtandem trace` records a trace."
        ) from error
    info = _info((table.schema.metadata or {}).get(KEY), str(path))
    columns = {
        name: _column(table.column(name).combine_chunks(), name, str(path)) for name in table.column_names
    }
    return make_trace(info, columns, where=str(path))


def _info(told: bytes | None, where: str) -> TraceInfo:
    if told is None:
        raise DataError(
            f"{where} is Parquet, but no trace: its metadata holds no {KEY.decode()}. "
            "Write it with data.traces.write_trace."
        )
    try:
        values = json.loads(told)
        version = values.pop("version")
        info = TraceInfo(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{where}: its metadata cannot be read: {error}.") from error
    if version != VERSION:
        raise DataError(f"{where}: version {version} of the format; this program reads {VERSION}.")
    if not isinstance(info.vocabulary, int) or info.vocabulary < 1 or info.draft not in ("greedy", "sampled"):
        raise DataError(
            f"{where}: vocabulary = {info.vocabulary}, draft = {info.draft}; expected a size and greedy or sampled."
        )
    return info


def _column(column: Any, name: str, where: str) -> Array | Sequence[Any]:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):  # a column of no chunks
        column = column.combine_chunks() if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count and name != "label":
        row = column.is_null().to_pylist().index(True)
        hint = (
            " A decision without the cloud's answer cannot be replayed: leave it out."
            if name == "answer"
            else ""
        )
        raise DataError(
            f"{where}, row {row}: {name} is missing, as in {column.null_count} of {len(column)} rows.{hint}"
        )
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        lengths = (
            np.unique(column.value_lengths().to_numpy(zero_copy_only=False)) if len(column) else np.array([1])
        )
        if len(lengths) != 1:
            raise DataError(f"{where}: the lists of {name} are of {len(lengths)} lengths; a column has one.")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat.reshape(len(column), int(lengths[0])))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return list(column.to_pylist())
    return np.asarray(column.to_numpy(zero_copy_only=False))
