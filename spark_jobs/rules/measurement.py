"""Everything that is measured of a document, from one reading of its content."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from spark_jobs.content import Piece, arrow_schema, pieces, row_groups, text_buffers
from spark_jobs.near_duplicates.fingerprints import binary, fingerprints
from spark_jobs.near_duplicates.settings import Fingerprint
from spark_jobs.parts import write_none, write_parts
from spark_jobs.rules.text_numbers import text_numbers
from spark_jobs.sources.columns import DOCUMENT_COLUMNS, document_columns
from spark_jobs.tables import SIGNALS

# Of fingerprints that a worker gathers for a row group.
_ROW_GROUP_BYTES = 16 << 20
# The columns of signals that de-duplication reads.
FINGERPRINTED = T.StructType(
    [
        SIGNALS[name]
        for name in (
            *("file_id", "repo", "path", "licenses", "stars", "size", "part", "row_group", "row"),
            *("content_hash", "shingles", "bands", "sketch"),
        )
    ]
)


def signals_of(spark: SparkSession, documents: str, taken: Fingerprint) -> DataFrame:
    """One row of SIGNALS a row of the documents at the path `documents`; the workers read the content."""
    return row_groups(spark, documents).mapInArrow(_measuring(documents, taken, arrow_schema(SIGNALS)), SIGNALS)


def write_fingerprints(spark: SparkSession, documents: str, taken: Fingerprint, folder: str) -> None:
    """The same without the numbers of the rules, rows of FINGERPRINTED, written as Parquet by the workers too."""
    schema = arrow_schema(FINGERPRINTED)
    work, measure = row_groups(spark, documents), _measuring(documents, taken, schema)
    # Hashes neither repeat nor shrink.
    options = {"compression": "none", "use_dictionary": ["part", "repo"], "write_statistics": False}
    if not write_parts(work, measure, schema, folder, "part", _ROW_GROUP_BYTES, **options):
        write_none(schema, folder)


def _measuring(
    documents: str, taken: Fingerprint, schema: pa.Schema
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What measures the row groups that it is given, in a worker; it makes batches of `schema`."""

    def measure(work: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for piece in pieces(documents, work, DOCUMENT_COLUMNS):
            columns = _columns(piece, taken, with_numbers="characters" in schema.names)
            yield pa.record_batch([columns[field.name].cast(field.type) for field in schema], schema=schema)

    return measure


def _columns(piece: Piece, taken: Fingerprint, with_numbers: bool) -> dict[str, pa.Array]:
    documents = document_columns(piece.batch)
    content = documents.column("content")
    data, offsets = text_buffers(content)
    without = np.asarray(pc.is_null(content))
    found = fingerprints(data, offsets, taken)
    columns = {name: documents.column(name) for name in documents.schema.names}
    if with_numbers:
        numbers = text_numbers(data, offsets)
        columns |= {name: _masked(numbers.column(name), without) for name in numbers.schema.names}
    wordless = without | (found["shingles"] == 0)
    return columns | {
        "part": pa.array([piece.part] * len(piece.rows)),
        "row_group": pa.array(np.full(len(piece.rows), piece.row_group)),
        "row": pa.array(piece.rows),
        "content_hash": _masked(binary(found["content_hash"]), without),
        "shingles": _masked(pa.array(found["shingles"]), without),
        "bands": _masked(binary(found["bands"]), wordless),
        "sketch": _masked(binary(found["sketch"]), wordless),
    }


def _masked(values: pa.Array, without: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(without), pa.scalar(None, values.type), values)
