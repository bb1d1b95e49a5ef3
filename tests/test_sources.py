"""Every container against plain files; the same rows from every place and cut; bounded batches and tasks."""

import gzip
import io
import itertools
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import (
    ALL,
    FILES,
    READ,
    json_lines,
    only,
    rows_of,
    write_tar,
    write_tree,
    write_zst,
)

from spark_jobs.sources import units
from spark_jobs.sources.archives import open_packed
from spark_jobs.sources.json_lines import lines_of
from spark_jobs.sources.reading import packed, read_units, tasks_of
from spark_jobs.sources.records import SKIPPED, Choice


def deliver(tmp_path, form):
    """The same files in one form, by the name of the source."""
    if form == "folder":
        return write_tree(tmp_path / "corpus")
    place = tmp_path / f"corpus.{form}"
    if form == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for path, data in FILES.items():
                archive.writestr(path, data)
    elif form == "parquet":
        names = [path for path in FILES if path in READ]
        table = pa.table({"repo_name": ["r"] * len(names), "path": names, "content": [FILES[n] for n in names]})
        pq.write_table(table, place, row_group_size=3)
    elif form.startswith("tar"):
        tar = write_tar(tmp_path / "tree", "w:gz" if form == "tar.gz" else "w")
        place.write_bytes(tar) if form != "tar.zst" else write_zst(place, tar)
    return place


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.zst", "zip", "parquet"])
def test_every_form_gives_the_same_files(tmp_path, form):
    expected, tally = rows_of(deliver(tmp_path / "elsewhere", "folder"))
    assert [row["path"] for row in sorted(expected, key=lambda row: row["path"])] == READ
    assert tally == {"skipped_by_name": 1}
    rows, tally = rows_of(deliver(tmp_path, form))
    kept = ("path", "content", "state", "encoding", "size", "language")
    if form != "parquet":  # which names its repositories itself
        kept = (*kept, "repo", "file_id")
        assert tally == {"skipped_by_name": 1}
    assert {tuple(row[name] for name in kept) for row in rows} == {
        tuple(row[name] for name in kept) for row in expected
    }
    assert len(rows) == len(expected)


def test_states_of_the_folder(tmp_path):
    states = {row["path"]: row["state"] for row in rows_of(write_tree(tmp_path / "corpus"))[0]}
    odd = {path: state for path, state in states.items() if state != "decoded"}
    assert odd == {
        "alpha/__init__.py": "empty",
        "beta/nul.py": "binary",
        "beta/noise.txt": "undecodable",
        "beta/long.py": "oversized",
    }


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "json.gz", "jsonl.zst"])
def test_json_lines_give_the_files_text(tmp_path, ending):
    decoded = [row for row in rows_of(write_tree(tmp_path / "corpus"))[0] if row["state"] != "undecodable"]
    texts = {row["path"]: FILES[row["path"]].decode(row["encoding"] or "utf-8") for row in decoded}
    data = json_lines({"repo": "corpus/r", "path": path, "content": text} for path, text in texts.items())
    place = tmp_path / f"x.{ending}"
    if ending.endswith("gz"):
        half = data.index(b"\n") + 1
        place.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    elif ending.endswith("zst"):
        write_zst(place, data)
    else:
        place.write_bytes(b"\xef\xbb\xbf" + data)
    rows, _ = rows_of(place)
    told = [(row["path"], row["state"], row["content"], row["language"]) for row in rows]
    assert told == [(row["path"], row["state"], row["content"], row["language"]) for row in decoded]
    assert all(row["repo"] == "corpus/r" for row in rows)


