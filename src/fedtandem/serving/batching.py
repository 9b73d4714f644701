"""One thread reads for everybody: whoever waits while a pass runs shares the next one (continuous batching)."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from fedtandem.errors import FedtandemError
from fedtandem.models.session_reader import SessionReader

T = TypeVar("T")

SHORT = 64
"""Texts with at most so many new tokens share a pass; longer ones (prompts) go alone, or all would be padded."""


class Overloaded(FedtandemError):
    """Too many wait already; come back later."""


@dataclass(eq=False)
class _Job(Generic[T]):
    """One text to be read, and what is made of its logits, in the reading thread."""

    session: str
    ids: Sequence[int]
    last: int
    then: Callable[[Tensor], T]
    done: "Future[T]" = field(default_factory=Future)


class Batcher:
    """The thread that owns a model's reader.

    Args:
        reader: of the model.
        max_batch: texts per pass.
        max_waiting: jobs beyond are refused.
        name: of the thread.
    """

    def __init__(self, reader: SessionReader, *, max_batch: int, max_waiting: int, name: str) -> None:
        self.reader = reader
        self.max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: deque[_Job[object]] = deque()
        self._left: list[str] = []
        self._changed = threading.Condition()
        self._ends = False
        self.passes = 0
        """Forward passes, ever."""
        self.jobs = 0
        """Texts read, ever."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no pass has taken up yet."""
        return len(self._waiting)

    def submit(self, session: str, ids: Sequence[int], last: int, then: Callable[[Tensor], T]) -> "Future[T]":
        """Read a text with the next pass.

        Args:
            session: whose keys and values to go on from; one job at a time each.
            ids: the whole text.
            last: of how many last tokens the logits are wanted.
            then: logits (last, V) -> the future's result; runs in the reading thread.

        Raises:
            Overloaded: too many wait, or the service is ending.
        """
        job = _Job(session, ids, last, then)
        with self._changed:
            if self._ends or len(self._waiting) >= self._max_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} texts wait to be read, at most {self._max_waiting} may."
                )
            self._waiting.append(job)  # type: ignore[arg-type]
            self._changed.notify()
        return job.done

    def forget(self, session: str) -> None:
        """A text is finished; what is kept of it goes with the next pass."""
        with self._changed:
            self._left.append(session)

    def close(self) -> None:
        """Finish what waits, then end."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ends:
                    self._changed.wait()
                if not self._waiting:
                    return
                left, self._left = self._left, []
                batch = self._take()
            for session in left:
                self.reader.forget(session)
            self._read(batch)

    def _take(self) -> list[_Job[object]]:
        """The next pass's jobs: in their order, each session once, a long text alone."""
        batch: list[_Job[object]] = []
        later: list[_Job[object]] = []
        while self._waiting and len(batch) < self.max_batch:
            job = self._waiting.popleft()
            is_long = self.reader.new_tokens(job.session, job.ids, job.last) > SHORT
            if any(job.session == other.session for other in batch) or (is_long and batch):
                later.append(job)
                break
            if job.done.set_running_or_notify_cancel():
                batch.append(job)
                if is_long:
                    break
        self._waiting.extendleft(reversed(later))
        return batch

    def _read(self, batch: list[_Job[object]]) -> None:
        if not batch:
            return
        try:
            answers = self.reader.logits(
                [job.session for job in batch], [job.ids for job in batch], [job.last for job in batch]
            )
            self.passes += 1
            self.jobs += len(batch)
        except Exception as error:
            # One text the model cannot read must not fail its neighbours.
            if len(batch) > 1:
                for job in batch:
                    self._read([job])
                return
            batch[0].done.set_exception(error)
            return
        for job, answer in zip(batch, answers, strict=True):
            try:
                job.done.set_result(job.then(answer))
            except Exception as error:
                job.done.set_exception(error)
