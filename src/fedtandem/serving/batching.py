"""One pass at a time, for everybody: whoever waits while it runs shares the next one (continuous batching)."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from fedtandem.errors import FedtandemError
from fedtandem.models.session_reader import SessionReader
from fedtandem.serving.turns import TURNS

T = TypeVar("T")

SHORT = 64
"""Texts with at most so many new tokens share a pass; longer ones (prompts) go alone, or all would be padded."""


class Overloaded(FedtandemError):
    """Too many wait already; come back later."""


@dataclass(eq=False)
class _Job(Generic[T]):
    """One text to be read, and what is made of its logits, in the thread that reads."""

    session: str
    ids: Sequence[int]
    last: int
    then: Callable[[Tensor], T]
    done: "Future[T]" = field(default_factory=Future)


class Batcher:
    """A model's reader, for whoever finds it free.

    Args:
        reader: of the model.
        max_batch: texts per pass.
        max_waiting: jobs beyond are refused.
        name: of the thread that reads what came while others read.
    """

    def __init__(self, reader: SessionReader, *, max_batch: int, max_waiting: int, name: str) -> None:
        self.reader = reader
        self.max_batch, self._max_waiting = max_batch, max_waiting
        self._waiting: deque[_Job[object]] = deque()
        self._left: list[str] = []
        self._changed = threading.Condition()
        self._ends = self._is_read = False
        self.passes = 0
        """Forward passes, ever."""
        self.jobs = 0
        """Texts read, ever."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    @property
    def waiting(self) -> int:
        """Jobs that no pass has taken up yet."""
        return len(self._waiting)

    def submit(self, session: str, ids: Sequence[int], last: int, then: Callable[[Tensor], T]) -> "Future[T]":
        """Read a text with the next pass, in another thread.

        Args:
            session: whose keys and values to go on from; one job at a time each.
            ids: the whole text.
            last: of how many last tokens the logits are wanted.
            then: logits (last, V) -> the future's result; runs in the thread that reads.

        Raises:
            Overloaded: too many wait, or the service is ending.
        """
        job = _Job(session, ids, last, then)
        if self._finds_it_free(job):
            self._thread.submit(self._read_all)
        return job.done

    def logits(self, session: str, ids: Sequence[int], last: int) -> Tensor:
        """Read a text with the next pass, and wait for it; (last, V).

        Where nobody reads the pass runs in this thread: handing it to another one costs more than a small model.
        What came meanwhile is left to the batcher's own thread.

        Raises:
            Overloaded, ModelError: as `submit`, and the reader.
        """
        job: _Job[Tensor] = _Job(session, ids, last, _as_they_are)
        with TURNS.away():  # others may compute, and have their texts ready for the next pass
            if self._finds_it_free(job):
                self._read_next()  # nobody was before this job
                if self._goes_on():
                    self._thread.submit(self._read_all)
            return job.done.result()

    def forget(self, session: str) -> None:
        """A text is finished; what is kept of it goes with the next pass."""
        with self._changed:
            self._left.append(session)

    def bound(self, *, max_batch: int, max_waiting: int, cache_bytes: int) -> None:
        """Other bounds, from the next pass on."""
        self.max_batch, self._max_waiting = max_batch, max_waiting
        self.reader.cache_bytes = cache_bytes

    def close(self) -> None:
        """Finish what waits, then end."""
        with self._changed:
            self._ends = True
            self._changed.wait_for(lambda: not self._is_read)
        self._thread.shutdown()

    def _finds_it_free(self, job: _Job[T]) -> bool:
        """Put a job into the queue; whether who put it there has to see to its being read."""
        with self._changed:
            if self._ends or len(self._waiting) >= self._max_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} texts wait to be read, at most {self._max_waiting} may."
                )
            self._waiting.append(job)  # type: ignore[arg-type]
            is_free, self._is_read = not self._is_read, True
            return is_free

    def _goes_on(self) -> bool:
        """Whether more waits; if not, the reader is free from now on."""
        with self._changed:
            if not self._waiting:
                self._is_read = False
                self._changed.notify_all()
            return self._is_read

    def _read_all(self) -> None:
        while True:
            self._read_next()
            if not self._goes_on():
                return

    def _read_next(self) -> None:
        with self._changed:
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


def _as_they_are(logits: Tensor) -> Tensor:
    return logits
