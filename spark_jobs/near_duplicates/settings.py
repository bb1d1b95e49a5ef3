"""What decides near-duplicates beside the files, without the libraries that find them."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

SHINGLE_WORDS = 5
BANDS, ROWS = 42, 6
BINS = 1024
SEED = 1

Verify = Literal["exact", "sketch"]
Resolve = Literal["leaders", "components"]

_SCHEME = f"words{SHINGLE_WORDS}.2-affine32-{BANDS}x{ROWS}-seed{SEED}-bins{BINS}"
_WITHOUT_HEADERS = "-without_headers"


@dataclass(frozen=True)
class Fingerprint:
    """What is taken of a document's text.

    Args:
        strip_header: leave a licence header or generated banner at the head of a file out of its shingles.
    """

    strip_header: bool = False

    @property
    def scheme(self) -> str:
        """Names all that decides a fingerprint: tables of different schemes do not belong together."""
        return _SCHEME + (_WITHOUT_HEADERS if self.strip_header else "")

    @classmethod
    def of_scheme(cls, scheme: str, table: str) -> "Fingerprint":
        """The fingerprint of a table's scheme; ValueError if this version makes no such ones."""
        for known in (cls(False), cls(True)):
            if known.scheme == scheme:
                return known
        raise ValueError(f"{table} has fingerprints of scheme {scheme}; needed is {_SCHEME}: measure again")


WHOLE_TEXT = Fingerprint()


class Settings(NamedTuple):
    """How duplicates are found.

    Attributes:
        threshold: least Jaccard similarity of near-duplicates.
        verify: exact, or sketch: whether the sets of shingles decide what the sketches leave open.
        resolve: leaders, or components.
        fingerprint: what is taken of a text.
    """

    threshold: float
    verify: Verify
    resolve: Resolve
    fingerprint: Fingerprint

    def configuration(self) -> dict[str, Any]:
        """The same for a manifest; ValueError if the threshold is out of bounds."""
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be in (0, 1]")
        decided = {"threshold": self.threshold, "verify": self.verify, "resolve": self.resolve}
        return {**decided, "scheme": self.fingerprint.scheme, "bands": BANDS, "rows": ROWS}
