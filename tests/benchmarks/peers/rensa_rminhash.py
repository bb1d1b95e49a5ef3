"""rensa: full-set R-MinHash and its LSH, every file queried, clusters by connected components."""

import sys

from documents import contents, first_of_clusters, shingles, write_survivors
from rensa import RMinHash, RMinHashLSH


def main(folder: str, kept: str) -> None:
    sketches = RMinHash.from_token_sets(map(shingles, contents(folder)), num_perm=128, seed=42)
    lsh = RMinHashLSH(threshold=0.7, num_perm=128, num_bands=16)  # the bands that its deduplicator takes at 0.7
    lsh.insert_many(sketches)
    write_survivors(folder, kept, first_of_clusters(lsh.query_all(sketches)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
