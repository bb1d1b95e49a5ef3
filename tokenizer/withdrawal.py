"""Withdrawing files from finished shards: what is left is, byte for byte, what would have been written without them
(by repository: but for the name before a withdrawn first file, and the end of the text behind a last one).

Only the shards that hold a withdrawn file are written again, under new names (`….r0001.arrow` is of revision 1). Then
come the receipt, the new index, which is the moment that counts, and at last the removal of the old shards. Killed
anywhere, the folder is that of the old index or of the new one; the same command again finishes the work.
"""

import datetime
import fcntl
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from tokenizer.file_ids import Ids, hex_of, ids_of_column
from tokenizer.places import Place, places
from tokenizer.progress import told
from tokenizer.receipts import write_receipt
from tokenizer.shard_checks import strays
from tokenizer.shard_index import INDEX_NAME, Shard, ShardIndex, flush
from tokenizer.shards import ShardWriter
from tokenizer.token_stream import document_offsets, flat_tokens, open_shard, verify_shard

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PARTIAL = ".forget"
_FILE_SEPARATOR = "<file_sep>"


@dataclass
class Withdrawal:
    """What is to go: the places of the withdrawn files that are there, by the name of their shard."""

    folder: Path
    index: ShardIndex
    wanted: Ids
    places: dict[str, list[Place]]

    @property
    def found(self) -> list[Place]:
        return [place for there in self.places.values() for place in there]

    @property
    def tokens(self) -> int:
        return sum(place.end - place.begin for place in self.found)


def planned(folder: Path, index: ShardIndex, wanted: Ids) -> Withdrawal:
    """Look for the wanted files; nothing is changed. Memory: some 200 bytes a withdrawn file that is there."""
    grouped = itertools.groupby(places(folder, index, wanted), key=lambda place: place.shard.name)
    return Withdrawal(folder, index, wanted, {name: list(there) for name, there in grouped})


def withdraw(plan: Withdrawal, request: Mapping[str, Any]) -> Path | None:
    """Carry the plan out, and remove what an earlier one left that was killed; the receipt, if anything changed.

    Args:
        plan: of the present index.
        request: what the user named, for the receipt.
    """
    folder, index = plan.folder, plan.index
    receipt = None
    if plan.places:
        revision = index.revision + 1
        touched = [shard for shard in index.shards if shard.name in plan.places]
        tokenizer = _tokenizer(folder, index)
        renewed = {}
        for shard in told(touched, "forget: shards", len(touched)):
            renewed[shard.name] = _rewritten(folder, shard, plan.places[shard.name], index, tokenizer)
        flush(folder)
        shards = tuple(new for shard in index.shards if (new := renewed.get(shard.name, shard)))
        gone = index.withdrawn_files + len(plan.found)
        index = replace(index, shards=shards, revision=revision, withdrawn_files=gone)
        receipt = write_receipt(folder, revision, _facts(plan, index, renewed, request), _files(plan))
        index.save(folder)
    for name in strays(folder, index):
        if not name.startswith("_") or name.endswith(_PARTIAL):
            (folder / name).unlink()
    return receipt


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep all else that changes shards out of a folder while the block runs; ValueError if there is a first."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"{folder} is being changed by another run; wait until it is done") from None
    finally:
        os.close(descriptor)


def _rewritten(
    folder: Path, shard: Shard, gone: list[Place], index: ShardIndex, tokenizer: "Tokenizer"
) -> Shard | None:
    """Write a shard without some rows; its new entry, or None if no row is left."""
    verify_shard(folder, shard)
    if len(gone) == shard.rows:
        return None
    name = re.sub(r"(\.r\d+)?\.arrow$", f".r{index.revision + 1:04d}.arrow", shard.name)
    partial, dropped, first_row, gone_bytes = folder / f"_{name}{_PARTIAL}", {place.row for place in gone}, 0, 0
    with partial.open("wb") as sink:
        writer = ShardWriter(sink, index.vocab_size)
        for batch in open_shard(folder, shard):
            tokens, offsets = flat_tokens(batch), document_offsets(batch).tolist()
            file_ids = ids_of_column(batch.column("file_id"))
            for row, (begin, end) in enumerate(itertools.pairwise(offsets)):
                if first_row + row in dropped:
                    gone_bytes += _text_bytes(tokens[begin:end].tolist(), tokenizer)
                else:
                    writer.append(tokens[begin:end], file_ids[row : row + 1].tobytes(), 0)
            first_row += batch.num_rows
        entry = writer.close(name, shard.split)
        sink.flush()
        os.fsync(sink.fileno())
    partial.replace(folder / name)
    return replace(entry, text_bytes=shard.text_bytes - gone_bytes)


def _text_bytes(ids: list[int], tokenizer: "Tokenizer") -> int:
    """UTF-8 bytes of a document's text, without the names of repository and path that may stand before it."""
    separator = tokenizer.token_to_id(_FILE_SEPARATOR)
    if separator is None or separator not in ids:
        return len(tokenizer.decode(ids, skip_special_tokens=True).encode())
    text: str = tokenizer.decode(ids[ids.index(separator) + 1 :], skip_special_tokens=True)
    return len(text.partition("\n")[2].encode())


def _tokenizer(folder: Path, index: ShardIndex) -> "Tokenizer":
    """The tokenizer beside the shards, which tells how many bytes of text a withdrawn document had."""
    from tokenizer.encode import read_tokenizer

    path = folder / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; put the tokenizer of these shards there")
    tokenizer = read_tokenizer(path)
    if tokenizer.get_vocab_size(with_added_tokens=True) != index.vocab_size:
        raise ValueError(f"{path} is not the tokenizer of these shards, which has {index.vocab_size} entries")
    return tokenizer


def _facts(
    plan: Withdrawal, index: ShardIndex, renewed: Mapping[str, Shard | None], request: Mapping[str, Any]
) -> dict[str, Any]:
    old = {shard.name: shard for shard in plan.index.shards}
    shards = [
        {
            "old": name,
            "old_xxh3_128": old[name].xxh3_128,
            "new": new.name if new else None,
            "new_xxh3_128": new.xxh3_128 if new else None,
            "files_removed": len(plan.places[name]),
            "tokens_removed": sum(place.end - place.begin for place in plan.places[name]),
        }
        for name, new in renewed.items()
    ]
    found = np.unique([place.wanted for place in plan.found])
    return {
        "request": dict(request),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "index_old_xxh3_128": xxhash.xxh3_128_hexdigest((plan.folder / INDEX_NAME).read_bytes()),
        "index_new_xxh3_128": xxhash.xxh3_128_hexdigest(index.encoded()),
        "shards": shards,
        "files_removed": len(plan.found),
        "tokens_removed": plan.tokens,
        "files_not_in_the_shards": len(plan.wanted) - len(found),
    }


def _files(plan: Withdrawal) -> Iterator[dict[str, Any]]:
    for place in plan.found:
        file_id = hex_of(plan.wanted[place.wanted : place.wanted + 1])[0]
        yield {"file_id": file_id, "shard": place.shard.name, "row": place.row, "tokens": [place.begin, place.end]}
