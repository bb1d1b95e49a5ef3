"""Documents to token ids, identical to those of `tokenizers`, at the speed of gigatoken where that is installed.

The text of a special token in a document is plain text and never becomes its id. What gigatoken returns is compared
with `tokenizers` on the first documents of every encoder and on a share of all later ones. A document that it refuses
goes to `tokenizers`; where ids differ `tokenizers` decides, encodes the batch and all that follow, and the difference
is counted. Documents above LONG_BYTES are encoded in pieces: memory is some pieces and the ids.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from tokenizers import Tokenizer

from tokenizer.fast_encoding import Bounds, Bytes, FastEncoder, Ids, RefusedError, fast_encoder
from tokenizer.long_documents import PIECE_BYTES, cutter_of, run_ids, token_sizes, unsplit

log = logging.getLogger("corella")

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
REPOSITORY_NAME, FILE_SEPARATOR = "<repo_name>", "<file_sep>"
# Fill-in-the-middle and repository tokens by the names that StarCoder gave them.
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<fim_prefix>", "<fim_middle>", "<fim_suffix>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    FIM_PREFIX,
    FIM_MIDDLE,
    FIM_SUFFIX,
    "<fim_pad>",
    REPOSITORY_NAME,
    FILE_SEPARATOR,
)
# What encoders need (tokenizer/train.py --sentinels), by the names of BERT's and T5's.
MASK = "<mask>"


def sentinel(number: int) -> str:
    """The token that stands for hidden run `number` of a text."""
    return f"<extra_id_{number}>"


# Documents above this are cut.
LONG_BYTES = PIECE_BYTES
# Text that is encoded twice: so many bytes when an encoder starts, and later one in so many, some documents at a time
# (tokenizers takes 80 times as long, so that one in 2,048 costs 4 %). Documents above the last are not.
CHECKED_AT_START_BYTES, CHECKED_ONE_IN, CHECKED_BYTES, CHECKED_DOCUMENT_BYTES = 1 << 16, 2048, 1 << 12, 1 << 14
# What is counted, and how it is told.
COUNTS = {
    "compared": "documents encoded twice and compared",
    "differing": "documents to which gigatoken gave other ids than tokenizers, which decided",
    "refused": "documents refused by gigatoken and encoded by tokenizers",
    "exact": "documents encoded by tokenizers in all",
    "long": "documents encoded in pieces",
}


class Encoded(NamedTuple):
    """Ids of documents end to end, and the n + 1 bounds of the documents in them."""

    ids: Ids
    bounds: Bounds

    def ended(self, end_id: int) -> "Encoded":
        """The same with one id after every document."""
        count = len(self.bounds) - 1
        bounds = self.bounds + np.arange(count + 1)
        ids = np.empty(len(self.ids) + count, self.ids.dtype)
        ends = np.zeros(len(ids), bool)
        ends[bounds[1:] - 1] = True
        ids[ends], ids[~ends] = end_id, self.ids
        return Encoded(ids, bounds)


class Encoder:
    """Encodes with the `tokenizer.json` of a folder; ValueError if that is not whole, or lacks `<|endoftext|>`.

    Args:
        folder: holds `tokenizer.json`.
        fast: use gigatoken if it is there and takes this tokenizer; the ids are the same without, some 80 times
            slower.
    """

    def __init__(self, folder: str | Path, *, fast: bool = True) -> None:
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {TOKENIZER_FILE}")
        self._tokenizer = read_tokenizer(path)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise ValueError(f"{path} has no token {END_OF_TEXT}, which ends every document")
        self.end_of_text_id: int = end
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(len(vocabulary), max(vocabulary.values()) + 1)  # ids may have gaps
        self.fingerprint: str = xxhash.xxh3_128_hexdigest(path.read_bytes())
        settings = json.loads(path.read_text())
        self._fast: FastEncoder | None = fast_encoder(settings) if fast else None
        self._cutter = cutter_of(settings)
        self._unsplit: Tokenizer | None = None
        self._to_check: float = CHECKED_AT_START_BYTES
        self.counts: Counter[str] = Counter()

    def encode(self, texts: pa.Array) -> list[Ids]:
        """The ids of each document of a string column, each ended by `<|endoftext|>`."""
        ids, bounds = self.encode_batch(texts).ended(self.end_of_text_id)
        return [ids[begin:end] for begin, end in pairwise(bounds)]

    def encode_batch(self, texts: pa.Array) -> Encoded:
        """The ids of all documents of a string column; null is an empty document. What happened goes to `counts`."""
        data, bounds = _buffers(texts)
        sizes = np.diff(bounds)
        parts, first = [], 0
        for number in [*np.flatnonzero(sizes > LONG_BYTES).tolist(), len(sizes)]:
            parts.append(self._batch(data, bounds[first : number + 1]))
            if number < len(sizes):
                parts.append(self._long(data[bounds[number] : bounds[number + 1]]))
            first = number + 1
        return _joined(parts)

    def special_ids(self) -> Ids:
        """The ids of all special tokens: what ends or divides documents, and what objectives put between tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return np.array(sorted(number for number, token in added.items() if token.special), np.uint32)

    def id_of(self, special: str) -> int:
        """The id of a special token; ValueError if the tokenizer has none of that name."""
        found = self._tokenizer.token_to_id(special)
        if found is None:
            option = " --sentinels N" if special == MASK or special.startswith("<extra_id_") else ""
            raise ValueError(f"the tokenizer has no token {special}; train one with tokenizer/train.py{option}")
        return int(found)

    def decode(self, ids: Ids) -> str:
        """The text of a document's ids, without the special tokens."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text

    def _batch(self, data: Bytes, bounds: Bounds) -> Encoded:
        """Documents that are not long."""
        if len(bounds) == 1:
            return Encoded(np.empty(0, np.uint32), np.zeros(1, np.int64))
        if self._fast is None:
            return self._exact(data, bounds)
        try:
            found = Encoded(*self._fast.encode(data, bounds))
        except RefusedError as error:
            log.warning("gigatoken refuses %d document(s): %s", len(bounds) - 1, error)
            return self._one_by_one(data, bounds)
        if self._agrees(data, bounds, found):
            return found
        log.warning("gigatoken's ids differ from tokenizers'; tokenizers encodes from here on, slower")
        self._fast = None
        return self._exact(data, bounds)

    def _one_by_one(self, data: Bytes, bounds: Bounds) -> Encoded:
        """Documents some of which the fast encoder refuses: these go to `tokenizers`."""
        assert self._fast is not None
        parts = []
        for begin, end in pairwise(bounds):
            one = np.array([begin, end], np.int64)
            try:
                parts.append(Encoded(*self._fast.encode(data, one)))
            except RefusedError:
                self.counts["refused"] += 1
                parts.append(self._exact(data, one))
        return _joined(parts)

    def _exact(self, data: Bytes, bounds: Bounds) -> Encoded:
        self.counts["exact"] += len(bounds) - 1
        lists = self._exact_ids([data[begin:end].tobytes().decode() for begin, end in pairwise(bounds)])
        ends = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return Encoded(np.concatenate([np.asarray(ids, np.uint32) for ids in lists]), ends)

    def _exact_ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _agrees(self, data: Bytes, bounds: Bounds, found: Encoded) -> bool:
        """Whether documents of a batch, where some are due, have `tokenizers`' ids; those that differ are counted."""
        self._to_check += (bounds[-1] - bounds[0]) / CHECKED_ONE_IN
        if self._to_check < CHECKED_BYTES:
            return True
        numbers = _sample(bounds, self._to_check)
        self._to_check -= np.diff(bounds)[numbers].sum()
        exact = self._exact_ids([data[bounds[at] : bounds[at + 1]].tobytes().decode() for at in numbers])
        pairs = zip(numbers, exact, strict=True)
        differing = sum(found.ids[found.bounds[at] : found.bounds[at + 1]].tolist() != ids for at, ids in pairs)
        self.counts.update(compared=len(numbers), differing=differing)
        return not differing

    def _long(self, data: Bytes) -> Encoded:
        """One long document, in pieces where that is proven to give the same ids."""
        whole = np.array([0, len(data)], np.int64)
        if self._cutter is None:
            return self._exact(data, whole)
        self.counts["long"] += 1
        parts: list[Ids] = []
        for begin, end, run, blank in self._cutter.pieces(data):
            if run:
                parts.extend(self._run(data[begin:end], blank))
            else:
                parts.append(self._batch(data, np.array([begin, end], np.int64)).ids)
        ids = np.concatenate(parts)
        return Encoded(ids, np.array([0, len(ids)], np.int64))

    def _run(self, data: Bytes, blank: bool) -> Iterator[Ids]:
        """One long pre-token. White space that is cut is split otherwise than the whole: not by gigatoken."""
        if self._unsplit is None:
            self._unsplit, self._sizes = unsplit(self._tokenizer), token_sizes(self._tokenizer)
        whole = self._unsplit

        def exact(part: Bytes) -> Ids:
            texts = [part.tobytes().decode()]
            return np.asarray(whole.encode_batch_fast(texts, add_special_tokens=False)[0].ids, np.uint32)

        def fast(part: Bytes) -> Ids:
            return self._batch(part, np.array([0, len(part)], np.int64)).ids

        return run_ids(data, exact if blank or self._fast is None else fast, self._sizes)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`; ValueError if `tokenizers` does not read it."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"{path} is no file that tokenizers reads: {error}") from None


def told(counts: Counter[str]) -> list[str]:
    """What an encoder counted, in lines."""
    return [f"{counts[name]:,} {words}" for name, words in COUNTS.items() if counts[name] or name == "differing"]


def _sample(bounds: Bounds, wanted_bytes: float) -> list[int]:
    """Numbers of documents to compare, of about so many bytes, chosen by their sizes alone; never a large one."""
    sizes = np.diff(bounds)
    fitting = np.flatnonzero((sizes > 0) & (sizes <= CHECKED_DOCUMENT_BYTES))
    start = xxhash.xxh3_64_intdigest(sizes.tobytes()) % max(len(fitting), 1)
    order = np.roll(fitting, -start)
    numbers: list[int] = order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted_bytes)) + 1].tolist()
    return numbers


def _joined(parts: list[Encoded]) -> Encoded:
    parts = [part for part in parts if len(part.bounds) > 1] or parts[:1]
    if len(parts) == 1:  # not copied: a document may be long
        return parts[0]
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    bounds = [part.bounds[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return Encoded(np.concatenate([part.ids for part in parts]), np.concatenate([*bounds, starts[-1:]]))


def _buffers(texts: pa.Array) -> tuple[Bytes, Bounds]:
    """The UTF-8 of a string column end to end, and the n + 1 bounds of its rows, without a copy; null is empty."""
    large = pc.fill_null(texts, "").cast(pa.large_string())
    _, offsets, data = large.buffers()
    bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), bounds
