"""Which of two similar files is kept: keys compare as the documented order, and forks do not share out their files."""

import random
from collections import Counter
from math import ceil

import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from small_corpus import document, write_documents

from spark_jobs import dedup
from spark_jobs.near_duplicates.keep_order import KEY_BYTES, id_of, ranked, settled_key

PERMISSIVE, OTHER = ["MIT", "apache-2.0 "], ["MIT", "GPL-3.0-only"]
LICENCES = {None: 1, (): 1, tuple(PERMISSIVE): 0, tuple(OTHER): 2, ("GPL-3.0-only",): 2, ("unheard of",): 2}
MAX_STARS, MAX_SIZE = 2**24 - 1, 2**32 - 1
COLUMNS = ("file_id", "repo", "licenses", "stars", "size", "content_hash", "settled")
SCHEMA = (
    "file_id binary, repo string, licenses array<string>, stars long, size long, content_hash binary, settled boolean"
)


def drawn_files(draw, count, repositories, contents, stars, settled):
    """Files of a few repositories, which have few contents in common; `stars` to choose from."""
    files = []
    for _ in range(count):
        licenses = draw.choice(list(LICENCES))
        files.append(
            {
                "file_id": draw.randbytes(16),
                "repo": draw.choice(["", *(f"repo{number}" for number in range(repositories))]),
                "licenses": licenses if licenses is None else list(licenses),
                "stars": draw.choice(stars),
                "size": draw.choice([None, 0, 10, 11, 2**33]),
                "content_hash": draw.randrange(contents).to_bytes(16, "big"),
                "settled": draw.random() < settled,
            }
        )
    return files


def licence_of(file):
    return LICENCES[None if file["licenses"] is None else tuple(file["licenses"])]


def losses_of(files):
    """Of each repository the share of its contents, in 255ths, whose best copy lies elsewhere."""
    best, contents = {}, Counter()

    def order(file):
        return (not file["settled"], licence_of(file), -(file["stars"] or 0), file["file_id"], file["repo"])

    for file in sorted(files, key=order):
        best.setdefault(file["content_hash"], file["repo"])
    for repo, _ in {(file["repo"], file["content_hash"]) for file in files}:
        contents[repo] += 1
    wins = Counter(best.values())
    return {repo: ceil((count - wins[repo]) / count * 255) if repo else 0 for repo, count in contents.items()}


def repository_hashes(spark, files):
    repos = spark.createDataFrame([(repo,) for repo in {file["repo"] for file in files}], "repo string")
    hashed = repos.select("repo", F.pmod(F.xxhash64("repo"), 2**29).alias("hash")).collect()
    return {row.repo: row.hash if row.repo else 0 for row in hashed}


def keep_order(file, losses, hashes):
    stars, size = min(max(file["stars"] or 0, 0), MAX_STARS), min(file["size"] or 0, MAX_SIZE)
    place = (licence_of(file), -stars, losses[file["repo"]], hashes[file["repo"]], -size)
    return (not file["settled"], *place, file["file_id"])


def keys_of(spark, files):
    """(key, id in the key) by file id."""
    table = spark.createDataFrame([tuple(file[name] for name in COLUMNS) for file in files], SCHEMA)
    found = ranked(table).select("file_id", "key", id_of(F.col("key")).alias("id")).collect()
    assert len(found) == len(files)
    return {bytes(row.file_id): (bytes(row.key), bytes(row.id)) for row in found}


@pytest.mark.parametrize(
    ("contents", "stars"),
    [(10**9, [None, -3, 0, 1, 50, 2**24 - 1, 2**40]), (40, [None, 0, 7])],
    ids=["no copies, odd numbers", "many copies"],
)
def test_keys_compare_as_documented(spark, contents, stars):
    files = drawn_files(random.Random(contents), 400, 6, contents, stars, settled=0.2)
    losses, hashes = losses_of(files), repository_hashes(spark, files)
    keys = keys_of(spark, files)
    assert all(len(key) == KEY_BYTES and found == one for one, (key, found) in keys.items())
    expected = [file["file_id"] for file in sorted(files, key=lambda file: keep_order(file, losses, hashes))]
    assert sorted(keys, key=keys.__getitem__) == expected
    assert (set(losses.values()) == {0}) == (contents == 10**9)


def test_a_settled_key_is_the_same_before_all_fresh_ones(spark):
    draw = random.Random(8)
    keys = [bytes([draw.randrange(128, 256)]) + draw.randbytes(KEY_BYTES - 1) for _ in range(50)]
    keys += [b"\x80" + bytes(KEY_BYTES - 1), b"\xff" * KEY_BYTES]
    table = spark.createDataFrame([(key,) for key in keys], "key binary")
    rows = table.select("key", settled_key(F.col("key")).alias("settled")).collect()
    for row in rows:
        assert bytes(row.settled) == bytes([row.key[0] & 0x7F]) + bytes(row.key[1:])
    assert max(bytes(row.settled) for row in rows) < min(keys)
    again = table.select(settled_key(settled_key(F.col("key"))).alias("settled")).collect()
    assert [row.settled for row in again] == [row.settled for row in rows]


def test_of_forks_one_keeps_all_shared_files(spark, tmp_path):
    draw = random.Random(3)
    texts = {f"{number}.py": " ".join(f"w{draw.randrange(10**6)}" for _ in range(30)) for number in range(60)}
    shared, alike = list(texts.items())[:40], list(texts.items())[40:]
    rows = [document(text, repo=repo, path=path) for path, text in shared for repo in ("fork", "origin", "third")]
    rows += [
        document(f"print({number}, 'a', 'b', 'c')", repo="origin", path=f"own{number}.py") for number in range(25)
    ]
    rows += [document(text, repo=repo, path=path) for path, text in alike for repo in ("left", "right")]
    dedup.main(documents=write_documents(tmp_path / "documents", rows, 3), output=str(tmp_path / "out"))
    removed = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["kind"] for row in removed} == {"exact"}
    sides = Counter((row["repo"], row["kept_repo"]) for row in removed)
    assert [sides.pop((fork, "origin")) for fork in ("fork", "third")] == [len(shared)] * 2
    # Two that are alike in all: which one stays is all the same, but it stays whole.
    assert sides in (Counter({("left", "right"): len(alike)}), Counter({("right", "left"): len(alike)}))
