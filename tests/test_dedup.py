"""De-duplication against brute force over exact similarities, however the work is cut."""

import random
import re
from collections import Counter, defaultdict
from contextlib import contextmanager
from functools import partial
from itertools import combinations

import networkx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import greedy, jaccard_of, shingles_of
from small_corpus import document, similar_rows, words, write_documents
from small_fingerprints import keys_by_id

from spark_jobs import dedup, measure
from spark_jobs.near_duplicates.candidates import HOT_MEMBERS
from spark_jobs.near_duplicates.settings import BANDS, Fingerprint
from spark_jobs.tables import manifest


def read(folder):
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["file_id"])


def survivors_by_brute_force(rows, output, threshold, head=0):
    """The documents that a walk in the keep order keeps, over exact similarities; `head` characters do not count."""
    keys = keys_by_id(output)
    unique = {row["file_id"]: row for row in rows if row["content"] is not None}
    assert set(keys) == set(unique)
    shingles = {key: shingles_of(row["content"][head:]) for key, row in unique.items()}

    def similar(one, other):
        near = jaccard_of(shingles[one["file_id"]], shingles[other["file_id"]]) >= threshold
        return near or one["content"] == other["content"]

    ranked = sorted(unique.values(), key=lambda row: keys[row["file_id"]])
    return {row["file_id"] for row in greedy(ranked, similar)}


def require_justified(duplicates, rows, threshold):
    """Every removal names a kept file, and its proof holds over exact similarities."""
    by_id = {row["file_id"]: row for row in rows}
    removed = {row["file_id"] for row in duplicates}
    assert len(removed) == len(duplicates)
    for row in duplicates:
        one, kept = by_id[row["file_id"]], by_id[row["kept_file_id"]]
        assert row["kept_file_id"] not in removed
        assert (row["repo"], row["path"]) == (one["repo"], one["path"])
        assert (row["kept_repo"], row["kept_path"]) == (kept["repo"], kept["path"])
        assert (row["kind"] == "exact") == (row["proof"] == "bytes") == (one["content"] == kept["content"])
        if row["kind"] == "exact":
            assert (row["similarity"], row["band"]) == (1.0, None)
            continue
        similarity = jaccard_of(shingles_of(one["content"]), shingles_of(kept["content"]))
        assert row["kind"] == "near"
        assert row["band"] in range(BANDS)
        if row["proof"] == "shingles":
            assert row["similarity"] == similarity
        else:
            assert row["similarity"] == pytest.approx(similarity, abs=0.12)
        assert row["proof"] in ("shingles", "sketch", "estimate")
        assert similarity >= threshold or row["proof"] == "estimate"


@contextmanager
def configured(spark, **settings):
    """Settings of the session (`.` as `_`), for a while."""
    before = {name: spark.conf.get(name.replace("_", ".")) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name.replace("_", "."), value)
    try:
        yield
    finally:
        for name, value in before.items():
            spark.conf.set(name.replace("_", "."), value)


@pytest.fixture(scope="module")
def rows():
    return similar_rows()


@pytest.fixture(scope="module")
def documents(rows, tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("rows") / "documents", rows, 2, 40)


@pytest.fixture(scope="module")
def output(spark, documents, tmp_path_factory):
    """What de-duplication makes of the rows; to be read and not changed."""
    folder = tmp_path_factory.mktemp("rows") / "duplicates"
    dedup.main(documents=documents, output=str(folder))
    return folder


def test_survivors_are_those_of_brute_force(rows, output):
    duplicates = read(output)
    decoded = {row["file_id"] for row in rows if row["content"] is not None}
    kept = decoded - {row["file_id"] for row in duplicates}
    assert kept == survivors_by_brute_force(rows, output, 0.7)
    kinds = Counter(row["kind"] for row in duplicates)
    assert kinds["exact"] > 5
    assert kinds["near"] > 40
    assert {kind: manifest(str(output))[kind] for kind in kinds} == kinds
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["_clusters", "_index"]


def test_every_removal_is_justified(rows, output):
    duplicates = read(output)
    require_justified(duplicates, rows, 0.7)
    assert {row["proof"] for row in duplicates} == {"bytes", "shingles", "sketch"}


