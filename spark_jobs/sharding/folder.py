"""A folder of shards while it is being made: what marks it, what a killed run left, and what is done when it is whole.

    _unfinished      what is being made here, until the index is written
    _work/           parts (runs.py), entries of the shards that are finished, attempts at files
    *.arrow          shards, each whole
    tokenizer/       a copy of the tokenizer
    index.json       written last

Whatever is killed, the same command goes on from there. A finished folder has neither `_unfinished` nor `_work`.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from spark_jobs.sharding.runs import write_whole
from spark_jobs.sharding.writing import ENTRY, MAX_TASKS
from tokenizer.shards import INDEX_NAME, Shard, ShardIndex, verify_shard
from tokenizer.whole_folder import refuse_foreign
from tokenizer.withdrawal import alone

log = logging.getLogger("corella")

UNFINISHED_NAME, WORK_NAME, TOKENIZER_NAME = "_unfinished", "_work", "tokenizer"
# What the index tells of the run beside its configuration.
FACTS = "facts"


def settings_of(index: ShardIndex) -> dict[str, Any]:
    """What decided the shards of an index."""
    return {key: value for key, value in index.configuration.items() if key != FACTS}


def done(output: str, configuration: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the shards stand already; FileExistsError if something else does."""
    folder = Path(output)
    refuse_foreign(folder, [INDEX_NAME, UNFINISHED_NAME])
    if overwrite or not folder.exists() or (folder / UNFINISHED_NAME).exists():
        return False
    if not (folder / INDEX_NAME).is_file() or settings_of(ShardIndex.load(folder)) != configuration:
        raise FileExistsError(f"{output} holds something else, or of another configuration; --overwrite replaces it")
    log.info("shards: already done, in %s", output)
    return True


@contextmanager
def making(output: str, configuration: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """The folder, marked unfinished while the block runs: as a killed run of the same configuration left it, or empty.

    If the block fails the folder stays, so that the same command can go on, unless nothing in it is of use.
    """
    folder = Path(output).absolute()
    mark = {"configuration": dict(configuration)}
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if overwrite or _mark(folder) != mark:
            if _mark(folder):
                log.info("shards: what lies unfinished in %s is of another configuration, and replaced", output)
            write_whole(folder / UNFINISHED_NAME, "{}")  # whatever is killed, the folder is known for one of ours
            _empty(folder)
        else:
            log.info("shards: going on with what lies unfinished in %s", output)
        write_whole(folder / UNFINISHED_NAME, json.dumps(mark))
        work = folder / WORK_NAME
        work.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if any(work.glob("*.json")):
                log.info("shards: the same command goes on with what is finished in %s", output)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / UNFINISHED_NAME).unlink()
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def mending(output: str) -> Iterator[Path]:
    """A finished folder with a place for work in it, while the block runs."""
    folder = Path(output).absolute()
    with alone(folder):
        work = folder / WORK_NAME
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(work, ignore_errors=True)


def recorded(folder: Path, what: str, facts: Any) -> None:
    """Keep what a run that goes on has to agree with; the parts are void if it does not."""
    path, wanted = folder / WORK_NAME / f"{what}.facts", json.dumps(facts)
    if path.is_file() and path.read_text() == wanted:
        return
    for part in [*(folder / WORK_NAME).glob("*.json"), *(folder / WORK_NAME).glob("*.arrow")]:
        part.unlink()
    write_whole(path, wanted)


def finished_shards(spark: SparkSession, folder: Path, names: Iterable[str]) -> dict[str, Shard]:
    """Entries of the shards that a killed run has finished and that are sound, by name."""
    found = {}
    for name in names:
        path = folder / WORK_NAME / ENTRY.format(name)
        if path.is_file():
            found[name] = Shard(**json.loads(path.read_text()))
    bad = broken(spark, folder, list(found.values()))
    return {name: shard for name, shard in found.items() if name not in bad}


def broken(spark: SparkSession, folder: Path, shards: list[Shard]) -> set[str]:
    """Names of the shards that are missing or differ from their entries, as the workers find them."""
    if not shards:
        return set()

    def check(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                try:
                    verify_shard(folder, shards[number])
                except (ValueError, OSError):
                    yield pa.record_batch([pa.array([shards[number].name])], names=["name"])

    tasks = min(len(shards), MAX_TASKS)
    return {row.name for row in spark.range(0, len(shards), 1, tasks).mapInArrow(check, "name string").collect()}


def publish(folder: Path, tokenizer: str, index: ShardIndex) -> None:
    """Put the tokenizer beside the shards, remove what is not of the index, and write it."""
    shutil.copytree(tokenizer, folder / TOKENIZER_NAME, dirs_exist_ok=True)
    known = {shard.name for shard in index.shards}
    for path in folder.glob("*.arrow*"):
        if path.name not in known:
            path.unlink()
    index.save(folder)


def _mark(folder: Path) -> dict[str, Any] | None:
    """What the folder is marked with, if it is."""
    try:
        return dict(json.loads((folder / UNFINISHED_NAME).read_text()))
    except (OSError, ValueError):
        return None


def _empty(folder: Path) -> None:
    """Remove all that lies in a folder, the mark last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == UNFINISHED_NAME):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
