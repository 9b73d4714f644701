"""The tables of the evidence page are what the committed summaries say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_table_of_the_evidence_page_is_older_than_its_study() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "studies" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "<!-- table " in page
    assert tables.filled(page) == page, "run: python studies/tables.py"
