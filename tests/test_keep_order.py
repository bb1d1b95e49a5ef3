"""Which of two similar files is kept: keys compare as the documented order, and forks do not share out their files."""

import random
from collections import Counter
from math import ceil

import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from small_corpus import document, write_documents

from spark_jobs import dedup
from spark_jobs.near_duplicates.duplicates import shared_contents
from spark_jobs.near_duplicates.keep_order import (
    KEY_BYTES,
    RANK_BYTES,
    key_of,
    losses_of_repositories,
    ranked,
    settled_rank,
)

PERMISSIVE, OTHER = ["MIT", "apache-2.0 "], ["MIT", "GPL-3.0-only"]
LICENCES = {None: 1, (): 1, tuple(PERMISSIVE): 0, tuple(OTHER): 2, ("GPL-3.0-only",): 2, ("unheard of",): 2}
MAX_STARS, MAX_SIZE = 2**24 - 1, 2**32 - 1
SCHEMA = (
    "file_id binary, repo string, licenses array<string>, stars long, size long, content_hash binary, "
    "settled boolean, row long"
)
FINGERPRINT_FILE = 70_000


def drawn_files(draw, count, repositories, contents, stars, settled):
    """Files of a few repositories, which have few contents in common; `stars` to choose from."""
    files = []
    for row in range(count):
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
                "row": row,
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


def ranked_files(spark, files):
    """The files with their ranks, and the losses of their repositories, as a run has them."""
    table = spark.createDataFrame([tuple(file.values()) for file in files], SCHEMA)
    losses = losses_of_repositories(table, table.join(shared_contents(table), "content_hash", "left_semi"))
    return ranked(table, losses), losses


def keys_of(spark, files):
    """Keys by file id."""
    table, _ = ranked_files(spark, files)
    rank = F.when(F.col("settled"), settled_rank(F.col("rank"))).otherwise(F.col("rank"))
    found = table.select("file_id", key_of(rank, F.lit(FINGERPRINT_FILE), F.col("row")).alias("key")).collect()
    assert len(found) == len(files)
    return {bytes(row.file_id): bytes(row.key) for row in found}


CASES = pytest.mark.parametrize(
    ("contents", "stars"),
    [(10**9, [None, -3, 0, 1, 50, 2**24 - 1, 2**40]), (40, [None, 0, 7])],
    ids=["no copies, odd numbers", "many copies"],
)


@CASES
def test_keys_compare_as_documented(spark, contents, stars):
    files = drawn_files(random.Random(contents), 400, 6, contents, stars, settled=0.2)
    losses, hashes = losses_of(files), repository_hashes(spark, files)
    keys = keys_of(spark, files)
    expected = [file["file_id"] for file in sorted(files, key=lambda file: keep_order(file, losses, hashes))]
    assert sorted(keys, key=keys.__getitem__) == expected
    spots = {one: (key[:-4][RANK_BYTES:], key[-4:]) for one, key in keys.items()}
    file = FINGERPRINT_FILE.to_bytes(4, "big")
    assert spots == {one["file_id"]: (file, one["row"].to_bytes(4, "big")) for one in files}
    assert {len(key) for key in keys.values()} == {KEY_BYTES}


@CASES
def test_repositories_lose_what_is_better_elsewhere(spark, contents, stars):
    files = drawn_files(random.Random(contents + 1), 400, 6, contents, stars, settled=0.2)
    _, losses = ranked_files(spark, files)
    expected = {repo: share for repo, share in losses_of(files).items() if share}
    assert sorted((row.repo, row.losses) for row in losses.collect()) == sorted(expected.items())
    assert bool(expected) == (contents == 40)


def test_a_settled_rank_is_the_same_before_all_fresh_ones(spark):
    draw = random.Random(8)
    ranks = [bytes([draw.randrange(128, 256)]) + draw.randbytes(RANK_BYTES - 1) for _ in range(50)]
    ranks += [b"\x80" + bytes(RANK_BYTES - 1), b"\xff" * RANK_BYTES]
    table = spark.createDataFrame([(rank,) for rank in ranks], "rank binary")
    rows = table.select("rank", settled_rank(F.col("rank")).alias("settled")).collect()
    for row in rows:
        assert bytes(row.settled) == bytes([row.rank[0] & 0x7F]) + bytes(row.rank[1:])
    assert max(bytes(row.settled) for row in rows) < min(ranks)
    again = table.select(settled_rank(settled_rank(F.col("rank"))).alias("settled")).collect()
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
