"""What a person sees while they wait: one line a message, a bar with rate and time left, all on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)
_PLAIN_SECONDS = 15.0


def say(message: str) -> None:
    """Print a line; markup in the message is left as it is."""
    console.print(message, markup=False)


class Bar:
    """Progress of one task: drawn on a terminal, else a plain line now and then."""

    def __init__(self, label: str, total: int, done: int, progress: Progress | None) -> None:
        self.label, self.total, self.done, self._progress = label, total, done, progress
        self._task = progress.add_task(label, total=total, completed=done, note="") if progress else None
        self._began, self._first, self._last_line = time.monotonic(), done, time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished units, with a short note such as a rate."""
        self.done += count
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._last_line > _PLAIN_SECONDS:
            self._last_line = time.monotonic()
            left = (self.total - self.done) * (self._last_line - self._began) / max(1, self.done - self._first)
            say(f"{self.label}: {self.done}/{self.total}  {note}  {minutes(left)} left")


@contextmanager
def bar(label: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Bar]:
    """A bar for `total` units of which `done` are done already."""
    if not shown or not sys.stderr.isatty():
        yield Bar(label, total, done, None) if shown else _Silent(label, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(label, total, done, progress)


class _Silent(Bar):
    def advance(self, count: int = 1, note: str = "") -> None:
        """Count without a word, on all ranks but the first."""
        self.done += count


def minutes(seconds: float) -> str:
    """A duration for a person: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