def test_clusters_tell_what_each_kept_file_stands_for(rows, output):
    by_id, members = {row["file_id"]: row for row in rows}, defaultdict(list)
    for row in read(output):
        members[row["kept_file_id"]].append(row)
    clusters = pq.read_table(output / "_clusters").to_pylist()
    assert len(clusters) == len(members) > 10
    for cluster in clusters:
        kept, removed = by_id[cluster["kept_file_id"]], members[cluster["kept_file_id"]]
        kinds = Counter(row["kind"] for row in removed)
        assert cluster == {
            "kept_file_id": kept["file_id"],
            "kept_repo": kept["repo"],
            "kept_path": kept["path"],
            "files": 1 + len(removed),
            "exact": kinds["exact"],
            "near": kinds["near"],
            "repositories": len({kept["repo"], *(row["repo"] for row in removed)}),
            "removed_bytes": sum(by_id[row["file_id"]]["size"] for row in removed),
        }


@pytest.mark.parametrize(
    ("parts", "rows_a_group", "partitions", "adaptive"),
    [(1, 1000, "1", "true"), (3, 11, "7", "false"), pytest.param(7, 1, "64", "true", marks=pytest.mark.slow)],
)
def test_however_the_work_is_cut(spark, rows, output, tmp_path, parts, rows_a_group, partitions, adaptive):
    cut = write_documents(tmp_path / "documents", rows, parts, rows_a_group)
    with configured(spark, spark_sql_shuffle_partitions=partitions, spark_sql_adaptive_enabled=adaptive):
        dedup.main(documents=cut, output=str(tmp_path / "out"))
    here, there = read(tmp_path / "out"), read(output)
    assert [row | {"band": None} for row in here] == [row | {"band": None} for row in there]
    assert here == there


def test_measured_signals_give_the_same(spark, documents, output, tmp_path):
    signals = str(tmp_path / "signals")
    measure.main(documents=documents, output=signals)
    dedup.main(signals=signals, output=str(tmp_path / "out"))
    assert read(tmp_path / "out") == read(output)


def test_estimates_alone_reach_about_the_same(spark, rows, documents, output, tmp_path):
    dedup.main(documents=documents, output=str(tmp_path / "out"), verify="sketch")
    duplicates = read(tmp_path / "out")
    require_justified(duplicates, rows, 0.7)
    assert {row["proof"] for row in duplicates} == {"bytes", "sketch", "estimate"}
    assert all(row["similarity"] >= 0.7 for row in duplicates)
    there, here = ({row["file_id"] for row in read(folder)} for folder in (output, tmp_path / "out"))
    assert len(there ^ here) <= 0.1 * len(there)


def test_short_files_are_never_lumped_together(spark, tmp_path):
    texts = ["a", "b", "a b", "b a", "a b c", "a b d", "a b c d", "a b c d e", "A", "", "\n", "..."]
    rows = [document(text, path=f"{number}.py") for number, text in enumerate(texts)]
    dedup.main(documents=write_documents(tmp_path / "documents", rows), output=str(tmp_path / "out"), threshold=0.1)
    assert read(tmp_path / "out") == []


def plain_rows():
    """Rows as other tools write them, some repeated word for word."""
    rows = [row for row in similar_rows(seed=4) if row["content"] is not None]
    rows += random.Random(1).sample(rows, 20)
    return rows


@pytest.mark.parametrize("columns", [("content", "repo_name", "path"), ("content",)])
def test_any_parquet_with_content(spark, tmp_path, columns, monkeypatch):
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
    monkeypatch.setattr("spark_jobs.near_duplicates.survivors._BUCKET_BYTES", 256)  # many small buckets
    dedup.main(
        documents=str(source), output=str(tmp_path / "out"), survivors=str(tmp_path / "survivors"), threshold=0.8
    )
    duplicates = read(tmp_path / "out")
    require_justified(duplicates, rows, 0.8)
    expected = survivors_by_brute_force(rows, tmp_path / "out", 0.8)
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
    assert re.search(r"3 rows in 1 file.*recall of 42 bands x 6 rows: 0\.9948 at 0\.7", capsys.readouterr().out, re.S)
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


