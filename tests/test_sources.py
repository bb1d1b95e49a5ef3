"""How bytes come in: decoding against Python's codecs, every container against plain files, damage against counts."""

import gzip
import io
import itertools
import json
import os
import tarfile
import time
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.sources import languages, units
from spark_jobs.sources.archives import open_packed
from spark_jobs.sources.decoding import decode
from spark_jobs.sources.identity import file_id, streamed_file_id
from spark_jobs.sources.json_lines import lines_of
from spark_jobs.sources.reading import READERS, packed, read_units, tasks_of
from spark_jobs.sources.records import SKIPPED, Choice

ALL = Choice(1 << 20)
FRENCH = "# Auteur : François Côté, créé à l'été\nx = 'déjà vu'\n"
RUSSIAN = "# Это комментарий на русском языке\nprint('Привет, мир')\n"
JAPANESE = "# 日本語のコメントです。これはテスト\nprint('こんにちは世界')\n"
FILES = {
    "setup.py": b"print('here')\n",
    "alpha/__init__.py": b"",
    "alpha/plain.py": b"x = 1\r\ny = 2\n",
    "alpha/latin.py": FRENCH.encode("latin-1"),
    "alpha/mark.js": b"\xef\xbb\xbfvar x = 1;\n",
    "alpha/deep/wide.c": "int x; // 𝔘 grüß\n".encode("utf-16"),
    "beta/sjis.py": JAPANESE.encode("shift_jis"),
    "beta/nul.py": b"x = 1\0\n",
    "beta/noise.txt": bytes(range(1, 256)) * 3,
    "beta/long.py": b"x" * (2 << 20),
    "beta/picture.png": b"\x89PNG",
}
READ = sorted(set(FILES) - {"beta/picture.png"})


def rows_of(*sources, choice=ALL, **options):
    """The rows and the counts of what was skipped, read without Spark."""
    tally = Counter()
    found = units.survey(map(str, sources), choice, **options)
    return [row for unit in found.units for row in READERS[unit.kind](unit, choice, tally)], tally


def only(rows):
    assert len(rows) == 1, rows
    return rows[0]


def write_tree(root):
    for path, data in FILES.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return root


def write_tar(root, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        tar.add(write_tree(root), arcname=".")
    return buffer.getvalue()


def json_lines(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# Decoding


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH, "latin-1"),
        ("# © 2001\n", "latin-1"),
        ("“quoted” text — with €5 and it’s naïve\n", "cp1252"),
        ("# zażółć gęślą jaźń, proszę bardzo\n", "cp1250"),
        ("// Größe ändern für Straße\n", "cp850"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        ("# 这是一个中文注释，用于测试编码检测\n", "gb18030"),
        ("# 한국어 주석입니다 테스트\n", "euc_kr"),
        ("# -*- coding: iso-8859-15 -*-\n# prix : 5 € à côté\n", "iso-8859-15"),
        ("\ufeffx = 'é'\n", "utf-8"),
        ("x = 'é𝔘'\r\n", "utf-16"),
        ("\ufeffx = 'é𝔘'\n", "utf-16-be"),
        ("x = 'é𝔘'\n", "utf-32"),
        ("a\rb\r\nc\x0c\u2028d", "utf-8"),
    ],
)
def test_text_comes_back_exactly(text, encoding):
    data = text.encode(encoding)
    found = decode(data)
    assert found.text.decode() == text.removeprefix("\ufeff")
    assert data.decode(found.encoding) == text.removeprefix("\ufeff")


def test_guess_uses_all_of_a_long_file():
    text = "x = 1\n" * 100_000 + FRENCH + "y = 2\n" * 100_000
    assert decode(text.encode("latin-1")).text.decode() == text


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"a\0b", "binary"),
        ("a\0b".encode("utf-16"), "binary"),
        (b"\xef\xbb\xbfa\xff", "undecodable"),
        (b"\xff\xfea", "undecodable"),
        (b"\xff\xfe\x00\xd8a\x00", "undecodable"),
        (bytes(range(1, 256)), "undecodable"),
        (b"# coding: utf-7\n\x81\x01", "undecodable"),
    ],
)
def test_what_is_no_text_has_a_state(data, state):
    assert decode(data)[0::2] == (state, None)


@given(st.binary(max_size=200))
def test_decoded_text_is_unicode_and_of_that_encoding(data):
    found = decode(data)
    assert (found.text is None) == (found.state != "decoded")
    if found.text is not None:
        assert found.text.decode("utf-8") == data.decode(found.encoding)


@pytest.mark.parametrize("data", [b"x" * 20_000_000 + b"\xe9", b"\xe9" * 9_000_000, b"\xe9 \n" * 3_000_000])
def test_time_is_bounded(data):
    begin = time.monotonic()
    decode(data)
    assert time.monotonic() - begin < 5


# Names


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "Python"),
        ("a.h", "C"),
        ("a.ts", "TypeScript"),
        ("A.MD", "Markdown"),
        ("a.rs", "Rust"),
        ("a.m", "Objective-C"),
        ("a/Makefile", "Makefile"),
        ("x.blade.php", "Blade"),
        ("v1.2.sql", "SQL"),
        ("a.tar.gz", None),
        ("py", None),
        ("a.py/b", None),
    ],
)
def test_language_of_names(path, language):
    assert languages.of_name(path) == language


def test_unknown_language_is_named_with_near_ones():
    assert languages.require_known(["python", "C++"]) == ["C++", "Python"]
    with pytest.raises(ValueError, match="'Pyton'; near are Python"):
        languages.require_known(["Pyton"])


# Identity


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_id_of_blocks_is_that_of_the_whole(blocks):
    whole = b"".join(blocks)
    assert streamed_file_id("r", "v", "p", len(whole), blocks) == file_id("r", "v", "p", whole)


# Containers


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


def write_zst(place, data):
    with pa.CompressedOutputStream(pa.OSFile(str(place), "wb"), "zstd") as stream:
        stream.write(data)


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


# Places and partitions


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


# Damage


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


# Batches and tasks


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
