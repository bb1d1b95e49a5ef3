"""rensa's inline deduplicator, as its README shows it: of the words of `text.split()`, or of five-word shingles.

Sets of words are far cheaper and say another thing: files of the same vocabulary are duplicates.
"""

import sys

from documents import contents, shingles, write_survivors
from rensa import RMinHashDeduplicator


def main(folder: str, kept: str, of: str) -> None:
    tokens = {"words": str.split, "shingles": shingles}[of]
    deduplicator = RMinHashDeduplicator(threshold=0.7, num_perm=128, use_lsh=True)
    added = deduplicator.add_pairs((str(row), tokens(text)) for row, text in enumerate(contents(folder)))
    write_survivors(folder, kept, (row for row, new in enumerate(added) if new))


if __name__ == "__main__":
    main(*sys.argv[1:4])
