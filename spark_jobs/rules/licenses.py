"""Licences as the keep order needs them: permissive, none, or any other."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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


def licence_classes(licenses: pa.Array) -> NDArray[np.uint8]:
    """Of lists of licences (n): 0 permissive (at least one licence and each of them permissive), 1 none known, 2 any
    other; a null list has none."""
    names = pc.utf8_lower(pc.utf8_trim_whitespace(licenses.flatten().cast(pa.large_string())))
    others = np.append(0, np.cumsum(~np.asarray(pc.is_in(names, pa.array(PERMISSIVE, pa.large_string())))))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(licenses), 0))
    ends = np.cumsum(lengths)
    return np.where(lengths == 0, 1, np.where(others[ends] == others[ends - lengths], 0, 2)).astype(np.uint8)
