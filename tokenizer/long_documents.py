"""Documents of any length in linear time and bounded memory, with the ids that `tokenizers` gives the whole.

A long document is cut where the pre-tokenizer's pattern splits it for certain, so that each piece encodes by itself.
What has no such place for 64 KB is one pre-token (a run of letters, of punctuation, of white space). It is encoded in
overlapping chunks: every two neighbouring tokens of what is put together are neighbours in a chunk's encoding too, and
then it is the byte-pair encoding of the whole. (The first merge across a border of two tokens would have happened in
the chunk that holds both.) `tokenizers` alone needs some 10 GB for
100 MB of one letter and refuses ten million blanks in a row.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, pre_tokenizers

Bytes = NDArray[np.uint8]
Ids = NDArray[np.uint32]

# A piece is at most so long; where no certain cut is found in it, a window of text is split to find one.
PIECE_BYTES, WINDOW_BYTES = 1 << 20, 1 << 16
# A long pre-token is encoded in chunks, and their last tokens are encoded again with what follows.
CHUNK_BYTES, OVERLAP_BYTES = 1 << 14, 1 << 10
# Ends of a chunk that are tried until the next chunk begins with the same token.
TRIED_ENDS = 64

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
# Patterns for which the cuts below are proven, and whether line ends go with what stands before them.
PATTERNS = {GPT2: False, QWEN2: True, CL100K: True}
_RUNS = r"\p{L}+|\p{N}+|\s+|[^\s\p{L}\p{N}]+"

# What \s matches; Python's own idea of white space has U+001C to U+001F beside it.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_OTHER, _WORD, _BREAK = 0, 1, 2
_CLASSES = np.zeros(256, np.uint8)
_CLASSES[:128] = _BREAK
_CLASSES[[ord("'"), *range(48, 58), *range(65, 91), *range(97, 123)]] = [_OTHER] + [_WORD] * 62


class Piece(NamedTuple):
    """Bytes [begin, end) of a document; `run` if they are one pre-token, `blank` if that is white space."""

    begin: int
    end: int
    run: bool = False
    blank: bool = False


class Cutter:
    """Cuts documents for one pattern of PATTERNS."""

    def __init__(self, pattern: str) -> None:
        self._takes_line_ends = PATTERNS[pattern]
        self._split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        self._runs = pre_tokenizers.Split(Regex(_RUNS), behavior="isolated")
        self._no_word = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}]"), behavior="removed")

    def pieces(self, data: Bytes) -> Iterator[Piece]:
        """The pieces of a document's UTF-8, in order and end to end."""
        begin = 0
        while begin < len(data):
            rest = len(data) - begin
            end = len(data) if rest <= PIECE_BYTES else begin + _certain_cut(data[begin : begin + PIECE_BYTES])
            piece = Piece(begin, end) if end > begin else self._searched(data, begin)
            yield piece
            begin = piece.end

    def _searched(self, data: Bytes, begin: int) -> Piece:
        """The next piece where no cut is certain by its bytes: the pre-tokens of a window but for the last ones.

        A match looks no further than the first character that is neither white space nor part of its own run, so all
        are certain that end before the last pre-token which holds such a character begins. The piece ends with the one
        before it that holds such a character: white space behind that would be split otherwise without what follows
        (two blanks before a number are two pre-tokens, at the end of a text one).
        """
        end = _character_start(data, min(begin + WINDOW_BYTES, len(data)))
        found = [text for text, _ in self._split.pre_tokenize_str(_text(data, begin, end))]
        solid = [number for number, text in enumerate(found) if text.strip(_BLANKS)]
        if len(solid) > 1:
            return Piece(begin, begin + sum(len(text.encode()) for text in found[: solid[-2] + 1]))
        if not solid:
            return self._blanks(data, begin, end)
        if solid[0] > 0:
            return Piece(begin, begin + len(found[0].encode()), run=True, blank=True)
        if len(found) > 1:
            return Piece(begin, begin + len(found[0].encode()))
        return self._run(data, begin, end)

    def _run(self, data: Bytes, begin: int, end: int) -> Piece:
        """A pre-token that is not white space and may go on behind `end`."""
        last = self._runs.pre_tokenize_str(_text(data, begin, end))[-1][0]
        if last.strip(_BLANKS):
            end = self._run_end(data, end)
        if self._takes_line_ends and self._no_word.pre_tokenize_str(last[-1]):
            end = _line_ends_end(data, end)
        return Piece(begin, end, run=True)

    def _blanks(self, data: Bytes, begin: int, end: int) -> Piece:
        """A pre-token at the head of a run of white space."""
        end = self._run_end(data, end)
        if self._takes_line_ends and (line_end := _last_line_end(data, begin, end)) >= 0:
            return Piece(begin, line_end + 1, run=True, blank=True)
        if end < len(data):  # the last one goes with what follows
            end = _character_start(data, end - 1)
        return Piece(begin, end, run=True, blank=True)

    def _run_end(self, data: Bytes, end: int) -> int:
        """Where the run of letters, numbers, white space or others ends whose last known byte is at end - 1."""
        while end < len(data):
            begin = _character_start(data, end - 1)
            stop = _character_start(data, min(end + WINDOW_BYTES, len(data)))
            run = self._runs.pre_tokenize_str(_text(data, begin, stop))[0][0]
            end = begin + len(run.encode())
            if end < stop:
                break
        return end


