"""A line now and then that tells how far a long step is, and how long it will take."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

EVERY_SECONDS = 5.0

Item = TypeVar("Item")


class Progress:
    """How far a long step is, on stderr every five seconds; nothing of a step that is shorter.

    Args:
        what: the step, as its lines begin.
        total: of what is counted.
        gigabytes: whether that is bytes.
        quiet: tell nothing; of all processes but one that do the same.
    """

    def __init__(self, what: str, total: int, *, gigabytes: bool = False, quiet: bool = False) -> None:
        self._what, self._total, self._gigabytes, self._quiet = what, total, gigabytes, quiet
        self._done = 0
        self._begin = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Count what is done since the last call."""
        self._done += count
        now = time.monotonic()
        if now - self._last >= EVERY_SECONDS and self._done < self._total:
            self._last, left = now, (now - self._begin) / max(self._done, 1) * (self._total - self._done)
            self._tell(f"{self._amount(self._done)} of {self._amount(self._total)}, about {_duration(left)} left")

    def end(self) -> None:
        """Tell what was done and how fast, if the step was long."""
        seconds = time.monotonic() - self._begin
        if seconds >= EVERY_SECONDS:
            rate = f"{self._done / seconds / 1e9:,.2f} GB" if self._gigabytes else f"{self._done / seconds:,.0f}"
            self._tell(f"{self._amount(self._done)} in {_duration(seconds)}, {rate} a second")

    def _amount(self, count: int) -> str:
        return f"{count / 1e9:,.1f} GB" if self._gigabytes else f"{count:,}"

    def _tell(self, line: str) -> None:
        if not self._quiet:
            print(f"{self._what}: {line}", file=sys.stderr, flush=True)


def told(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass the items on; every five seconds say on stderr how many of `total` are done and when all will be."""
    progress = Progress(what, total)
    for item in items:
        yield item
        progress.add(1)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
