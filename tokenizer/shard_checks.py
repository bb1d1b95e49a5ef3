"""Whether a folder of shards is what its index says, and holds each kept file once.

What is checked of a shard: size, checksum, columns, rows, tokens, ids below the vocabulary, file ids of 16 bytes.
Memory is a record batch's pages and one pile of ids (file_ids.py), however many documents there are.
"""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from tokenizer.file_ids import Ids, Piles, as_ids, doubles_in, hex_of, ids_of_column, member_places
from tokenizer.ledger_rows import Ledger
from tokenizer.progress import told
from tokenizer.receipts import withdrawn_ids
from tokenizer.shard_index import Shard, ShardIndex, shard_schema
from tokenizer.token_stream import flat_tokens, open_shard, verify_shard

EXAMPLES = 5
# What write_shards and forget call shards, and what an attempt of theirs that was killed leaves.
_SHARD_NAME = re.compile(r"_?[a-z]+-\d+-of-\d+[^/]*\.arrow(\..+)?|_unfinished|.+\.partial")


@dataclass
class Findings:
    """What is wrong: broken shards with the reason, files that no index entry names, and sets of file ids."""

    broken: dict[str, str] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    files: int = 0

    @property
    def sound(self) -> bool:
        return not (self.broken or self.strays or self.counts)

    def add_ids(self, fault: str, ids: Ids) -> None:
        """Count ids under a fault, and keep some as examples."""
        if len(ids):
            self.counts[fault] = self.counts.get(fault, 0) + len(ids)
            examples = self.examples.setdefault(fault, [])
            examples += hex_of(ids[: EXAMPLES - len(examples)])

    def lines(self, limit: int = 20) -> list[str]:
        """One line a finding, at most `limit` of broken shards and of strays each."""
        found = _first([f"  broken: {reason}" for reason in self.broken.values()], limit)
        found += _first([f"  stray: {name} is in no entry of the index" for name in self.strays], limit)
        for fault, count in self.counts.items():
            found.append(f"  {count:,} file(s) {fault}: {', '.join(self.examples[fault])}{' …' * (count > EXAMPLES)}")
        return found


def check(folder: Path, index: ShardIndex, ledger: Ledger | None = None, scratch: str | None = None) -> Findings:
    """Check every shard, then that no file is there twice and, with a ledger, that every kept file is there.

    Args:
        folder: of the shards.
        index: its index.
        ledger: the one that the shards were made from.
        scratch: folder for 16 bytes a document, twice that with a ledger; the system's own if not named.
    """
    findings = Findings(strays=strays(folder, index))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="corella-") as place:
        files = sum(shard.rows for shard in index.shards)
        piles = Piles(Path(place), max(files, ledger.row_count if ledger else 0))
        for shard in told(index.shards, "verify: shards", len(index.shards)):
            try:
                check_shard(folder, shard, index, piles)
            except (ValueError, OSError, pa.ArrowException) as error:
                findings.broken[shard.name] = " ".join(str(error).split())
        if ledger and not findings.broken:
            for ids in ledger.kept_ids():
                piles.add("ledger", ids)
            for rows in withdrawn_ids(folder, index.revision):
                piles.add("withdrawn", as_ids(rows.tobytes()))
        for number in range(piles.count):
            _compare(piles, number, bool(ledger) and not findings.broken, findings)
    return findings


def check_shard(folder: Path, shard: Shard, index: ShardIndex, piles: Piles) -> None:
    """ValueError tells what is wrong with a shard; the ids of a sound one are added to the piles."""
    verify_shard(folder, shard)
    path, rows, tokens, ids = folder / shard.name, 0, 0, []
    for batch in open_shard(folder, shard):
        if batch.schema != shard_schema(index.vocab_size):
            raise ValueError(f"shard {path} has other columns than the format: {batch.schema.to_string()}")
        batch.validate(full=True)
        flat = flat_tokens(batch)
        if len(flat) and int(flat.max()) >= index.vocab_size:
            raise ValueError(f"shard {path} has the id {flat.max()}, outside the vocabulary of {index.vocab_size}")
        rows, tokens = rows + batch.num_rows, tokens + len(flat)
        ids.append(ids_of_column(batch.column("file_id")))
    for what, there, told_ in (("rows", rows, shard.rows), ("tokens", tokens, shard.tokens)):
        if there != told_:
            raise ValueError(f"shard {path} has {there:,} {what}, the index says {told_:,}")
    for part in ids:
        piles.add("shards", part)


def strays(folder: Path, index: ShardIndex) -> list[str]:
    """Files of a shard's or an unfinished shard's name that the index does not know, sorted."""
    known = {shard.name for shard in index.shards}
    names = (path.name for path in folder.iterdir() if path.is_file())
    return sorted(name for name in names if _SHARD_NAME.fullmatch(name) and name not in known)


def _compare(piles: Piles, number: int, with_ledger: bool, findings: Findings) -> None:
    there = piles.read(number, "shards")
    findings.add_ids("in the shards more than once", doubles_in(there))
    findings.files += len(there)
    if not with_ledger:
        return
    kept, withdrawn = piles.read(number, "ledger"), piles.read(number, "withdrawn")
    findings.add_ids("in the ledger more than once", doubles_in(kept))
    findings.add_ids("in the shards and not kept by the ledger", _without(there, kept))
    findings.add_ids("kept by the ledger and in no shard", _without(_without(kept, there), withdrawn))
    findings.add_ids("withdrawn and in the shards", _without(withdrawn, _without(withdrawn, there)))


def _without(ids: Ids, others: Ids) -> Ids:
    """The ids of a sorted array that are not in another one."""
    rows, _ = member_places(ids, others)
    return np.delete(ids, rows)


def _first(lines: list[str], limit: int) -> list[str]:
    return lines[:limit] + ([f"  … and {len(lines) - limit:,} more"] if len(lines) > limit else [])
