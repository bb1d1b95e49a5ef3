"""datasketch: MinHash and MinHashLSH with their defaults, every file queried, clusters by connected components."""

import sys

from datasketch import MinHash, MinHashLSH
from documents import contents, first_of_clusters, shingles, write_survivors


def main(folder: str, kept: str) -> None:
    lsh = MinHashLSH(threshold=0.7)
    sketches = []
    for row, text in enumerate(contents(folder)):
        sketch = MinHash()
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        lsh.insert(row, sketch, check_duplication=False)
        sketches.append(sketch)
    write_survivors(folder, kept, first_of_clusters(map(lsh.query, sketches)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
