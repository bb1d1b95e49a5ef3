"""The Spark jobs.

spark-submit puts an archive of pyspark's sources before all else on the path, and every process would compile them
anew, half a second of a core. It is taken off where it is part of a pyspark that is installed.

numba keeps a compiled kernel by the content of the file that the kernel stands in, and not of the files of what it
calls. So compiled kernels go into a folder that the content of all of them names: after a change none is stale.
"""

import os
import sys
from hashlib import blake2b
from pathlib import Path

KERNELS = ("rules", "near_duplicates")  # the packages that hold kernels, and the constants that are compiled in


def kernel_folder(package: Path) -> Path:
    """Where the compiled kernels of this version of the package are kept."""
    digest = blake2b(digest_size=8)
    for source in sorted(source for name in KERNELS for source in (package / name).glob("*.py")):
        digest.update(source.read_bytes())
    return package / "__pycache__" / f"kernels-{digest.hexdigest()}"


os.environ.setdefault("NUMBA_CACHE_DIR", str(kernel_folder(Path(__file__).parent)))
sys.path[:] = [
    entry
    for entry in sys.path
    if not entry.endswith("/pyspark/python/lib/pyspark.zip") or str(Path(entry).parents[3]) not in sys.path
]
