"""The run's record as an experiment tracker wants it: values with a name, by round."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtandem.federation.trackers import OFF, TRACKERS, Tracker, trackers_of

Event = Mapping[str, Any]


def values_of(event: Event) -> dict[str, float]:
    """What a line of the record measures, named as in transformers (`eval/...`, `train/...`); {} for most lines."""
    kind, party = event["event"], event.get("party")
    if kind == "metric":
        return {f"eval/{event['split']}_{event['metric']}/{party}": float(event["value"])}
    if kind == "phase":
        found = {f"cpu_seconds/{event['phase']}/{party}": float(event["cpu_seconds"])}
        if event.get("loss_last") is not None:
            found[f"train/{event['phase']}_loss/{party}"] = float(event["loss_last"])
        return found
    if kind == "bytes":
        return {f"bytes/up/{party}": float(event["up"]), f"bytes/down/{party}": float(event["down"])}
    if kind == "selection":
        taught = {f"taught/{party}/{name}": float(count) for name, count in event["teachers"].items()}
        return {**taught, f"taught/{party}/labels": float(event["skipped"])}
    if kind == "absence":
        return {f"absent/{party}": 1.0}
    return {}


class Tracking:
    """Tells the trackers each line of the record, as it is written.

    A tracker that fails is told of in a warning of the record, and no more; the run goes on.

    Args:
        report_to: `report.report_to`.
        folder: of the run.
        name: of the run.
        config: as `RunConfig.resolved`.

    Raises:
        ConfigError: a tracker is not installed.
    """

    def __init__(
        self, report_to: str | Sequence[str], folder: Path, name: str, config: Mapping[str, Any]
    ) -> None:
        self._names = trackers_of(report_to)
        self._folder, self._name, self._config = folder, name, config
        self._open: dict[str, Tracker] = {}

    def __call__(self, event: Event) -> list[dict[str, Any]]:
        """Tell one line; gives back lines to add to the record: of trackers that failed."""
        if not self._names:
            return []
        if event["event"] == "method_started":
            return self._each(event, self._names, self._begin)
        if event["event"] in ("method_finished", "run_failed"):
            told = self._each(event, tuple(self._open), lambda name, _: self._open[name].close())
            self._open.clear()
            return told
        values = values_of(event)
        if not values:
            return []
        step = int(event.get("round", 0))
        return self._each(event, tuple(self._open), lambda name, _: self._open[name].log(step, values))

    def _begin(self, name: str, event: Event) -> None:
        for variable, value in OFF.items():
            os.environ.setdefault(variable, value)
        self._open[name] = TRACKERS[name](self._folder, self._name, str(event["method"]), self._config)

    def _each(self, event: Event, names: Sequence[str], do: Any) -> list[dict[str, Any]]:
        failed = []
        for name in names:
            try:
                do(name, event)
            except Exception as fault:  # another program's: whatever it is, the run is worth more
                self._open.pop(name, None)
                self._names = tuple(other for other in self._names if other != name)
                text = f"{name} failed and is told no more: {type(fault).__name__}: {fault}"
                warning = {"event": "warning", "round": int(event.get("round", 0)), "party": "server"}
                failed.append(
                    {**warning, "method": event.get("method", ""), "signature": "tracker", "text": text}
                )
        return failed
