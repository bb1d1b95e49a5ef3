"""The tables of the house: their schemas, and writing them so that they are whole or absent.

A table is a folder of Parquet files (zstd). `_manifest.json` is written last, so a folder without one is no table.
It records the configuration and the fingerprints of the inputs: a job refuses inputs that do not belong together
and skips what is already done. Paths without a scheme are local (or shared) folders, for Spark too.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import xxhash
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_jobs.storage import Storage
from tokenizer.manifest import MANIFEST_NAME, identity

log = logging.getLogger("corella")

SCHEMA_VERSION = 3
UNFINISHED_NAME = "_unfinished"
SCRATCH_NAME = "_scratch"
SCRATCH_BLOCK_BYTES = 16 << 20


def _schema(**columns: T.DataType) -> T.StructType:
    return T.StructType([T.StructField(name, kind, nullable=True) for name, kind in columns.items()])


# One row an input file. `state` is decoded, or why `content` is null: empty, binary, oversized, undecodable.
DOCUMENTS = _schema(
    file_id=T.BinaryType(),
    repo=T.StringType(),
    path=T.StringType(),
    revision=T.StringType(),
    language=T.StringType(),
    licenses=T.ArrayType(T.StringType()),
    stars=T.LongType(),
    size=T.LongType(),
    encoding=T.StringType(),
    state=T.StringType(),
    source=T.StringType(),
    content=T.StringType(),
)

# What is measured of each document. The numbers of the rules are null where there is no content.
SIGNALS = _schema(
    file_id=T.BinaryType(),
    repo=T.StringType(),
    path=T.StringType(),
    language=T.StringType(),
    licenses=T.ArrayType(T.StringType()),
    stars=T.LongType(),
    size=T.LongType(),
    state=T.StringType(),
    part=T.StringType(),
    row_group=T.IntegerType(),
    row=T.IntegerType(),
    content_hash=T.BinaryType(),
    characters=T.LongType(),
    lines=T.LongType(),
    mean_line_length=T.DoubleType(),
    longest_line=T.LongType(),
    alphanumeric_share=T.DoubleType(),
    newlines=T.LongType(),
    config_words=T.LongType(),
    test_words=T.LongType(),
    assignments=T.LongType(),
    keywords=T.LongType(),
    auto_generated_head=T.BooleanType(),
    config_or_test_head=T.BooleanType(),
    shingles=T.LongType(),
    bands=T.BinaryType(),
    sketch=T.BinaryType(),
)

_REASON = T.StructType(
    [
        T.StructField("rule", T.StringType()),
        T.StructField("value", T.DoubleType()),
        T.StructField("threshold", T.DoubleType()),
    ]
)

# All the rules that a document breaks; none for one that passes.
VERDICTS = _schema(file_id=T.BinaryType(), reasons=T.ArrayType(_REASON))

# `kept_file_id` is itself kept. `kind` is exact or near; `band` is where two near ones met; `proof` says how their
# similarity is known: bytes (exact copies), shingles (exact Jaccard), sketch (an estimate whose chance of being on the
# wrong side of the threshold is below one in a billion), estimate (--verify sketch), or null (--resolve components
# may name a kept file that is similar only by way of others; `similarity` is null then).
DUPLICATES = _schema(
    file_id=T.BinaryType(),
    repo=T.StringType(),
    path=T.StringType(),
    size=T.LongType(),
    kept_file_id=T.BinaryType(),
    kept_repo=T.StringType(),
    kept_path=T.StringType(),
    similarity=T.DoubleType(),
    kind=T.StringType(),
    band=T.IntegerType(),
    proof=T.StringType(),
)

# One row a kept file that others were removed for: how many files, bytes and repositories it stands for, with itself.
CLUSTERS = _schema(
    kept_file_id=T.BinaryType(),
    kept_repo=T.StringType(),
    kept_path=T.StringType(),
    files=T.LongType(),
    exact=T.LongType(),
    near=T.LongType(),
    repositories=T.LongType(),
    removed_bytes=T.LongType(),
)

# Documents that contain a benchmark's task: which, and the words that match.
CONTAMINATED = _schema(
    file_id=T.BinaryType(), repo=T.StringType(), path=T.StringType(), task=T.StringType(), matched=T.StringType()
)

# One row a document. `state` is kept or why not; `evidence` says with what value, threshold, twin or task.
LEDGER = _schema(
    file_id=T.BinaryType(),
    repo=T.StringType(),
    path=T.StringType(),
    language=T.StringType(),
    size=T.LongType(),
    state=T.StringType(),
    evidence=T.StringType(),
    part=T.StringType(),
    row_group=T.IntegerType(),
    row=T.IntegerType(),
)

# One row a file of the sample: `content` is redacted and, if the file is long, its first lines; `size` is in UTF-8.
SAMPLE = _schema(
    file_id=T.BinaryType(),
    repo=T.StringType(),
    path=T.StringType(),
    language=T.StringType(),
    held_out=T.BooleanType(),
    redacted=T.BooleanType(),
    size=T.LongType(),
    content=T.StringType(),
)


def manifest(path: str) -> dict[str, Any]:
    """The manifest of a finished table; ValueError if there is none."""
    storage = Storage(path)
    if not storage.exists(MANIFEST_NAME):
        state = "was never finished" if storage.exists(UNFINISHED_NAME) else "is not a table: no _manifest.json"
        raise ValueError(f"{path} {state if storage.exists() else 'does not exist'}")
    return json.loads(storage.read(MANIFEST_NAME))


def fingerprint(path: str) -> str:
    """Identity of an input: of a table, what made it; of any other Parquet data, its files' names, sizes and times."""
    storage = Storage(path)
    if storage.exists(MANIFEST_NAME):
        return identity(manifest(path))
    if not storage.exists():
        raise ValueError(f"{path} does not exist")
    files = [(file.path[len(storage.root) :], file.size, file.mtime_ns) for file in storage.files()]
    return xxhash.xxh3_64_hexdigest(json.dumps(files).encode())


