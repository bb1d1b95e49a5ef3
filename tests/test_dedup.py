"""De-duplication against brute force over exact similarities, whatever the partitions and the batches."""

import random
from collections import Counter, defaultdict
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import greedy, jaccard_of, shingles_of
from small_corpus import document, write_documents

from spark_jobs import dedup
from spark_jobs.near_duplicates.candidates import HUBS, band_digests, candidate_pairs
from spark_jobs.near_duplicates.keep_order import KEY_BYTES, id_of, keep_key
from spark_jobs.near_duplicates.leaders import removals_of
from spark_jobs.near_duplicates.shingles import PERMUTATIONS
from spark_jobs.tables import manifest

PERMISSIVE, OTHER = ["MIT", "apache-2.0 "], ["MIT", "GPL-3.0-only"]


# Candidates


def sketched_files():
    """Sketches over few values, so that chance puts them into common bands, and a band of equal ones above HUBS."""
    draw = np.random.default_rng(3)
    sketches = draw.integers(0, 3, (100, PERMUTATIONS), dtype=np.uint32)
    sketches[:70] = sketches[0]
    keys = [bytes(draw.bytes(KEY_BYTES)) for _ in sketches]
    return keys, sketches, draw.choice([70, 100, 101], len(sketches)).tolist()


def test_candidates_are_the_pairs_of_every_band_with_its_best(spark):
    keys, sketches, shingles = sketched_files()
    bands = defaultdict(list)
    for number, digests in enumerate(band_digests(sketches)):
        for band, digest in enumerate(digests):
            assert digest == bands_digest_of(sketches[number], band)
            bands[digest].append(number)
    expected = set()
    for members in bands.values():
        members.sort(key=lambda number: keys[number])
        for place, worse in enumerate(members):
            for better in members[: min(place, HUBS)]:
                sizes = sorted([shingles[better], shingles[worse]])
                if sizes[0] >= 0.7 * sizes[1]:
                    expected.add((keys[better], keys[worse]))
    assert max(map(len, bands.values())) > 2 * HUBS
    assert len(expected) > 70 * HUBS / 2
    rows = [(key, sketch.tobytes(), count) for key, sketch, count in zip(keys, sketches, shingles, strict=True)]
    table = spark.createDataFrame(rows, "key binary, sketch binary, shingles long")
    batch_rows = spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch")
    try:
        for size, partitions in (("3", 5), ("1000", 1)):
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", size)
            pairs = candidate_pairs(table.repartition(partitions), 0.7).collect()
            found = [(bytes(pair.better), bytes(pair.worse)) for pair in pairs]
            assert len(found) == len(set(found))
            assert set(found) == expected
    finally:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", batch_rows)


def bands_digest_of(sketch, band):
    """The digest of a band alone, from a sketch that has nothing else in common."""
    alone = np.zeros((1, PERMUTATIONS), np.uint32)
    alone[0, band * 6 : band * 6 + 6] = sketch[band * 6 : band * 6 + 6]
    return band_digests(alone)[0, band]


# Leaders


def random_graphs(count, seed):
    """Similarity graphs over few keys each, from sparse to complete, and one long chain, whose rounds are many."""
    draw = random.Random(seed)
    for graph in range(count):
        keys = [f"{graph:05d}-{place}".encode() for place in range(draw.randrange(2, 9))]
        dense = draw.random()
        pairs = ((one, other) for place, one in enumerate(keys) for other in keys[place + 1 :])
        yield from ((one, other, draw.choice([0.7, 0.75, 0.8, 1.0])) for one, other in pairs if draw.random() < dense)
    chain = [f"chain-{place:02d}".encode() for place in range(9)]
    yield from ((one, other, 0.7) for one, other in pairwise(chain))


def test_leaders_are_those_of_a_walk_from_best_to_worst(spark):
    edges = list(random_graphs(300, seed=11))
    similarity = {(better, worse): value for better, worse, value in edges}
    neighbours = defaultdict(set)
    for better, worse, _ in edges:
        neighbours[better].add(worse)
        neighbours[worse].add(better)
    kept = set(greedy(sorted(neighbours), lambda one, other: other in neighbours[one]))
    table = spark.createDataFrame(
        random.Random(0).sample(edges, len(edges)), "better binary, worse binary, similarity double"
    )
    found = removals_of(table, lambda rows, name: rows.localCheckpoint()).collect()
    removed = {bytes(row.worse): (bytes(row.better), row.similarity) for row in found}
    assert len(found) == len(removed)
    assert set(removed) == set(neighbours) - kept
    for worse, (better, value) in removed.items():
        proofs = [one for one in neighbours[worse] & kept if one < worse]
        assert (better, value) == min(
            ((one, similarity[one, worse]) for one in proofs), key=lambda proof: (-proof[1], proof[0])
        )


