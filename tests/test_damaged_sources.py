"""Damaged, hostile and vanished input: every file ends as a row or in a count, and nothing raises."""

import gzip
import io
import os
import tarfile
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sources import (
    ALL,
    json_lines,
    only,
    rows_of,
    write_tree,
    write_zst,
)

from spark_jobs.sources import units
from spark_jobs.sources.reading import READERS, packed, read_units


def test_links_loops_and_pipes_are_not_followed(tmp_path):
    root = tmp_path / "src"
    (root / "a").mkdir(parents=True)
    (root / "a/x.py").write_text("x")
    (root / "a/loop").symlink_to(root, target_is_directory=True)
    (root / "b").symlink_to("a")
    (root / "y.py").symlink_to("a/x.py")
    (root / "gone.py").symlink_to("nowhere")
    os.mkfifo(root / "pipe.py")
    rows, tally = rows_of(root)
    assert [row["path"] for row in rows] == ["a/x.py"]
    assert tally == {"skipped_links": 5}


def test_links_in_a_folder_of_deliveries_are_not_followed_and_told_of(tmp_path, caplog):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere.jsonl"
    root.mkdir()
    (root / "real.jsonl").write_bytes(json_lines([{"content": "x = 1", "path": "a.py"}]))
    elsewhere.write_bytes(json_lines([{"content": "x = 1", "path": "b.py"}]))
    (root / "linked.jsonl").symlink_to(elsewhere)
    rows, _ = rows_of(root)
    assert [row["path"] for row in rows] == ["a.py"]
    assert "1 links are not followed" in caplog.text


def test_links_in_archives_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.py", tarfile.SYMTYPE), ("b.py", tarfile.LNKTYPE), ("c.py", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("../../etc/evil.py")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("a.py")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    rows, tally = rows_of(tmp_path / "x.tar", tmp_path / "x.zip")
    assert [row["path"] for row in rows] == ["../../etc/evil.py"]
    assert tally == {"skipped_links": 4}


def test_what_cannot_be_opened_is_a_row(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "corpus")
    found = units.survey([str(root)], ALL)
    (root / "alpha/plain.py").unlink()
    (root / "alpha/plain.py").mkdir()  # not a file any more: simply another folder
    (root / "beta").rename(root / "gamma")
    real = os.open

    def refusing(path, *rest, **named):
        if str(path).endswith("latin.py"):
            raise PermissionError(path)
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", refusing)
    rows = [row for unit in found.units for row in READERS[unit.kind](unit, ALL, Counter())]
    unreadable = {(row["repo"], row["path"]) for row in rows if row["state"] == "unreadable"}
    assert unreadable == {("corpus/alpha", "alpha/latin.py"), ("corpus/beta", "beta")}


def test_names_that_are_not_unicode_are_escaped(tmp_path):
    root = os.fsencode(tmp_path / "src")
    os.makedirs(root + b"/d\xff")
    with open(root + b"/d\xff/a\xe9.py", "wb") as file:
        file.write(b"x")
    found = units.survey([str(tmp_path / "src")], ALL)
    work = [pa.record_batch({"unit": [packed(unit) for unit in found.units]})]
    schema = pa.schema([("file_id", pa.binary()), ("path", pa.large_string()), ("repo", pa.string())])
    batch = next(read_units(work, ALL, schema))
    assert batch.to_pylist()[0]["path"] == "d\\xff/a\\xe9.py"
    assert batch.to_pylist()[0]["repo"] == "src/d\\xff"


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.zst"])
def test_every_truncation_of_a_tar_is_noticed(tmp_path, ending):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"r/{number}.py")
            member.size = 600
            tar.addfile(member, io.BytesIO(bytes([97 + number]) * 600))
    data = buffer.getvalue()
    place = tmp_path / f"x.{ending}"
    if ending == "tar.gz":
        data = gzip.compress(data)
    elif ending == "tar.zst":
        write_zst(place, data)
        data = place.read_bytes()
    limit = 3 * 1536 if ending == "tar" else len(data)
    for size in range(0, limit, 300 if ending == "tar" else 7):
        place.write_bytes(data[:size])
        rows, _ = rows_of(place)
        assert [row["state"] for row in rows] == ["decoded"] * (len(rows) - 1) + ["unreadable"]
        assert rows[-1]["path"] == f"x.{ending}"
        if ending == "tar":
            assert len(rows) - 1 == sum(size >= 1536 * number + 1112 for number in range(3))


