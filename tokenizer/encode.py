"""Documents to token ids. The text of a special token in a document is plain text and never becomes its id."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

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


class Encoder:
    """Encodes with the `tokenizer.json` of a folder; ValueError if it has none or lacks `<|endoftext|>`."""

    def __init__(self, folder: str | Path) -> None:
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

    def encode(self, texts: pa.Array) -> list[NDArray[np.uint32]]:
        """The ids of each document of a string column, each ended by `<|endoftext|>`."""
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        return [np.array([*encoding.ids, self.end_of_text_id], np.uint32) for encoding in encodings]

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of a document's ids, without the special tokens."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text
