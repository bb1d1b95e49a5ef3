"""A line now and then that tells how far a long step is, and how long it will take."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

EVERY_SECONDS = 5.0

Item = TypeVar("Item")


def told(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass the items on; every five seconds say on stderr how many of `total` are done and when all will be."""
    begin = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= EVERY_SECONDS:
            last, left = now, (now - begin) / max(done, 1) * (total - done)
            print(f"{what}: {done:,} of {total:,}, about {_duration(left)} left", file=sys.stderr, flush=True)
        yield item


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
