"""Reading one directory of a source, or one file. Symbolic links, devices and pipes are never opened."""

import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from spark_jobs.sources import languages
from spark_jobs.sources.records import BY_NAME, LINK, Choice, Known, displayed, stream_row, unreadable_row
from spark_jobs.sources.units import Unit


def read_directory(unit: Unit, choice: Choice, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of the files that lie directly in one directory, by name; only a share of them if it was cut."""
    try:
        with os.scandir(unit.location) as entries:
            found = sorted(entry.name for entry in entries if _is_ours(entry, unit, tally))
    except OSError:
        yield unreadable_row(Known(unit.repo, displayed(unit.prefix), unit.source))
        return
    for name in found:
        language = languages.of_name(name)
        if reason := choice.skip(language):
            tally[reason] += 1
            continue
        path = f"{unit.prefix}/{name}" if unit.prefix else name
        known = Known(unit.repo, displayed(path), unit.source, language)
        yield _read(os.path.join(unit.location, name), known, choice)


def _is_ours(entry: os.DirEntry[str], unit: Unit, tally: Counter[str]) -> bool:
    if entry.name == ".git" or entry.is_dir(follow_symlinks=False) or not in_share(entry.name, unit.begin, unit.end):
        return False
    if entry.is_file(follow_symlinks=False):
        return True
    tally[LINK] += 1
    return False


def in_share(name: str, share: int, shares: int) -> bool:
    """Whether a file belongs to one of the equal shares into which a large directory is cut, by its name alone."""
    return shares <= 1 or zlib.crc32(os.fsencode(name)) % shares == share


def read_file(unit: Unit, choice: Choice, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The row of a file that the user named: read whatever it is called, unless its language was not asked for."""
    language = languages.of_name(unit.prefix)
    reason = choice.skip(language)
    if reason and reason != BY_NAME:
        tally[reason] += 1
        return
    yield _read(unit.location, Known(unit.repo, displayed(unit.prefix), unit.source, language), choice)


def _read(location: str, known: Known, choice: Choice) -> dict[str, Any]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(location, flags), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # it became a pipe since the directory was read
                return unreadable_row(known)
            return stream_row(known, file, status.st_size, choice.max_file_bytes)
    except OSError:
        return unreadable_row(known)