def cut(path: str) -> str:
    """How a table is cut into files. Rows that say where content lies hold for one cut alone."""
    storage = Storage(path)
    files = [(file.path[len(storage.root) :], file.size) for file in storage.files()]
    return xxhash.xxh3_64_hexdigest(json.dumps(files).encode())


def require(path: str, kind: str) -> dict[str, Any]:
    """The manifest of a finished table of one kind; ValueError if it is another."""
    record = manifest(path)
    if record["kind"] != kind or record["schema_version"] != SCHEMA_VERSION:
        found = f"{record['kind']} (schema version {record['schema_version']})"
        raise ValueError(f"{path} holds {found}; needed is {kind} (schema version {SCHEMA_VERSION})")
    return record


def read(spark: SparkSession, path: str, kind: str) -> DataFrame:
    """The rows of a finished table of one kind; ValueError if it is another."""
    require(path, kind)
    return spark.read.parquet(Storage(path).uri)


def require_made_from(table: str, **inputs: str) -> None:
    """Refuse a table that was not made from these inputs (name=path): they would join to nonsense."""
    record = manifest(table)
    for name, path in inputs.items():
        made_from = (record["inputs"].get(name), record["cuts"].get(name))
        if made_from != (fingerprint(path), cut(path)):
            raise ValueError(f"{table} was not made from the {name} {path}; make it again from them")


def require_apart(output: str, inputs: Mapping[str, str]) -> None:
    """Refuse an output that lies in one of its inputs, or they in it: writing one would change or delete the other."""
    ours = f"{Storage(output).uri}/"
    for name, path in inputs.items():
        theirs = f"{Storage(path).uri}/"
        if ours.startswith(theirs) or theirs.startswith(ours):
            raise ValueError(f"the output {output} and the {name} {path} lie in one another; name another output")