def test_what_most_files_share_is_told(spark, tmp_path, capsys):
    draw = random.Random(5)
    shared = [f"{draw.randrange(10**4):04d}" for _ in range(60)]
    texts = [" ".join([*shared, f"own{number}"]) for number in range(HOT_MEMBERS + 20)]
    rows = [document(text, path=f"{number}.py") for number, text in enumerate(texts)]
    capsys.readouterr()
    dedup.main(documents=write_documents(tmp_path / "documents", rows), output=str(tmp_path / "out"))
    told = re.findall(r'([\d,]+) different files share a band \(number (\d+)\): "(.*)"', capsys.readouterr().out)
    assert 1 <= len(told) <= 5
    for members, band, quoted in told:
        whole = [one for one in quoted.split(" … ") if not one.endswith("…")]
        common = [all(f"{one} " in f"{text} " for text in texts) for one in whole]
        assert all(common), (band, quoted)
        assert [len(one.split()) for one in whole] == [5] * len(whole)
        assert HOT_MEMBERS < int(members) <= len(texts)
    assert len(read(tmp_path / "out")) == len(texts) - 1


def test_a_header_is_left_out_of_the_fingerprint_and_not_of_the_text(spark, tmp_path):
    draw = random.Random(6)
    header = "".join(f"# {' '.join(words(draw, 9))}\n" for _ in range(30))
    headers = [f"# Copyright {year}, all rights reserved\n{header}" for year in (2019, 2020)]
    other = "# Licence of another kind\n" + "".join(f"# {' '.join(words(draw, 9))}\n" for _ in range(30))
    bodies = [" ".join(words(draw, 20)) + "\n" for _ in range(2)]
    texts = {"one": headers[0] + bodies[0], "like_it": headers[1] + bodies[1], "moved": other + bodies[0] + "end\n"}
    rows = [document(text, path=path) for path, text in texts.items()]
    documents = write_documents(tmp_path / "documents", rows)
    for strip, expected in ((False, {"one", "like_it"}), (True, {"one", "moved"})):
        out, survivors = tmp_path / f"out-{strip}", tmp_path / f"survivors-{strip}"
        options = {"output": str(out), "survivors": str(survivors), "fingerprint": Fingerprint(strip_header=strip)}
        dedup.main(documents=documents, **options)
        (found,) = read(out)
        assert {found["path"], found["kept_path"]} == expected
        left = pq.read_table(survivors).to_pylist()
        assert sorted(left, key=str) == sorted((row for row in rows if row["path"] != found["path"]), key=str)
    stripped = [shingles_of(text) for text in (bodies[0], bodies[0] + "end")]
    assert found["similarity"] == pytest.approx(jaccard_of(*stripped), abs=1e-12)


def test_components_keep_the_best_of_each(spark, rows, documents, output, tmp_path):
    dedup.main(documents=documents, output=str(tmp_path / "out"), resolve="components")
    duplicates = read(tmp_path / "out")
    keys = keys_by_id(output)
    unique = {row["file_id"]: row for row in rows if row["content"] is not None}
    shingles = {one: shingles_of(row["content"]) for one, row in unique.items()}
    similar = networkx.Graph()
    for one, other in combinations(unique, 2):
        if unique[one]["content"] == unique[other]["content"] or jaccard_of(shingles[one], shingles[other]) >= 0.7:
            similar.add_edge(one, other)
    expected = {}
    for component in networkx.connected_components(similar):
        best = min(component, key=keys.__getitem__)
        expected |= dict.fromkeys(component - {best}, best)
    assert {row["file_id"]: row["kept_file_id"] for row in duplicates} == expected
    far = {row["file_id"] for row in duplicates if row["similarity"] is None}
    assert far
    for row in duplicates:
        known = similar.has_edge(row["file_id"], row["kept_file_id"])
        assert known == (row["proof"] is not None) == (row["similarity"] is not None)
        assert row["kind"] in ("exact", "near")
