"""Finished shards: look at them, verify and repair them, find a file in them, withdraw files from them."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.command_line import run

if TYPE_CHECKING:
    from tokenizer.file_ids import Ids
    from tokenizer.shard_checks import Findings

WRITE_SHARDS = Path(__file__).resolve().parents[1] / "spark_jobs" / "write_shards.py"


def show(*, shards: str, shard: str | None = None, row: int = 0) -> None:
    """Tell what the index says of each split, or print a document's text.

    Args:
        shards: folder of the shards.
        shard: name of a shard whose document is wanted.
        row: of the document in that shard.
    """
    from tokenizer.shard_index import ShardIndex
    from tokenizer.shard_text import document_text, summary

    index = ShardIndex.load(shards)
    print(document_text(Path(shards), index, shard, row) if shard else summary(index))


def verify(*, shards: str, ledger: str | None = None, scratch: str | None = None) -> int:
    """Check each shard (checksum, counts, ids below the vocabulary), and that no file is in them twice.

    Exit code 1 if anything is wrong.

    Args:
        shards: folder of the shards.
        ledger: the ledger that they were made from: each of its kept files has to be there once, or withdrawn.
        scratch: folder for 16 bytes a document, with a ledger twice that; the system's own if not named.
    """
    findings = _verified(shards, ledger, scratch)
    return 0 if findings.sound else 1


def repair(
    *,
    shards: str,
    documents: str | None = None,
    ledger: str | None = None,
    tokenizer: str | None = None,
    properties_file: str | None = None,
    scratch: str | None = None,
) -> int:
    """Verify, remove what no index entry names, have the broken shards written again, and verify again.

    Shards are written by `spark-submit spark_jobs/write_shards.py --repair`, byte by byte as they were; without the
    inputs its command is told.

    Args:
        shards: folder of the shards.
        documents: table of documents that they were made from.
        ledger: the ledger that they were made from.
        tokenizer: folder of their tokenizer; the one beside the shards if not named.
        properties_file: Spark's settings.
        scratch: folder for 16 bytes a document, with a ledger twice that; the system's own if not named.
    """
    from tokenizer.shard_index import ShardIndex
    from tokenizer.withdrawal import alone

    ShardIndex.load(shards)
    with alone(Path(shards)):
        findings = _verified(shards, ledger, scratch)
        for name in findings.strays:
            (Path(shards) / name).unlink(missing_ok=True)
    if findings.counts:
        raise ValueError(f"{shards}: the rows are not those of the ledger, which no repair mends; write them again")
    if findings.broken:
        submit = shutil.which("spark-submit", path=str(Path(sys.executable).parent)) or "spark-submit"
        settings = ["--properties-file", properties_file] if properties_file else []
        inputs = {"documents": documents, "ledger": ledger, "tokenizer": tokenizer or f"{shards}/tokenizer"}
        words = [word for name, path in inputs.items() for word in (f"--{name}", path or name.upper())]
        command = [submit, *settings, str(WRITE_SHARDS), *words, "--output", shards, "--repair"]
        if documents is None or ledger is None:
            raise ValueError(f"name --documents and --ledger for the repair, or run: {shlex.join(command)}")
        print(f"repair: {shlex.join(command)}", flush=True)
        if code := subprocess.run(command, check=False).returncode:
            raise ValueError(f"write_shards.py --repair ended with exit code {code}; its message is above")
    elif not findings.strays:
        return 0
    return verify(shards=shards, ledger=ledger, scratch=scratch)


def find(
    *,
    shards: str,
    file_ids: list[str] | None = None,
    ledger: str | None = None,
    repos: list[str] | None = None,
    paths: list[str] | None = None,
) -> int:
    """Tell which shard, row and tokens a file became. Exit code 1 if none of the files is there.

    Args:
        shards: folder of the shards.
        file_ids: ids (32 hexadecimal digits), or files with an id a line.
        ledger: table that names the files of --repos and --paths, and the state of those that are in no shard.
        repos: files of these repositories; letter case does not matter.
        paths: files at these paths, or whose path ends so; of --repos if those are named.
    """
    from tokenizer.shard_index import ShardIndex
    from tokenizer.shard_text import found_lines

    wanted = _wanted(file_ids, ledger, repos, paths)
    there = False
    for line, found in found_lines(Path(shards), ShardIndex.load(shards), wanted, ledger):
        print(line)
        there |= found
    return 0 if there else 1


def forget(
    *,
    shards: str,
    file_ids: list[str] | None = None,
    ledger: str | None = None,
    repos: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Withdraw files: write the shards that hold them again without them, and a receipt in SHARDS/receipts.

    The old index stays until the new one is complete. Killed anywhere, give the same command again.

    Args:
        shards: folder of the shards.
        file_ids: ids (32 hexadecimal digits), or files with an id a line.
        ledger: table that names the files of --repos.
        repos: all files of these repositories; letter case does not matter.
        dry_run: tell what would go, and change nothing.
    """
    from tokenizer.shard_index import ShardIndex
    from tokenizer.withdrawal import alone, planned, withdraw

    folder, wanted = Path(shards), _wanted(file_ids, ledger, repos, None)
    ShardIndex.load(folder)
    with alone(folder):
        plan = planned(folder, ShardIndex.load(folder), wanted)
        receipt = None if dry_run else withdraw(plan, {"file_ids": file_ids or [], "repos": repos or []})
    there = f"{len(plan.found):,} of {len(wanted):,} files in {len(plan.places):,} shard(s), {plan.tokens:,} tokens"
    if dry_run:
        print(f"forget: would remove {there}")
    else:
        print(f"forget: removed {there}; " + (f"receipt in {receipt}" if receipt else "nothing is left to remove"))


