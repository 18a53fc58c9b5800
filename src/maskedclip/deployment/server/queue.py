"""One thread that runs the models, on batches of what waits; a bound on what may wait.

Torch works best from one thread: requests that come together are stacked, and a photograph alone is not kept waiting
for company.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from maskedclip.deployment.server.errors import Refusal, busy

Work = Callable[[Sequence[Any]], Sequence[Any]]
"""Items of one kind -> a result for each, in their order."""


@dataclass
class _Job:
    kind: str
    item: Any
    deadline: float
    result: "Future[Any]" = field(default_factory=Future)


class Queue:
    """Batches of jobs for one worker thread.

    Args:
        kinds: what may be asked, by name; jobs of one kind are done together.
        batch: jobs of a batch, at most.
        places: photographs that may be admitted at once; see `admit`.
        watch: told of each batch: its kind and size.
    """

    def __init__(
        self,
        kinds: Mapping[str, Work],
        *,
        batch: int,
        places: int,
        watch: Callable[[str, int], None] = lambda kind, size: None,
    ) -> None:
        self._kinds, self._batch, self._places, self._watch = dict(kinds), batch, places, watch
        self._taken = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="maskedclip-model", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> int:
        """Photographs that are in work or wait."""
        return self._taken

    @contextmanager
    def admit(self, count: int) -> Iterator["Places"]:
        """Take `count` places until the block ends, and until all work that was begun in it has ended.

        Raises:
            Refusal: 429, there are not as many.
        """
        with self._changed:
            if self._taken + count > self._places:
                raise busy(f"{self._taken} photographs are in work, of at most {self._places}")
            self._taken += count
        places = Places(self, count)
        try:
            yield places
        finally:
            places.leave()

    def release(self, count: int) -> None:
        """Give places back."""
        with self._changed:
            self._taken -= count

    async def ask(self, kind: str, items: Sequence[Any], deadline: float) -> list[Any]:
        """Results of items, as they come out of batches that other requests share.

        Args:
            kind: one of the kinds.
            items: at least one.
            deadline: of `time.monotonic`; what has not begun by then is dropped.

        Raises:
            Refusal: 504, the deadline passed; 503, the server is closing.
        """
        jobs = [_Job(kind, item, deadline) for item in items]
        with self._changed:
            if self._closed:
                raise Refusal(503, "closing", "the server is closing", headers={"Retry-After": "10"})
            self._jobs.extend(jobs)
            self._changed.notify()
        waiting = [asyncio.wrap_future(job.result) for job in jobs]
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return list(await asyncio.gather(*waiting))
        except TimeoutError:
            raise late() from None
        finally:
            for job in jobs:
                job.result.cancel()

    def alive(self, patience: float) -> bool:
        """Whether the worker runs and has not been on one batch for longer than `patience` seconds."""
        since = self._busy_since
        return self._thread.is_alive() and not self._closed and (since is None or time.monotonic() - since < patience)

    def close(self) -> None:
        """End the worker after its batch; what waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            live = [
                job for job in jobs if job.deadline > time.monotonic() and job.result.set_running_or_notify_cancel()
            ]
            if not live:
                continue
            self._busy_since = time.monotonic()
            try:
                self._watch(live[0].kind, len(live))
                results = self._kinds[live[0].kind]([job.item for job in live])
                for job, result in zip(live, results, strict=True):
                    job.result.set_result(result)
            except Exception as error:  # one request's fault must not end the worker: it is told to those who wait
                self._fail(live, error)
            finally:
                self._busy_since = None

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        """One item may spoil a batch: each is tried alone, and only those that fail are told so."""
        for job in jobs:
            if job.result.done():
                continue
            if len(jobs) == 1:
                job.result.set_exception(error)
                continue
            try:
                job.result.set_result(self._kinds[job.kind]([job.item])[0])
            except Exception as own:
                job.result.set_exception(own)

    def _take(self) -> list[_Job] | None:
        """The oldest job and others of its kind, in order; None when the queue is closed."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                for job in self._jobs:
                    job.result.cancel()
                return None
            kind = self._jobs[0].kind
            chosen: list[_Job] = []
            others: list[_Job] = []
            while self._jobs and len(chosen) < self._batch:
                job = self._jobs.popleft()
                (chosen if job.kind == kind else others).append(job)
            self._jobs.extendleft(reversed(others))
            return chosen


class Places:
    """Places of one request: given back when the request has gone and none of its threads is at work any more."""

    def __init__(self, queue: Queue, count: int) -> None:
        self._queue, self._count, self._open = queue, count, 1
        self._lock = threading.Lock()

    def hold(self, work: "Future[Any]") -> "Future[Any]":
        """Keep the places until this work has ended, even where nobody waits for it any more."""
        with self._lock:
            self._open += 1
        work.add_done_callback(lambda _: self.leave())
        return work

    def leave(self) -> None:
        """The request, or a part of its work, has ended."""
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self._queue.release(self._count)


def late() -> Refusal:
    """The answer took too long: 504."""
    return Refusal(504, "timeout", "the answer took too long; try again, or send fewer photographs at once")
