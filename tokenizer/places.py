"""Where files are in the shards: shard, row, range of tokens. Reads the ids of shard after shard, and no tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizer.file_ids import Ids, ids_of_column, member_places
from tokenizer.progress import told
from tokenizer.shard_index import Shard, ShardIndex
from tokenizer.token_stream import document_offsets, open_shard


class Place(NamedTuple):
    """One document. `begin` and `end` count tokens of the shard, `split_begin` those of its split before it.

    Training sequence w of T tokens reads the tokens [w·T, w·T + T] of the split.
    """

    wanted: int  # its number among the ids that were asked for
    shard: Shard
    row: int
    begin: int
    end: int
    split_begin: int


def places(folder: Path, index: ShardIndex, wanted: Ids) -> Iterator[Place]:
    """Every place of the wanted files (sorted, distinct ids), in the order of the index."""
    before: dict[str, int] = {}
    for shard in told(index.shards, "looking through shards", len(index.shards)):
        first_row = first_token = 0
        for batch in open_shard(folder, shard):
            rows, numbers = member_places(ids_of_column(batch.column("file_id")), wanted)
            offsets = document_offsets(batch)
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                begin, end = first_token + int(offsets[row]), first_token + int(offsets[row + 1])
                yield Place(number, shard, first_row + row, begin, end, before.get(shard.split, 0) + begin)
            first_row, first_token = first_row + batch.num_rows, first_token + int(offsets[-1])
        before[shard.split] = before.get(shard.split, 0) + shard.tokens
