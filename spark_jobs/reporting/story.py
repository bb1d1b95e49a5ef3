"""Facts of one file -> lines of plain text."""

from collections.abc import Sequence
from typing import Any

from pyspark.sql import Row

from spark_jobs.reporting.comparison import printable, side_by_side
from spark_jobs.reporting.lookup import CANDIDATES, Facts
from spark_jobs.reporting.units import count, figure, size
from spark_jobs.rules.states import KEPT

# Columns of signals that are told elsewhere, or say nothing to a person.
NOT_MEASURED = ("file_id", "repo", "path", "language", "size", "state", "content_hash")


def listed(found: Sequence[Row]) -> list[str]:
    """The files that match, when more than one does."""
    number = f"more than {CANDIDATES}" if len(found) > CANDIDATES else str(len(found))
    rows = [f"  {bytes(row.file_id).hex()}  {printable(row.state):<24}  {name_of(row)}" for row in found[:CANDIDATES]]
    return [f"{number} files match:", *rows, "Name one by more of its path, or by --file_id."]


def told(facts: Facts, most_lines: int, width: int) -> list[str]:
    """The whole story, section by section."""
    sections = [
        _identity(facts),
        _judgement(facts),
        _measured(facts.signals),
        _twin(facts, most_lines, width),
        _consequences(facts),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section).split("\n")


def name_of(row: Row, prefix: str = "") -> str:
    """Path and repository, safe to print."""
    return f"{printable(row[prefix + 'path'] or '')} in {printable(row[prefix + 'repo'] or 'no repository')}"


def _identity(facts: Facts) -> list[str]:
    ledger, document = facts.ledger, facts.document
    rows = {
        "repository": ledger.repo,
        "revision": document["revision"],
        "source": document["source"],
        "id": bytes(ledger.file_id).hex(),
        "size": f"{count(ledger.size)} bytes" if ledger.size is not None else None,
        "encoding": document["encoding"],
        "language": ledger.language,
        "licences": ", ".join(document["licenses"] or []),
        "stars": document["stars"],
    }
    return [printable(ledger.path or ""), *_table(rows)]


def _judgement(facts: Facts) -> list[str]:
    ledger = facts.ledger
    lines = [
        f"State: {ledger.state}",
        *([f"  {printable(ledger.evidence)}"] if ledger.evidence and not facts.reasons else []),
    ]
    if facts.signals.content_hash is None:
        return lines
    if not facts.reasons:
        return [*lines, "It breaks no rule."]
    rows = {reason.rule: f"{figure(reason.value)} against {figure(reason.threshold)}" for reason in facts.reasons}
    tasks = {f"task {task}": matched for task, matched in facts.tasks}
    return [*lines, "Rules it breaks:", *_table(rows), *_table(tasks)]


def _measured(signals: Row) -> list[str]:
    numbers = {name: value for name, value in signals.asDict().items() if name not in NOT_MEASURED}
    if all(value is None for value in numbers.values()):
        return []
    return ["Measured:", *_table({name.replace("_", " "): _number(value) for name, value in numbers.items()})]


def _number(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if value is None or isinstance(value, str) else figure(value)


def _twin(facts: Facts, most_lines: int, width: int) -> list[str]:
    twin = facts.twin
    if twin is None:
        return []
    kind = "an exact copy" if twin.kind == "exact" else "a near-duplicate"
    lines = [
        f"It is {kind} of a kept file, {_similarity(twin)}:",
        f"  {name_of(twin, 'kept_')}",
        f"  {bytes(twin.kept_file_id).hex()}",
    ]
    if facts.twin_content is None or facts.document["content"] is None:
        return lines
    compared = side_by_side(facts.document["content"], facts.twin_content, most=most_lines, width=width)
    return [*lines, "This file (left) and the kept one (right):", *compared]


def _similarity(twin: Row) -> str:
    """How similar a removed file is to the kept one, and how that is known."""
    known = {
        "bytes": "byte by byte",
        "shingles": "by their sets of shingles",
        "sketch": "by their sketches, which decide the threshold beyond doubt",
        "estimate": "by their sketches' estimate",
    }
    if twin.similarity is None:
        return "by way of other files"
    return f"with Jaccard similarity {twin.similarity:.4f} ({known[twin.proof]})"


def _consequences(facts: Facts) -> list[str]:
    if facts.ledger.state != KEPT:
        return []
    lines = [f"{count(facts.removed)} files were removed for it{':' if facts.removed else '.'}"]
    for one in facts.first_removed:
        similarity = "by way of others" if one.similarity is None else f"{one.similarity:.4f}"
        lines.append(f"  {similarity} {one.kind:<5} {name_of(one)}")
    if facts.removed > len(facts.first_removed):
        lines.append(f"  and {count(facts.removed - len(facts.first_removed))} more")
    if not facts.has_shards:
        return [*lines, "", "There are no shards yet."]
    if facts.receipt is not None:
        return [*lines, "", f"It was withdrawn from the shards: {facts.receipt}."]
    if facts.shard is None:
        return [*lines, "", "It is in no shard, although it is kept: write the shards again."]
    shard, row, tokens = facts.shard
    return [
        *lines,
        "",
        f"Its {count(tokens)} tokens are row {count(row)} of {shard} ({size(facts.ledger.size)} of text).",
    ]


def _table(rows: dict[str, Any]) -> list[str]:
    """Names and values in two columns; rows without a value are left out."""
    there = {name: str(value) for name, value in rows.items() if value not in (None, "")}
    wide = max(map(len, there), default=0)
    return [f"  {printable(name):<{wide}}  {printable(value)}" for name, value in there.items()]
