"""Which of two similar files is kept: a key that sorts from best to worst and ends with the file's id."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.rules.licenses import licence_class

RANK_BYTES, ID_BYTES = 12, 16
KEY_BYTES = RANK_BYTES + ID_BYTES
_MAX_STARS, _MAX_LOSSES, _REPOSITORIES, _MAX_SIZE = (1 << 24) - 1, (1 << 8) - 1, 1 << 29, (1 << 32) - 1


def ranked(files: DataFrame) -> DataFrame:
    """The files with their `key`, whose order is the keep order; `files` needs a column `settled`.

    Files that were kept before come first; then licence (permissive, none, other), most stars, the repository that
    keeps most of its files, longest, least id. A key has 12 bytes of rank (1 bit settled, 2 licence, 24 stars, 8 of
    the repository's losses, 29 of its hash, so that forks alike in all that do not share out each other's files,
    and 32 size; stars, losses and size counted down) and the 16 of the id: a pair of keys is all that a pair of
    files needs.
    """
    losses = _losses_of_repositories(files)
    known = files.join(losses, "repo", "left")
    stars = F.least(F.greatest(F.coalesce("stars", F.lit(0)), F.lit(0)), F.lit(_MAX_STARS))
    size = F.least(F.coalesce("size", F.lit(0)), F.lit(_MAX_SIZE))
    repository = F.when(F.coalesce("repo", F.lit("")) == "", 0).otherwise(F.pmod(F.xxhash64("repo"), _REPOSITORIES))
    rank = _packed(
        (F.when(F.col("settled"), 0).otherwise(1), 1),
        (licence_class(F.col("licenses")), 2),
        (F.lit(_MAX_STARS) - stars, 24),
        (F.coalesce("losses", F.lit(0)), 8),
        (repository, 29),
    )
    key = F.concat(_bytes(rank, 8), _bytes(F.lit(_MAX_SIZE) - size, 4), F.col("file_id"))
    return known.withColumn("key", key).drop("losses")


def _losses_of_repositories(files: DataFrame) -> DataFrame:
    """Rows (repo, losses): the share of its files, in 255ths, that a repository loses to exact copies elsewhere.

    Forks are copies file by file, and a choice file by file would leave a part of each. This choice is made once to
    see which repository keeps most, and then again with that in the keep order, so that one of them stays whole.
    """
    order = F.struct(
        (~F.col("settled")).alias("fresh"),
        licence_class(F.col("licenses")).alias("licence"),
        (-F.coalesce("stars", F.lit(0))).alias("fewer_stars"),
        "file_id",
        "repo",
    )
    best = files.groupBy("content_hash").agg(F.min(order).alias("best"))
    wins = best.groupBy(F.col("best.repo").alias("repo")).agg(F.count(F.lit(1)).alias("wins"))
    files_of = files.groupBy("repo", "content_hash").agg(F.lit(1)).groupBy("repo").agg(F.count(F.lit(1)).alias("all"))
    share = (F.col("all") - F.coalesce("wins", F.lit(0))) / F.col("all")
    named = files_of.where("repo != ''").join(wins, "repo", "left")
    return named.select("repo", F.ceil(share * _MAX_LOSSES).alias("losses"))


def _packed(*fields: tuple[Column, int]) -> Column:
    """Numbers of so many bits, 64 altogether, as one: the first in the highest bits."""
    whole = F.lit(0).cast("long")
    for value, bits in fields:
        whole = F.shiftleft(whole, bits).bitwiseOR(value.cast("long"))
    return whole


def _bytes(number: Column, width: int) -> Column:
    """The lowest bytes of a number, the highest of them first."""
    return F.unhex(F.right(F.lpad(F.hex(number.cast("long")), 16, "0"), F.lit(2 * width)))


def id_of(key: Column) -> Column:
    """The file id within a key."""
    return F.substring(key, RANK_BYTES + 1, ID_BYTES)


def settled_key(key: Column) -> Column:
    """The key of a file that was kept before: the same with its first bit, which says that it is fresh, cleared."""
    first = F.conv(F.hex(F.substring(key, 1, 1)), 16, 10).cast("int").bitwiseAND(0x7F)
    return F.concat(F.unhex(F.lpad(F.hex(first), 2, "0")), F.substring(key, 2, KEY_BYTES - 1))
