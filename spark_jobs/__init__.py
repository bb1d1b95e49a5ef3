"""The Spark jobs.

numba keeps a compiled kernel by the content of the file that the kernel stands in, and not of the files of what it
calls. So compiled kernels go into a folder that the content of all of them names: after a change none is stale.
"""

import os
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