def test_fields_of_the_stack_and_bigquery(tmp_path):
    place = tmp_path / "part.jsonl"
    stack = {
        "max_stars_repo_name": "a/b",
        "max_stars_repo_path": "x.unknown",
        "max_stars_repo_head_hexsha": "abc",
        "max_stars_repo_licenses": ["MIT", "ISC"],
        "max_stars_count": 7.0,
        "lang": "python",
        "content": "x",
    }
    bigquery = {"repo_name": "a/b", "path": "y.py", "license": "mit", "content": "y", "size": "1"}
    place.write_bytes(
        json_lines([stack, bigquery, {"content": "z"}, {"content": "w", "path": "w.c", "stars": 10**30}])
    )
    names = ("repo", "path", "revision", "language", "licenses", "stars")
    assert [tuple(row[name] for name in names) for row in rows_of(place)[0]] == [
        ("a/b", "x.unknown", "abc", "Python", ["MIT", "ISC"], 7),
        ("a/b", "y.py", "", "Python", ["mit"], None),
        ("part", "", "", None, [], None),
        ("part", "w.c", "", "C", [], None),
    ]
    rows, tally = rows_of(place, choice=Choice(1 << 20, frozenset(["Python"])))
    assert [row["path"] for row in rows] == ["x.unknown", "y.py"]
    assert tally == {"skipped_by_language": 2}


def test_repository_is_the_nearest_git_or_the_first_folder(tmp_path):
    root = tmp_path / "src"
    for path in ("a/x.py", "a/b/.git/config.py", "a/b/x.py", "a/b/c/x.py", "x.py", "d/e/x.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")
    repos = {row["path"]: row["repo"] for row in rows_of(root)[0]}
    assert repos == {
        "a/x.py": "src/a",
        "a/b/x.py": "src/a/b",
        "a/b/c/x.py": "src/a/b",
        "x.py": "src",
        "d/e/x.py": "src/d",
    }


def test_a_named_file_is_read_whatever_its_name(tmp_path):
    place = tmp_path / "notes.unknown"
    place.write_text("hello")
    row = only(rows_of(place)[0])
    assert (row["repo"], row["path"], row["content"]) == ("notes", "notes.unknown", b"hello")


def test_folders_of_deliveries_are_not_trees(tmp_path):
    part = json_lines([{"content": "x", "path": "x.py"}])
    files = {
        "lines/1.json.gz": gzip.compress(part),
        "lines/2.jsonl": part,
        "lines/README.md": b"about",
        "mixed/1.jsonl": part,
        "mixed/x.py": b"x",
        "stray/data.parquet": b"",
        "stray/x/x.py": b"x",
    }
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_bytes(data)
    for language in ("c", "go"):
        (tmp_path / f"parquet/language={language}").mkdir(parents=True)
        pq.write_table(pa.table({"content": [language]}), tmp_path / f"parquet/language={language}/0.parquet")
    told = {
        name: [(row["repo"], row["path"], row["content"]) for row in rows_of(tmp_path / name)[0]]
        for name in ("lines", "mixed", "stray", "parquet")
    }
    assert told == {
        "lines": [("1", "x.py", b"x"), ("2", "x.py", b"x")],
        "mixed": [("mixed", "1.jsonl", part), ("mixed", "x.py", b"x")],
        "stray": [("stray/x", "x/x.py", b"x")],
        "parquet": [("0", "", b"c"), ("0", "", b"go")],
    }


def test_ids_depend_on_no_place_and_no_cut(tmp_path):
    ids = [
        {row["path"]: row["file_id"] for row in rows_of(write_tree(tmp_path / place / "corpus"), range_bytes=cut)[0]}
        for place, cut in (("here", 1 << 30), ("there/below", 100), ("else", 1))
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0].values())) == len(READ)


def test_shares_of_a_directory_hold_each_file_once(tmp_path):
    root = tmp_path / "wide"
    root.mkdir()
    for number in range(300):
        (root / f"{number}.py").write_text(f"x = {number}\n" * 10)
    (root / "link.py").symlink_to("1.py")
    rows, tally = rows_of(root, range_bytes=2000)
    assert len(units.survey([str(root)], ALL, range_bytes=2000).units) > 10
    assert sorted(row["path"] for row in rows) == sorted(f"{number}.py" for number in range(300))
    assert tally == {"skipped_links": 1}


