"""Reading tar and zip archives. Nothing of an archive is ever written to a disk, and no link in it is followed.

A tar is read as a stream, member by member, packed or not; a zip needs its directory of names, which is held.
What is inside an archive inside an archive is not looked at.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from spark_jobs.sources import languages
from spark_jobs.sources.records import BLOCK_BYTES, FAULTS, LINK, Choice, Known, displayed, stream_row, unreadable_row
from spark_jobs.sources.units import Unit, inside_git

_TAR_BLOCK_BYTES = 512


def read_tar(unit: Unit, choice: Choice, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of a tar's members, and one more, unreadable, for the archive itself if it is damaged or cut off."""
    try:
        with contextlib.ExitStack() as stack:
            stream = _Counted(stack.enter_context(open_packed(unit.location)))
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would hold every name until the end
                if member.isdir():
                    continue
                known = _wanted(unit, member.name, member.isreg(), choice, tally)
                if known is not None:
                    content = tar.extractfile(member)
                    assert content is not None
                    yield stream_row(known, content, member.size, choice.max_file_bytes)
            # An archive ends with an empty block. tarfile takes the end of the file for it.
            if stream.taken_bytes < tar.offset + _TAR_BLOCK_BYTES:
                raise EOFError
            while stream.read(BLOCK_BYTES):  # the checksum of a packed archive comes last
                pass
    except FAULTS:
        yield unreadable_row(_archive(unit), unit.size_bytes)


def read_zip(unit: Unit, choice: Choice, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of a zip's members; a damaged or encrypted member is unreadable, and so is a zip cut off."""
    try:
        with zipfile.ZipFile(unit.location) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                mode = member.external_attr >> 16
                is_file = stat.S_ISREG(mode) or not stat.S_IFMT(mode)
                known = _wanted(unit, member.filename, is_file, choice, tally)
                if known is not None:
                    yield _zip_row(archive, member, known, choice)
    except FAULTS:
        yield unreadable_row(_archive(unit), unit.size_bytes)


def _zip_row(archive: zipfile.ZipFile, member: zipfile.ZipInfo, known: Known, choice: Choice) -> dict[str, Any]:
    try:
        with archive.open(member) as content:
            return stream_row(known, content, member.file_size, choice.max_file_bytes)  # type: ignore[arg-type]
    except FAULTS:
        return unreadable_row(known, member.file_size)


def open_packed(location: str) -> BinaryIO:
    """A stream of a file's bytes, unpacked as its name says (gz, zst, bz2, xz).

    All of them raise at the end of a file that was cut off; tarfile's own unpacking would not.
    """
    name = location.lower()
    if name.endswith((".gz", ".tgz")):
        return gzip.open(location)  # type: ignore[return-value]
    if name.endswith((".zst", ".tzst")):
        # Small reads: of a file cut off, Arrow drops the whole of the read that meets the end.
        return io.BufferedReader(pa.input_stream(location, compression="zstd"), 1 << 16)
    if name.endswith((".bz2", ".tbz2")):
        return bz2.open(location)  # type: ignore[return-value]
    if name.endswith((".xz", ".txz")):
        return lzma.open(location)  # type: ignore[return-value]
    return open(location, "rb")


class _Counted:
    """A stream that knows how many bytes were taken from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.taken_bytes = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.taken_bytes += len(data)
        return data


def _wanted(unit: Unit, name: str, is_file: bool, choice: Choice, tally: Counter[str]) -> Known | None:
    """What is known of a member that is to be read; None for one left out, which is counted."""
    path = name
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    if inside_git(path):
        return None
    if not is_file:
        tally[LINK] += 1
        return None
    language = languages.of_name(path)
    if reason := choice.skip(language):
        tally[reason] += 1
        return None
    folder, below, _ = path.lstrip("/").partition("/")
    repo = f"{unit.repo}/{displayed(folder)}" if below else unit.repo
    return Known(repo, displayed(path), unit.source, language)


def _archive(unit: Unit) -> Known:
    return Known(unit.repo, displayed(unit.prefix), unit.source)
