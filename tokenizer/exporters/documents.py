"""What every exporter reads: the documents of a split, a record batch at a time, with progress."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.file_ids import Ids, ids_of_column
from tokenizer.progress import told
from tokenizer.shard_index import ShardIndex, TokenArray
from tokenizer.token_stream import document_offsets, flat_tokens, open_shard


class Documents(NamedTuple):
    """Some documents: document i is `tokens[offsets[i]:offsets[i + 1]]`, a view of a memory map."""

    tokens: TokenArray
    offsets: NDArray[np.int64]
    file_ids: Ids


def documents(folder: Path, index: ShardIndex, split: str) -> Iterator[Documents]:
    """All documents of a split in the order of the index; memory is what of one record batch is read."""
    shards = index.of_split(split)
    for shard in told(shards, f"export: shards of {split}", len(shards)):
        for batch in open_shard(folder, shard):
            yield Documents(flat_tokens(batch), document_offsets(batch), ids_of_column(batch.column("file_id")))
