"""Fill-in-the-middle: documents cut in three at any character, the middle moved to the end (Bavarian et al. 2022).

The cut is exact: the text of a document is cut between two characters and each part encoded alone, as a prompt will
be. So a model sees in training what it is asked for: prefixes that end, and middles that begin, inside of a word.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokenizer.encode import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, Encoder
from training.order import generator

# Shorter documents are left as they are: three of their tokens would give way to three markers.
LEAST_TOKENS = 16
# What decoding makes of the bytes of a character that is not whole.
CUT = "\ufffd"
SAMPLE = ("def To", "tal(a, b):\n    ", "return a + b\n")  # cut within a word, behind spaces and before a word


class FillInTheMiddle:
    """Rearranges the documents of rows, each within the place that it has; of a repository, each file is a document.

    Half (by default) of the rearranged ones read `<fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle` (PSM),
    the others `<fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle` (SPM, as SantaCoder writes it). A document
    keeps its number of tokens, so borders stay where they are and nothing is padded: the three markers, and what cut
    words take more, come off the far end of the longer context, the begin of the prefix or the end of the suffix.
    A document that reaches over the row's end is cut as the row has it; up to three bytes of a character
    that the row's border cuts are left out. One that would become shorter, or whose contexts are too short to give,
    stays as it is.

    Args:
        encoder: of the tokenizer that wrote the shards; ValueError if it lacks the three markers, or parts that it
            encodes are another text than the whole.
        rate: share of documents that are rearranged.
        suffix_first: share of these in SPM.
    """

    def __init__(self, encoder: Encoder, rate: float, suffix_first: float) -> None:
        self.encoder, self.rate, self.suffix_first = encoder, rate, suffix_first
        self.prefix, self.middle, self.suffix = (encoder.id_of(name) for name in (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX))
        self.borders = encoder.special_ids()
        if encoder.decode(np.concatenate(self._encoded(list(SAMPLE)))) != "".join(SAMPLE):
            raise ValueError(
                "objective.kind fill_in_the_middle: the tokenizer puts spaces before texts or changes them otherwise "
                "(add_prefix_space, Metaspace, normalizers), so documents cannot be cut; choose one that does not, or "
                "objective.kind causal"
            )

    def __call__(self, rows: NDArray[Any], keys: list[str]) -> NDArray[Any]:
        """Rows (B, n) -> rows (B, n); each draws from the generator of its key."""
        rows, places, texts, orders = rows.copy(), [], [], []
        for number, key in enumerate(keys):
            draw = generator(key)
            ends = np.flatnonzero(np.isin(rows[number], self.borders)).tolist()
            for begin, end in zip([0, *(end + 1 for end in ends)], [*ends, rows.shape[1]], strict=True):
                chosen, order, *cuts = draw.random(4).tolist()
                if chosen < self.rate and end - begin >= LEAST_TOKENS:
                    text = self.encoder.decode(rows[number, begin:end]).strip(CUT)
                    first, last = sorted(int(cut * (len(text) + 1)) for cut in cuts)
                    texts += [text[:first], text[first:last], text[last:]]
                    places.append((number, begin, end))
                    orders.append(order < self.suffix_first)
        parts = self._encoded(texts)
        for at, (number, begin, end) in enumerate(places):
            before, middle, after = parts[3 * at : 3 * at + 3]
            found = self._arranged(before, middle, after, end - begin, orders[at])
            if found is not None:
                rows[number, begin:end] = found
        return rows

    def _encoded(self, texts: list[str]) -> list[NDArray[Any]]:
        if not texts:
            return []
        ids, bounds = self.encoder.encode_batch(pa.array(texts, pa.large_string()))
        return [ids[begin:end] for begin, end in pairwise(bounds)]

    def _arranged(
        self, prefix: NDArray[Any], middle: NDArray[Any], suffix: NDArray[Any], tokens: int, suffix_first: bool
    ) -> NDArray[Any] | None:
        """The three parts as `tokens` ids, or None if they do not fit."""
        excess = 3 + len(prefix) + len(middle) + len(suffix) - tokens
        if not 0 <= excess <= max(len(prefix), len(suffix)):
            return None
        if len(prefix) > len(suffix):
            prefix = prefix[excess:]
        else:
            suffix = suffix[: len(suffix) - excess]
        first, second, third = [self.prefix], [self.suffix], [self.middle]
        if suffix_first:
            return np.concatenate([first, second, suffix, third, prefix, middle])
        return np.concatenate([first, prefix, second, suffix, third, middle])
