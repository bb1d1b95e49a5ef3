"""Content to parts of runs: read by the workers where it lies, redacted, encoded, and put where its shard finds it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.sql import DataFrame

from spark_jobs.content import pieces
from spark_jobs.rules.redaction import redacted
from spark_jobs.sharding.import_order import imports_of, rank_of
from spark_jobs.sharding.layout import Splits
from spark_jobs.sharding.runs import PartWriter, finished_part, run_schema
from tokenizer.encode import FILE_SEPARATOR, Encoded, Encoder
from tokenizer.shards import SPLITS, token_dtype

_ENTRY = "entry string"


@dataclass(frozen=True)
class Sources:
    """What the workers need to encode: the documents, the tokenizer and its identity, and what is done with them."""

    documents: str
    tokenizer: str
    fingerprint: str
    vocab_size: int
    splits: Splits
    redact: bool


@lru_cache(maxsize=1)
def encoder(folder: str, fingerprint: str) -> Encoder:
    """The encoder of this worker, loaded once; ValueError if the folder has come to hold another tokenizer."""
    found = Encoder(folder)
    if found.fingerprint != fingerprint:
        raise ValueError(f"the tokenizer in {folder} is not the one that the run began with; start the run again")
    return found


def encode(work: DataFrame, sources: Sources, folder: Path) -> list[dict[str, Any]]:
    """Encode all that `work` names into parts in `folder`; their entries. Parts that are whole are left alone."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        name = f"part-{context.partitionId():05d}"
        entry = finished_part(folder, name) or _encoded_part(_reading(batches), sources, folder, name)
        yield pa.record_batch([pa.array([json.dumps(entry)])], names=["entry"])

    return [json.loads(row.entry) for row in work.mapInArrow(run, _ENTRY).collect()]


def _reading(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What a task reads, a row group after the other, as `content.pieces` wants it."""
    gathered: dict[tuple[str, int], list[np.ndarray]] = {}
    for batch in batches:
        columns = (batch.column(name).to_pylist() for name in ("part", "row_group", "rows"))
        for part, row_group, rows in zip(*columns, strict=True):
            gathered.setdefault((part, row_group), []).append(np.frombuffer(rows, np.int32))
    for (part, row_group), found in sorted(gathered.items()):
        rows = pa.array([np.sort(np.concatenate(found))], pa.list_(pa.int32()))
        yield pa.record_batch([[part], [row_group], rows], names=["part", "row_group", "rows"])


def _encoded_part(work: Iterator[pa.RecordBatch], sources: Sources, folder: Path, name: str) -> dict[str, Any]:
    """Encode what a task reads into one part; its entry with what was counted."""
    dtype, by_repository = token_dtype(sources.vocab_size), sources.splits.by_repository
    encoding = encoder(sources.tokenizer, sources.fingerprint)
    encoding.counts.clear()
    part = PartWriter(folder, name, run_schema(dtype, by_repository))
    columns = ["file_id", "repo", "content", *(["path"] if by_repository else [])]
    counts, replaced, tokens, rows = Counter[str](), Counter[str](), np.zeros(len(SPLITS), np.int64), 0
    for piece in pieces(sources.documents, work, columns):
        documents = _documents(piece.batch, sources, encoding, replaced)
        sizes = np.diff(documents.column("token_ids").offsets.to_numpy())
        tokens += np.bincount(documents.column("split").to_numpy(), sizes, len(SPLITS)).astype(np.int64)
        rows += documents.num_rows
        part.append(documents)
    counts.update(encoding.counts)
    facts = {"rows": rows, "tokens": tokens.tolist(), "encoding": dict(counts), "redacted": dict(replaced)}
    return part.close(facts)


def _documents(batch: pa.RecordBatch, sources: Sources, encoding: Encoder, replaced: Counter[str]) -> pa.RecordBatch:
    """Rows of content as rows of a run."""
    by_repository = sources.splits.by_repository
    dtype = token_dtype(sources.vocab_size)
    ids, repos = batch.column("file_id"), batch.column("repo").to_pylist()
    content = batch.column("content")
    if sources.redact:
        content, kinds = redacted(content)
        replaced.update(kinds)
    names = ids.to_pylist()
    encoded = encoding.encode_batch(content)
    if by_repository:
        encoded = _headed(encoded, batch.column("path"), encoding)
    else:
        encoded = encoded.ended(encoding.end_of_text_id)
    if encoded.ids.size and int(encoded.ids.max()) >= sources.vocab_size:
        raise ValueError(f"token id {encoded.ids.max()} is outside the vocabulary of {sources.vocab_size}")
    tokens = pa.LargeListArray.from_arrays(pa.array(encoded.bounds), pa.array(encoded.ids.astype(dtype)))
    sizes = pc.fill_null(pc.binary_length(content), 0).cast(pa.int64())
    columns: list[Any] = [sources.splits.of(repos), sources.splits.places(names, repos), ids, sizes, tokens]
    if by_repository:
        paths = batch.column("path").to_pylist()
        imports = [imports_of(path, text) for path, text in zip(paths, content, strict=True)]
        columns += [np.array([rank_of(path) for path in paths], np.uint64), batch.column("repo"), batch.column("path")]
        columns += [pa.array(imports, pa.large_list(pa.large_string()))]
    schema = run_schema(dtype, by_repository)
    arrays = [_as(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _as(column: Any, kind: pa.DataType) -> pa.Array:
    """A column of a run in its type."""
    array = column if isinstance(column, pa.Array) else pa.array(column)
    return array if array.type == kind else array.cast(kind)


def _headed(encoded: Encoded, paths: pa.Array, encoding: Encoder) -> Encoded:
    """Documents behind `<file_sep>`, their path and a line's end, as StarCoder's repositories have them."""
    lines = pa.array([f"{path or ''}\n" for path in paths.to_pylist()], pa.large_string())
    heads = encoding.encode_batch(lines)
    separator = np.array([encoding.id_of(FILE_SEPARATOR)], np.uint32)
    parts: list[np.ndarray] = []
    for number in range(len(paths)):
        parts += [separator, *(one.ids[one.bounds[number] : one.bounds[number + 1]] for one in (heads, encoded))]
    bounds = encoded.bounds + heads.bounds + np.arange(len(paths) + 1)
    return Encoded(np.concatenate(parts) if parts else encoded.ids, bounds)


def sums(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the parts have in all: rows, tokens of each split, and what was counted."""
    found = list(entries)
    counted = {name: Counter[str]() for name in ("encoding", "redacted")}
    for entry in found:
        for name, counter in counted.items():
            counter.update(entry[name])
    tokens = np.sum([entry["tokens"] for entry in found], axis=0).tolist() if found else [0] * len(SPLITS)
    return {
        "rows": sum(entry["rows"] for entry in found),
        "tokens": tokens,
        **{name: dict(counter) for name, counter in counted.items()},
    }
