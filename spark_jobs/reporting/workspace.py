"""A workspace: the folder in which one corpus's tables, shards and run lie under their usual names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from pyspark.sql import DataFrame, SparkSession

from spark_jobs import tables
from spark_jobs.storage import Storage
from tokenizer.shards import INDEX_NAME, ShardIndex

TABLES = ("documents", "signals", "verdicts", "duplicates", "ledger")
EVALUATION_FILE = "evaluation.json"
RUN_FILES = ("plan.json", "summary.json", "metrics.jsonl", "completions.jsonl")


@dataclass(frozen=True)
class Workspace:
    """The tables of one corpus, which must belong together, and what has been made of them so far."""

    folder: str

    def path(self, name: str) -> str:
        """Where a table, the shards or the run lies."""
        return f"{self.folder.rstrip('/')}/{name}"

    def table(self, spark: SparkSession, kind: str) -> DataFrame:
        """The rows of a table."""
        return tables.read(spark, self.path(kind), kind)

    @cached_property
    def manifests(self) -> Mapping[str, Mapping[str, Any]]:
        """The manifest of each table, in the order of the stages; `contaminated` where the ledger was made with it.

        ValueError if a table is missing or was not made from the others.
        """
        records = {kind: tables.require(self.path(kind), kind) for kind in TABLES}
        made_from = set(records["ledger"]["inputs"])
        if "contaminated" in made_from:
            records["contaminated"] = tables.require(self.path("contaminated"), "contaminated")
        for table, inputs in (("signals", ["documents"]), ("verdicts", ["signals"]), ("ledger", sorted(made_from))):
            tables.require_made_from(self.path(table), **{name: self.path(name) for name in inputs})
        return records

    @cached_property
    def shards(self) -> ShardIndex | None:
        """The index of the shards, if they are written; ValueError if they were made from another ledger."""
        if not Storage(self.path("shards")).exists(INDEX_NAME):
            return None
        index = ShardIndex.load(self.shards_folder)
        made_from = index.configuration.get("inputs", {}).get("ledger")
        if made_from != tables.fingerprint(self.path("ledger")):
            raise ValueError(f"{self.path('shards')} was not made from {self.path('ledger')}; write the shards again")
        return index

    @property
    def shards_folder(self) -> Path:
        """The shards' folder, on the file system that the workers share."""
        return Path(Storage(self.path("shards")).root)

    @cached_property
    def run_files(self) -> Mapping[str, bytes]:
        """The files of the training run that are there; ValueError if it trained on other shards."""
        storage = Storage(self.path("run"))
        found = {name: storage.read(name) for name in RUN_FILES if storage.exists(name)}
        trained_on = json.loads(found.get("plan.json", b"{}")).get("data_fingerprint")
        if trained_on and self.shards and trained_on != self.shards.fingerprint("train"):
            raise ValueError(f"{self.path('run')} was not trained on {self.path('shards')}; train again")
        return found

    @cached_property
    def evaluation(self) -> Mapping[str, Any] | None:
        """The evaluation of the tokenizer, if there is one; ValueError if it is of another than the shards'."""
        storage = Storage(self.path("evaluation"))
        if not storage.exists(EVALUATION_FILE):
            return None
        found: Mapping[str, Any] = json.loads(storage.read(EVALUATION_FILE))
        of = found["configuration"]["tokenizer_fingerprint"]
        if self.shards and of != self.shards.tokenizer_fingerprint:
            raise ValueError(
                f"{self.path('evaluation')} is not of the tokenizer of {self.path('shards')}; evaluate again"
            )
        return found

    @cached_property
    def configurations(self) -> Mapping[str, Any]:
        """The settings of each stage, as its output records them."""
        told = ("kind", "schema_version", "inputs", "bytes")
        found: dict[str, Any] = {
            kind: {key: value for key, value in record.items() if key not in told}
            for kind, record in self.manifests.items()
        }
        storage = Storage(self.path("tokenizer"))
        if storage.exists("training.json"):
            found["tokenizer"] = json.loads(storage.read("training.json"))
        if self.shards:
            found["shards"] = dict(self.shards.configuration) | {"vocab_size": self.shards.vocab_size}
        for name in ("plan.json", "summary.json"):
            if name in self.run_files:
                found[f"run: {name.removesuffix('.json')}"] = json.loads(self.run_files[name])
        return found

    def fingerprint(self) -> str:
        """Identity of all that a report tells: of the tables, the shards and the files of the run."""
        shards = self.shards.shards if self.shards else ()
        parts = [
            {kind: tables.fingerprint(self.path(kind)) for kind in self.manifests},
            [shard.xxh3_128 for shard in shards],
            {name: xxhash.xxh3_128_hexdigest(data) for name, data in self.run_files.items()},
            self.configurations,
            self.evaluation,
        ]
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())
