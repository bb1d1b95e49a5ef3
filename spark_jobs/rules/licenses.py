"""Licences as the keep order needs them: permissive, none, or any other."""

from pyspark.sql import Column
from pyspark.sql import functions as F

# SPDX ids (lower case) of licences without copyleft: those of the Blue Oak Council's list (model, gold, silver and
# bronze ratings, blueoakcouncil.org/list) that occur in source repositories.
PERMISSIVE = (
    "0bsd",
    "afl-3.0",
    "apache-1.1",
    "apache-2.0",
    "artistic-2.0",
    "blueoak-1.0.0",
    "bsd-1-clause",
    "bsd-2-clause",
    "bsd-2-clause-patent",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "bsd-3-clause-lbnl",
    "bsl-1.0",
    "cc0-1.0",
    "curl",
    "ecl-2.0",
    "hpnd",
    "isc",
    "libpng-2.0",
    "mit",
    "mit-0",
    "ms-pl",
    "mulanpsl-2.0",
    "ncsa",
    "openssl",
    "php-3.01",
    "postgresql",
    "psf-2.0",
    "python-2.0",
    "ruby",
    "unicode-dfs-2016",
    "unlicense",
    "upl-1.0",
    "w3c",
    "wtfpl",
    "x11",
    "zlib",
    "zpl-2.1",
)


def licence_class(licenses: Column) -> Column:
    """0 permissive (at least one licence and each of them permissive), 1 none known, 2 any other."""
    known = F.coalesce(licenses, F.array().cast("array<string>"))
    permissive = F.forall(known, lambda licence: F.lower(F.trim(licence)).isin(*PERMISSIVE))
    return F.when(F.size(known) == 0, 1).when(permissive, 0).otherwise(2)
