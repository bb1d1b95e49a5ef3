"""Everything that is measured of a document, from one reading of its content."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.content import Piece, arrow_schema, pieces, row_groups, text_buffers
from spark_jobs.near_duplicates.shingles import sketches
from spark_jobs.rules.text_numbers import text_numbers
from spark_jobs.sources.columns import DOCUMENT_COLUMNS, document_columns
from spark_jobs.tables import SIGNALS

_SCHEMA = arrow_schema(SIGNALS)


def signals_of(spark: SparkSession, documents: str) -> DataFrame:
    """One row of SIGNALS a row of the documents at the path `documents`; the workers read the content."""

    def measure(work: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (_signals(piece) for piece in pieces(documents, work, DOCUMENT_COLUMNS))

    return row_groups(spark, documents).mapInArrow(measure, SIGNALS)


def _signals(piece: Piece) -> pa.RecordBatch:
    documents = document_columns(piece.batch)
    content = documents.column("content")
    data, offsets = text_buffers(content)
    without = np.asarray(pc.is_null(content))
    found, shingles = sketches(data, offsets)
    numbers = text_numbers(data, offsets)
    columns = {name: documents.column(name) for name in documents.schema.names}
    columns |= {name: _masked(numbers.column(name), without) for name in numbers.schema.names}
    columns |= {
        "part": pa.array([piece.part] * len(piece.rows)),
        "row_group": pa.array(np.full(len(piece.rows), piece.row_group)),
        "row": pa.array(piece.rows),
        "content_hash": _masked(_hashes(data, offsets), without),
        "shingles": _masked(pa.array(shingles), without),
        "sketch": _masked(_binary(found), without | (shingles == 0)),
    }
    arrays = [columns[field.name].cast(field.type) for field in _SCHEMA]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _masked(values: pa.Array, without: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(without), pa.scalar(None, values.type), values)


def _hashes(data: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """xxh3-128 of each document's exact bytes."""
    view = data.data
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return pa.array([xxhash.xxh3_128_digest(view[begin:end]) for begin, end in bounds], pa.binary())


def _binary(rows: np.ndarray) -> pa.Array:
    """The rows of a matrix as binary values of its row size, little-endian, without a Python object a row."""
    width = rows.shape[1] * rows.itemsize
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * width
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.Array.from_buffers(pa.large_binary(), len(rows), buffers)
