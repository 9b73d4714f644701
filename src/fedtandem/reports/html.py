"""`fedtandem report`: one self-contained page from a run's or a study's folder."""

from pathlib import Path
from typing import Any

from fedtandem.atomic import write_text
from fedtandem.reports.record import RunRecord, read_record
from fedtandem.reports.run_page import run_page
from fedtandem.reports.study_page import study_page


def report_command(folder: Path, output: Path | None = None) -> Path:
    """Write the page.

    Args:
        folder: of a run (finished or not) or of a study.
        output: the file; `report.html` in the folder by default.

    Returns:
        Where it lies.

    Raises:
        ConfigError: the folder holds neither.
        DataError: a file in it cannot be read.
    """
    record = read_record(folder)
    page = render("run.html.j2", run_page(record)) if isinstance(record, RunRecord) else render(
        "study.html.j2", study_page(record)
    )  # fmt: skip
    target = output or folder / "report.html"
    write_text(target, page)
    return target


def render(template: str, values: dict[str, Any]) -> str:
    """Fill in a template; everything that is not a drawing is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from fedtandem.reports import wording

    environment = Environment(
        loader=PackageLoader("fedtandem.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["method_name"] = wording.method_name
    environment.globals.update(
        {
            name: getattr(wording, name)
            for name in (
                "figure", "difference", "interval", "unit", "metric_name", "method_name", "payload", "seconds",
                "p_value", "listed", "clock", "moved", "plural",
            )
        }
    )  # fmt: skip
    return environment.get_template(template).render(**values)
