"""What the workers have encoded, on disk until the shards are written: runs of documents, sorted by where they go.

A part is what one task encoded: an Arrow IPC file whose batches are its runs, and beside it, written last, an entry of
what is in it. A shard's documents are a slice of each run, found by bisection in a memory map. That is a shuffle
through the file system that all workers share: the tokens never enter the JVM, the shards' number can be computed from
all tokens before any is written, and a run that was killed goes on with the parts that are whole.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Tokens that a worker gathers, in bytes; it needs twice that to sort them.
RUN_BYTES = 32 << 20


def run_schema(dtype: np.dtype[Any], by_repository: bool) -> pa.Schema:
    """Columns of a run; those of repositories only where these decide the order."""
    ids = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    columns = [("split", pa.uint8()), ("place", pa.uint64()), ("file_id", pa.binary(16)), ("text_bytes", pa.int64())]
    columns += [("token_ids", ids)]
    if by_repository:
        imports = pa.large_list(pa.large_string())
        columns += [("rank", pa.uint64()), ("repo", pa.large_string()), ("path", pa.large_string())]
        columns += [("imports", imports)]
    return pa.schema(columns)


class PartWriter:
    """Writes one part under a name of this attempt's until it is whole; attempts at a part write the same documents.

    Args:
        folder: of the parts.
        name: of the part.
        schema: of its runs.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._partial = folder / f"{name}.{uuid.uuid4().hex}.partial"
        self._file: pa.ipc.RecordBatchFileWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    def append(self, documents: pa.RecordBatch) -> None:
        """Add documents in any order."""
        self._waiting.append(documents)
        self._waiting_bytes += documents.nbytes
        if self._waiting_bytes >= RUN_BYTES:
            self._flush()

    def close(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Finish the part and write its entry: the facts and the file's bytes, 0 if there is none."""
        self._flush()
        size = 0
        if self._file:
            self._file.close()
            size = self._partial.stat().st_size
            self._partial.replace(self._folder / f"{self._name}.arrow")
        entry = facts | {"name": self._name, "bytes": size}
        write_whole(self._folder / f"{self._name}.json", json.dumps(entry))
        return entry

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
        self._waiting, self._waiting_bytes = [], 0
        order = sorted_order(rows["place"].to_numpy(), file_ids_of(rows["file_id"].chunk(0)), rows["split"].to_numpy())
        if self._file is None:
            self._file = pa.ipc.new_file(str(self._partial), self._schema)
        self._file.write_batch(_reordered(rows, order))


def _reordered(rows: pa.Table, order: NDArray[np.int64]) -> pa.RecordBatch:
    """Rows in an order; their tokens are copied by numpy, ten times as fast as pyarrow takes lists."""
    lists = rows["token_ids"].chunk(0)
    bounds, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=True)
    pairs = zip(bounds[order].tolist(), bounds[order + 1].tolist(), strict=True)
    tokens = pa.array(np.concatenate([values[begin:end] for begin, end in pairs]))
    ends = np.append(0, np.cumsum(np.diff(bounds)[order])).astype(np.int64)
    sorted_lists = pa.LargeListArray.from_arrays(pa.array(ends), tokens, type=lists.type)
    others = rows.drop_columns(["token_ids"]).take(pa.array(order)).combine_chunks()
    columns = [sorted_lists if name == "token_ids" else others[name].chunk(0) for name in rows.schema.names]
    return pa.record_batch(columns, schema=rows.schema)


def finished_part(folder: Path, name: str) -> dict[str, Any] | None:
    """The entry of a part that is whole."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    entry: dict[str, Any] = json.loads(path.read_text())
    part = folder / f"{name}.arrow"
    there = part.stat().st_size if part.is_file() else 0
    return entry if there == entry["bytes"] else None


def slices(path: Path, split: int, first: int, end: int) -> Iterator[pa.RecordBatch]:
    """The documents of a part that go to a split's places [first, end): slices of its runs, not copied."""
    with pa.ipc.open_file(pa.memory_map(str(path))) as part:
        for number in range(part.num_record_batches):
            run = part.get_batch(number)
            splits, places = run.column("split").to_numpy(), run.column("place").to_numpy()
            low, high = (int(np.searchsorted(splits, split, side)) for side in ("left", "right"))  # type: ignore[call-overload]
            inside = places[low:high]
            begin = low + int(np.searchsorted(inside, np.uint64(first)))
            stop = high if end > np.iinfo(np.uint64).max else low + int(np.searchsorted(inside, np.uint64(end)))
            if stop > begin:
                yield run.slice(begin, stop - begin)


def file_ids_of(column: pa.Array) -> NDArray[np.uint8]:
    """The ids (n, 16) of a fixed-size column, not copied."""
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * 16 : (column.offset + len(column)) * 16].reshape(-1, 16)


def sorted_order(places: NDArray[np.uint64], file_ids: NDArray[np.uint8], *before: NDArray[Any]) -> NDArray[np.int64]:
    """The order (n) by what is named in `before`, place and file id: no two documents are equal in it."""
    halves = np.ascontiguousarray(file_ids).view(">u8")
    return np.lexsort((halves[:, 1], halves[:, 0], places, *before))


def write_whole(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(text)
    partial.replace(path)
