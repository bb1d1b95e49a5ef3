"""What the columns of the field's data sets mean: their names for repository, path, licence and the rest."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spark_jobs.sources.identity import file_id

# Our column, and its names in the BigQuery GitHub export, The Stack (v1, v2 and its de-duplicated forms) and others.
ALIASES = {
    "file_id": ("file_id",),
    "repo": ("repo", "repo_name", "max_stars_repo_name", "repository_name"),
    "path": ("path", "max_stars_repo_path", "file_path"),
    "revision": ("revision", "max_stars_repo_head_hexsha", "revision_id", "commit"),
    "language": ("language", "lang", "programming_language"),
    "licenses": ("licenses", "license", "max_stars_repo_licenses", "detected_licenses"),
    "stars": ("stars", "max_stars_count", "star_events_count", "stargazers_count", "watch_count", "watchers"),
    "size": ("size",),
    "state": ("state",),
    "content": ("content",),
}
DOCUMENT_COLUMNS = tuple(name for names in ALIASES.values() for name in names)

_TYPES = {
    "repo": pa.large_string(),
    "path": pa.large_string(),
    "revision": pa.large_string(),
    "language": pa.large_string(),
    "licenses": pa.large_list(pa.large_string()),
    "stars": pa.int64(),
    "state": pa.large_string(),
    "content": pa.large_string(),
}


def document_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of a document, by our names, of a batch of any data set with a `content` column.

    Missing texts are "", missing licences [], missing stars null. Rows that do not come from ingest get their
    `file_id` from repository, revision, path and content, and as `size` that of the content.
    """
    columns = {name: _column(batch, name, kind) for name, kind in _TYPES.items()}
    ours = _is_ours(batch.schema)
    columns["size"] = batch.column("size") if ours else pc.binary_length(columns["content"])
    columns["file_id"] = batch.column("file_id") if ours else _file_ids(columns)
    return pa.record_batch(list(columns.values()), names=list(columns))


def _is_ours(schema: pa.Schema) -> bool:
    """Whether rows come from ingest; a `file_id` of anybody else may be anything."""
    return "state" in schema.names and "file_id" in schema.names and _is_bytes(schema.field("file_id").type)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    found = next((alias for alias in ALIASES[name] if alias in batch.schema.names), None)
    values = pa.nulls(batch.num_rows, kind) if found is None else batch.column(found)
    if pa.types.is_large_list(kind):
        return _lists(values, kind)
    if pa.types.is_floating(values.type):  # counts that know nulls pass through pandas as floats
        values = pc.if_else(pc.is_finite(values), values, None).cast(kind, safe=False)
    values = values.cast(kind)
    return pc.fill_null(values, "") if name in ("repo", "path", "revision") else values


def _lists(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """A list column as it is; a single licence as a list of one; null as an empty list."""
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        known = pc.is_valid(values)
        offsets = np.concatenate([[0], np.cumsum(np.asarray(known))])
        values = pa.LargeListArray.from_arrays(pa.array(offsets), values.filter(known).cast(pa.large_string()))
    return pc.coalesce(values.cast(kind), pa.scalar([], kind))


def _file_ids(columns: dict[str, pa.Array]) -> pa.Array:
    texts = [columns[name].to_pylist() for name in ("repo", "revision", "path")]
    contents = columns["content"].cast(pa.large_binary())
    ids = [
        file_id(repo, revision, path, content.as_buffer() if content.is_valid else b"")
        for repo, revision, path, content in zip(*texts, contents, strict=True)
    ]
    return pa.array(ids, pa.binary())
