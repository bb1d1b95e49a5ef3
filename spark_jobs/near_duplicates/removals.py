"""Who goes for whom, by name: copies follow what they are copies of, and names are read where fingerprints lie."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.content import arrow_schema
from spark_jobs.near_duplicates.edges import NONE, PROOFS, edges_in
from spark_jobs.near_duplicates.exchange import BLOBS, SCHEMA, Blobs, exchanged, of_kind, scattered
from spark_jobs.near_duplicates.lookup import Source, looked_up
from spark_jobs.near_duplicates.records import (
    KIND_NAMES,
    KIND_NEAR,
    KIND_REMOVAL,
    KIND_REQUEST,
    REMOVAL,
    REQUEST,
    Records,
    bucket_of,
    first_of_each,
    joined,
    picked,
    spots_of,
)
from spark_jobs.near_duplicates.stored import Stored, stored_exchange
from spark_jobs.tables import DUPLICATES

_BYTES = len(PROOFS)
_PROOFS = pa.array([*PROOFS, "bytes"])
_NAMES = ["file_id", "repo", "path"]
_STREAM = pa.schema(
    [("spot", pa.uint64()), ("file_id", pa.large_binary()), ("repo", pa.large_string()), ("path", pa.large_string())]
)


def removals_of_all(near: DataFrame, copies: DataFrame, tasks: int, buckets: int, folder: str) -> Stored:
    """Blobs of REMOVALs, in the buckets of the files that go, and of REQUESTs for the names of those that stay.

    A copy of a file that goes as a near-duplicate follows it to its leader.

    Args:
        near: blobs of EDGEs from each near-duplicate (worse) to the kept file (better).
        copies: blobs of COPYs, in the buckets of the files that they are copies of.
        tasks: Spark tasks that share the buckets.
        buckets: number of buckets of spots.
        folder: where the blobs are stored.
    """

    def follow(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            following: list[tuple[int, Records]] = []
            gone = of_kind(blobs, KIND_NEAR, REMOVAL, following)
            gone = picked(gone, np.argsort(spots_of(gone["key"])))
            yield from _addressed(gone, buckets)
            for _, records in chain(following, blobs):
                yield from _addressed(_followed(records, gone), buckets)

    return stored_exchange(_near_blobs(near, buckets).unionAll(copies), tasks, follow, folder)


def named(spark: SparkSession, removals: Stored, sources: Sequence[Source], tasks: int) -> DataFrame:
    """Rows of DUPLICATES.

    The names of a kept file travel once to each bucket that wants them, so that a file for which a tenth of the corpus
    goes is no burden to one task.

    Args:
        spark: the session.
        removals: what `removals_of_all` returns.
        sources: the files of fingerprints.
        tasks: Spark tasks that share the buckets.
    """
    schema = arrow_schema(DUPLICATES)

    def reply(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            yield from _replies(joined(records for _, records in blobs), sources)

    def name(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            yield from _named_rows(blobs, sources, schema)

    requests, waiting = (removals.blobs(spark, kind) for kind in (KIND_REQUEST, KIND_REMOVAL))
    replies = exchanged(requests, tasks, reply)
    return exchanged(waiting.unionAll(replies), tasks, name, DUPLICATES)


def _near_blobs(near: DataFrame, buckets: int) -> DataFrame:
    """Blobs of EDGEs as blobs of REMOVALs, in the buckets of their worse files."""

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for edges in edges_in(batches):
            found = np.empty(len(edges), REMOVAL)
            found["key"], found["kept"] = edges["worse"], edges["better"]
            for name in ("similarity", "band", "proof"):
                found[name] = edges[name]
            yield scattered(found, KIND_NEAR, bucket_of(spots_of(found["key"]), buckets))

    return near.mapInArrow(pack, BLOBS)


def _followed(copies: Records, gone: Records) -> Records:
    """REMOVALs of COPYs; `gone` are those of the near-duplicates of their bucket, sorted by spot."""
    found = np.empty(len(copies), REMOVAL)
    found["key"], found["kept"] = copies["key"], copies["kept"]
    found["similarity"], found["band"], found["proof"] = 1, NONE, _BYTES
    if len(gone):
        spots, kept = spots_of(gone["key"]), spots_of(copies["kept"])
        at = np.minimum(np.searchsorted(spots, kept), len(gone) - 1)
        follow = np.flatnonzero(spots[at] == kept)
        for name in ("kept", "similarity", "band", "proof"):
            found[name][follow] = gone[name][at[follow]]
    return found


def _addressed(removals: Records, buckets: int) -> Iterator[pa.RecordBatch]:
    to, kept = bucket_of(spots_of(removals["key"]), buckets), spots_of(removals["kept"])
    yield scattered(removals, KIND_REMOVAL, to)
    requests = np.empty(len(removals), REQUEST)
    requests["spot"], requests["bucket"] = kept, to
    requests = _distinct(requests)
    yield scattered(requests, KIND_REQUEST, bucket_of(requests["spot"], buckets))


def _distinct(requests: Records) -> Records:
    return requests[first_of_each(np.column_stack([requests["spot"], requests["bucket"].astype(np.uint64)]))]


def _replies(requests: Records, sources: Sequence[Source]) -> Iterator[pa.RecordBatch]:
    """The names of the files that are asked for, in IPC streams for the buckets that want them."""
    requests = np.sort(_distinct(requests), order="spot")
    spots = np.unique(requests["spot"])
    for at, batch in looked_up(spots, sources, _NAMES):
        here = requests[slice(*np.searchsorted(requests["spot"], [spots[at][0], spots[at][-1] + np.uint64(1)]))]
        for bucket in np.unique(here["bucket"]).tolist():
            wanted = here["spot"][here["bucket"] == bucket]
            named = batch.select(_NAMES).take(pa.array(np.searchsorted(spots[at], wanted)))
            columns = [column.cast(kind) for column, kind in zip(named.columns, _STREAM.types[1:], strict=True)]
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, _STREAM) as writer:
                writer.write_batch(pa.record_batch([pa.array(wanted), *columns], schema=_STREAM))
            blob = [[bucket], [KIND_NAMES], [len(wanted)], [sink.getvalue().to_pybytes()]]
            yield pa.record_batch([pa.array(*each) for each in zip(blob, SCHEMA.types, strict=True)], schema=SCHEMA)


def _named_rows(blobs: Blobs, sources: Sequence[Source], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows of DUPLICATES of one bucket: its removals, and the names of the kept that came for them."""
    streams, removals = [_STREAM.empty_table()], [np.empty(0, REMOVAL)]
    for kind, records in blobs:
        if kind == KIND_NAMES:
            streams.append(pa.ipc.open_stream(pa.py_buffer(records)).read_all())
        else:
            removals.append(records)
    names = pa.concat_tables(streams).combine_chunks()
    order = np.argsort(names["spot"])
    known = np.asarray(names["spot"])[order]
    gone = joined(removals)
    gone = picked(gone, np.argsort(spots_of(gone["key"])))
    for at, batch in looked_up(spots_of(gone["key"]), sources, [*_NAMES, "size"]):
        here = gone[at]
        kept = names.take(pa.array(order[np.searchsorted(known, spots_of(here["kept"]))]))
        columns = {name: batch.column(name) for name in (*_NAMES, "size")}
        columns |= {f"kept_{name}": kept[name].combine_chunks() for name in _NAMES}
        columns |= _evidence(here)
        yield pa.record_batch([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _evidence(removals: Records) -> dict[str, pa.Array]:
    """The columns of DUPLICATES that say how it is known that a file may go."""
    proofs = np.where(removals["proof"] == NONE, 0, removals["proof"])
    bands, similarities = removals["band"].astype(np.int32), np.ascontiguousarray(removals["similarity"])
    return {
        "similarity": pa.array(similarities, mask=np.isnan(similarities)),
        "band": pa.array(bands, mask=bands == NONE),
        "kind": pa.array(["near", "exact"]).take(pa.array((removals["proof"] == _BYTES).astype(np.int8))),
        "proof": pc.if_else(pa.array(removals["proof"] == NONE), None, _PROOFS.take(pa.array(proofs))),
    }
