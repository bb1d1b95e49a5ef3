"""Small corpora with every oddity: files on disk, and tables of documents cut as a test wants them."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from oracles import jaccard_of, shingles_of
from pyspark.sql.pandas.types import to_arrow_schema

from spark_jobs.sources.identity import file_id
from spark_jobs.tables import DOCUMENTS, LEDGER, SAMPLE, Stage

ODD_FILES = {
    "odd/latin.py": "# Auteur : François Côté, créé à l'été\nx = y = z = a = b = 'déjà vu'\ndef f(): pass\n".encode(
        "latin-1"
    ),
    "odd/wide.py": "# grüß 𝔘\nx = y = z = a = b = 1\ndef g(): pass\n".encode("utf-16"),
    "odd/mark.py": b"\xef\xbb\xbfx = y = z = a = b = 2\ndef h(): pass\n",
    "odd/line_ends.py": b"x = 1\r\ny = 2\rz = 3\n\x0ca = b = 4\r\ndef i(): pass",
    "odd/special.py": b"# <|endoftext|> <fim_prefix><file_sep>\nx = y = z = a = b = 5\nfor _ in x: pass\n",
    "odd/nul.py": b"x = 1\0\n",
    "odd/empty.py": b"",
    "odd/blank.py": b" \n\t\n\n",
    "odd/noise.py": b"\xff\xfe\x00",
    "odd/short.py": b"x = 1\n",
    "odd/short_too.py": b"y = 1\n",
    "odd/long_line.py": b"x = '" + b"0123456789 " * 1_900_000 + b"'\n",
    "odd/generated.py": b"# automatically generated\n" + b"x = y = z = a = b = 1\n" * 3,
}


def code(draw, statements):
    """A file that no rule removes: functions over invented names, each name with its own number."""
    lines = []
    for number in range(statements):
        name, value = f"name_{draw.randrange(10**6)}", draw.randrange(10**6)
        lines += [f"def {name}(left, right={value}):"] if number % 4 == 0 else []
        lines += [f"    {name} = left.{draw.choice('abcdefgh')}_{draw.randrange(1000)}[{value}] + right"]
    return "\n".join(lines) + "\n"


def write_files(root, repositories=12, seed=0):
    """Write a corpus of some 120 files; the names of those that are copies by construction, by their original's.

    A folder is a repository. Of every tenth file there is an exact copy elsewhere, and of every tenth a near one that
    differs in one line.
    """
    draw, copies, near, files = random.Random(seed), {}, {}, dict(ODD_FILES)
    for number in range(repositories * 8):
        name, text = f"repo{number % repositories}/file{number}.py", code(draw, draw.randrange(30, 60))
        files[name] = text.encode()
        if number % 10 == 0:
            copies[name] = f"copies{number % 3}/copy_of_{number}.py"
            files[copies[name]] = files[name]
        if number % 10 == 5:
            near[name] = f"near{number % 4}/like_{number}.py"
            files[near[name]] = f"{text}changed = {number}\n".encode()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return copies, near


def document(content, *, repo="repo", path="file.py", **columns):
    """A row of documents around a text; None is a file that was not decoded."""
    row = dict.fromkeys(DOCUMENTS.names) | {"repo": repo, "path": path, "revision": "", "language": "Python"}
    size = 0 if content is None else len(content.encode())
    row |= {"licenses": [], "state": "binary" if content is None else "decoded", "content": content, "size": size}
    row["file_id"] = file_id(repo, "", path, (content or "").encode())
    return row | columns


def words(draw, count):
    return [f"w{draw.randrange(10**7)}" for _ in range(count)]


def changed(draw, text, runs, size=6):
    """Replace some runs of words: each changes about `size + 4` shingles."""
    text = list(text)
    for _ in range(runs):
        first = draw.randrange(len(text) - size)
        text[first : first + size] = words(draw, size)
    return text


def similar_rows(seed=0):
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
        licenses = draw.choice([[], [], ["MIT", "apache-2.0 "], ["MIT", "GPL-3.0-only"]])
        where = {"repo": f"repo{number % 7}", "path": f"{number}.py"}
        rows.append(document(text, **where, licenses=licenses, stars=draw.choice([None, None, 3, 1000])))
    return rows


def write_documents(folder, rows, parts=1, rows_a_group=1000):
    """Write rows as a finished table of documents, in so many files and row groups; its identity is the same."""
    schema = to_arrow_schema(DOCUMENTS)
    ids = xxhash.xxh3_64_hexdigest(b"".join(sorted(row["file_id"] for row in rows)))
    stage = Stage("documents", str(folder), configuration={"ids": ids}, inputs={}, overwrite=False)
    with stage:
        for part in range(parts):
            table = pa.Table.from_pylist(rows[part::parts], schema)
            pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=rows_a_group)
        stage.finish(rows=len(rows))
    return str(folder)


def write_ledger(folder, documents, kept):
    """Write a finished ledger of a table of documents, in which the ids of `kept` are kept and no others."""
    schema, rows = to_arrow_schema(LEDGER), []
    for path in sorted(Path(documents).glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                columns = [name for name in LEDGER.names if name in DOCUMENTS.names]
                for number, row in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                    row |= {"state": "kept" if row["file_id"] in kept else "filtered: rule", "evidence": ""}
                    rows.append(row | {"part": path.name, "row_group": group, "row": number})
    stage = Stage("ledger", str(folder), configuration={}, inputs={"documents": documents}, overwrite=False)
    with stage:
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "part-0.parquet")
        stage.finish(rows=len(rows))
    return str(folder)


def write_sample(folder, texts, held_out=(), parts=1, **facts):
    """Write a finished sample: texts to train on and texts held out, or rows; its identity is that of all of them."""
    rows = []
    for kept_back, given in ((False, texts), (True, held_out)):
        for number, text in enumerate(given):
            row = text if isinstance(text, dict) else document(text, path=f"{kept_back}{number}.py")
            size = len(row["content"].encode())
            rows.append({name: row.get(name) for name in SAMPLE.names} | {"held_out": kept_back, "size": size})
            rows[-1]["redacted"] = False
    ids = xxhash.xxh3_64_hexdigest(b"".join(sorted(row["file_id"] for row in rows)))
    stage = Stage("sample", str(folder), configuration={"ids": ids}, inputs={}, overwrite=False)
    with stage:
        for part in range(parts):
            table = pa.Table.from_pylist(rows[part::parts], to_arrow_schema(SAMPLE))
            pq.write_table(table, folder / f"part-{part}.parquet")
        stage.finish(rows=len(rows), **facts)
    return str(folder)


def table(spark, schema, rows):
    """A DataFrame of a table's schema: the columns that a row does not name are null."""
    return spark.createDataFrame([tuple(row.get(name) for name in schema.names) for row in rows], schema)
