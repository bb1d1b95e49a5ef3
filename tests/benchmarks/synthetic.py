"""A million small documents with what breaks tools at scale: a fifth of them share one boilerplate text.

The shared text is 30 to 50 percent of the similarity of any two of them, too little for a duplicate and enough to meet
in the bands of any LSH: a licence header, or the frame of a generated stub. Some documents are copies, exact or with a
word changed. All is drawn with one seed, and in numpy, so that it takes a minute.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from corpus import BENCH, PARTS, write_parquet

DOCUMENTS, SEED = 1_000_000, 20_240_501
VOCABULARY, LETTERS = 50_000, 7
BOILERPLATE_WORDS = 44  # with 20 to 46 words of one's own: 40 shared shingles of 60 to 86
HOT_SHARE, EXACT_SHARE, NEAR_SHARE = 0.2, 0.02, 0.03


def synthetic_corpus(documents: int = DOCUMENTS) -> Path:
    """The folder of the corpus; built on the first call."""
    folder = BENCH / "corpus" / f"synthetic-{documents}"
    if not folder.exists():
        random = np.random.default_rng(SEED)
        words, starts = _documents(random, documents)
        letters = random.integers(ord("a"), ord("z") + 1, (VOCABULARY, LETTERS), dtype=np.uint8)
        spelled = np.hstack([letters, np.full((VOCABULARY, 1), ord(" "), np.uint8)])
        write_parquet(folder, lambda part: _table(spelled, words, starts, part))
    return folder


def _documents(random: np.random.Generator, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers of all documents end to end, and the n + 1 bounds of the documents."""
    kind = random.random(documents)
    hot = kind < HOT_SHARE
    copies = np.flatnonzero(kind > 1 - EXACT_SHARE - NEAR_SHARE)
    sources = random.choice(np.flatnonzero(kind <= 1 - EXACT_SHARE - NEAR_SHARE), len(copies))
    own = random.integers(20, 47, documents)
    lengths = np.where(hot, BOILERPLATE_WORDS + own, random.integers(60, 121, documents))
    lengths[copies] = lengths[sources]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    words = random.integers(0, VOCABULARY, starts[-1], dtype=np.int32)
    words[starts[:-1][hot][:, None] + np.arange(BOILERPLATE_WORDS)] = words[:BOILERPLATE_WORDS]
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