def test_inventory_knows_change_but_not_order_or_unread_files(tmp_path):
    root = write_tree(tmp_path / "corpus")
    before = units.survey([str(root)], ALL).inventory
    (root / "alpha/cache.pyc").write_bytes(b"new")
    assert units.survey([str(root)], ALL).inventory == before
    (root / "alpha/new.py").write_bytes(b"new")
    assert units.survey([str(root)], ALL).inventory != before


@given(
    st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8),
    st.booleans(),
    st.lists(st.integers(0, 120), max_size=5),
    st.integers(1, 12),
)
def test_byte_ranges_give_every_line_once(lines, ended, cuts, longest):
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    whole = list(io.BytesIO(data))
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = []
    for begin, end in itertools.pairwise(borders):
        stream = io.BytesIO(data)
        stream.seek(max(0, begin - 1))
        found += lines_of(stream, begin, end, longest)
    assert [line.size_bytes for line in found] == [len(line.removesuffix(b"\n")) for line in whole]
    assert [data[line.offset : line.offset + line.size_bytes] for line in found] == [
        line.removesuffix(b"\n") for line in whole
    ]
    for line, expected in zip(found, whole, strict=True):
        short = len(expected.removesuffix(b"\n")) <= longest
        assert line.data == (expected.removesuffix(b"\n") if short else None)


def test_a_long_line_is_one_row_and_never_held(tmp_path):
    small = Choice(1000)
    long = {"path": "a.py", "content": "x" * 20_000_000}
    data = json_lines([{"content": "a"}, long, {"content": "b"}])
    (tmp_path / "x.jsonl").write_bytes(data)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(data, 1))
    plain, _ = rows_of(tmp_path / "x.jsonl", choice=small, range_bytes=1 << 20)
    zipped, _ = rows_of(tmp_path / "x.jsonl.gz", choice=small)
    assert [row["state"] for row in plain] == ["decoded", "oversized", "decoded"]
    assert [row["file_id"] for row in plain] == [row["file_id"] for row in zipped]
    assert plain[1]["size"] == len(json.dumps(long))


def test_batches_are_bounded_and_end_with_the_counts(tmp_path):
    schema = pa.schema(
        [("content", pa.large_string()), ("size", pa.int64()), *((name, pa.int64()) for name in SKIPPED)]
    )
    root = tmp_path / "src"
    root.mkdir()
    for number in range(40):
        (root / f"{number:02}.py").write_text(f"{number} " * 300_000)
    (root / "x.png").write_text("")
    work = [pa.record_batch({"unit": [packed(unit) for unit in units.survey([str(root)], ALL).units]})]
    found = list(read_units(work, ALL, schema))
    assert all(batch.schema == schema and batch.nbytes < 18 << 20 for batch in found)
    assert sum(batch.num_rows for batch in found) == 41
    assert found[-1].to_pylist()[-1] == {"content": None, "size": None} | dict.fromkeys(SKIPPED, 0) | {
        "skipped_by_name": 1
    }


@given(st.lists(st.integers(0, 200 << 20), max_size=50), st.integers(1, 64))
def test_tasks_hold_neighbours_and_are_bounded(sizes, parallelism):
    found = [units.Unit("directory", "", "", "", "", 0, 1, 1, size) for size in sizes]
    numbers = tasks_of(found, parallelism)
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(set(numbers))))
    for number in set(numbers):
        members = [size for size, task in zip(sizes, numbers, strict=True) if task == number]
        assert len(members) == 1 or sum(members) <= 128 << 20


def test_packed_streams_are_opened_by_name(tmp_path):
    for ending, pack in (("gz", gzip.compress), ("txt", bytes)):
        (tmp_path / f"x.{ending}").write_bytes(pack(b"hello"))
        with open_packed(str(tmp_path / f"x.{ending}")) as stream:
            assert stream.read() == b"hello"
