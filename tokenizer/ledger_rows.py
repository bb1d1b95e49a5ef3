"""The ledger, streamed: ids of kept files, and the files of a repository or path. Memory is one batch of rows."""

import functools
import json
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from tokenizer.file_ids import Ids, ids_of_column, member_places
from tokenizer.manifest import MANIFEST_NAME, identity

# Few rows at a time and little read ahead: memory is some 10 MB, whatever the ledger's size.
_STREAMED = {"batch_size": 1 << 16, "batch_readahead": 2, "fragment_readahead": 1}


class LedgerFile(NamedTuple):
    """A file as the ledger knows it; `state` is "kept", or why it is not in the shards."""

    file_id: bytes
    repo: str
    path: str
    state: str


class Ledger:
    """A finished ledger; ValueError if the folder holds none."""

    def __init__(self, folder: str) -> None:
        manifest = Path(folder) / MANIFEST_NAME
        if not manifest.is_file():
            raise ValueError(f"{folder} is not a finished table: no {MANIFEST_NAME}")
        self.folder, self.manifest = folder, json.loads(manifest.read_text())
        if self.manifest.get("kind") != "ledger":
            raise ValueError(f"{folder} holds {self.manifest.get('kind')}; needed is a ledger")
        self._rows = ds.dataset(folder, format="parquet", exclude_invalid_files=False)

    @property
    def row_count(self) -> int:
        return int(self.manifest["rows"])

    def require_source_of(self, configuration: dict[str, Any], shards: str) -> None:
        """ValueError if the shards say that they were made from another ledger."""
        made_from = configuration.get("inputs", {}).get("ledger")
        if made_from not in (None, identity(self.manifest)):
            raise ValueError(
                f"{shards} was not made from the ledger {self.folder}; name the one that it was made from"
            )

    def kept_ids(self) -> Iterator[Ids]:
        """Ids of the kept files, a batch of rows at a time."""
        kept = pc.field("state") == "kept"
        for batch in self._rows.to_batches(columns=["file_id"], filter=kept, **_STREAMED):
            yield ids_of_column(batch.column("file_id"))

    def ids_named(self, repos: Sequence[str] = (), paths: Sequence[str] = ()) -> Iterator[Ids]:
        """Ids of the files of these repositories (letter case does not matter), or at these paths, or of both.

        A path may also be that after the repository's name, or the end of a path from some folder on.
        """
        for batch in self._rows.to_batches(columns=["file_id"], filter=_named(repos, paths), **_STREAMED):
            yield ids_of_column(batch.column("file_id"))

    def known_repos(self, repos: Sequence[str]) -> set[str]:
        """Which of the repositories the ledger has a file of, in lower case."""
        found: set[str] = set()
        for batch in self._rows.to_batches(columns=["repo"], filter=_named(repos, ()), **_STREAMED):
            found |= set(pc.utf8_lower(pc.unique(batch.column("repo"))).to_pylist())
        return found

    def files(self, wanted: Ids) -> Iterator[LedgerFile]:
        """What the ledger knows of these ids (sorted, distinct)."""
        columns = ["file_id", "repo", "path", "state"]
        for batch in self._rows.to_batches(columns=columns, **_STREAMED):
            rows, _ = member_places(ids_of_column(batch.column("file_id")), wanted)
            for row in batch.take(pa.array(rows.astype(np.int64))).to_pylist() if len(rows) else ():
                yield LedgerFile(**row)


def _named(repos: Sequence[str], paths: Sequence[str]) -> Any:
    """The filter: a path is a whole one, alone or after its repository, or the end of one from a folder on."""
    assert repos or paths
    wanted = pc.scalar(True)
    if repos:
        wanted = pc.utf8_lower(pc.field("repo")).isin([name.lower() for name in repos])
    if paths:
        full = pc.binary_join_element_wise(pc.field("repo"), pc.field("path"), "/", null_handling="skip")
        ends = [pc.ends_with(full, f"/{path}") for path in paths]
        wanted &= functools.reduce(operator.or_, [*ends, full.isin(list(paths))])
    return wanted
