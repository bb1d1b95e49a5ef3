"""Which characters are letters: one table over all code points, shared by every kernel that walks UTF-8."""

import functools
import re

import numpy as np
from numba import njit
from numpy.typing import NDArray

WORD, ALPHANUMERIC = np.uint8(1), np.uint8(2)
CODE_POINTS = 0x110000
# What four bytes can hold: in text that is no UTF-8, `decode` finds numbers beyond the code points.
_NUMBERS = 1 << 21


@functools.cache
def character_classes() -> NDArray[np.uint8]:
    r"""Bits by code point: ALPHANUMERIC where `str.isalnum`, WORD there and for "_", which is the `\w` of `re`."""
    characters = np.arange(CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    classes = np.zeros(_NUMBERS, np.uint8)
    for run in re.finditer(r"\w+", characters):
        classes[slice(*run.span())] = WORD | ALPHANUMERIC
    classes[ord("_")] = WORD
    return classes


@njit(inline="always")
def decode(data: NDArray[np.uint8], at: int) -> tuple[np.uint32, int]:
    """The code point that starts at `data[at]` of valid UTF-8, and how many bytes it takes; of other bytes some number
    of 21 bits."""
    lead = np.uint32(data[at])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & np.uint32(0x1F)) << np.uint32(6) | np.uint32(data[at + 1]) & np.uint32(0x3F), 2
    low = np.uint32(data[at + 1]) & np.uint32(0x3F)
    middle = np.uint32(data[at + 2]) & np.uint32(0x3F)
    if lead < 0xF0:
        return (lead & np.uint32(0x0F)) << np.uint32(12) | low << np.uint32(6) | middle, 3
    last = np.uint32(data[at + 3]) & np.uint32(0x3F)
    return (
        (lead & np.uint32(0x07)) << np.uint32(18) | low << np.uint32(12) | middle << np.uint32(6) | last,
        4,
    )
