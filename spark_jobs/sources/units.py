"""Cutting sources into units of work: what the driver knows of a corpus before Spark starts.

The driver walks directories and never holds the names of files; a unit is one directory (or a share of a large one),
one archive, one byte range of JSON lines, or one row group of Parquet. Beside the units it makes one fingerprint of
all files that would be read, so that a finished ingest is recognised without Spark. Walking costs some 10 us a file.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from spark_jobs.sources import languages
from spark_jobs.sources.records import Choice, displayed

log = logging.getLogger("corella")

DIRECTORY, FILE, TAR, ZIP, LINES, ROW_GROUP = "directory", "file", "tar", "zip", "lines", "row group"

TAR_ENDINGS = (".tar", ".tgz", ".tzst", ".tbz2", ".txz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")
LINE_ENDINGS = (".jsonl", ".ndjson", ".json")
PACKED_LINE_ENDINGS = tuple(lines + packed for lines in LINE_ENDINGS for packed in (".gz", ".zst"))
PARQUET_ENDINGS = (".parquet",)

_DATA_SETS = (PARQUET_ENDINGS, TAR_ENDINGS, (".zip",), (".jsonl", ".ndjson", *PACKED_LINE_ENDINGS))

RANGE_BYTES = 64 << 20


class Unit(NamedTuple):
    """A piece of work for one Python worker.

    `prefix` is the path of the directory below its source, or the name of the file. `begin` and `end` are the share
    of a directory (number, of how many), the byte range of JSON lines (end -1: all of a packed file), or the number of
    the row group. `size_bytes` is what it holds, as far as that is known.
    """

    kind: str
    source: str
    location: str
    repo: str
    prefix: str
    begin: int
    end: int
    files: int
    size_bytes: int


@dataclass
class Survey:
    """All units of a corpus, and the fingerprint of the files that they stand for."""

    units: list[Unit] = field(default_factory=list)
    _sum: int = 0

    @property
    def inventory(self) -> str:
        """128 bits over relative name, size and time of every file, whatever the order they were met in."""
        return f"{self._sum:032x}"

    def count(self, source: str, name: str, status: os.stat_result) -> None:
        text = f"{source}\0{name}\0{status.st_size}\0{status.st_mtime_ns}"
        entry = xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogateescape"))
        self._sum = (self._sum + entry) % 2**128


def survey(sources: Iterable[str], choice: Choice, *, leave_out: str = "", range_bytes: int = RANGE_BYTES) -> Survey:
    """The units of all sources. FileNotFoundError for one that is not there, ValueError for one of no use.

    `leave_out` is a folder that is not read even if it lies in a source, as the output may.
    """
    found, output = Survey(), os.path.abspath(leave_out) if leave_out else ""
    for source in sources:
        if "://" in source:
            raise ValueError(f"{source}: sources are folders or files that every worker can open, not addresses")
        location = os.path.abspath(source)
        if not os.path.exists(location):
            raise FileNotFoundError(f"the source {source} does not exist")
        if not os.path.isdir(location):
            found.units.extend(_file_units(found, source, location, source, range_bytes))
        elif deliveries := _deliveries(location):
            for name in deliveries:
                told, place = f"{source.rstrip('/')}/{name}", os.path.join(location, name)
                found.units.extend(_file_units(found, told, place, f"{source}\0{name}", range_bytes))
        else:
            found.units.extend(_directory_units(found, source, location, choice, output, range_bytes))
    return found


def inside_git(path: str) -> bool:
    """Whether a path leads into git's own folder, which is the history of a corpus and no part of it."""
    return path.startswith(".git/") or "/.git/" in path


@dataclass
class _Listing:
    """What lies directly in a directory: its folders, the files to be read, how many others."""

    folders: list[str] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0
    others: int = 0
    is_repository: bool = False


