"""Which of two similar files is kept: a key that sorts from best to worst and tells where its fingerprint lies.

Files that were kept before come first; then licence (permissive, none, other), most stars, the repository that loses
the smallest share of its files to copies elsewhere, longest, least id. A key has, from its first bit on, 1 bit that is
0 for those kept before, 2 for the licence, 24 for stars, 8 for the repository's losses, 29 for its hash (so that forks
alike in all that do not share out each other's files), 32 for the size, and the first 64 of the id: stars and size
are counted down. The last 64 are the spot: the number of the file of fingerprints, and the row in it. Two files that
agree in all before it are not to be met, and no file shares it, so that a pair of keys is all that a pair of files
needs.
"""

import numpy as np
from numpy.typing import NDArray

RANK_BYTES, SPOT_BYTES = 20, 8
KEY_BYTES = RANK_BYTES + SPOT_BYTES
MAX_STARS, MAX_LOSSES, MAX_SIZE = (1 << 24) - 1, (1 << 8) - 1, (1 << 32) - 1
_REPOSITORY_BITS = 29

Keys = NDArray[np.uint8]


def keys_of(
    licences: NDArray[np.uint8],
    stars: NDArray[np.int64],
    repos: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    ids: Keys,
    spots: NDArray[np.uint64],
) -> Keys:
    """Keys (n, KEY_BYTES) of fresh files whose repositories lose nothing yet.

    Args:
        licences: their classes, as `licence_classes` tells them.
        stars: of their repositories; less than 0 is none.
        repos: hashes of the names of their repositories, 0 for none.
        sizes: in bytes.
        ids: (n, 16).
        spots: where their fingerprints lie.
    """
    number = np.uint64(1) << np.uint64(63) | licences.astype(np.uint64) << np.uint64(61)
    number |= (MAX_STARS - np.clip(stars, 0, MAX_STARS)).astype(np.uint64) << np.uint64(37)
    number |= repos & np.uint64((1 << _REPOSITORY_BITS) - 1)
    left = (MAX_SIZE - np.clip(sizes, 0, MAX_SIZE)).astype(">u4")
    return np.hstack([_bytes(number, ">u8"), _bytes(left, ">u4"), ids[:, :8], _bytes(spots, ">u8")])


def standing(keys: Keys) -> NDArray[np.uint64]:
    """What comes before the repository's losses in keys: whether the file was kept before, its licence and stars."""
    return _number(keys) >> np.uint64(37)


def with_losses(keys: Keys, losses: NDArray[np.uint64]) -> Keys:
    """The keys of fresh files whose repositories lose so many 255ths of their files."""
    number = _number(keys) | losses << np.uint64(_REPOSITORY_BITS)
    return np.hstack([_bytes(number, ">u8"), keys[:, 8:]])


def settled(keys: Keys) -> Keys:
    """The keys of files that were kept before: the first bit, which says that they are fresh, is cleared."""
    found = keys.copy()
    found[:, 0] &= 0x7F
    return found


def is_fresh(keys: Keys) -> NDArray[np.bool_]:
    """Which of the keys are not those of files that were kept before."""
    return keys[:, 0] >= 0x80


def _number(keys: Keys) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _bytes(values: NDArray[np.integer], kind: str) -> Keys:
    return values.astype(kind)[:, None].view(np.uint8)