def test_damaged_zip_members_are_unreadable_and_the_rest_stays(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/good.py", b"good = 1\n")
        archive.writestr("a/bad.py", b"bad = 111111\n")
    data = buffer.getvalue()
    (tmp_path / "x.zip").write_bytes(data.replace(b"bad = 111111", b"bad = 211111"))
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    rows, _ = rows_of(tmp_path / "x.zip", tmp_path / "cut.zip")
    assert [(row["path"], row["state"]) for row in rows] == [
        ("a/good.py", "decoded"),
        ("a/bad.py", "unreadable"),
        ("cut.zip", "unreadable"),
    ]


def test_malformed_lines_are_rows(tmp_path):
    lines = [
        b'{"content": "fine", "path": "a.py"}',
        b'{"content": "cut off',
        b"",
        b"[1, 2]",
        b'{"path": "b.py"}',
        b'{"path": "c.py", "content": 5}',
        b'{"path": "d.py", "content": "\\ud800"}',
        b'{"path": "\\ud800.py", "content": "x"}',
        b'{"path": "e.py", "content": "a\\u0000b"}',
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b"1" * 5000,
        b'{"content": "last, without newline", "path": "f.py"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    rows, _ = rows_of(tmp_path / "x.jsonl")
    assert [(row["path"], row["state"]) for row in rows] == [
        ("a.py", "decoded"),
        ("", "undecodable"),
        ("", "undecodable"),
        ("b.py", "undecodable"),
        ("c.py", "undecodable"),
        ("d.py", "undecodable"),
        ("\\ud800.py", "decoded"),
        ("e.py", "binary"),
        ("", "undecodable"),
        ("", "undecodable"),
        ("", "undecodable"),
        ("f.py", "decoded"),
    ]
    assert len({row["file_id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst"])
def test_packed_lines_cut_off_keep_what_was_read(tmp_path, ending):
    data = json_lines({"path": f"{number}.py", "content": os.urandom(2000).hex()} for number in range(500))
    place = tmp_path / f"x.{ending}"
    place.write_bytes(gzip.compress(data)) if ending.endswith("gz") else write_zst(place, data)
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    rows, _ = rows_of(place)
    assert rows[-1]["state"] == "unreadable"
    assert len(rows) > 100
    assert all(row["state"] == "decoded" for row in rows[:-2])


def test_parquet_oddities(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    texts = pa.array([b"x = 1", None, b"\xe9t\xe9 d\xe9j\xe0 vu", b"a\0"], pa.binary())
    bad_utf8 = pa.Array.from_buffers(pa.string(), 4, texts.buffers())
    table = pa.table({"content": bad_utf8, "path": ["a.py", "b.py", "c.py", "d.py"], "license": ["mit"] * 4})
    pq.write_table(table.set_column(1, "path", table["path"].dictionary_encode()), folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "broken.parquet").write_bytes(whole[:100])
    (folder / "_hidden.parquet").write_bytes(b"")
    pages = bytearray(whole)
    pages[4:200] = b"\xff" * 196
    (folder / "damaged.parquet").write_bytes(pages)
    rows, _ = rows_of(folder)
    assert [(row["repo"], row["path"], row["state"]) for row in rows] == [
        ("a", "a.py", "decoded"),
        ("a", "b.py", "undecodable"),
        ("a", "c.py", "decoded"),
        ("a", "d.py", "binary"),
        ("broken", "broken.parquet", "unreadable"),
        ("damaged", "damaged.parquet", "unreadable"),
    ]
    assert rows[0]["licenses"] == ["mit"]
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet lacks the column content; it has text"):
        rows_of(tmp_path / "other.parquet")


def test_a_file_that_grows_is_read_whole(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("x" * 100)
    real = os.fstat

    def earlier(number):
        status = real(number)
        return os.stat_result([*status[:6], 10, *status[7:]])

    monkeypatch.setattr(os, "fstat", earlier)
    assert only(rows_of(tmp_path / "src")[0])["content"] == b"x" * 100
