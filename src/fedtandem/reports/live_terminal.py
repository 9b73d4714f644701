"""`fedtandem watch`: a run on a terminal, once or until it ends."""

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from fedtandem.errors import ConfigError
from fedtandem.reports.live import Live, look, taught, took
from fedtandem.reports.record import Lesson
from fedtandem.reports.wording import clock, figure, method_name, metric_name, moved, plural, seconds

EVERY_S = 1.0
ROUNDS_SHOWN, NOTES_SHOWN = 6, 5
_STYLES = {
    "running": "green",
    "finished": "green",
    "failed": "red",
    "stopped": "yellow",
    "not begun": "yellow",
}
_PARTY_STYLES = {"answered": "green", "asked": "cyan", "at work": "cyan", "not connected": "red"}


def watch_command(folder: Path, *, once: bool, json_output: bool, console: Console | None = None) -> int:
    """Show a run until it has ended, or once.

    Args:
        folder: of the run; it may not be there yet.
        once: show it as it is now; so it is, too, where the output is no terminal.
        json_output: once, for machines.

    Raises:
        ConfigError: `once`, and no run was begun there.
        DataError: a file of it cannot be read.
    """
    shown = console or Console()
    if once or json_output or not shown.is_terminal:
        live = look(folder, datetime.now(UTC))
        if live.state == "not begun":
            raise ConfigError(f"{live.says}. Name the folder that `fedtandem run` writes.")
        if json_output:
            print(json.dumps(asdict(live), default=str))
        else:
            shown.print(picture(live, datetime.now(UTC)))
        return 0
    with Screen(console=shown, auto_refresh=False, screen=False) as screen:
        while True:
            live = look(folder, datetime.now(UTC))
            screen.update(picture(live, datetime.now(UTC)), refresh=True)
            if live.state in ("finished", "failed"):
                return 0
            time.sleep(EVERY_S)


def picture(live: Live, now: datetime) -> RenderableType:
    """All of it, from the state of the run down to its newest warnings."""
    parts: list[RenderableType] = [_head(live)]
    if live.parties:
        parts += ["", _parties(live, now)]
    if live.rounds:
        parts += ["", _rounds(live)]
    if live.lessons:
        parts += ["", _lessons(live.lessons)]
    if live.measured:
        parts += ["", _measured(live)]
    parts += [
        Text.assemble(
            "\n" if at == 0 else "", (note.kind, "yellow"), f" {note.party}, round {note.round}: {note.text}"
        )
        for at, note in enumerate(live.notes[-NOTES_SHOWN:])
    ]
    return Group(*parts)


def _head(live: Live) -> Text:
    said = Text.assemble((live.name, "bold"), "  ", (live.state, _STYLES[live.state]))
    if live.method:
        at = live.methods.index(live.method) + 1 if live.method in live.methods else 1
        which = f" ({at} of {len(live.methods)} methods)" if len(live.methods) > 1 else ""
        said.append(
            f"  {method_name(live.method)}{which}, {live.rounds_done} of {plural(live.num_rounds, 'round')}"
        )
        said.append(f"  carrier {live.carrier}  {seconds(live.seconds)}")
        if live.state == "running":
            left = "" if live.eta_s is None else f", about {seconds(live.eta_s)} to go"
            said.append(f" so far{left}")
    if live.doing:
        said.append(f"\n{live.doing}", style="cyan")
    if live.says:
        said.append(f"\n{live.says}", style=_STYLES[live.state])
    return said


def _table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=column in numbers,
            overflow="fold",
        )
    return table


def _parties(live: Live, now: datetime) -> Table:
    table = _table(
        "party", "now", "", "heard", "up", "down", "absent", numbers=("heard", "up", "down", "absent")
    )
    for party in live.parties:
        ago = "" if party.heard is None else f"{seconds((now - party.heard).total_seconds())} ago"
        heard = clock(party.heard) if live.state != "running" else ago
        style = _PARTY_STYLES.get(party.state, "red" if party.state.startswith("absent") else "")
        table.add_row(
            party.name, Text(party.state, style), Text(party.told, "dim"), heard, moved(party.up), moved(party.down),
            str(party.absences or ""),
        )  # fmt: skip
    return table


def _rounds(live: Live) -> Table:
    table = _table(
        "round", "began", "took", "answered", "up", "down", "absent", numbers=("took", "up", "down")
    )
    for one in live.rounds[-ROUNDS_SHOWN:]:
        table.add_row(
            f"{one.number} {'' if one.state == 'committed' else one.state}", clock(one.began), took(one),
            str(one.answered or ""), moved(one.up), moved(one.down), Text(", ".join(one.absent), "red"),
        )  # fmt: skip
    return table


def _lessons(lessons: tuple[Lesson, ...]) -> Table:
    table = _table("learner", "round", "taught by, in samples", numbers=("round",))
    for lesson in lessons:
        table.add_row(lesson.learner, str(lesson.round), taught(lesson))
    return table


def _measured(live: Live) -> Table:
    table = _table(
        "party", "test set", "before", "now", "after round", numbers=("before", "now", "after round")
    )
    for one in live.measured:
        table.add_row(
            one.party, f"{one.split} {metric_name(one.metric)}", figure(one.before, one.metric),
            figure(one.now, one.metric), str(one.round),
        )  # fmt: skip
    return table
