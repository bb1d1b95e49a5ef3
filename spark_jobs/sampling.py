"""Which kept files a sample takes, and how much of each: by language, by a hash of the file's id, bounded by bytes.

What is chosen are small rows of the ledger; the workers then read the content where it lies and write the sample
themselves, so that no content enters the JVM.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from spark_jobs.content import Piece, arrow_schema, grouped_by_row_group, pieces
from spark_jobs.parts import write_none, write_parts
from spark_jobs.rules.redaction import redacted
from spark_jobs.tables import SAMPLE

# Languages that are told apart; those with fewer bytes, if there are more, are one stratum together.
MAX_LANGUAGES = 500
OTHERS = "others"
# Text that a worker gathers for a row group: a reader of the sample holds one in memory.
ROW_GROUP_BYTES = 16 << 20
# How many more files are looked at than the quota needs, because their sizes vary: a share of it, and some files.
_MARGIN, _MARGIN_FILES = 1.25, 16

_SCHEMA = arrow_schema(SAMPLE)


@dataclass(frozen=True)
class Plan:
    """What decides a sample, as `sample.py` explains it; ValueError for a number out of bounds."""

    sample_bytes: int
    file_bytes: int
    language_power: float
    language_floor: float
    held_out_share: float
    seed: int

    def __post_init__(self) -> None:
        least = {"sample_bytes": 1 << 10, "file_bytes": 1 << 8}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        for name, most in {"language_power": 1.0, "language_floor": 1.0, "held_out_share": 0.5}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, {most:g}]")


class Stratum(NamedTuple):
    """One language: kept files and bytes, bytes with each file cut to the plan's, and what the sample may take."""

    language: str
    files: int
    kept_bytes: int
    capped_bytes: int
    quota_bytes: int


def strata_of(kept: DataFrame, plan: Plan) -> list[Stratum]:
    """The languages of the kept files, those with most bytes first; ValueError if no file is kept."""
    numbers = {
        "files": F.count(F.lit(1)),
        "kept_bytes": F.sum("size"),
        "capped_bytes": F.sum(F.least("size", F.lit(plan.file_bytes))),
    }
    measures = [number.alias(name) for name, number in numbers.items()]
    named = kept.withColumn("language", F.coalesce("language", F.lit(OTHERS)))
    largest = named.groupBy("language").agg(*measures).orderBy(F.desc("kept_bytes"), "language").limit(MAX_LANGUAGES)
    found = {row.language: [int(row[name]) for name in numbers] for row in largest.collect()}
    whole = kept.agg(*measures).collect()[0]
    if not whole.files:
        raise ValueError("the ledger keeps no file that is not empty: there is nothing to sample")
    rest = [whole[name] - sum(of[number] for of in found.values()) for number, name in enumerate(numbers)]
    if rest[0]:
        found[OTHERS] = [one + more for one, more in zip(found.get(OTHERS, [0] * len(rest)), rest, strict=True)]
    wanted = quotas({language: capped for language, (_, _, capped) in found.items()}, plan)
    strata = [Stratum(language, of[0], of[1], of[2], wanted[language]) for language, of in found.items()]
    return sorted(strata, key=lambda stratum: (-stratum.kept_bytes, stratum.language))


def quotas(there: Mapping[str, int], plan: Plan) -> dict[str, int]:
    """Bytes to take of each language, of `there` bytes; their sum is at most the plan's, or all there is.

    Languages are served in proportion to bytes to the power of the plan, and at least the floor; one that has less
    than that gives all it has, and the rest goes to the others.
    """
    open_ones = {language: float(size) ** plan.language_power for language, size in there.items() if size}
    floor = min(plan.language_floor, 1 / max(len(open_ones), 1)) * plan.sample_bytes
    left, taken = plan.sample_bytes, dict.fromkeys(there, 0)
    while open_ones:
        unit = (left - floor * len(open_ones)) / sum(open_ones.values())
        shares = {language: floor + weight * unit for language, weight in open_ones.items()}
        filled = [language for language, share in shares.items() if there[language] <= share]
        if not filled:
            return taken | {language: int(share) for language, share in shares.items()}
        for language in filled:
            taken[language] = there[language]
            left -= there[language]
            del open_ones[language]
    return taken


def chosen_of(kept: DataFrame, strata: list[Stratum], plan: Plan) -> DataFrame:
    """Rows to read (part, row_group, row), the text to take of each (`budget`) and whether it is `held_out`.

    Within a language files are taken in the order of a hash of their ids until the quota is full, the last one in
    part. A second hash orders them for being held out: at least one of two, and no more than the share and a file.
    """
    margins = [(stratum.language, stratum.quota_bytes, min(1.0, _share(stratum, plan))) for stratum in strata]
    limits = kept.sparkSession.createDataFrame(margins, "language string, quota long, share double")
    language = F.when(F.col("language").isin([stratum.language for stratum in strata]), F.col("language"))
    draws = kept.select(
        "file_id",
        F.coalesce(language, F.lit(OTHERS)).alias("language"),
        "part",
        "row_group",
        "row",
        F.least("size", F.lit(plan.file_bytes)).alias("budget"),
        F.xxhash64(F.lit(plan.seed), "file_id").alias("draw"),
        F.xxhash64(F.lit(plan.seed), F.lit("held out"), "file_id").alias("other_draw"),
    ).join(F.broadcast(limits), "language")
    few = draws.where((F.col("draw") / F.lit(2.0**64) + 0.5) <= F.col("share"))
    ordered = Window.partitionBy("language").orderBy("draw", "file_id").rowsBetween(Window.unboundedPreceding, -1)
    before = F.coalesce(F.sum("budget").over(ordered), F.lit(0))
    budget = F.least("budget", F.col("quota") - F.col("before"))
    taken = few.withColumn("before", before).withColumn("budget", budget).where("budget > 0")
    whole = Window.partitionBy("language")
    others = whole.orderBy("other_draw", "file_id").rowsBetween(Window.unboundedPreceding, -1)
    earlier = F.coalesce(F.sum("budget").over(others), F.lit(0))
    held_out = (earlier < plan.held_out_share * F.sum("budget").over(whole)) & (F.count("row").over(whole) > 1)
    return taken.select("part", "row_group", "row", "budget", held_out.alias("held_out"))


