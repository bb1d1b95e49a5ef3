"""Span corruption: runs of tokens hidden from an encoder, and written by a decoder (T5, Raffel et al. 2019)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.micro_batch import DECODER_DOCUMENTS, DOCUMENTS, IGNORED, Arrays
from training.order import generator


class Spans:
    """Hidden runs of tokens from the text around them.

    Each run becomes a sentinel in the input; the decoder writes every sentinel with the run behind it, and the
    end-of-text token last. Number and total length of the runs are those of every row, so shapes are fixed:
    inputs T - hidden + runs, labels hidden + runs + 1.

    Where documents are read apart, each is as if it were alone, but that end-of-text ends the labels of a row's last
    one only: a run lies in one document, sentinels are counted and the decoder begins anew with each, and `documents`
    and `decoder_documents` number those of the tokens read and written. Where documents are too short for the runs,
    less is hidden: as many tokens are left out at the row's end, and the last labels are IGNORED.

    Args:
        sentinels: ids, as many as there are runs in the longest row.
        end_of_text_id: ends the labels and begins the decoder's input; it also begins each document but a row's first.
        noise: share of tokens that are hidden.
        span_length: mean tokens of a run.
        apart: whether documents are read apart.
    """

    def __init__(
        self, sentinels: list[int], end_of_text_id: int, noise: float, span_length: float, *, apart: bool = False
    ) -> None:
        self.sentinels, self.end_of_text_id = np.array(sentinels, np.int64), end_of_text_id
        self.noise, self.span_length, self.apart = noise, span_length, apart

    def __call__(self, rows: NDArray[Any], keys: list[str]) -> Arrays:
        made = [self._row(row[:-1].astype(np.int64), generator(key)) for row, key in zip(rows, keys, strict=True)]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _row(self, tokens: NDArray[np.int64], draw: np.random.Generator) -> Arrays:
        hidden, runs = noise_counts(len(tokens), self.noise, self.span_length)
        begins, sizes, documents = self._runs(tokens, hidden, runs, draw)
        firsts, owners = np.cumsum(sizes) - sizes, documents[begins]
        places, lacking = np.repeat(begins - firsts, sizes) + np.arange(sizes.sum()), hidden - int(sizes.sum())
        sentinels = self.sentinels[np.arange(runs) - np.searchsorted(owners, owners)]  # counted anew in each document
        inputs, is_read = tokens.copy(), np.ones(len(tokens), np.bool_)
        is_read[places] = False
        is_read[np.flatnonzero(is_read)[len(tokens) - hidden :]] = False  # as many as are hidden too few
        inputs[begins], is_read[begins] = sentinels, True
        label = np.insert(tokens[places], firsts, sentinels)
        label = np.concatenate([label, [self.end_of_text_id], np.full(lacking, IGNORED)])
        written = np.repeat(owners, sizes + 1)
        written = np.append(written, np.full(1 + lacking, owners[-1]))
        shifted = np.roll(np.where(label == IGNORED, self.end_of_text_id, label), 1)
        shifted[np.diff(written, prepend=-1) != 0] = self.end_of_text_id
        found = {"input_ids": inputs[is_read], "decoder_input_ids": shifted, "labels": label}
        return found | ({DOCUMENTS: documents[is_read], DECODER_DOCUMENTS: written} if self.apart else {})

    def _runs(
        self, tokens: NDArray[np.int64], hidden: int, runs: int, draw: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """Where the runs of a row begin, how long each is, and the number of each token's document."""
        kept, sizes = _parts(len(tokens) - hidden, runs, draw), _parts(hidden, runs, draw)
        begins, documents = np.cumsum(kept + sizes) - sizes, np.zeros(len(tokens), np.int32)
        if not self.apart:
            return begins, sizes, documents
        documents[1:] = (tokens[1:] == self.end_of_text_id).cumsum()
        return *_within_documents(begins - kept, sizes, documents, draw), documents


def _within_documents(
    cells: NDArray[np.int64], sizes: NDArray[np.int64], documents: NDArray[np.int32], draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begins and sizes of runs that cross no border, one in each of the cells that begin at `cells`.

    A run that would cross a border lies anywhere in the longest piece of its cell between borders, cut to it; others
    get longer by what it lost, those with most room first. Where there is no room, all are fewer tokens together.
    """
    edges = np.union1d(cells, np.flatnonzero(np.diff(documents)) + 1)
    lengths = np.diff(edges, append=len(documents))
    owners = np.searchsorted(cells, edges, side="right") - 1
    last = np.searchsorted(owners, np.arange(len(cells)), side="right") - 1
    crosses = lengths[last] < sizes
    chosen = np.where(crosses, np.lexsort((lengths, owners))[last], last)
    pieces, lengths = edges[chosen], lengths[chosen]
    cut = np.minimum(sizes, lengths)
    rooms, lost = np.maximum(lengths - 1 - cut, 0), int((sizes - cut).sum())
    widest = np.argsort(-rooms, kind="stable")
    given = np.zeros_like(cut)
    given[widest] = np.clip(lost - np.cumsum(rooms[widest]) + rooms[widest], 0, rooms[widest])
    sizes = cut + given
    kept = lengths - sizes
    drawn = np.minimum(kept, 1 + (draw.random(len(cells)) * kept).astype(np.int64))
    return pieces + np.where(crosses, drawn, kept), sizes


def noise_counts(tokens: int, noise: float, span_length: float) -> tuple[int, int]:
    """How many of `tokens` are hidden, in how many runs; at least one is hidden and one is kept a run."""
    hidden = min(max(round(tokens * noise), 1), tokens - 1)
    return hidden, min(max(round(hidden / span_length), 1), tokens - hidden, hidden)


def _parts(total: int, count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """`total` cut into `count` parts of at least 1, all such cuts equally likely."""
    cuts = np.sort(draw.permutation(total - 1)[: count - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)
