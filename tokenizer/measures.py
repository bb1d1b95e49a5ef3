"""What a tokenizer makes of texts, counted over arrays: tokens, words that are split, the cost of indentation.

A word is a match of `\\w+` that does not begin with a digit: digits are apart by design here. Of a word the pieces are
the tokens that hold some of it. Indentation is the blank beginning of a line that is not all blank; its tokens are
those that hold nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

Places = NDArray[np.int64]

COUNTS = (
    *("files", "bytes", "lines", "tokens", "words", "split_words", "pieces"),
    *("indented_lines", "indentation", "indentation_tokens", "changed_files"),
)
_WORD, _DIGIT, _BLANK = 1, 2, 4


@cache
def _classes() -> NDArray[np.uint8]:
    """Of each code point whether it is of a word, a digit, or a blank of an indentation."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x110000):
        letter = chr(code)
        if letter.isalnum():
            table[code] = _WORD | (_DIGIT if letter.isnumeric() else 0)
    table[ord("_")] = _WORD
    table[[ord(" "), ord("\t")]] = _BLANK
    return table


class Layout(NamedTuple):
    """Where things stand in a text, in characters: words, and the indentations of lines; and its bytes and lines."""

    word_begins: Places
    word_ends: Places
    indent_begins: Places
    indent_ends: Places
    bytes: int
    lines: int


def layout_of(text: str) -> Layout:
    """Find the words and indentations of a text."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    classes = _classes()[codes]
    begins, ends = _runs((classes & _WORD) != 0)
    named = (classes[begins] & _DIGIT) == 0
    ends_of_lines = np.flatnonzero(codes == 10)
    line_begins = np.concatenate([[0], ends_of_lines + 1]).astype(np.int64)
    blank_begins, blank_ends = _runs((classes & _BLANK) != 0)
    at = np.searchsorted(blank_begins, line_begins)
    at = np.minimum(at, max(len(blank_begins) - 1, 0))
    starts = blank_begins[at] == line_begins if len(blank_begins) else np.zeros(len(line_begins), bool)
    indents, stops = line_begins[starts], blank_ends[at[starts]] if len(blank_begins) else line_begins[:0]
    inked = (
        (stops < len(codes)) & ~np.isin(codes[np.minimum(stops, len(codes) - 1)], (10, 13))
        if len(stops)
        else stops > 0
    )
    lines = len(ends_of_lines) + (len(codes) > 0 and codes[-1] != 10)
    return Layout(begins[named], ends[named], indents[inked], stops[inked], len(text.encode()), int(lines))


def _runs(mask: NDArray[np.bool]) -> tuple[Places, Places]:
    """Begins and ends of the runs of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return edges[::2], edges[1::2]


def measured(layout: Layout, encoding: Encoding, same: bool) -> Places:
    """COUNTS of one text; `same` tells whether decoding gave it back."""
    flat = np.fromiter((place for pair in encoding.offsets for place in pair), np.int64, 2 * len(encoding))
    begins, ends = flat[::2], flat[1::2]
    # Bytes of one character are tokens with the same place, so both are in order.
    pieces = np.searchsorted(begins, layout.word_ends) - np.searchsorted(ends, layout.word_begins, side="right")
    first = np.searchsorted(begins, layout.indent_begins)
    blank = np.maximum(np.searchsorted(ends, layout.indent_ends, side="right") - first, 0)
    numbers = {
        "files": 1,
        "bytes": layout.bytes,
        "lines": layout.lines,
        "tokens": len(encoding),
        "words": len(pieces),
        "split_words": (pieces > 1).sum(),
        "pieces": pieces.sum(),
        "indented_lines": len(layout.indent_begins),
        "indentation": (layout.indent_ends - layout.indent_begins).sum(),
        "indentation_tokens": blank.sum(),
        "changed_files": int(not same),
    }
    return np.array([numbers[name] for name in COUNTS], np.int64)


@dataclass
class Tally:
    """What one tokenizer made of all texts: COUNTS by language, and how often each of its tokens was used."""

    uses: Places
    by_language: dict[str, Places] = field(default_factory=dict)

    def add(self, language: str, numbers: Places) -> None:
        """Count one text."""
        self.by_language[language] = self.by_language.get(language, np.zeros(len(COUNTS), np.int64)) + numbers

    def use(self, ids: Iterable[list[int]]) -> None:
        """Count the tokens of texts."""
        flat = np.concatenate([np.array(one, np.int64) for one in ids] or [np.empty(0, np.int64)])
        self.uses += np.bincount(flat, minlength=len(self.uses))[: len(self.uses)]

    def whole(self) -> dict[str, float]:
        """Figures over all texts."""
        return figures_of(sum(self.by_language.values(), np.zeros(len(COUNTS), np.int64)))

    def languages(self) -> dict[str, dict[str, float]]:
        """Figures of each language, those with most bytes first."""
        ordered = sorted(self.by_language.items(), key=lambda one: (-one[1][COUNTS.index("bytes")], one[0]))
        return {language: figures_of(numbers) for language, numbers in ordered}


def figures_of(numbers: Places) -> dict[str, float]:
    """COUNTS, and what they say: bytes a token, tokens a line, shares of words and of indentation."""
    of: dict[str, float] = dict(zip(COUNTS, map(int, numbers), strict=True))
    return of | {
        "bytes_a_token": of["bytes"] / max(of["tokens"], 1),
        "tokens_a_line": of["tokens"] / max(of["lines"], 1),
        "split_share": of["split_words"] / max(of["words"], 1),
        "pieces_a_word": of["pieces"] / max(of["words"], 1),
        "indentation_share": of["indentation_tokens"] / max(of["tokens"], 1),
        "tokens_an_indentation": of["indentation_tokens"] / max(of["indented_lines"], 1),
    }
