"""The files that compete, as records: those that are asked for, with what their fingerprints say of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs.content import arrow_schema, part_names
from spark_jobs.near_duplicates import competitors
from spark_jobs.near_duplicates.competitors import all_rows, competing, some_rows
from spark_jobs.near_duplicates.copies import content_bucket
from spark_jobs.near_duplicates.keep_order import RANK_BYTES
from spark_jobs.near_duplicates.records import FILE, KIND_FILE, spots_of
from spark_jobs.rules.measurement import FINGERPRINTED

BUCKETS = 7
DOCUMENTS = [["a.parquet", "b.parquet", "deep/c.parquet"], ["b.parquet", "z.parquet"]]


def fingerprints_of(draw, count, documents):
    """Rows of fingerprints; every fifth is of a file without content."""
    for number in range(count):
        decoded = number % 5 != 0
        yield {
            "file_id": draw.bytes(16),
            "repo": str(draw.choice(["", "a", "b/c"])),
            "path": f"{number}.py",
            "licenses": [None, [], ["MIT"], ["GPL-2.0-only"]][number % 4],
            "stars": [None, 3, 1 << 30][number % 3],
            "size": int(draw.integers(0, 1 << 34)),
            "content_hash": draw.bytes(16) if decoded else None,
            "shingles": [1 << 40, number][number > 1] if decoded else None,
            "part": str(draw.choice(documents)),
            "row_group": number,
            "row": 100 - number,
            "bands": draw.bytes(16),
            "sketch": draw.bytes(16),
        }


@pytest.fixture(scope="module")
def deliveries(tmp_path_factory):
    """The folders of fingerprints of two deliveries, of two files and of three, and their rows with their places."""
    draw, folders, rows = np.random.default_rng(4), [], []
    for delivery, files in enumerate(["01", "xyz"]):
        folders.append(str(tmp_path_factory.mktemp("fingerprints")))
        for name in files:
            found = list(fingerprints_of(draw, 40, DOCUMENTS[delivery]))
            table = pa.Table.from_pylist(found, arrow_schema(FINGERPRINTED))
            pq.write_table(table, f"{folders[-1]}/{name}.parquet", row_group_size=11)
            for number, row in enumerate(found):
                place = {"fingerprint_file": f"{name}.parquet", "fingerprint_row": number}
                rows.append({"delivery": delivery, **place, **row})
    return folders, rows


def records_of(blobs):
    """The records of blobs by file id; each blob is of one bucket."""
    found = {}
    for blob in blobs.collect():
        records = np.frombuffer(blob.records, FILE)
        assert (blob.kind, blob["count"]) == (KIND_FILE, len(records))
        assert (content_bucket(records, BUCKETS) == blob.bucket).all()
        assert not found.keys() & {record["id"].tobytes() for record in records}
        found |= {record["id"].tobytes(): record for record in records}
    return found


def require_told(rows, found, names):
    """The records are those of the rows with content, and say what these say."""
    decoded = [row for row in rows if row["content_hash"]]
    assert found.keys() == {row["file_id"] for row in decoded}
    first, hashes = np.cumsum([0, *map(len, names)]), {}
    for row in decoded:
        record, known = found[row["file_id"]], min(row["shingles"], (1 << 32) - 1)
        assert record["content"].tobytes() == row["content_hash"]
        assert hashes.setdefault(row["repo"], record["repo"]) == record["repo"]
        part = DOCUMENTS[row["delivery"]].index(row["part"])
        assert record["place"].tolist() == (row["delivery"], part, row["row_group"], row["row"], known)
        assert record["shingles"] == known
        file = first[row["delivery"]] + names[row["delivery"]].index(row["fingerprint_file"])
        assert spots_of(record["key"][None, :]) == (int(file) << 32) + row["fingerprint_row"]
    assert len(set(map(int, hashes.values()))) == 3
    assert hashes[""] == 0


def wanted_of(spark, rows, columns):
    table = pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows])
    return spark.createDataFrame(table).repartition(3)


@pytest.fixture(params=[1 << 16, 16])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(competitors, "_ROWS_AT_ONCE", request.param)


def test_fresh_files_are_those_of_whole_files_or_of_some_rows(spark, deliveries, rows_at_once):
    folders, rows = deliveries
    names = [part_names(folder) for folder in folders]
    whole = records_of(competing(all_rows(spark, 1, names[1]), folders, names, DOCUMENTS, BUCKETS))
    second = [row for row in rows if row["delivery"] == 1]
    require_told(second, whole, names)
    some = second[3:30] + second[50:90:3]
    wanted = wanted_of(spark, some, ["delivery", "fingerprint_file", "fingerprint_row"])
    found = records_of(competing(some_rows(wanted), folders, names, DOCUMENTS, BUCKETS))
    require_told(some, found, names)
    for row in some:
        if row["content_hash"]:
            assert found[row["file_id"]].tobytes() == whole[row["file_id"]].tobytes()
            assert found[row["file_id"]]["key"].tobytes()[12:RANK_BYTES] == row["file_id"][:8]


def test_earlier_files_keep_their_ranks(spark, deliveries, rows_at_once):
    folders, rows = deliveries
    names, draw = [part_names(folder) for folder in folders], np.random.default_rng(5)
    known = [{**row, "rank": draw.bytes(RANK_BYTES), "settled": number % 2 == 0} for number, row in enumerate(rows)]
    some = known[::2] + known[1:60:2]
    wanted = wanted_of(spark, some, ["delivery", "fingerprint_file", "fingerprint_row", "rank", "settled"])
    found = records_of(competing(some_rows(wanted), folders, names, DOCUMENTS, BUCKETS))
    require_told(some, found, names)
    for row in some:
        if row["content_hash"]:
            first = row["rank"][0] & (0x7F if row["settled"] else 0xFF)
            assert found[row["file_id"]]["key"].tobytes()[:RANK_BYTES] == bytes([first]) + row["rank"][1:]