def _wanted(file_ids: list[str] | None, ledger: str | None, repos: list[str] | None, paths: list[str] | None) -> "Ids":
    """The ids that the options name; ValueError if they name none, or a repository that the ledger does not know."""
    from tokenizer.file_ids import ids_of_words, joined
    from tokenizer.ledger_rows import Ledger

    named = ids_of_words(file_ids or [], "--file_ids")
    if not repos and not paths:
        if not len(named):
            raise ValueError("name files: --file_ids, or names with --ledger")
        return named
    if ledger is None:
        raise ValueError("names are looked up in the ledger: name it with --ledger")
    table = Ledger(ledger)
    known = table.known_repos(repos) if repos else set()
    if unknown := [repo for repo in repos or [] if repo.lower() not in known]:
        raise ValueError(f"{ledger} has no file of the repository {unknown[0]}; is its name right?")
    found = joined(table.ids_named(repos or [], paths or []))
    if not len(found):
        raise ValueError(f"{ledger} has no file at {', '.join(paths or [])}; are its path and repository right?")
    return joined([named, found])


def _verified(shards: str, ledger: str | None, scratch: str | None) -> "Findings":
    """Check the shards and print what is found."""
    from tokenizer.ledger_rows import Ledger
    from tokenizer.shard_checks import check
    from tokenizer.shard_index import ShardIndex

    index, table = ShardIndex.load(shards), Ledger(ledger) if ledger else None
    if table:
        table.require_source_of(index.configuration, shards)
    findings = check(Path(shards), index, table, scratch)
    print("\n".join(findings.lines()), end="\n" * (not findings.sound))
    told = f"{len(index.shards):,} shard(s), {findings.files:,} files"
    if findings.sound:
        print(f"verify: {told}: sound" + (", and what the ledger keeps" if table else ""))
    else:
        faults = len(findings.broken) + len(findings.strays) + len(findings.counts)
        print(f"verify: {told}: {faults} fault(s), {len(findings.broken)} of them broken shards", file=sys.stderr)
    return findings


if __name__ == "__main__":
    run([show, verify, repair, find, forget])
