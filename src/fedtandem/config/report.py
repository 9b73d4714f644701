"""[report]: what is shown at the end."""

from typing import Literal

from fedtandem.config.section import Section


class ReportConfig(Section):
    """The page beside the record; the record itself (run.json, events.jsonl) is always written."""

    enabled: bool = True
    """Write report.html."""
    open: bool = False
    """Open it in the browser."""
    report_to: Literal["none"] = "none"
    """Experiment trackers; nothing is sent anywhere."""
