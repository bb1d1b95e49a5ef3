"""Documents to token ids, identical to those of `tokenizers`, at the speed of gigatoken where that is installed.

The text of a special token in a document is plain text and never becomes its id. gigatoken would make it one, so it
gets a copy of the tokenizer without added tokens; what it returns is compared with `tokenizers` on the first
documents of every encoder, and `tokenizers` takes over for good where they differ.
"""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

log = logging.getLogger("corella")

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# Fill-in-the-middle and repository tokens by the names that StarCoder gave them.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<repo_name>",
    "<file_sep>",
)


# Documents, and bytes of each, that are encoded twice when an encoder starts.
CHECKED_DOCUMENTS, CHECKED_BYTES = 16, 1 << 16

Ids = NDArray[np.uint32]


class Encoder:
    """Encodes with the `tokenizer.json` of a folder; ValueError if it has none or lacks `<|endoftext|>`.

    Args:
        folder: holds `tokenizer.json`.
        fast: use gigatoken if it is there and takes this tokenizer; the ids are the same without, some 80 times
            slower.
    """

    def __init__(self, folder: str | Path, *, fast: bool = True) -> None:
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {TOKENIZER_FILE}")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise ValueError(f"{path} has no token {END_OF_TEXT}, which ends every document")
        self.end_of_text_id: int = end
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.fingerprint: str = xxhash.xxh3_128_hexdigest(path.read_bytes())
        self._fast = _gigatoken(path) if fast else None
        self._unchecked = CHECKED_DOCUMENTS

    def encode(self, texts: pa.Array) -> list[Ids]:
        """The ids of each document of a string column, each ended by `<|endoftext|>`."""
        if self._fast is not None and self._unchecked:
            self._check(texts)
        if self._fast is None:
            return [self._ended(np.array(ids, np.uint32)) for ids in self._exact(texts.to_pylist())]
        return [self._ended(ids) for ids in _fast_ids(self._fast, texts)]

    def decode(self, ids: Ids) -> str:
        """The text of a document's ids, without the special tokens."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text

    def _ended(self, ids: Ids) -> Ids:
        return np.append(ids, np.uint32(self.end_of_text_id))

    def _exact(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _check(self, texts: pa.Array) -> None:
        """Compare both on the first documents that are not too long to encode twice."""
        short = [text for text in texts.slice(0, self._unchecked).to_pylist() if len(text) <= CHECKED_BYTES]
        self._unchecked -= min(self._unchecked, len(texts))
        fast = _fast_ids(self._fast, pa.array(short, pa.large_string()))
        if any(list(ids) != exact for ids, exact in zip(fast, self._exact(short), strict=True)):
            log.warning("gigatoken's ids differ from tokenizers'; tokenizers encodes this run, slower")
            self._fast = None


def _gigatoken(path: Path) -> Any:
    """gigatoken's tokenizer without added tokens; None if it is not installed or does not take this one."""
    try:
        import gigatoken
    except ImportError:
        return None
    plain = {**json.loads(path.read_text()), "added_tokens": [], "post_processor": None}
    try:
        return gigatoken.Tokenizer.from_json(json.dumps(plain))
    except (ValueError, NotImplementedError) as error:
        log.warning("gigatoken does not take this tokenizer (%s); tokenizers encodes, slower", error)
        return None


def _fast_ids(tokenizer: Any, texts: pa.Array) -> list[Ids]:
    contents = texts.cast(pa.large_binary()).to_pylist()
    lists = tokenizer.encode_batch(contents, parallel=False).layout
    ids, bounds = np.asarray(lists.content.data), np.asarray(lists.offsets.data)
    return [ids[begin:end] for begin, end in pairwise(bounds)]
