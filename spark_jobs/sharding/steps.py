"""The steps from a ledger to shards, and from broken shards to sound ones."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from spark_jobs import tables
from spark_jobs.session import step
from spark_jobs.sharding import encoding, folder, work, writing
from spark_jobs.sharding.encoding import Sources
from spark_jobs.sharding.layout import Layout, Splits, layout_of, splits_of
from spark_jobs.sharding.work import Kept, Selection
from tokenizer import encode
from tokenizer.encode import Encoder
from tokenizer.receipts import withdrawn_ids
from tokenizer.shard_text import split_lines
from tokenizer.shards import INDEX_NAME, Shard, ShardIndex

log = logging.getLogger("corella")

ORDERS = ("hash", "repository")
LEAST_SHARD_TOKENS = 1 << 10


@dataclass(frozen=True)
class Settings:
    """What decides the shards beside their inputs."""

    validation_share: float
    test_share: float
    shard_tokens: int
    order: str
    redact: bool
    seed: int

    def __post_init__(self) -> None:
        """ValueError if a number is out of bounds."""
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 0.5]")
        if self.shard_tokens < LEAST_SHARD_TOKENS:
            raise ValueError(f"shard_tokens is {self.shard_tokens}; it must be at least {LEAST_SHARD_TOKENS}")
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order}; it must be one of {', '.join(ORDERS)}")


@dataclass(frozen=True)
class Inputs:
    """The tables, the tokenizer's folder and what is known of it."""

    documents: str
    ledger: str
    tokenizer: str
    encoder: Encoder

    def configuration(self, settings: Settings) -> dict[str, Any]:
        """What decides the shards, as the index keeps it."""
        inputs = {"documents": tables.fingerprint(self.documents), "ledger": tables.fingerprint(self.ledger)}
        return {"inputs": inputs, "tokenizer": self.encoder.fingerprint, **vars(settings)}

    def sources(self, splits: Splits, settings: Settings) -> Sources:
        """What the workers need to encode."""
        known = (self.tokenizer, self.encoder.fingerprint, self.encoder.vocab_size)
        return Sources(self.documents, *known, splits, settings.redact)


def inputs_of(documents: str, ledger: str, tokenizer: str, settings: Settings) -> Inputs:
    """ValueError if the tokenizer lacks what the order needs."""
    encoder = Encoder(tokenizer, fast=False)
    if settings.order == "repository":
        for special in (encode.REPOSITORY_NAME, encode.FILE_SEPARATOR):
            encoder.id_of(special)
    return Inputs(documents, ledger, str(Path(tokenizer).absolute()), encoder)


def settings_written(inputs: Inputs, output: str) -> Settings:
    """What decided the finished shards in a folder; ValueError if they were made from other inputs."""
    configuration = ShardIndex.load(output).configuration
    try:
        settings = Settings(**{name: configuration[name] for name in Settings.__dataclass_fields__})
        wanted = inputs.configuration(settings) | {folder.FACTS: configuration[folder.FACTS]}
    except KeyError as missing:
        raise ValueError(f"the index in {output} does not tell {missing}, so that they cannot be repaired") from None
    if wanted != configuration:
        raise ValueError(f"the shards in {output} were made from other documents, ledger or tokenizer; name those")
    return settings


def write(spark: SparkSession, inputs: Inputs, settings: Settings, place: Path) -> ShardIndex:
    """Encode the kept documents, write every shard that is not there yet, then the tokenizer's files and the index."""
    kept = Kept(spark, inputs.ledger)
    with step(spark, "write_shards: choosing the held-out repositories"):
        splits = _splits(kept, settings)
    parts_folder, sources = place / folder.WORK_NAME, inputs.sources(splits, settings)
    tasks = work.task_count(spark, inputs.documents)
    folder.recorded(place, "parts", {"tasks": tasks, "cut": tables.cut(inputs.documents)})
    with step(spark, "write_shards: encoding"):
        entries = encoding.encode(work.work_of(kept, tasks), sources, parts_folder)
    encoded = encoding.sums(entries)
    if encoded["rows"] != splits.files:
        raise RuntimeError(f"{encoded['rows']:,} documents were encoded of {splits.files:,} kept ones")
    layout = layout_of(encoded["tokens"], settings.shard_tokens)
    parts = tuple(entry["name"] for entry in entries if entry["bytes"])
    with step(spark, "write_shards: writing"):
        names = [layout.name_of(number)[0] for number in range(layout.count)]
        there = folder.finished_shards(spark, place, names)
        missing = [number for number, name in enumerate(names) if name not in there]
        target = writing.Target(place, parts_folder, parts, layout, sources)
        written = {shard.name: shard for shard in writing.write(spark, missing, target)}
    shards = tuple((written | there)[name] for name in names)
    _require_all(shards, splits.files)
    # How many were compared depends on the batches; the index has the same bytes from any of them.
    told = {name: encoded["encoding"].get(name, 0) for name in ("differing", "refused", "long")}
    facts = {"shards": list(layout.shards), "encoding": told, "redacted": encoded["redacted"]}
    log.info("write_shards: %s", "; ".join(encode.told(Counter(encoded["encoding"]))))
    index = _index(inputs, shards, inputs.configuration(settings) | {folder.FACTS: facts})
    folder.publish(place, inputs.tokenizer, index)
    return index


