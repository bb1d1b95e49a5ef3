"""What a model was trained on, for its card: splits, the funnel from files in to files kept, and their licences."""

import collections
import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.manifest import MANIFEST_NAME, identity
from tokenizer.shard_index import ShardIndex

if TYPE_CHECKING:
    from tokenizer.ledger_rows import Ledger

MOST_LICENCES, MOST_CHARACTERS = 15, 100
NO_LICENCE = "none known"
_MARKUP = re.compile(r"[|<>&\[\]\\`]")

Record = dict[str, Any]


def describe(index: ShardIndex, shards: Path, share: float = 1.0, name: str | None = None) -> Record:
    """What is known of a folder of shards that gives a run this share of its sequences: documents, tokens and bytes of
    text a split, how they were made and, where their ledger lies beside them, its funnel: files and bytes by state.

    `name` is told of a folder that is the copy of another.
    """
    splits: dict[str, dict[str, int]] = {}
    for shard in index.shards:
        sums = splits.setdefault(shard.split, {"documents": 0, "tokens": 0, "text_bytes": 0})
        sums["documents"] += shard.rows
        sums["tokens"] += shard.tokens
        sums["text_bytes"] += shard.text_bytes
    record: Record = {"folder": name or shards.name, "share": share, "splits": splits}
    record |= {"withdrawn_files": index.withdrawn_files, "configuration": index.configuration}
    made_from = index.configuration.get("inputs", {}).get("ledger")
    if made_from:
        record |= _states_of(shards / ".." / "ledger" / MANIFEST_NAME, made_from)
    return record


def _states_of(manifest: Path, made_from: str) -> Record:
    """The funnel of the ledger of this identity; empty where its manifest is not there, or is another's."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        ledger = json.loads(manifest.read_text())
        if identity(ledger) == made_from:
            return {"states": ledger["states"]}
    return {}


def of_workspace(records: Sequence[Record], workspace: Path) -> list[Record]:
    """The records, one a folder of shards, where those that were made from a workspace's ledger have its funnel and
    the licences of the files that it kept.

    ValueError if none was made from it. Costs a pass over file ids and licences of the table `signals`, or
    `documents` without it, for every four million kept files; memory is bounded.
    """
    from tokenizer.ledger_rows import Ledger

    ledger = Ledger(str(workspace / "ledger"))
    made_from = [record.get("configuration", {}).get("inputs", {}).get("ledger") for record in records]
    ours = [one == identity(ledger.manifest) or (one is None and len(records) == 1) for one in made_from]
    if not any(ours):
        raise ValueError(f"the data of this run was not made from the ledger {ledger.folder}; name its own workspace")
    table = next((workspace / name for name in ("signals", "documents") if (workspace / name).is_dir()), None)
    states = ledger.manifest.get("states", {})
    licences = _licences_of_kept(ledger, table, states.get("kept", {}).get("files", 0)) if table else {}
    known = {"states": states, "licences": licences}
    return [record | known if here else record for record, here in zip(records, ours, strict=True)]


def _licences_of_kept(ledger: "Ledger", table: Path, expected: int) -> dict[str, int]:
    """Kept files by licence; a file of several counts for each."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from tokenizer.file_ids import Piles, ids_of_column, member_places

    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        piles = Piles(Path(folder), expected)
        for ids in ledger.kept_ids():
            piles.add("kept", ids)
        rows = ds.dataset(table, format="parquet", exclude_invalid_files=False)
        for number in range(piles.count):
            kept = piles.read(number, "kept")
            for batch in rows.to_batches(columns=["file_id", "licenses"], batch_size=1 << 16, batch_readahead=2):
                places, _ = member_places(ids_of_column(batch.column("file_id")), kept)
                licences = batch.column("licenses").take(places)
                lengths = pc.fill_null(pc.list_value_length(licences), 0)
                counts[NO_LICENCE] += pc.sum(pc.equal(lengths, 0)).as_py() or 0
                for entry in pc.value_counts(pc.utf8_lower(licences.flatten())).to_pylist():
                    counts[(entry["values"] or "").strip() or NO_LICENCE] += entry["counts"]
    return {name: count for name, count in counts.most_common() if count}


def only_licence(records: Sequence[Record]) -> str | None:
    """The licence of all files of all folders; None where they have several, or one has none that is known."""
    licences = [set(record.get("licences") or [NO_LICENCE]) for record in records]
    found = set[str]().union(*licences) or {NO_LICENCE}
    return found.pop() if len(found) == 1 and NO_LICENCE not in found else None


def on_one_line(name: str) -> str:
    """A name from data, which may be any text, in one line of bounded length."""
    words = "".join(letter if letter.isprintable() else " " for letter in name).split()
    return " ".join(words)[:MOST_CHARACTERS]


def as_text(name: str) -> str:
    """The same for Markdown, of a table too: what would be markup, or HTML, stands for itself."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", on_one_line(name))


def told(records: Sequence[Record]) -> Iterator[str]:
    """The section of a model card, line by line, folder by folder; empty where nothing is known."""
    for number, record in enumerate(records):
        if len(records) > 1:
            gap = [""] if number else []
            yield from (*gap, f"### {as_text(record['folder'])}: {record['share']:.1%} of the sequences", "")
        yield from _told(record)


def _told(record: Record) -> Iterator[str]:
    for split, sums in record.get("splits", {}).items():
        yield (
            f"* {split}: {sums['documents']:,} documents, {sums['tokens']:,} tokens, "
            f"{sums['text_bytes'] / 1e6:,.1f} MB of text"
        )
    if record.get("withdrawn_files"):
        yield f"* {record['withdrawn_files']:,} files were withdrawn from the shards before training"
    states = record.get("states")
    if states:
        files = sum(sums["files"] for sums in states.values())
        size = sum(sums["bytes"] for sums in states.values())
        yield from ("", "| files | | MB |", "|--|--|--|", f"| {files:,} | in | {size / 1e6:,.1f} |")
        for state, sums in sorted(states.items(), key=lambda one: (one[0] == "kept", -one[1]["files"])):
            sign = "" if state == "kept" else "−"
            yield f"| {sign}{sums['files']:,} | {as_text(state)} | {sign}{sums['bytes'] / 1e6:,.1f} |"
    licences = record.get("licences")
    if licences:
        shown = list(licences.items())[:MOST_LICENCES]
        yield from ("", "Licences of the files kept:", "", "| licence | files |", "|--|--|")
        yield from (f"| {as_text(name)} | {count:,} |" for name, count in shown)
        if len(licences) > MOST_LICENCES:
            yield f"| {len(licences) - MOST_LICENCES:,} others | {sum(list(licences.values())[MOST_LICENCES:]):,} |"
