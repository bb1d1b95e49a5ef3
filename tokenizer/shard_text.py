"""What is told of shards: a summary by split, a document's text, the places of files."""

from collections.abc import Iterator
from pathlib import Path

from tokenizer.file_ids import Ids, hex_of
from tokenizer.ledger_rows import Ledger, LedgerFile
from tokenizer.places import places
from tokenizer.shard_index import ShardIndex, token_dtype
from tokenizer.token_stream import flat_tokens, open_shard


def summary(index: ShardIndex) -> str:
    """The index in lines: the data set, then a line a split."""
    lines = [
        f"format version {index.format_version}, revision {index.revision}",
        f"tokenizer {index.tokenizer_fingerprint}: {index.vocab_size:,} entries, {token_dtype(index.vocab_size)}, "
        f"a text ends with {index.end_of_text_id}",
    ]
    splits = dict.fromkeys(shard.split for shard in index.shards)
    lines += [f"{line}   {index.fingerprint(split)}" for split, line in zip(splits, split_lines(index), strict=True)]
    return "\n".join(lines)


def split_lines(index: ShardIndex) -> list[str]:
    """Shards, documents, tokens and bytes a token of each split."""
    lines = []
    for split in dict.fromkeys(shard.split for shard in index.shards):
        shards = index.of_split(split)
        rows, tokens = sum(shard.rows for shard in shards), sum(shard.tokens for shard in shards)
        text = sum(shard.text_bytes for shard in shards)
        lines.append(
            f"  {split:<12}{len(shards):>6,} shard(s) {rows:>13,} documents {tokens:>17,} tokens "
            f"{text / max(tokens, 1):>6.2f} bytes a token"
        )
    return lines


def document_text(folder: Path, index: ShardIndex, name: str, row: int) -> str:
    """The text of one document, without special tokens; ValueError if there is no such shard or row."""
    from tokenizer.encode import read_tokenizer

    path = folder / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; put the tokenizer of these shards there")
    shard = next((shard for shard in index.shards if shard.name == name), None)
    if shard is None:
        raise ValueError(f"{folder} has no shard {name!r}; its first is {index.shards[0].name}")
    if not 0 <= row < shard.rows:
        raise ValueError(f"row {row} is outside the {shard.rows} rows of {name}")
    for batch in open_shard(folder, shard):
        if row < batch.num_rows:
            tokens = flat_tokens(batch.slice(row, 1))
            text: str = read_tokenizer(path).decode(tokens.tolist(), skip_special_tokens=True)
            return text
        row -= batch.num_rows
    raise ValueError(f"{name} has fewer rows than the index says; verify the shards")


def found_lines(folder: Path, index: ShardIndex, wanted: Ids, ledger: str | None) -> Iterator[tuple[str, bool]]:
    """A line a place, then a line for each file that has none; with it, whether it is a place."""
    known: dict[bytes, LedgerFile] = {}
    if ledger is not None:
        known = {file.file_id: file for file in Ledger(ledger).files(wanted)}
    found = set()
    for place in places(folder, index, wanted):
        file_id = wanted[place.wanted : place.wanted + 1]
        found.add(place.wanted)
        shard = place.shard
        where = f"{shard.name}, row {place.row}, tokens {place.begin} to {place.end}"
        where += f"; from token {place.split_begin} of {shard.split}"
        yield f"{_named(file_id, known)}: {where}", True
    for number in range(len(wanted)):
        if number not in found:
            file_id = wanted[number : number + 1]
            file = known.get(file_id.tobytes())
            yield f"{_named(file_id, known)}: in no shard" + (f"; the ledger says {file.state}" if file else ""), False


def _named(file_id: Ids, known: dict[bytes, LedgerFile]) -> str:
    file = known.get(file_id.tobytes())
    name = hex_of(file_id)[0]
    return f"{name} {file.repo}/{file.path}" if file else name