def _share(stratum: Stratum, plan: Plan) -> float:
    """Share of a language's files that surely fill its quota."""
    wanted = _MARGIN * stratum.quota_bytes + _MARGIN_FILES * plan.file_bytes
    return wanted / max(stratum.capped_bytes, 1)


def write(chosen: DataFrame, documents: str, folder: str) -> int:
    """Read, redact and cut the chosen files and write them as rows of SAMPLE; their number."""

    def take(work: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        columns = ["file_id", "repo", "path", "language", "content"]
        for batch in work:
            for number in range(batch.num_rows):
                row = batch.slice(number, 1)
                places, budgets, held_out = (row.column(name)[0].values for name in ("rows", "budget", "held_out"))
                numbers = np.asarray(places)
                for piece in pieces(documents, [row], columns):
                    here = pa.array(np.searchsorted(numbers, piece.rows))
                    yield _rows_of(piece, budgets.take(here), held_out.take(here))

    work = grouped_by_row_group(chosen, documents, beside=("budget", "held_out"))
    rows = write_parts(work, take, _SCHEMA, folder, "part", ROW_GROUP_BYTES, compression="zstd")
    if not rows:
        write_none(_SCHEMA, folder)
    return rows


def _rows_of(piece: Piece, budgets: pa.Array, held_out: pa.Array) -> pa.RecordBatch:
    texts, _ = redacted(piece.batch.column("content"))
    changed = pc.fill_null(pc.not_equal(texts, piece.batch.column("content").cast(pa.large_string())), False)
    cut = shortened(texts, np.asarray(budgets))
    names = ("file_id", "repo", "path", "language")
    columns = {name: piece.batch.column(name) for name in names} | {
        "held_out": held_out,
        "size": pc.binary_length(cut),
        "redacted": changed,
        "content": cut,
    }
    return pa.record_batch([columns[field.name].cast(field.type) for field in _SCHEMA], schema=_SCHEMA)


def shortened(texts: pa.LargeStringArray, budgets: np.ndarray) -> pa.LargeStringArray:
    """Cut texts (n) to at most so many bytes (n) each: after the end of a line, or if there is none of a character."""
    lengths = np.asarray(pc.fill_null(pc.binary_length(texts), 0))
    long = np.flatnonzero(lengths > budgets)
    if not len(long):
        return texts
    cut = [_head(texts[row].as_buffer().slice(0, int(budgets[row])).to_pybytes()) for row in long.tolist()]
    mask = np.zeros(len(texts), bool)
    mask[long] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(cut, pa.large_string()))


def _head(content: bytes) -> str:
    """The whole lines of the beginning of a text, or if there are none its whole characters."""
    line = content.rfind(b"\n") + 1
    return content[: line or len(content)].decode("utf-8", "ignore")


def taken_of(sample: DataFrame, strata: list[Stratum]) -> dict[str, dict[str, Any]]:
    """What of each language there was and what was taken, those with most kept bytes first."""
    sums = sample.groupBy(F.coalesce("language", F.lit(OTHERS)).alias("language")).agg(
        F.count(F.lit(1)).alias("files"),
        F.sum("size").alias("bytes"),
        F.count_if("held_out").alias("held_out_files"),
        F.count_if("redacted").alias("redacted_files"),
    )
    names = {stratum.language for stratum in strata}
    found: dict[str, dict[str, Any]] = {
        stratum.language: {"kept_files": stratum.files, "kept_bytes": stratum.kept_bytes}
        | dict.fromkeys(("files", "bytes", "held_out_files", "redacted_files"), 0)
        for stratum in strata
    }
    for row in sums.collect():
        of = found[row.language if row.language in names else OTHERS]
        for name in ("files", "bytes", "held_out_files", "redacted_files"):
            of[name] += row[name]
    return found


def summary(taken: Mapping[str, Mapping[str, Any]], output: str) -> str:
    """Files and bytes of each language, in lines: the 20 largest and the others' sum."""
    rows = list(taken.items())
    rest = rows[20:]
    if rest:
        rows = [*rows[:20], (f"{len(rest)} more", {name: sum(one[name] for _, one in rest) for name in rest[0][1]})]
    lines = [
        f"  {language:<24}{one['files']:>10,} of {one['kept_files']:>12,} files {one['bytes'] / 1e6:>10,.2f} of"
        f" {one['kept_bytes'] / 1e6:>12,.2f} MB {one['held_out_files']:>8,} held out"
        f" {one['redacted_files']:>6,} redacted"
        for language, one in rows
    ]
    files, size = (sum(one[name] for one in taken.values()) for name in ("files", "bytes"))
    return "\n".join([*lines, f"sample: {files:,} files, {size / 1e6:,.1f} MB, in {output}"])