class Stage:
    """One job's output: skipped when it is done, refused when something else lies there, absent when it fails.

    `if stage.done(): return`, then `with stage: ... stage.write(rows)`.

    Args:
        kind: the table's name, as `read` asks for it.
        output: its folder.
        configuration: all that decides its rows, beside the inputs.
        inputs: the tables or data that it is made from; their fingerprints go into the manifest.
        overwrite: replace what lies there.
    """

    def __init__(
        self,
        kind: str,
        output: str,
        *,
        configuration: Mapping[str, Any],
        inputs: Mapping[str, str],
        overwrite: bool,
    ) -> None:
        require_apart(output, inputs)
        self.kind, self.output, self.storage = kind, output, Storage(output)
        self.overwrite = overwrite
        self.record = {
            "kind": kind,
            "schema_version": SCHEMA_VERSION,
            "configuration": json.loads(json.dumps(configuration)),
            "inputs": {name: fingerprint(path) for name, path in inputs.items()},
            "cuts": {name: cut(path) for name, path in inputs.items()},
        }

    def done(self) -> bool:
        """Whether the output stands already, made from the same inputs and configuration.

        FileExistsError if something else stands there and may not be overwritten.
        """
        if not self.storage.exists():
            return False
        if not self.storage.exists(MANIFEST_NAME):
            if not self.storage.exists(UNFINISHED_NAME) and not (self.overwrite and self.storage.is_empty):
                raise FileExistsError(f"{self.output} exists and is no table of ours; name another, or empty it")
            return False
        there = manifest(self.output)
        if not self.overwrite and any(there.get(key) != value for key, value in self.record.items()):
            raise FileExistsError(
                f"{self.output} was made with another configuration or input; --overwrite replaces it"
            )
        if not self.overwrite:
            log.info("%s: already done, %d rows in %s", self.kind, there["rows"], self.output)
        return not self.overwrite

    def __enter__(self) -> "Stage":
        """Clear the folder and mark it unfinished."""
        if self.storage.exists():
            self.storage.delete_folder()
        self.storage.write(UNFINISHED_NAME, b"")
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure:
            self.storage.delete_folder()

    def staged(self, rows: DataFrame, name: str) -> DataFrame:
        """Write rows to a scratch table, which goes with the manifest's coming, and read them back.

        Unlike a cache it survives the loss of a worker, and cuts the plan.
        """
        self.beside(rows, f"{SCRATCH_NAME}/{name}")
        return rows.sparkSession.read.schema(rows.schema).parquet(self.scratch(name))

    def scratch(self, name: str) -> str:
        """The folder of the scratch table of that name."""
        return f"{self.storage.uri}/{SCRATCH_NAME}/{name}"

    def beside(self, rows: DataFrame, name: str, compression: str = "none") -> None:
        """Write rows to a folder of the output that is not part of the table; its name begins with "_".

        Most are made of hashes, which neither repeat nor shrink.
        """
        assert name.startswith("_")
        # A row group waits in memory until it is whole.
        writer = rows.write.option("compression", compression).option("parquet.enable.dictionary", "false")
        writer.option("parquet.block.size", SCRATCH_BLOCK_BYTES).parquet(f"{self.storage.uri}/{name}")

    def write(
        self,
        rows: DataFrame,
        *,
        counts: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the rows, then the manifest, and return its counts. Call it within `with stage:`.

        Args:
            rows: what to write.
            counts: aggregates by name, observed while writing beside the number of `rows`.
            facts: what else the manifest tells, which is no part of the table's identity.
            options: of Spark's Parquet writer.
        """
        _, observed = self.append(rows, counts or {}, options)
        self.finish(**observed, **(facts or {}))
        return observed

    def append(
        self, rows: DataFrame, counts: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> tuple[DataFrame, dict[str, Any]]:
        """Write the rows as `write` does, but for the manifest; return them, read back, and their counts."""
        observation = Observation()
        measures = [value.alias(name) for name, value in {"rows": F.count(F.lit(1)), **counts}.items()]
        writer = rows.observe(observation, *measures).write.mode("append").option("compression", "zstd")
        writer.options(**(options or {})).parquet(self.storage.uri)
        return rows.sparkSession.read.schema(rows.schema).parquet(self.storage.uri), dict(observation.get)

    def finish(self, **facts: Any) -> None:
        """Write the manifest: the table is there from now on."""
        size_bytes = sum(file.size for file in self.storage.files())
        record = {**self.record, **facts, "bytes": size_bytes}
        self.storage.write(MANIFEST_NAME, json.dumps(record, indent=1, sort_keys=True, default=str).encode())
        self.storage.delete(UNFINISHED_NAME)
        if self.storage.exists(SCRATCH_NAME):
            Storage(f"{self.storage.uri}/{SCRATCH_NAME}").delete_folder()
