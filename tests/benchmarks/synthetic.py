"""A million small documents with what breaks tools at scale: a fifth of them share a text, and all meet in one band.

The shared text is a fifth to a third of the similarity of any two of them, too little for a duplicate, as a licence
header is. Its runs of words are chosen so that they have the least values of a band's permutations: more than 200,000
documents have that band in common. Some are copies, exact or with a word changed. All is drawn with one seed.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from corpus import BENCH, PARTS, write_parquet

from spark_jobs.near_duplicates.fingerprints import minhashes
from spark_jobs.near_duplicates.settings import ROWS, SHINGLE_WORDS

DOCUMENTS, SEED = 1_000_000, 20_240_501
VOCABULARY, LETTERS = 50_000, 7
RUNS = 300_000  # of which those with the least values are chosen
HOT_SHARE, EXACT_SHARE, NEAR_SHARE = 0.203, 0.02, 0.03


def synthetic_corpus(documents: int = DOCUMENTS) -> Path:
    """The folder of the corpus; built on the first call."""
    folder = BENCH / "corpus" / f"synthetic-{documents}"
    if not folder.exists():
        random = np.random.default_rng(SEED)
        letters = random.integers(ord("a"), ord("z") + 1, (VOCABULARY, LETTERS), dtype=np.uint8)
        spelled = np.hstack([letters, np.full((VOCABULARY, 1), ord(" "), np.uint8)])
        words, starts = _documents(random, documents, _boilerplate(random, spelled))
        write_parquet(folder, lambda part: _table(spelled, words, starts, part))
    return folder


def _boilerplate(random: np.random.Generator, spelled: np.ndarray) -> np.ndarray:
    """The numbers of the words of ROWS runs, each of which has the least value of a permutation of the first band."""
    runs = random.integers(0, VOCABULARY, (RUNS, SHINGLE_WORDS), dtype=np.int32)
    run_bytes = SHINGLE_WORDS * spelled.shape[1]
    values = np.concatenate(
        [
            minhashes(spelled[some].reshape(-1), np.arange(len(some) + 1) * run_bytes)[:, :ROWS]
            for some in np.array_split(runs, 20)
        ]
    )
    return runs[np.argmin(values, axis=0)].ravel()


def _documents(random: np.random.Generator, documents: int, boilerplate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers of all documents end to end, and the n + 1 bounds of the documents."""
    kind = random.random(documents)
    hot = kind < HOT_SHARE
    copies = np.flatnonzero(kind > 1 - EXACT_SHARE - NEAR_SHARE)
    sources = random.choice(np.flatnonzero(kind <= 1 - EXACT_SHARE - NEAR_SHARE), len(copies))
    own = random.integers(20, 47, documents)
    lengths = np.where(hot, len(boilerplate) + own, random.integers(60, 121, documents))
    lengths[copies] = lengths[sources]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    words = random.integers(0, VOCABULARY, starts[-1], dtype=np.int32)
    words[starts[:-1][hot][:, None] + np.arange(len(boilerplate))] = boilerplate
    words[_places(starts, copies)] = words[_places(starts, sources)]
    near = copies[kind[copies] < 1 - EXACT_SHARE]
    words[starts[near] + random.integers(0, lengths[near])] = random.integers(0, VOCABULARY, len(near))
    return words, starts


def _places(starts: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Places of all words of some documents, end to end."""
    lengths = starts[documents + 1] - starts[documents]
    begins = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts[documents] - begins, lengths)


def _table(spelled: np.ndarray, words: np.ndarray, starts: np.ndarray, part: int) -> pa.Table:
    first, last = ((len(starts) - 1) * number // PARTS for number in (part, part + 1))
    text = spelled[words[starts[first] : starts[last]]]
    bounds = (starts[first : last + 1] - starts[first]) * spelled.shape[1]
    buffers = [None, pa.py_buffer(bounds.astype(np.int64)), pa.py_buffer(text)]
    content = pa.Array.from_buffers(pa.large_string(), last - first, buffers)
    paths = [f"{number}.txt" for number in range(first, last)]
    return pa.table({"content": content, "repo_name": ["synthetic"] * (last - first), "path": paths})
