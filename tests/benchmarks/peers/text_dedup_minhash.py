"""text-dedup: its command line with its defaults (threshold 0.7, 250 permutations, shingles of five words)."""

import sys

import pyarrow.parquet as pq
from datasets import load_from_disk
from documents import write_kept
from text_dedup import minhash

PROCESSES = 2


def main(folder: str, kept: str) -> None:
    arguments = ["--path", "parquet", "--data_files", f"{folder}/*.parquet", "--split", "train", "--column", "content"]
    arguments += ["--cache_dir", "cache", "--output", "output", "--num_proc", str(PROCESSES)]
    minhash.main(arguments, standalone_mode=False)
    write_kept(kept, sorted(_rows(folder)))


def _rows(folder: str) -> list[int]:
    """The numbers of the rows that it saved, which it names by nothing but their columns."""
    names = pq.read_table(folder, columns=["repo_name", "path"]).to_pylist()
    number = {tuple(name.values()): row for row, name in enumerate(names)}
    saved = load_from_disk("output").select_columns(["repo_name", "path"])
    return [number[row["repo_name"], row["path"]] for row in saved]


if __name__ == "__main__":
    main(*sys.argv[1:3])
