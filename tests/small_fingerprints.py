"""Files of fingerprints, and the records that name their rows."""

from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_jobs.near_duplicates.exchange import scattered
from spark_jobs.near_duplicates.fingerprints import binary
from spark_jobs.near_duplicates.keep_order import RANK_BYTES
from spark_jobs.near_duplicates.lookup import Source
from spark_jobs.near_duplicates.records import DTYPES, KIND_SLIM, PLACE, SLIM, bucket_of, spots_of
from spark_jobs.tables import manifest


def write_sources(folder, columns, cuts, rows_a_group=13):
    """Write columns (rows of a matrix are a value) as files that begin at these rows, each in a folder of its own.

    Returns the sources, and the spot of each row.
    """
    table = pa.table({name: binary(values) for name, values in columns.items()})
    sources, spots = [], []
    for number, (first, end) in enumerate(zip([0, *cuts], [*cuts, len(table)], strict=True)):
        (folder / f"delivery{number}").mkdir(parents=True)
        pq.write_table(
            table.slice(first, end - first), folder / f"delivery{number}" / "part.parquet", row_group_size=rows_a_group
        )
        sources.append(Source(str(folder / f"delivery{number}"), "part.parquet"))
        spots.append((number << 32) + np.arange(end - first, dtype=np.uint64))
    return sources, np.concatenate(spots)


def slim_records(draw, spots, shingles):
    """SLIM records of fresh files with these spots, in a random order of keeping, and with places of their own."""
    files = np.zeros(len(spots), SLIM)
    files["key"][:, 0] = 0x80
    files["key"][:, 1:RANK_BYTES] = draw.integers(0, 256, (len(spots), RANK_BYTES - 1))
    files["key"][:, RANK_BYTES:] = spots.astype(">u8").view(np.uint8).reshape(-1, 8)
    files["shingles"] = files["place"]["shingles"] = shingles
    for name in PLACE.names[:-1]:
        files["place"][name] = draw.integers(0, 1 << 16, len(spots))
    return files


def slim_table(spark, files, buckets, partitions):
    """SLIM records as blobs in their buckets."""
    rows = scattered(files, KIND_SLIM, bucket_of(spots_of(files["key"]), buckets))
    return spark.createDataFrame(pa.Table.from_batches([rows])).repartition(partitions)


def keys_by_id(output):
    """The key in the keep order of each file of a run's own delivery, by file id, as its index has them."""
    deliveries = manifest(str(output))["deliveries"]
    parts = [
        part
        for delivery in deliveries
        for part in sorted(Path(urlsplit(delivery["fingerprints"]).path).glob("*.parquet"))
    ]
    ids = [pq.read_table(part, columns=["file_id"]).column(0).to_pylist() for part in parts]
    found = {}
    for blob in pq.read_table(output / "_index" / "files").to_pylist():
        records = np.frombuffer(blob["records"], DTYPES[blob["kind"]])
        keys = records["key"][records["place"]["delivery"] == len(deliveries) - 1]
        for key, spot in zip(keys, spots_of(keys).tolist(), strict=True):
            assert found.setdefault(ids[spot >> 32][spot & 0xFFFFFFFF], key.tobytes()) == key.tobytes()
    return found
