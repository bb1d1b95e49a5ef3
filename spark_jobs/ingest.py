"""Corpus -> documents: every file of every source becomes one row, decoded or with the reason why not.

The driver cuts the sources into units of work and never holds the names of files; Spark's Python workers read them.
Folders, single files, tar and zip archives, JSON lines and Parquet are read; see spark_jobs/sources/.
"""

import logging
import time
from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import DataFrame, SparkSession

    from spark_jobs.sources.records import Choice
    from spark_jobs.sources.units import Survey, Unit
    from spark_jobs.tables import Stage

log = logging.getLogger("corella")

# Later readers hold a row group at a time. The limit counts packed bytes: 4 MB are some 16 MB of source code.
ROW_GROUP_BYTES = 4 << 20
WRITING: dict[str, Any] = {"parquet.block.size": ROW_GROUP_BYTES, "compression": "zstd"}


def main(
    *,
    sources: list[str],
    output: str,
    languages: list[str] | None = None,
    exclude: list[str] | None = None,
    max_file_bytes: int = 10 << 20,
    overwrite: bool = False,
    dry_run: bool = False,
) -> int:
    """Read a corpus into a table of documents.

    Args:
        sources: folders, files, .tar[.gz|.zst], .zip, .jsonl|.json[.gz|.zst], Parquet files or folders of them.
        output: the folder of the table.
        languages: keep only files of these languages, as GitHub names them (default: of every known text language).
        exclude: names of folders that are not entered, such as node_modules (not of folders in archives).
        max_file_bytes: larger files are counted, as oversized, and their content is left out.
        overwrite: replace what lies in `output`.
        dry_run: print what would be read, and stop.
    """
    from spark_jobs.session import start_session
    from spark_jobs.sources.languages import require_known
    from spark_jobs.sources.records import Choice
    from spark_jobs.sources.units import survey
    from spark_jobs.tables import Stage

    if not sources:
        raise ValueError("sources is empty; name at least one folder or file")
    if max_file_bytes < 1:
        raise ValueError(f"max_file_bytes is {max_file_bytes}; it must be at least 1")
    chosen = require_known(languages) if languages else None
    choice = Choice(max_file_bytes, frozenset(chosen) if chosen else None, frozenset(exclude or ()))
    begin = time.monotonic()
    found = survey(sources, choice, leave_out=output)
    log.info("found %s in %.1f s", _plan(found.units), time.monotonic() - begin)
    if dry_run:
        _print_plan(found)
        return 0
    configuration = configuration_of(sources, choice, found)
    stage = Stage("documents", output, configuration=configuration, inputs={}, overwrite=overwrite)
    if stage.done():
        return 0
    with start_session("ingest") as spark:
        counts = write_documents(spark, found.units, choice, stage)
    _print_counts(counts, output, time.monotonic() - begin)
    return 0


def configuration_of(sources: list[str], choice: "Choice", found: "Survey") -> dict[str, Any]:
    """All that decides the rows of the table: the sources as they were named, the files they held, the choice."""
    return {
        "sources": sources,
        "inventory": found.inventory,
        "languages": sorted(choice.languages) if choice.languages is not None else None,
        "exclude": sorted(choice.excluded_folders),
        "max_file_bytes": choice.max_file_bytes,
    }


def write_documents(
    spark: "SparkSession", units: "Sequence[Unit]", choice: "Choice", stage: "Stage"
) -> dict[str, int]:
    """Read the units and write the table, each file once; returns the counts of its manifest."""
    from spark_jobs.session import step

    uri = stage.storage.uri
    with stage:
        with step(spark, "ingest: reading"):
            counts = _write(read(spark, units, choice), uri)
        with step(spark, "ingest: looking for files that came twice"):
            surplus = stage.staged(repeats(spark, uri), "surplus")
            repeated = surplus.count()
        if repeated:
            with step(spark, f"ingest: taking out {repeated:,} files that came twice"):
                skipped = {name: count for name, count in counts.items() if name.startswith("skipped_")}
                before, counts = counts, _rewrite(spark, stage, surplus) | skipped
            assert counts["rows"] + repeated == before["rows"], (before, counts)
        counts["repeated"] = repeated
        stage.finish(**counts)
    return counts


