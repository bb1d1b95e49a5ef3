"""Reading JSON lines: an object a line, its file in `content`. A line belongs to the byte range it starts in."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import xxhash

from spark_jobs.sources.archives import open_packed
from spark_jobs.sources.decoding import OVERSIZED, UNDECODABLE
from spark_jobs.sources.records import (
    BLOCK_BYTES,
    FAULTS,
    Choice,
    Known,
    bare_row,
    displayed,
    known_of_record,
    record_row,
    unreadable_row,
)
from spark_jobs.sources.units import Unit

_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line, or of one too long its hash: `data` is None then."""

    offset: int
    size_bytes: int
    data: bytes | None
    digest: bytes


def lines_of(stream: BinaryIO, begin: int, end: int | None, max_line_bytes: int) -> Iterator[Line]:
    """The lines that start in [begin, end) of a stream that stands at the byte before `begin`, or at 0 if that is 0.

    So the ranges of any cut together give every line once. A line ends with a newline, which is not part of it.
    """
    offset = begin
    if begin > 0:
        for piece in _pieces(stream, BLOCK_BYTES):
            offset += len(piece)
        offset -= 1
    while end is None or offset < end:
        data = stream.readline(max_line_bytes + 1)
        if not data:
            return
        if data.endswith(b"\n") or len(data) <= max_line_bytes:
            line = data.removesuffix(b"\n")
            yield Line(offset, len(line), line, b"")
            offset += len(data)
            continue
        digest, size_bytes, ended = xxhash.xxh3_128(data), len(data), 0
        for piece in _pieces(stream, BLOCK_BYTES):
            ended = piece.endswith(b"\n")
            digest.update(piece.removesuffix(b"\n"))
            size_bytes += len(piece) - ended
        yield Line(offset, size_bytes, None, digest.digest())
        offset += size_bytes + ended


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """What is left of the present line, in pieces; the last ends with the newline, if there is one."""
    while piece := stream.readline(size):
        yield piece
        if piece.endswith(b"\n"):
            return


def read_lines(unit: Unit, choice: Choice, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of the lines of one byte range, or of a packed file; blank lines are none.

    A line may be six times as long as the file in it (every byte escaped as \\u001f) and some more; beyond that it is
    oversized unseen and nothing of it is known but its length and hash.
    """
    max_line_bytes = 6 * choice.max_file_bytes + BLOCK_BYTES
    last = None if unit.end < 0 else unit.end
    try:
        with open_packed(unit.location) as stream:
            if unit.begin > 0:
                stream.seek(unit.begin - 1)
            for line in lines_of(stream, unit.begin, last, max_line_bytes):
                row = _row(line, unit, choice, tally)
                if row is not None:
                    yield row
    except FAULTS:
        known = Known(unit.repo, displayed(unit.prefix), unit.source)
        yield unreadable_row(known, unit.size_bytes, b"range %d" % unit.begin)


def _row(line: Line, unit: Unit, choice: Choice, tally: Counter[str]) -> dict[str, Any] | None:
    source = f"{unit.source}:{line.offset}"
    if line.data is None:
        return bare_row(Known(unit.repo, "", source), OVERSIZED, line.size_bytes, line.digest)
    data = line.data.removeprefix(_MARK) if line.offset == 0 else line.data
    if not data.strip():
        return None
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        return bare_row(Known(unit.repo, "", source), UNDECODABLE, len(data), data)
    known = known_of_record(record, unit.repo, source)
    if reason := choice.skip(known.language, by_name=False):
        tally[reason] += 1
        return None
    return record_row(known, record.get("content"), data, choice.max_file_bytes)
