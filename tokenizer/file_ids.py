"""File ids in bulk: 16 bytes each, in numpy arrays of `S16`, which sort and compare as the bytes do.

More of them than fit in memory are dealt out to piles on disk by a hash, so that equal ids meet in one pile.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

ID_BYTES = 16
PILE_IDS = 4 << 20  # 64 MB, and two or three times that while it is sorted
BUFFERED_IDS = 4 << 20

Ids = NDArray[np.bytes_]
_HEX = re.compile(r"[0-9a-f]{32}")


def ids_of_words(words: Sequence[str], option: str) -> Ids:
    """Distinct ids, sorted: each word is an id (32 hexadecimal digits), or names a file with an id a line.

    Raises:
        ValueError: something else; the option and the word are named.
    """
    found: list[bytes] = []
    for word in words:
        if _HEX.fullmatch(word.lower()):
            found.append(bytes.fromhex(word))
            continue
        if not Path(word).is_file():
            raise ValueError(f"{option} {word}: neither a file id (32 hexadecimal digits) nor a file of such ids")
        with Path(word).open() as lines:
            for line in filter(None, map(str.strip, lines)):
                if not _HEX.fullmatch(line.lower()):
                    raise ValueError(f"{option} {word}: {line!r} is no file id (32 hexadecimal digits)")
                found.append(bytes.fromhex(line))
    return np.unique(as_ids(b"".join(found)))


def as_ids(data: bytes) -> Ids:
    """16 bytes an id."""
    return np.frombuffer(data, f"S{ID_BYTES}")


def ids_of_column(column: pa.Array) -> Ids:
    """The ids of a binary column, without an object an id; ValueError if one is not of 16 bytes or missing."""
    column = column.cast(pa.large_binary())
    lengths = pc.min_max(pc.binary_length(column)).as_py()
    if column.null_count or (len(column) and set(lengths.values()) != {ID_BYTES}):
        raise ValueError(f"file ids are of {ID_BYTES} bytes; here are some of {lengths['min']} to {lengths['max']}")
    _, offsets, data = column.buffers()
    if not len(column):
        return np.empty(0, f"S{ID_BYTES}")
    first = int(np.frombuffer(offsets, np.int64)[column.offset])
    return np.frombuffer(data, f"S{ID_BYTES}", len(column), first)


def hex_of(ids: Ids) -> list[str]:
    """Each id as 32 hexadecimal digits."""
    return [value.ljust(ID_BYTES, b"\0").hex() for value in ids.tolist()]


def member_places(ids: Ids, wanted: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where `ids` hold a wanted one, and which of `wanted` (sorted, distinct) that is."""
    at = wanted.searchsorted(ids)
    at[at == len(wanted)] = 0
    (rows,) = np.nonzero(wanted[at] == ids) if len(wanted) else (np.empty(0, np.intp),)
    return rows, at[rows]


class Piles:
    """Ids by the billion, dealt out by a hash to files of about PILE_IDS; memory is one buffer and one pile.

    Args:
        folder: an empty one; it takes 16 bytes an id.
        expected: ids to come, about, which tells the number of piles.
    """

    def __init__(self, folder: Path, expected: int) -> None:
        self.folder, self.count = folder, max(1, -(-expected // PILE_IDS))
        self._buffers: dict[str, list[Ids]] = {}
        self._buffered = 0

    def add(self, kind: str, ids: Ids) -> None:
        """Put ids of a kind (a name) with those of the same kind."""
        self._buffers.setdefault(kind, []).append(ids.copy())
        self._buffered += len(ids)
        if self._buffered >= BUFFERED_IDS:
            self._flush()

    def read(self, number: int, kind: str) -> Ids:
        """The ids of one pile and kind, sorted; equal ones stand side by side."""
        self._flush()
        path = self._path(number, kind)
        return np.sort(np.fromfile(path, f"S{ID_BYTES}")) if path.exists() else np.empty(0, f"S{ID_BYTES}")

    def _flush(self) -> None:
        for kind, parts in self._buffers.items():
            ids = np.concatenate(parts)
            piles = _hashes(ids) % np.uint64(self.count)
            order = np.argsort(piles, kind="stable")
            ids, bounds = ids[order], np.searchsorted(piles[order], np.arange(self.count + 1))
            for number in np.unique(piles).tolist():
                with self._path(number, kind).open("ab") as file:
                    ids[bounds[number] : bounds[number + 1]].tofile(file)
        self._buffers, self._buffered = {}, 0

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{kind}-{number:06d}"


def _hashes(ids: Ids) -> NDArray[np.uint64]:
    """Mixed, because ids that are no hashes (numbers, say) have to spread over the piles too."""
    halves = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    mixed = (halves[:, 0] ^ (halves[:, 1] * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


def doubles_in(ids: Ids) -> Ids:
    """The ids of a sorted array that are there more than once, each once."""
    return np.unique(ids[1:][ids[1:] == ids[:-1]])


def joined(parts: Iterable[Ids]) -> Ids:
    """Distinct ids of all parts, sorted."""
    return np.unique(np.concatenate([np.empty(0, f"S{ID_BYTES}"), *parts]))
