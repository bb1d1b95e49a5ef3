"""Which of two similar files is kept: a key that sorts from best to worst and tells where its fingerprint lies."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.rules.licenses import licence_class

RANK_BYTES, SPOT_BYTES = 20, 8
KEY_BYTES = RANK_BYTES + SPOT_BYTES
_MAX_STARS, _MAX_LOSSES, _REPOSITORIES, _MAX_SIZE = (1 << 24) - 1, (1 << 8) - 1, 1 << 29, (1 << 32) - 1


def ranked(files: DataFrame, losses: DataFrame) -> DataFrame:
    """The files with their `rank`, whose order is the keep order.

    Args:
        files: what is known of them, and `settled`.
        losses: what `losses_of_repositories` says of theirs.

    Files that were kept before come first; then licence (permissive, none, other), most stars, the repository that
    keeps most of its files, longest, least id. A rank has 1 bit for settled, 2 for the licence, 24 for stars, 8 for
    the repository's losses, 29 for its hash (so that forks alike in all that do not share out each other's files),
    32 for the size, and the first 64 of the id; stars, losses and size are counted down.
    """
    known = files.join(losses, "repo", "left")
    stars = F.least(F.greatest(F.coalesce("stars", F.lit(0)), F.lit(0)), F.lit(_MAX_STARS))
    size = F.least(F.coalesce("size", F.lit(0)), F.lit(_MAX_SIZE))
    repository = F.when(F.coalesce("repo", F.lit("")) == "", 0).otherwise(F.pmod(F.xxhash64("repo"), _REPOSITORIES))
    number = _packed(
        (F.lit(1), 1),
        (licence_class(F.col("licenses")), 2),
        (F.lit(_MAX_STARS) - stars, 24),
        (F.coalesce("losses", F.lit(0)), 8),
        (repository, 29),
    )
    rank = F.concat(_eight_bytes(number), _four_bytes(F.lit(_MAX_SIZE) - size), F.substring("file_id", 1, 8))
    return known.withColumn("rank", rank).drop("losses")


def losses_of_repositories(files: DataFrame, copies: DataFrame) -> DataFrame:
    """Rows (repo, losses): the share of its files, in 255ths, that a repository loses to exact copies elsewhere.

    Forks are copies file by file, and a choice file by file would leave a part of each. This choice is made once to
    see which repository keeps most, and then again with that in the keep order, so that one of them stays whole. A
    repository that loses none has no row.

    Args:
        files: what competes.
        copies: those of them that share their content with others.
    """
    order = F.struct(
        (~F.col("settled")).alias("fresh"),
        licence_class(F.col("licenses")).alias("licence"),
        (-F.coalesce("stars", F.lit(0))).alias("fewer_stars"),
        "file_id",
        "repo",
    )
    contents = copies.groupBy("repo", "content_hash").agg(F.min(order).alias("best"), F.count(F.lit(1)).alias("rows"))
    best = contents.groupBy("content_hash").agg(F.min("best").alias("best"))
    wins = best.groupBy(F.col("best.repo").alias("repo")).agg(F.count(F.lit(1)).alias("wins"))
    shared = (
        contents.where("repo != ''")
        .groupBy("repo")
        .agg(F.count(F.lit(1)).alias("contents"), F.sum("rows").alias("rows"))
    )
    lost = shared.join(wins, "repo", "left").withColumn("lost", F.col("contents") - F.coalesce("wins", F.lit(0)))
    totals = files.groupBy("repo").agg(F.count(F.lit(1)).alias("all"))
    known = lost.where("lost > 0").join(totals, "repo")
    share = F.col("lost") / (F.col("all") - F.col("rows") + F.col("contents"))
    return known.select("repo", F.ceil(share * _MAX_LOSSES).alias("losses"))


def _packed(*fields: tuple[Column, int]) -> Column:
    """Numbers of so many bits, 64 altogether, as one: the first in the highest bits."""
    whole = F.lit(0).cast("long")
    for value, bits in fields:
        whole = F.shiftleft(whole, bits).bitwiseOR(value.cast("long"))
    return whole


def _eight_bytes(number: Column) -> Column:
    """The bytes of a number whose first bit is set, the highest of them first."""
    return F.unhex(F.hex(number))


def _four_bytes(number: Column) -> Column:
    """The same of a number below 2^32."""
    return F.unhex(F.substring(F.hex(number.cast("long") + (1 << 32)), 2, 8))


def key_of(rank: Column, file: Column, row: Column) -> Column:
    """A key: the rank, and the number of the file of fingerprints and the row in it where the file's own lies.

    It sorts as the rank, for two files of one repository that agree in size and in 64 bits of their ids are not to be
    met, and no file shares it, so that a pair of keys is all that a pair of files needs.
    """
    return F.concat(rank, _four_bytes(file), _four_bytes(row))


def settled_rank(rank: Column) -> Column:
    """The rank of a file that was kept before: the same with its first bit, which says that it is fresh, cleared."""
    first = F.conv(F.hex(F.substring(rank, 1, 1)), 16, 10).cast("int").bitwiseAND(0x7F)
    return F.concat(F.unhex(F.lpad(F.hex(first), 2, "0")), F.substring(rank, 2, RANK_BYTES - 1))
