"""A small corpus with every oddity, and reading it without Spark: what the tests of the sources share."""

import io
import json
import tarfile
from collections import Counter

import pyarrow as pa

from spark_jobs.sources import units
from spark_jobs.sources.reading import READERS
from spark_jobs.sources.records import Choice

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


def write_zst(place, data):
    with pa.CompressedOutputStream(pa.OSFile(str(place), "wb"), "zstd") as stream:
        stream.write(data)