def read(spark: "SparkSession", units: "Sequence[Unit]", choice: "Choice") -> "DataFrame":
    """The files of the units as rows of documents, and rows without `file_id` that count what was left out."""
    from functools import partial

    import pyarrow as pa
    from pyspark.sql import types as T
    from pyspark.sql.pandas.types import to_arrow_schema

    from spark_jobs.sources.reading import packed, read_units, tasks_of
    from spark_jobs.sources.records import SKIPPED
    from spark_jobs.tables import DOCUMENTS

    tasks = tasks_of(list(units), spark.sparkContext.defaultParallelism)
    columns = {"task": pa.array(tasks, pa.int32()), "unit": pa.array(map(packed, units), pa.string())}
    schema = T.StructType([*DOCUMENTS.fields, *(T.StructField(name, T.LongType()) for name in SKIPPED)])
    kernel = partial(read_units, choice=choice, schema=to_arrow_schema(schema, prefers_large_types=True))
    work = spark.createDataFrame(pa.table(columns))
    return work.repartitionById(max(tasks, default=0) + 1, "task").mapInArrow(kernel, schema)


def _write(rows: "DataFrame", uri: str) -> dict[str, int]:
    """Write the documents among the rows; the counts are observed in the writing tasks, each once."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    from spark_jobs.sources.decoding import STATES
    from spark_jobs.sources.records import SKIPPED
    from spark_jobs.tables import DOCUMENTS

    observation = Observation()
    counts = {
        "rows": F.count("file_id"),
        **{state: F.count_if(F.col("state") == state) for state in STATES},
        "input_bytes": F.coalesce(F.sum("size"), F.lit(0)),
        "content_bytes": F.coalesce(F.sum(F.octet_length("content")), F.lit(0)),
        **{name: F.coalesce(F.sum(name), F.lit(0)) for name in SKIPPED if name in rows.columns},
    }
    observed = rows.observe(observation, *(value.alias(name) for name, value in counts.items()))
    documents = observed.where("file_id is not null").select(*DOCUMENTS.names)
    documents.write.mode("append").options(**WRITING).parquet(uri)
    return dict(observation.get)


def repeats(spark: "SparkSession", uri: str) -> "DataFrame":
    """Where in the written files the rows stand whose `file_id` another row has too, all but one of each.

    Kept is the row whose source comes first; if one source was given twice its rows differ in nothing. Only ids and
    places cross the shuffle.
    """
    from pyspark.sql import functions as F

    ids = spark.read.parquet(uri).select("file_id")
    repeated = ids.groupBy("file_id").count().where("count > 1").select("file_id")
    place = F.struct("source", "_metadata.file_name", "_metadata.row_index")
    rows = spark.read.parquet(uri).select("file_id", place.alias("place"))
    members = rows.join(repeated, "file_id", how="left_semi")
    kept = members.groupBy("file_id").agg(F.min("place").alias("place"))
    return members.join(kept, ["file_id", "place"], how="left_anti").select(
        F.col("place.file_name").alias("_file"), F.col("place.row_index").alias("_row")
    )


def _rewrite(spark: "SparkSession", stage: Any, surplus: "DataFrame") -> dict[str, int]:
    """Write the table again without the surplus rows, in the same folder, and return its counts."""
    from pyspark.sql import functions as F

    from spark_jobs.storage import Storage
    from spark_jobs.tables import SCRATCH_NAME

    table, first = stage.storage, stage.storage.files()
    placed = spark.read.parquet(table.uri).select(
        "*", F.col("_metadata.file_name").alias("_file"), F.col("_metadata.row_index").alias("_row")
    )
    unique = placed.join(surplus, ["_file", "_row"], how="left_anti")
    scratch = Storage(f"{table.uri}/{SCRATCH_NAME}/unique")
    counts = _write(unique, scratch.uri)
    for file in first:
        table.filesystem.delete_file(file.path)
    for file in scratch.files():
        table.filesystem.move(file.path, f"{table.root}/{file.base_name}")
    return counts


def _plan(units: "Sequence[Unit]") -> str:
    files, size_bytes = sum(unit.files for unit in units), sum(unit.size_bytes for unit in units)
    return f"{files:,} files, {size_bytes / 1e6:,.1f} MB, in {len(units):,} units"


def _print_plan(found: "Survey") -> None:
    by_kind: dict[str, list[Unit]] = {}
    for unit in found.units:
        by_kind.setdefault(f"{unit.source} ({unit.kind})", []).append(unit)
    for kind, units in by_kind.items():
        print(f"{kind}: {_plan(units)}")
    print(f"all: {_plan(found.units)}; inventory {found.inventory}")


def _print_counts(counts: dict[str, int], output: str, seconds: float) -> None:
    size_bytes = counts["input_bytes"]
    speed = f"{seconds:.0f} s, {size_bytes / 1e6 / seconds:.1f} MB/s"
    print(f"{counts['rows']:,} files, {size_bytes / 1e6:,.1f} MB ({speed})")
    for name, count in counts.items():
        if count and name not in ("rows", "input_bytes", "content_bytes"):
            print(f"  {name.replace('_', ' '):20} {count:>12,}")
    print(f"documents: {output}")


if __name__ == "__main__":
    run(main)