def test_no_similar_pairs_remove_nothing(spark):
    edges = spark.createDataFrame([], "better binary, worse binary, similarity double")
    assert removals_of(edges, lambda rows, name: rows.localCheckpoint()).collect() == []


# The keep order


def test_keys_compare_as_the_keep_order(spark):
    draw, rows = random.Random(2), []
    for _ in range(400):
        licenses = draw.choice([None, [], PERMISSIVE, OTHER, ["GPL-3.0-only"], ["unheard of"]])
        stars, size = draw.choice([None, 0, 1, 50, 2**40]), draw.choice([None, 0, 10, 11, 2**33])
        rows.append((draw.randbytes(16), licenses, stars, size))
    table = spark.createDataFrame(rows, "file_id binary, licenses array<string>, stars long, size long")
    found = table.select("*", keep_key().alias("key")).select("*", id_of("key").alias("id")).collect()
    assert all(row.id == row.file_id and len(row.key) == KEY_BYTES for row in found)
    by_key = [bytes(row.file_id) for row in sorted(found, key=lambda row: bytes(row.key))]
    capped = [
        (one, licenses, min(stars or 0, 2**29 - 1), min(size or 0, 2**32 - 1)) for one, licenses, stars, size in rows
    ]
    assert by_key == [row[0] for row in sorted(capped, key=lambda row: keep_order(*row))]


def keep_order(file_id, licenses, stars, size):
    known = {licence.strip().lower() for licence in licenses or []}
    licence = 1 if not known else 0 if known <= {"mit", "apache-2.0"} else 2
    return (licence, -(stars or 0), -size, file_id)


# The job


def words(draw, count):
    return [f"w{draw.randrange(10**7)}" for _ in range(count)]


def changed(draw, text, runs, size=6):
    """Replace some runs of words: each changes about `size + 4` shingles."""
    text = list(text)
    for _ in range(runs):
        first = draw.randrange(len(text) - size)
        text[first : first + size] = words(draw, size)
    return text


def small_rows(seed=0):
    """Some 140 documents: clusters of copies at several distances, chains, texts without or shorter than a shingle."""
    draw, texts = random.Random(seed), []
    for _ in range(12):  # clusters around one text: from all but equal to hardly similar
        base = words(draw, draw.randrange(90, 200))
        texts += [" ".join(changed(draw, base, runs, draw.randrange(1, 8))) for runs in (0, 0, 1, 1, 2, 4, 8)]
    for _ in range(8):  # chains: the middle is similar to both ends, which are not to each other
        start = words(draw, 110)
        middle = start[:20] + words(draw, 7) + start[27:]
        end = middle[:80] + words(draw, 7) + middle[87:]
        assert jaccard_of(shingles_of(" ".join(start)), shingles_of(" ".join(end))) < 0.7
        texts += [" ".join(start), "\n".join(middle), "\t".join(end)]
    short = ["a", "b", "a b", "b a", "a b c", "a b c d", "a b c e", "a  b", "a b c d", "(a)", "a b c d e"]
    texts += [*short, *short[:3], "", "", "\n", "...", "...", "é", "É", "日本", None, None]
    rows = []
    for number, text in enumerate(draw.sample(texts, len(texts))):
        licenses, stars = draw.choice([[], [], PERMISSIVE, OTHER]), draw.choice([None, None, 3, 1000])
        where = {"repo": f"repo{number % 7}", "path": f"{number}.py"}
        rows.append(document(text, **where, licenses=licenses, stars=stars))
    return rows


def survivors_by_brute_force(rows, threshold):
    """The documents that a walk in the keep order keeps, over exact similarities."""
    shingles = {row["file_id"]: shingles_of(row["content"]) for row in rows if row["content"] is not None}

    def similar(one, other):
        near = jaccard_of(shingles[one["file_id"]], shingles[other["file_id"]]) >= threshold
        return near or one["content"] == other["content"]

    unique = {row["file_id"]: row for row in rows if row["content"] is not None}
    ranked = sorted(
        unique.values(), key=lambda row: keep_order(*(row[name] for name in ("file_id", "licenses", "stars", "size")))
    )
    return {row["file_id"] for row in greedy(ranked, similar)}


def require_justified(duplicates, rows, threshold):
    """Every removal names a kept file, and the similarity that it gives is the exact one."""
    by_id = {row["file_id"]: row for row in rows}
    removed = {row["file_id"] for row in duplicates}
    assert len(removed) == len(duplicates)
    for row in duplicates:
        one, kept = by_id[row["file_id"]], by_id[row["kept_file_id"]]
        assert row["kept_file_id"] not in removed
        assert (row["repo"], row["path"]) == (one["repo"], one["path"])
        assert (row["kept_repo"], row["kept_path"]) == (kept["repo"], kept["path"])
        assert (row["kind"] == "exact") == (one["content"] == kept["content"])
        if row["kind"] == "near":
            assert row["similarity"] == jaccard_of(shingles_of(one["content"]), shingles_of(kept["content"]))
            assert row["similarity"] >= threshold
        else:
            assert row["similarity"] == 1.0