def _directory_units(
    found: Survey, source: str, location: str, choice: Choice, leave_out: str, range_bytes: int
) -> Iterator[Unit]:
    """One unit a directory, from the top down, without following links.

    The repository of a file is the nearest folder above it that holds `.git`, else the first folder below the source.
    """
    name = os.path.basename(location) or "root"
    pending = [("", "")]
    while pending:
        prefix, inherited = pending.pop()
        place = os.path.join(location, prefix) if prefix else location
        listing = _listing(found, name, place, prefix, choice)
        repo = inherited or (f"{name}/{prefix}" if prefix else "")
        if listing.is_repository:
            repo = f"{name}/{prefix}" if prefix else name
        if listing.files or listing.others:
            shares = max(1, min(listing.files, -(-listing.size_bytes // range_bytes)))
            files, size_bytes = listing.files // shares, listing.size_bytes // shares
            for share in range(shares):
                told = displayed(repo or name)
                yield Unit(DIRECTORY, source, place, told, prefix, share, shares, files, size_bytes)
        for folder in sorted(listing.folders, reverse=True):
            if os.path.join(place, folder) != leave_out:
                pending.append((f"{prefix}/{folder}" if prefix else folder, repo))


def _listing(found: Survey, name: str, place: str, prefix: str, choice: Choice) -> _Listing:
    listing = _Listing()
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name == ".git":
                    listing.is_repository = True
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name not in choice.excluded_folders:
                        listing.folders.append(entry.name)
                elif choice.skip(languages.of_name(entry.name)):
                    listing.others += 1
                else:
                    listing.files += 1
                    with contextlib.suppress(OSError):  # it vanished meanwhile
                        status = entry.stat(follow_symlinks=False)
                        found.count(name, f"{prefix}/{entry.name}", status)
                        listing.size_bytes += status.st_size
    except OSError:
        listing.others += 1  # a worker will meet the same and tell it
    return listing


def _deliveries(folder: str) -> list[str]:
    """The files of a folder that is a data set and no tree of files, as names below it; none if it is a tree.

    A data set is a folder whose every file is Parquet, at any depth, or where every file is of one kind of archive or
    JSON lines and no folder lies between. Hidden files, a read-me and a licence do not count. Links are not followed,
    here as everywhere, and told of.
    """
    found: list[str] = []
    links = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        below = os.path.relpath(place, folder)
        for name in names:
            lower = name.lower()
            if lower[0] in "._" or lower.startswith(("readme", "license")):
                continue
            kinds = _DATA_SETS if not folders and below == "." else (PARQUET_ENDINGS,)
            first = found[0].lower() if found else lower
            if not any(lower.endswith(kind) and first.endswith(kind) for kind in kinds):
                return []
            if os.path.islink(os.path.join(place, name)):
                links += 1
            else:
                found.append(name if below == "." else f"{below}/{name}")
    if found and links:
        log.warning("%s: %d links are not followed; name what they lead to as a source", folder, links)
    return sorted(found)


def _file_units(found: Survey, source: str, location: str, identity: str, range_bytes: int) -> Iterator[Unit]:
    """The units of one file: an archive, JSON lines, Parquet, or any other, which is a file of the corpus itself."""
    status = os.stat(location)
    if not os.path.isfile(location):
        raise ValueError(f"the source {source} is neither a folder nor a file")
    found.count(os.path.basename(os.path.dirname(identity)), os.path.basename(location), status)
    name, size_bytes = os.path.basename(location), status.st_size
    lower, stem = name.lower(), displayed(_stem(name))

    def unit(kind: str, begin: int = 0, end: int = -1, size: int = size_bytes, files: int = 1) -> Unit:
        return Unit(kind, source, location, stem, name, begin, end, files, size)

    if lower.endswith(TAR_ENDINGS):
        yield unit(TAR)
    elif lower.endswith(".zip"):
        yield unit(ZIP)
    elif lower.endswith(PACKED_LINE_ENDINGS):
        yield unit(LINES)
    elif lower.endswith(LINE_ENDINGS):
        for begin in range(0, size_bytes, range_bytes):
            end = min(begin + range_bytes, size_bytes)
            yield unit(LINES, begin, end, end - begin, int(begin == 0))
    elif lower.endswith(PARQUET_ENDINGS):
        for number, group_bytes in enumerate(_row_groups(location, source, size_bytes)):
            yield unit(ROW_GROUP, number, -1, group_bytes, int(number == 0))
    else:  # a link that the user named is followed, one that lies in a folder is not
        yield unit(FILE)._replace(location=os.path.realpath(location))


def _row_groups(location: str, source: str, size_bytes: int) -> list[int]:
    """The bytes of every row group; one of a file that cannot be read, for a worker to tell it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(location) as file:
            groups = [file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups)]
            names = file.schema_arrow.names
    except (OSError, ValueError, pa.ArrowException):
        return [size_bytes]
    if "content" not in names:
        raise ValueError(f"{source} lacks the column content; it has {', '.join(names)}")
    return groups


def _stem(name: str) -> str:
    lower = name.lower()
    known = (*TAR_ENDINGS, ".zip", *PACKED_LINE_ENDINGS, *LINE_ENDINGS, *PARQUET_ENDINGS)
    ending = max((ending for ending in known if lower.endswith(ending)), key=len, default="")
    return name[: -len(ending)] if ending else os.path.splitext(name)[0]
