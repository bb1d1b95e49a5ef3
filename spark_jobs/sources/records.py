"""From what is known of a file and its bytes to a row of `documents`, and from rows to Arrow batches.

A file's id is hashed over its decoded content, so that a file has one id whether it came as a file in latin-1, in an
archive, or as text in JSON lines; a file without content is hashed over the bytes that there are.
"""

import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from spark_jobs.sources import languages
from spark_jobs.sources.columns import ALIASES
from spark_jobs.sources.decoding import OVERSIZED, UNDECODABLE, UNREADABLE, decode
from spark_jobs.sources.identity import file_id, streamed_file_id

# What the readers of archives and tables raise on damaged input. Everything else is a fault of ours.
FAULTS = (
    OSError,
    EOFError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,  # an encrypted member of a zip
    NotImplementedError,  # a compression that zipfile does not know
    struct.error,
    zlib.error,
    LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    pa.ArrowException,
)

BLOCK_BYTES = 1 << 20
BATCH_BYTES = 16 << 20
BATCH_ROWS = 1000

SKIPPED = ("skipped_by_name", "skipped_by_language", "skipped_links")
BY_NAME, BY_LANGUAGE, LINK = SKIPPED


@dataclass(frozen=True)
class Choice:
    """Which files are read: of which languages (None: all), up to which size, and in which folders not."""

    max_file_bytes: int
    languages: frozenset[str] | None = None
    excluded_folders: frozenset[str] = frozenset()

    def skip(self, language: str | None, *, by_name: bool = True) -> str | None:
        """Why a file of this language is left out, None if it is read.

        With `by_name` the name alone decided the language, so a file without one is no known text.
        """
        if language is None and by_name:
            return BY_NAME
        return BY_LANGUAGE if self.languages is not None and language not in self.languages else None


class Known(NamedTuple):
    """What is known of a file beside its bytes. Any string may come from hostile data: `shown` makes it storable."""

    repo: str
    path: str
    source: str
    language: str | None = None
    revision: str = ""
    licenses: tuple[str, ...] = ()
    stars: int | None = None


def shown(value: Any) -> str:
    """Any name as valid Unicode: bytes that are none, and lone surrogates, as backslash escapes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def displayed(name: str) -> str:
    """A name from the file system, where bytes that are not UTF-8 are kept as lone surrogates."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def content_row(known: Known, data: bytes, max_file_bytes: int) -> dict[str, Any]:
    """The row of a file whose bytes are all there."""
    if len(data) > max_file_bytes:
        return bare_row(known, OVERSIZED, len(data), data)
    decoded = decode(data)
    row = bare_row(known, decoded.state, len(data), data if decoded.text is None else decoded.text)
    row["encoding"], row["content"] = decoded.encoding, decoded.text
    return row


def bare_row(known: Known, state: str, size_bytes: int, identity: bytes) -> dict[str, Any]:
    """A row without content; `identity` is what its id is hashed from beside repository, revision and path."""
    return {
        "file_id": file_id(known.repo, known.revision, known.path, identity),
        "repo": known.repo,
        "path": known.path,
        "revision": known.revision,
        "language": known.language,
        "licenses": list(known.licenses),
        "stars": known.stars,
        "size": size_bytes,
        "encoding": None,
        "state": state,
        "source": known.source,
        "content": None,
    }


def stream_row(known: Known, stream: BinaryIO, size_bytes: int, max_file_bytes: int) -> dict[str, Any]:
    """The row of a file that is read from a stream; one that is too large is hashed in blocks and never held."""
    if size_bytes > max_file_bytes:
        row = bare_row(known, OVERSIZED, size_bytes, b"")
        blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
        row["file_id"] = streamed_file_id(known.repo, known.revision, known.path, size_bytes, blocks)
        return row
    data = stream.read(size_bytes + 1)
    if len(data) > size_bytes:  # it grew since it was measured
        data += stream.read(max_file_bytes + 1 - len(data))
    return content_row(known, data, max_file_bytes)


def unreadable_row(known: Known, size_bytes: int = 0, identity: bytes = b"") -> dict[str, Any]:
    """The row of a file, archive or row group of which nothing (more) can be read."""
    return bare_row(known, UNREADABLE, size_bytes, identity)


FIELDS = ("repo", "path", "revision", "language", "licenses", "stars")


def known_of_record(record: dict[str, Any], repo: str, source: str) -> Known:
    """What a JSON object or a Parquet row tells of its file; `repo` is used where it names none."""
    given = {
        field: next((record[name] for name in ALIASES[field] if record.get(name) not in (None, "", b"", [])), None)
        for field in FIELDS
    }
    path = "" if given["path"] is None else shown(given["path"])
    language = languages.of_name(path) if given["language"] is None else shown(given["language"])
    licenses = given["licenses"] if isinstance(given["licenses"], (list, tuple)) else [given["licenses"]]
    return Known(
        repo=repo if given["repo"] is None else shown(given["repo"]),
        path=path,
        source=source,
        language=language and languages.canonical(language),
        revision="" if given["revision"] is None else shown(given["revision"]),
        licenses=tuple(shown(name) for name in licenses if name is not None),
        stars=_whole_number(given["stars"]),
    )


def _whole_number(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -(2**63) <= number < 2**63 else None


def record_row(known: Known, content: Any, identity: bytes, max_file_bytes: int) -> dict[str, Any]:
    """The row of a record: text or bytes are decoded as a file's are; anything else is no content.

    `identity` stands for a record that has no content. Text with lone surrogates is no Unicode and undecodable.
    """
    if isinstance(content, bytes):
        return content_row(known, content, max_file_bytes)
    if not isinstance(content, str):
        return bare_row(known, UNDECODABLE, 0, identity)
    try:
        return content_row(known, content.encode("utf-8"), max_file_bytes)
    except UnicodeEncodeError:
        data = content.encode("utf-8", "surrogatepass")
        return bare_row(known, UNDECODABLE, len(data), data)


def batches(rows: Iterable[dict[str, Any]], tally: Counter[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Arrow batches of at most 1000 rows or some 16 MB of content, columns in the order of `schema`.

    After the last row comes one without a `file_id` that holds the counts of `tally`: what travels with the rows is
    counted exactly once, whatever is retried.
    """
    held: list[dict[str, Any]] = []
    held_bytes = 0
    for row in rows:
        size_bytes = len(row["content"] or b"")
        if held and (held_bytes + size_bytes > BATCH_BYTES or len(held) >= BATCH_ROWS):
            yield _batch(held, schema)
            held, held_bytes = [], 0
        held.append(row)
        held_bytes += size_bytes
    held.append({name: tally[name] for name in SKIPPED})
    yield _batch(held, schema)


def _batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.name == "content":  # validated UTF-8 already: no text object in between
            columns.append(pa.array(values, pa.large_binary()).view(pa.large_string()).cast(field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