def read(folder):
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["file_id"])


def test_survivors_are_those_of_brute_force_however_the_documents_are_cut(spark, tmp_path):
    rows, found = small_rows(), []
    expected = survivors_by_brute_force(rows, 0.7)
    for parts, rows_a_group in ((1, 1000), (3, 11), (7, 1)):
        documents = write_documents(tmp_path / f"documents{parts}", rows, parts, rows_a_group)
        output = tmp_path / f"duplicates{parts}"
        dedup.main(documents=documents, output=str(output))
        found.append(read(output))
        assert found[0] == found[-1]
        assert sorted(path.name for path in output.iterdir() if path.is_dir()) == []
    duplicates = found[0]
    require_justified(duplicates, rows, 0.7)
    decoded = {row["file_id"] for row in rows if row["content"] is not None}
    assert decoded - {row["file_id"] for row in duplicates} == expected
    kinds = Counter(row["kind"] for row in duplicates)
    assert kinds["exact"] > 5
    assert kinds["near"] > 40
    assert manifest(str(output))["exact"] == kinds["exact"]


def test_short_files_are_never_lumped_together(spark, tmp_path):
    texts = ["a", "b", "a b", "b a", "a b c", "a b d", "a b c d", "a b c d e", "A", "", "\n", "..."]
    rows = [document(text, path=f"{number}.py") for number, text in enumerate(texts)]
    dedup.main(documents=write_documents(tmp_path / "documents", rows), output=str(tmp_path / "out"), threshold=0.1)
    assert read(tmp_path / "out") == []


def plain_rows():
    """Rows as other tools write them, some repeated word for word."""
    rows = [row for row in small_rows(seed=4) if row["content"] is not None]
    rows += random.Random(1).sample(rows, 20)
    return rows


@pytest.mark.parametrize("columns", [("content", "repo_name", "path"), ("content",)])
def test_any_parquet_with_content(spark, tmp_path, columns):
    source = tmp_path / "data"
    (source / "deep").mkdir(parents=True)
    names = {"repo_name": "repo"}
    given, rows = [], []
    for number, row in enumerate(plain_rows()):
        given.append({"number": number, "extra": [number], **{name: row[names.get(name, name)] for name in columns}})
        known = {"repo": row["repo"], "path": row["path"]} if "path" in columns else {"repo": "", "path": ""}
        rows.append(document(row["content"], **known))
    table = pa.Table.from_pylist(given)
    pq.write_table(table.slice(0, 60), source / "b.parquet", row_group_size=13)
    pq.write_table(table.slice(60), source / "deep" / "a.parquet")
    (source / "_hidden.parquet").write_text("no Parquet")
    dedup.main(
        documents=str(source), output=str(tmp_path / "out"), survivors=str(tmp_path / "survivors"), threshold=0.8
    )
    duplicates = read(tmp_path / "out")
    require_justified(duplicates, rows, 0.8)
    expected = survivors_by_brute_force(rows, 0.8)
    ids = [row["file_id"] for row in rows]
    assert set(ids) - {row["file_id"] for row in duplicates} == expected
    kept = pq.read_table(tmp_path / "survivors").to_pylist()
    assert all(row == given[row["number"]] for row in kept)
    assert sorted(ids[row["number"]] for row in kept) == sorted(expected)
    assert manifest(str(tmp_path / "survivors"))["rows"] == len(expected)


def test_a_finished_run_is_skipped_and_nothing_foreign_is_touched(spark, tmp_path, capsys):
    rows = [document("a b c d e f", path=f"{number}.py") for number in range(3)]
    documents = write_documents(tmp_path / "documents", rows)
    job = partial(dedup.main, documents=documents, output=str(tmp_path / "out"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="foreign"):
        job(survivors=str(foreign))
    assert (foreign / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    job(dry_run=True)
    assert not (tmp_path / "out").exists()
    assert "recall" in capsys.readouterr().out
    job()
    first = read(tmp_path / "out")
    assert len(first) == 2
    stamp = (tmp_path / "out" / "_manifest.json").stat().st_mtime_ns
    job()
    assert (tmp_path / "out" / "_manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="--overwrite"):
        job(threshold=0.8)
    job(survivors=str(tmp_path / "survivors"))
    assert pq.read_table(tmp_path / "survivors").num_rows == 1
    assert read(tmp_path / "out") == first
    with pytest.raises(ValueError, match="lie in one another"):
        dedup.main(documents=documents, output=documents, overwrite=True)
    assert pq.read_table(documents).num_rows == 3
