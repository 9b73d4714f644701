"""[report]: what is shown at the end."""

from typing import Literal

from fedtandem.config.section import Section

TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class ReportConfig(Section):
    """The page beside the record; the record itself (run.json, events.jsonl) is always written."""

    enabled: bool = True
    """Write report.html."""
    open: bool = False
    """Open it in the browser."""
    report_to: Literal["none", "all"] | TrackerName | tuple[TrackerName, ...] = "none"
    """Experiment trackers, as in transformers: one, several, "all" that are installed, or "none". They write into the
    run folder; nothing is sent anywhere unless your environment says so."""
