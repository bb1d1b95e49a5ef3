"""The step before all comparison: each file once, the best of each content, and who goes for it."""

import random

import pytest

from spark_jobs.near_duplicates.duplicates import best_copies, exact_copies, shared_contents, without_repeats

SCHEMA = (
    "file_id binary, content_hash binary, key binary, shingles long, delivery int, part string, row_group int, row int"
)


def drawn_rows(draw, contents):
    """Rows of files of a few contents: many a file comes several times, and many a content in several files."""
    rows = []
    for place in draw.sample(range(400), 400):
        content = draw.randrange(contents)
        rows.append(
            {
                "file_id": bytes([content % 256, content // 256, draw.randrange(3)]),
                "content_hash": content.to_bytes(16, "big"),
                "key": draw.randbytes(28),
                "shingles": content,
                "delivery": 3,
                "part": f"part-{place // 100}",
                "row_group": place // 10 % 10,
                "row": place % 10,
            }
        )
    return rows


def location(row):
    return row["part"], row["row_group"], row["row"]


def found(rows):
    return sorted(tuple(map(bytes, row)) if len(row) == 2 else tuple(row) for row in rows.collect())


@pytest.mark.parametrize("contents", [40, 400, 10**4])
def test_each_file_competes_once_and_each_content_by_its_best(spark, contents):
    rows = drawn_rows(random.Random(contents), contents)
    files = spark.createDataFrame([tuple(row.values()) for row in rows], SCHEMA)
    copies = files.join(shared_contents(files), "content_hash", "left_semi")
    once = without_repeats(files, copies).select(*files.columns).localCheckpoint()
    first = {}
    for row in sorted(rows, key=location):
        first.setdefault(row["file_id"], row)
    assert found(once) == sorted(tuple(row.values()) for row in first.values())
    assert len(first) < len(rows)
    by_content = {}
    for row in sorted(first.values(), key=lambda row: row["key"]):
        by_content.setdefault(row["content_hash"], []).append(row)
    best = best_copies(once).localCheckpoint()
    columns = ("content_hash", "key", "shingles", "delivery", "part", "row_group", "row")
    expected = [(len(same) > 1, *(same[0][name] for name in columns)) for same in by_content.values()]
    assert found(best.select("copies", *columns)) == sorted(expected)
    gone = [(row["key"], same[0]["key"]) for same in by_content.values() for row in same[1:]]
    assert found(exact_copies(once, best)) == sorted(gone)
