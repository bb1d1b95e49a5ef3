"""The bands that most files share, each with the words that they have in common: what a corpus repeats."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_jobs.content import LOCATION, pieces, text_buffers
from spark_jobs.near_duplicates.fingerprints import binary, minhashes
from spark_jobs.near_duplicates.headers import header_end, header_tables
from spark_jobs.near_duplicates.lookup import Source, looked_up
from spark_jobs.near_duplicates.records import HOT_BAND, KIND_HOT, spots_of
from spark_jobs.near_duplicates.settings import ROWS, SHINGLE_WORDS, Settings
from spark_jobs.near_duplicates.stored import Stored
from spark_jobs.storage import Storage

REPORTED, _LOOKED_AT = 5, 20
# Of a long text the first words alone are searched for what makes the band.
_SEARCHED_WORDS = 200_000
_HOT = "key binary, band int, members long"


def hot_bands(spark: SparkSession, pairs: Stored, sources: Sequence[Source], settings: Settings) -> list[str]:
    """Lines about the REPORTED hottest bands, the hottest first.

    Args:
        spark: the session.
        pairs: what `candidate_pairs` returns.
        sources: the files of fingerprints, which say where the content lies.
        settings: what is taken of a text.
    """
    found = (
        pairs.blobs(spark, KIND_HOT)
        .mapInArrow(_unpacked, _HOT)
        .groupBy("key", "band")
        .agg(F.max("members").alias("members"))
    )
    hottest = found.orderBy(F.desc("members"), "band", "key").limit(_LOOKED_AT).collect()
    lines: list[str] = []
    told: set[str] = set()
    for row in hottest:
        if len(lines) == REPORTED:
            break
        text = _text(bytes(row.key), sources)
        words = _common_words(text, row.band, settings) if text else ""
        if words and words not in told:
            lines.append(f"dedup: {row.members:,} different files share a band (number {row.band}): {words}")
            told.add(words)
    return lines


def _unpacked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for blob in batch.column("records"):
            found = np.frombuffer(blob.as_buffer(), HOT_BAND)
            columns = [pa.array(found["band"], pa.int32()), pa.array(np.ascontiguousarray(found["members"]))]
            yield pa.record_batch([binary(found["key"]), *columns], names=["key", "band", "members"])


def _text(key: bytes, sources: Sequence[Source]) -> str:
    """The text of the file of a key; "" if its documents are gone, as those of an earlier delivery may be."""
    spots = spots_of(np.frombuffer(key, np.uint8)[None, :])
    documents = sources[int(spots[0]) >> 32].documents
    if not Storage(documents).exists():
        return ""
    ((_, place),) = looked_up(spots, sources, LOCATION)
    part, row_group, row = (place.column(name) for name in LOCATION)
    work = pa.record_batch([part, row_group, pa.array([row.to_pylist()])], names=["part", "row_group", "rows"])
    (piece,) = pieces(documents, [work], ["content"])
    return piece.batch.column("content")[0].as_py() or ""


def _common_words(text: str, band: int, settings: Settings) -> str:
    """The shingles of a text that give it the values of a band: most likely common to all files of the band."""
    if settings.fingerprint.strip_header:
        data = np.frombuffer(text.encode(), np.uint8)
        text = data[header_end(data, 0, len(data), header_tables()) :].tobytes().decode()
    words = re.findall(r"\w+", text)[:_SEARCHED_WORDS]
    shingles = [" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(1, len(words) - SHINGLE_WORDS + 1))]
    values = minhashes(*text_buffers(pa.array(shingles)))[:, band * ROWS : (band + 1) * ROWS]
    found = sorted(set(np.argmin(values, axis=0).tolist()))
    quoted = " … ".join(shingles[at] for at in found)
    return f'"{quoted if len(quoted) <= 200 else quoted[:199] + "…"}"'
