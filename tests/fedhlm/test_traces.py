"""Traces: written and read they are the same; whatever cannot be replayed is refused by row, value and remedy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedtandem.data.traces import TraceInfo, make_trace, read_trace, write_trace
from fedtandem.errors import DataError
from fedtandem.evaluation.scored_trace import score_trace, uncertainties


def test_a_trace_comes_back_as_it_was(tmp_path: Path, build, repeated):
    full = repeated(60)
    more = {
        "slm_ms": np.ones(60),
        "llm_ms": np.full(60, 2.5),
        "request_bytes": np.arange(60),
        "slm_model": ["mine"] * 60,
    }
    for trace in (build(40), make_trace(full.info, full.columns() | more)):
        write_trace(tmp_path / "t.parquet", trace)
        again = read_trace(tmp_path / "t.parquet")
        assert again.info == trace.info
        assert set(again.columns()) == set(trace.columns())
        for name, column in trace.columns().items():
            np.testing.assert_array_equal(column, again.columns()[name])
            assert column.dtype.kind == again.columns()[name].dtype.kind
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def changed(column, row, value):
    copy = np.array(column)
    copy[row] = value
    return copy


@pytest.mark.parametrize(("change", "told"), [
    (lambda c: {"slm_probs": changed(c["slm_probs"], 3, np.nan)}, r"row 3: slm_probs = \[nan.*finite"),
    (lambda c: {"llm_probs": changed(c["llm_probs"], 0, [2, 0, 0, 0])}, r"row 0: llm_probs.*sum to at most 1"),
    (lambda c: {"slm_ids": changed(c["slm_ids"], 1, 9)}, r"row 1: slm_ids.*ids in \[0, 4\)"),
    (lambda c: {"slm_ids": changed(c["slm_ids"], 1, [0, 0, 1, 2])}, r"row 1: slm_ids.*each id once"),
    (lambda c: {"answer": changed(c["answer"], 2, -1)}, "row 2: answer = -1.*leave it out"),
    (lambda c: {"answer": changed(c["answer"].astype(float), 2, np.nan)}, "row 2: answer = nan"),
    (lambda c: {"client": ["a"] * 30, "cluster": ["x"] * 29 + ["y"]}, "client 'a' is in the clusters 'x' and 'y'"),
    (lambda c: {"uncertainty": np.full(30, 1.5)}, r"row 0: uncertainty = 1.5; expected a number in \[0, 1\]"),
    (lambda c: {"slm_ms": np.full(30, -1.0)}, "slm_ms = -1"),
    (lambda c: {"position": np.arange(29)}, "'position' has 29 rows"),
    (lambda c: {"colour": np.arange(30)}, "a column 'colour' that no trace has"),
    (lambda c: {"slm_score": np.ones(30)}, "one of slm_score and llm_score"),
    (lambda c: {"context": ["zz"] * 30}, "32 hex digits"),
    (lambda c: {"draft": ["?"] * 30}, "column 'draft' cannot be read"),
])  # fmt: skip
def test_what_cannot_be_replayed_is_refused(columns, info, change, told):
    good = columns(30)
    with pytest.raises(DataError, match=told):
        make_trace(info, good | change(good))


def test_empty_and_answerless_traces_say_so(tmp_path: Path, columns, info, build):
    with pytest.raises(DataError, match="has no rows"):
        make_trace(info, {name: column[:0] for name, column in columns(30).items()})
    without = columns(30)
    del without["answer"]
    with pytest.raises(DataError, match="no column 'answer': without the cloud's answers nothing"):
        make_trace(info, without)
    blind = {name: c for name, c in columns(30).items() if not name.startswith("slm_")}
    with pytest.raises(DataError, match="nothing says how unsure"):
        make_trace(info, blind)
    with pytest.raises(DataError, match="there is no trace"):
        read_trace(tmp_path / "none.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="is no Parquet file"):
        read_trace(tmp_path / "junk.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no trace: its metadata"):
        read_trace(tmp_path / "other.parquet")
    write_trace(tmp_path / "good.parquet", build(30))
    table = pq.read_table(tmp_path / "good.parquet")
    holes = table.set_column(
        table.column_names.index("answer"), "answer", pa.array([None] + [1] * 29, pa.int64())
    )
    pq.write_table(holes, tmp_path / "holes.parquet")
    with pytest.raises(DataError, match=r"row 0: answer is missing, as in 1 of 30 rows.*leave it out"):
        read_trace(tmp_path / "holes.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_trace(tmp_path / "empty.parquet")


def test_feedback_and_scores_by_hand():
    info = TraceInfo("s", "l", 3)
    columns = {
        "client": ["a"] * 2, "cluster": [""] * 2, "session": ["1", "2"], "position": [0, 0],
        "draft": [0, 1], "answer": [0, 2], "label": [0, 1],
        "slm_ids": [[0, 1], [1, 2]], "slm_probs": [[0.8, 0.1], [0.5, 0.4]],
        "llm_ids": [[0, 1], [2, 0]], "llm_probs": [[0.6, 0.4], [0.9, 0.1]],
    }  # fmt: skip
    trace = make_trace(info, columns)
    greedy = score_trace(trace, "max_prob")
    np.testing.assert_allclose(greedy.beta, [0.4, 1.0], atol=1e-6)
    sampled = make_trace(TraceInfo("s", "l", 3, draft="sampled"), columns)
    np.testing.assert_allclose(score_trace(sampled, "max_prob").beta, [1 - 0.6 / 0.8, 1.0], atol=1e-6)
    assert score_trace(trace, "margin", "agreement").beta.tolist() == [0, 1]
    quality = score_trace(trace, "margin", "quality")
    assert quality.beta.tolist() == [0, -1]  # the LLM was wrong where the SLM was right
    # Kept probabilities are renormalised: 0.8 of 0.9.
    np.testing.assert_allclose(uncertainties(trace, "max_prob"), [1 - 0.8 / 0.9, 1 - 0.5 / 0.9], atol=1e-6)
    beyond = make_trace(info, columns | {"draft": [2, 1]})
    assert uncertainties(beyond, "expected")[0] == 1
