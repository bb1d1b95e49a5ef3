"""The rows of the shards as a DataFrame, without their tokens: what is read is some 24 bytes a document."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from spark_jobs.content import arrow_schema
from tokenizer.shards import ShardIndex, open_shard

PLACES = T.StructType(
    [
        T.StructField("file_id", T.BinaryType()),
        T.StructField("split", T.StringType()),
        T.StructField("shard", T.StringType()),
        T.StructField("shard_row", T.LongType()),
        T.StructField("tokens", T.LongType()),
    ]
)


def shard_rows(spark: SparkSession, folder: Path, index: ShardIndex | None) -> DataFrame:
    """Rows of PLACES: one a document of the shards. The workers map the shards, which lie where all see them."""
    if index is None:
        return spark.createDataFrame([], PLACES)
    shards, schema = index.shards, arrow_schema(PLACES)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                shard, first = shards[number], 0
                for rows in open_shard(folder, shard):
                    count = rows.num_rows
                    columns = [
                        rows.column("file_id"),
                        pa.repeat(shard.split, count),
                        pa.repeat(shard.name, count),
                        pa.array(range(first, first + count)),
                        pc.list_value_length(rows.column("token_ids")),
                    ]
                    arrays = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
                    yield pa.record_batch(arrays, schema=schema)
                    first += count

    return spark.range(len(shards)).repartition(min(len(shards), 1000)).mapInArrow(read, PLACES)


def place_of(file_id: bytes, folder: Path, index: ShardIndex) -> tuple[str, int, int] | None:
    """Shard, row in it and number of tokens of one file; None if it is in none. Reads the ids of shard after shard."""
    wanted = pa.scalar(file_id, pa.binary())
    for shard in index.shards:
        first = 0
        for rows in open_shard(folder, shard):
            at = pc.index(rows.column("file_id"), wanted).as_py()
            if at >= 0:
                return shard.name, first + at, pc.list_value_length(rows.column("token_ids").slice(at, 1))[0].as_py()
            first += rows.num_rows
    return None
