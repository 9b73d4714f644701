"""What a person watching sees: one moving line on a terminal, a plain line per finished stage elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

HEARTBEAT_S = 20.0
"""Off a terminal a stage says so often how far it is."""


class Watch:
    """Call it with (what, done, of); use it as a context.

    Args:
        console: where to show it; standard error by default, so that standard output stays clean.
        quiet: show nothing (`--json`).
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(file=sys.stderr)
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._since = self._said = time.monotonic()

    def __enter__(self) -> "Watch":
        if not self.quiet and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_stage()
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        """Show that `done` of `of` steps of `what` are done."""
        if what != self._what:
            self._close_stage()
            self._what, self._since = what, time.monotonic()
            if self._bar is not None:
                self._task = self._bar.add_task(what, total=of)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=of)
        elif not self.quiet and time.monotonic() - self._said > HEARTBEAT_S:
            self._say(f"{what}: {done} of {of}")

    def _close_stage(self) -> None:
        if not self._what:
            return
        took = time.monotonic() - self._since
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if not self.quiet and took > 2:
            self._say(f"{self._what}: {took:.0f} s")
        self._what = ""

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self.console.print(f"[dim]{line}[/dim]", highlight=False)
