"""Which of two similar files is kept: a key that sorts from best to worst and holds the file's id."""

from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_jobs.rules.licenses import licence_class

KEY_BYTES = 24
_MAX_STARS, _MAX_SIZE = (1 << 29) - 1, (1 << 32) - 1


def keep_key() -> Column:
    """24 bytes that compare as the keep order: licence (permissive, none, other), most stars, longest, least id.

    Eight bytes of rank (2 bits of licence, 29 of stars, 32 of size, both counted down) and the 16 of the id, so
    that a pair of keys is all that a pair of files needs until the very end.
    """
    stars = F.least(F.greatest(F.coalesce("stars", F.lit(0)), F.lit(0)), F.lit(_MAX_STARS))
    size = F.least(F.coalesce("size", F.lit(0)), F.lit(_MAX_SIZE))
    rank = (
        licence_class(F.col("licenses")).cast("long") * F.lit(1 << 61)
        + (F.lit(_MAX_STARS) - stars) * F.lit(1 << 32)
        + (F.lit(_MAX_SIZE) - size)
    )
    return F.concat(F.unhex(F.lpad(F.hex(rank), 16, "0")), F.col("file_id"))


def id_of(key: Column) -> Column:
    """The file id within a key."""
    return F.substring(key, 9, 16)
