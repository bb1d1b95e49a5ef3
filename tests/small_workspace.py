"""A workspace small enough for tests: tables written row by row, and the numbers that they must add up to."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spark_jobs import tables
from spark_jobs.rules import states
from tokenizer.shards import ShardIndex, ShardWriter

HOSTILE = "<script>alert('path')</script> &amp; \"'.py"


@dataclass
class File:
    """One file: its state decides what the tables say of it, `kept` names the file that it was removed for."""

    repo: str
    path: str
    content: str | None = "x = 1\n"
    state: str = "kept"
    language: str = "Python"
    size: int = 0
    reasons: list[tuple[str, float, float]] = field(default_factory=list)
    kept: str | None = None
    similarity: float = 1.0
    tokens: int = 0

    @property
    def file_id(self) -> bytes:
        return hashlib.md5(f"{self.repo}/{self.path}".encode()).digest()


NEAR = "one\ntwo\n3\x1b[31m\nfour\n"
LONG, FEW = ("line_length", 2000.0, 1000.0), ("few_assignments", 1.0, 5.0)
FILES = [
    File("a", "leader.py", "one\ntwo\nthree\nfour\n", size=500, tokens=70),
    File("a", HOSTILE, "<script>alert('content')</script>\n", size=300, tokens=30),
    File("b", "held.py", size=200, tokens=11),
    File("b", "notes.md", language="Markdown", size=70, tokens=5),
    File("a", "empty.py", None, "empty", size=0),
    File("c", "broken.py", None, "undecodable", size=44),
    File("c", "wide.py", state="filtered: line_length", size=9000, reasons=[LONG, FEW]),
    File("c", "wider.py", state="filtered: line_length", size=8000, reasons=[LONG]),
    File("c", "bare.py", state="filtered: few_assignments", size=90, reasons=[FEW]),
    File("c", "task.py", state="contaminated", size=60),
    File("c", "copy.py", "one\ntwo\nthree\nfour\n", "exact copy", size=500, kept="leader.py"),
    File(
        "c", "near.py", "one\ntwo\n3\x1b[31m\nfour\n", "near-duplicate", size=480, kept="leader.py", similarity=0.8125
    ),
    File("d", "near" + "er/" * 80 + HOSTILE, "one\n", "near-duplicate", size=470, kept="leader.py", similarity=0.95),
]


def make_workspace(spark, folder: Path, files: list[File] = FILES, shards: bool = True) -> Path:
    """Write all tables of the files; the ledger is what the real job makes of the others."""

    def write(kind, rows, schema, inputs, configuration=None):
        inputs = {name: str(folder / name) for name in inputs}
        stage = tables.Stage(
            kind, str(folder / kind), configuration=configuration or {}, inputs=inputs, overwrite=True
        )
        with stage:
            stage.write(rows if schema is None else spark.createDataFrame(rows, schema).coalesce(1))
        return tables.read(spark, str(folder / kind), kind)

    by_path = {file.path: file for file in files}
    documents = write("documents", [_document(file) for file in files], tables.DOCUMENTS, [], {"sources": ["s"]})
    part = next((folder / "documents").glob("*.parquet")).name
    measured = [_signals(file, part, row) for row, file in enumerate(files)]
    signals = write("signals", measured, tables.SIGNALS, ["documents"])
    judged = [(file.file_id, file.reasons) for file in files]
    verdicts = write("verdicts", judged, tables.VERDICTS, ["signals"])
    tasks = [(file.file_id, file.repo, file.path, "task/1", "x = 1") for file in files if file.state == "contaminated"]
    contaminated = write("contaminated", tasks, tables.CONTAMINATED, ["documents"])
    removed = [_duplicate(file, by_path[file.kept]) for file in files if file.kept]
    inputs = ["documents", "verdicts", "contaminated"]
    duplicates = write("duplicates", removed, tables.DUPLICATES, inputs, {"threshold": 0.7})
    assert documents.count() == len(files)
    ledger = states.ledger_of(signals, verdicts, duplicates, contaminated)
    write("ledger", ledger, None, ["documents", "signals", "verdicts", "duplicates", "contaminated"])
    if shards:
        write_shards(folder, [file for file in files if file.state == "kept"])
    return folder


def write_shards(folder: Path, kept: list[File], held_out: tuple[str, ...] = ("held.py", "notes.md")) -> None:
    """One shard a split; `held_out` are paths."""
    entries = []
    (folder / "shards").mkdir(exist_ok=True)
    for split in ("train", "validation"):
        name = f"{split}-00000-of-00001.arrow"
        with (folder / "shards" / name).open("wb") as sink:
            writer = ShardWriter(sink, 300)
            for file in kept:
                if (file.path in held_out) == (split == "validation"):
                    writer.append(np.arange(file.tokens), file.file_id, file.size)
            entries.append(writer.close(name, split))
    inputs = {"ledger": tables.fingerprint(str(folder / "ledger"))}
    ShardIndex("tokenizer", 300, 0, tuple(entries), {"inputs": inputs}).save(folder / "shards")


def _document(file: File) -> tuple:
    state = "decoded" if file.content is not None else file.state
    encoding = "utf-8" if file.content is not None else None
    names = (file.file_id, file.repo, file.path, "r1", file.language, ["MIT"], 3, file.size, encoding, state)
    return (*names, "archive.tar", file.content)


def _signals(file: File, part: str, row: int) -> tuple:
    content = hashlib.md5(file.content.encode()).digest() if file.content is not None else None
    state = "decoded" if content else file.state
    known = (file.file_id, file.repo, file.path, file.language, ["MIT"], 3, file.size, state, part, 0, row, content)
    numbers = (None,) * 15 if content is None else (6, 1, 6.0, 6, 0.3, 1, 0, 0, 1, 0, False, False, 1, None, None)
    return known + numbers


def _duplicate(file: File, kept: File) -> tuple:
    kind = "exact" if file.state == "exact copy" else "near"
    known = (None, "bytes") if kind == "exact" else (3, "shingles")
    return (
        file.file_id,
        file.repo,
        file.path,
        file.size,
        kept.file_id,
        kept.repo,
        kept.path,
        file.similarity,
        kind,
        *known,
    )
