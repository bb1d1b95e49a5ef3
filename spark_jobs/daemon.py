"""The process that Spark forks its Python workers from, here with what they all load already loaded.

Each worker that imports pyarrow and numba by itself takes a second of a core. Nothing in here may start a thread that
its children would need.
"""

import gc

import numba  # noqa: F401
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from pyspark import daemon, worker  # noqa: F401

from spark_jobs.near_duplicates.records import grouped
from spark_jobs.rules import measurement  # noqa: F401


def load() -> None:
    """Let numba and pyarrow do what they put off until they are first used."""
    grouped(np.zeros(1, np.int64), 1)
    pa.array([""])


if __name__ == "__main__":
    load()
    gc.freeze()
    daemon.manager()