def cutter_of(settings: Mapping[str, Any]) -> Cutter | None:
    """The cutter for the contents of a `tokenizer.json`; None if cutting is not proven to keep its ids."""
    model, added = settings["model"], settings.get("added_tokens") or []
    plain = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    odd = settings.get("normalizer") or model["type"] != "BPE" or any(model.get(name) for name in plain)
    if odd or any(not token["special"] for token in added):
        return None
    pattern = _pattern(settings.get("pre_tokenizer") or {})
    return Cutter(pattern) if pattern in PATTERNS else None


def unsplit(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that takes every text as one pre-token."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    copy.encode_special_tokens = True
    return copy


def token_sizes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of each token by its id: a byte-level token has a character a byte."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    sizes = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
    sizes[list(vocabulary.values())] = [len(token) for token in vocabulary]
    return sizes


def run_ids(data: Bytes, encode: Callable[[Bytes], Ids], sizes: NDArray[np.int64]) -> Iterator[Ids]:
    """The ids of one long pre-token, in parts.

    Args:
        data: its UTF-8.
        encode: ids of a part of it, taken as one pre-token.
        sizes: bytes of each token by its id.
    """
    chunk_bytes = max(CHUNK_BYTES, 4 * int(sizes.max()))
    begin, end = 0, _character_start(data, min(chunk_bytes, len(data)))
    ids = encode(data[:end])
    while end < len(data):
        starts = begin + np.cumsum(sizes[ids]) - sizes[ids]
        for number in _ends(data, starts, end - max(OVERLAP_BYTES, chunk_bytes // 16)):
            next_begin = int(starts[number])
            next_end = _character_start(data, min(next_begin + chunk_bytes, len(data)))
            following = encode(data[next_begin:next_end])
            if following[0] == ids[number]:
                yield ids[:number]
                begin, end, ids = next_begin, next_end, following
                break
        else:  # a vocabulary whose tokens depend on what is far away: a longer chunk, at worst the whole
            chunk_bytes *= 2
            end = _character_start(data, min(begin + chunk_bytes, len(data)))
            ids = encode(data[begin:end])
    yield ids


def _ends(data: Bytes, starts: NDArray[np.int64], last: int) -> NDArray[np.int64]:
    """Numbers of the tokens at which a chunk may end, best first: those that begin a character at or before `last`."""
    allowed = np.flatnonzero((data[starts] & 0xC0) != 0x80)
    allowed = allowed[allowed > 0]
    early = allowed[starts[allowed] <= last][::-1]
    return np.concatenate([early, allowed[starts[allowed] > last]])[:TRIED_ENDS]


def _pattern(settings: Mapping[str, Any]) -> str | None:
    """The pattern by which a pre-tokenizer splits, if it does nothing else."""
    steps = settings.get("pretokenizers", [settings])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return GPT2 if last["use_regex"] else None
    first = steps[0]
    split = first.get("type") == "Split" and first["behavior"] == "Isolated" and not first["invert"]
    known = len(steps) == 2 and split and not last["use_regex"]
    return str(first["pattern"].get("Regex")) if known else None


def _certain_cut(window: Bytes) -> int:
    """The last place in a window that every pattern splits at, whatever stands around; 0 if there is none.

    That is one between an ASCII letter or digit and an ASCII character that is neither, nor an apostrophe: no
    alternative of a pattern spans it, and none looks across it.
    """
    for size in (min(1 << 12, len(window)), len(window)):
        first = len(window) - size
        classes = _CLASSES[window[first:]]
        cuts = np.flatnonzero((classes[:-1] == _WORD) & (classes[1:] == _BREAK))
        if len(cuts):
            return first + int(cuts[-1]) + 1
    return 0


def _character_start(data: Bytes, place: int) -> int:
    """The nearest place at or before `place` where a character begins; the end of the data is one."""
    while place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def _last_line_end(data: Bytes, begin: int, end: int) -> int:
    """The last place in [begin, end) with a line's end; -1 if there is none."""
    while end > begin:
        first = max(begin, end - PIECE_BYTES)
        found = np.flatnonzero((data[first:end] == 10) | (data[first:end] == 13))
        if len(found):
            return first + int(found[-1])
        end = first
    return -1


def _line_ends_end(data: Bytes, begin: int) -> int:
    """Where the line ends that stand at `begin` end."""
    while begin < len(data):
        window = data[begin : begin + PIECE_BYTES]
        others = np.flatnonzero((window != 10) & (window != 13))
        if len(others):
            return begin + int(others[0])
        begin += len(window)
    return begin


def _text(data: Bytes, begin: int, end: int) -> str:
    return data[begin:end].tobytes().decode()