def repair(spark: SparkSession, inputs: Inputs, settings: Settings, place: Path) -> list[str]:
    """Verify every shard and write those again that are broken or missing, with the bytes that they had; their names.

    The old index stays until they are there. Shards from which files were withdrawn are written without them.
    """
    index = ShardIndex.load(place)
    layout = Layout(tuple(index.configuration[folder.FACTS]["shards"]))
    with step(spark, "write_shards: verifying"):
        bad = folder.broken(spark, place, list(index.shards))
    entries = {_number(shard.name, layout): shard for shard in index.shards}
    withdrawn = _withdrawn(place, index)
    absent = set() if withdrawn else set(range(layout.count)) - set(entries)
    numbers = sorted(absent | {number for number, shard in entries.items() if shard.name in bad})
    if not numbers:
        return []
    kept = Kept(spark, inputs.ledger)
    with step(spark, "write_shards: choosing the held-out repositories"):
        splits = _splits(kept, settings)
    parts_folder, sources = place / folder.WORK_NAME, inputs.sources(splits, settings)
    tasks = work.task_count(spark, inputs.documents)
    with step(spark, f"write_shards: encoding what {len(numbers)} shard(s) hold"):
        chosen = work.work_of(kept, tasks, Selection(layout, splits, frozenset(numbers)))
        parts = tuple(entry["name"] for entry in encoding.encode(chosen, sources, parts_folder) if entry["bytes"])
    with step(spark, "write_shards: writing"):
        target = writing.Target(place, parts_folder, parts, layout, sources, withdrawn)
        renewed = writing.write(spark, numbers, target, entries)
    entries |= dict(zip(numbers, renewed, strict=True))
    if absent:
        replace(index, shards=tuple(entries[number] for number in sorted(entries))).save(place)
    return [shard.name for shard in renewed]


def _splits(kept: Kept, settings: Settings) -> Splits:
    shares = (settings.validation_share, settings.test_share)
    sums = work.repository_sums(kept, settings.seed)
    return splits_of(sums, shares, settings.seed, settings.order == "repository")


def _number(name: str, layout: Layout) -> int:
    """The number of a shard by its name, which has an ending of its own if files were withdrawn from it."""
    stem = name.partition(".")[0]
    return next(number for number in range(layout.count) if layout.name_of(number)[0].startswith(f"{stem}."))


def _withdrawn(place: Path, index: ShardIndex) -> frozenset[bytes]:
    """Ids of the files that were withdrawn from the shards since they were written."""
    return frozenset(row.tobytes() for ids in withdrawn_ids(place, index.revision) for row in ids)


def _index(inputs: Inputs, shards: tuple[Shard, ...], configuration: Mapping[str, Any]) -> ShardIndex:
    encoder = inputs.encoder
    return ShardIndex(encoder.fingerprint, encoder.vocab_size, encoder.end_of_text_id, shards, dict(configuration))


def _require_all(shards: tuple[Shard, ...], wanted: int) -> None:
    written = sum(shard.rows for shard in shards)
    if written != wanted:
        raise RuntimeError(f"{written:,} documents were written of {wanted:,} kept ones")


def summary(index: ShardIndex, output: str) -> str:
    """Documents, tokens and bytes a token of each split, and what was counted on the way, in lines."""
    lines = split_lines(index)
    facts = index.configuration[folder.FACTS]
    replaced = ", ".join(f"{count:,} {kind}" for kind, count in sorted(facts["redacted"].items()) if count)
    lines.append(f"  redacted    {replaced or 'nothing'}")
    lines += [f"  encoding    {line}" for line in encode.told(Counter(facts["encoding"]))]
    if facts["encoding"]["differing"]:
        lines.append(
            "  encoding    do not trust gigatoken with this: uninstall it and write the shards with --overwrite"
        )
    return "\n".join([*lines, f"write_shards: index in {output}/{INDEX_NAME}"])
