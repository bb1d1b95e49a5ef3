"""The token layer: encoding beside `tokenizers`, and documents to shards beside datatrove's tokenization pipeline."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from corpus import BENCH
from near_duplicates import start_up_seconds, submit
from peers import DATATROVE, Peer, run_peer
from processes import Measured
from table import Line, at_least
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from spark_jobs.content import arrow_schema
from spark_jobs.tables import LEDGER, Stage, require
from tokenizer.encode import SPECIAL_TOKENS, Encoder
from tokenizer.long_documents import QWEN2
from tokenizer.shards import ShardIndex

VOCABULARY, TRAINED_BYTES = 32_768, 40_000_000
COMPARED_FILES, TIMED_BYTES, TIMED_TWICE_BYTES = 15_000, 20_000_000, 150_000_000
ENCODING_BAR, SHARDS_BAR = 40, 25
DATATROVE_TOKENS = Peer("datatrove's tokenization", DATATROVE, "datatrove_tokens.py", judged=False)


class Sharded(NamedTuple):
    """A finished run of write_shards: what it took, its tokens and the UTF-8 bytes of its text."""

    measured: Measured
    tokens: int
    text_bytes: int


def encoding_lines() -> Iterator[Line]:
    """Identical ids on every file, and how many times as fast as `tokenizers` on one thread."""
    texts = _texts(corpus.real_corpora()["large"], COMPARED_FILES)
    encoder = Encoder(_tokenizer())
    differing = _differing(encoder, texts)
    size = pc.sum(pc.binary_length(texts)).as_py()
    what = f"files whose ids differ from tokenizers', of {len(texts):,} ({size / 1e6:,.0f} MB)"
    yield Line("encoding", what, f"{differing:,}", "0", differing == 0 and len(texts) >= COMPARED_FILES)
    ours, theirs = _speed(encoder, texts), _tokenizers_speed(texts)
    aside = f" ({ours:,.0f} MB/s, it {theirs:,.2f})"
    what = "times tokenizers.encode_batch_fast, one thread each"
    yield at_least("encoding", what, ours / theirs, ENCODING_BAR, "{:,.0f}", aside)


def shards_lines() -> Iterator[Line]:
    """Tokens a second from documents to shards, Spark's start-up taken off, beside datatrove's pipeline."""
    ours = sharded("large")
    seconds = ours.measured.seconds - start_up_seconds()
    speed = ours.tokens / seconds / 1e6
    told = f"{speed:,.1f} million tokens/s, {ours.text_bytes / seconds / 1e6:,.0f} MB/s"
    yield Line("shards", "write_shards.py", f"{told} on {ours.tokens / 1e6:,.0f} million tokens")
    aside = f" MB; {ours.measured.seconds:,.1f} s, {start_up_seconds():.1f} s of them start-up"
    yield Line("shards", "memory of all processes", f"{ours.measured.peak_bytes / 1e6:,.0f}{aside}")
    _tokenizer()
    ran = run_peer(DATATROVE_TOKENS, corpus.real_corpora()["sample"])
    if ran is None:
        yield Line("shards", "times datatrove's tokenization", "left out, see above")
        return
    theirs = int(ran[1][0]) / ran[0] / 1e6
    aside = f" (it: {theirs:,.2f} million tokens/s on two cores, its start-up included)"
    yield at_least("shards", "times datatrove's tokenization", speed / theirs, SHARDS_BAR, "{:,.1f}", aside)


@cache
def sharded(name: str) -> Sharded:
    """Run write_shards.py on a corpus, all of whose files are kept."""
    documents, ledger = _tables(name)
    output = BENCH / "out" / f"{name}-shards"
    shutil.rmtree(output, ignore_errors=True)
    inputs = {"documents": documents, "ledger": ledger, "tokenizer": _tokenizer(), "output": output}
    words = [word for option, path in inputs.items() for word in (f"--{option}", str(path))]
    measured = submit(["spark_jobs/write_shards.py", *words], f"{name}-shards")
    shards = ShardIndex.load(output).shards
    return Sharded(measured, sum(shard.tokens for shard in shards), sum(shard.text_bytes for shard in shards))


def _tables(name: str) -> tuple[Path, Path]:
    """Documents of a corpus by ingest.py, and a ledger that keeps all of them; made once."""
    documents, ledger = BENCH / "tables" / f"{name}-documents", BENCH / "tables" / f"{name}-ledger"
    source = corpus.real_corpora()[name]
    if not (documents / "_manifest.json").exists():
        submit(["spark_jobs/ingest.py", "--sources", str(source), "--output", str(documents)], f"{name}-documents")
    stage = Stage("ledger", str(ledger), configuration={}, inputs={"documents": str(documents)}, overwrite=True)
    with stage:
        rows = 0
        for file in sorted(documents.glob("*.parquet")):
            kept = _all_kept(file)
            pq.write_table(kept, ledger / file.name)
            rows += kept.num_rows
        stage.finish(rows=rows)
    require(str(ledger), "ledger")
    return documents, ledger


def _all_kept(file: Path) -> pa.Table:
    """Rows of the ledger for a file of documents."""
    schema, groups = arrow_schema(LEDGER), []
    columns = ["file_id", "repo", "path", "language", "size", "state"]
    with pq.ParquetFile(file) as parquet:
        for number in range(parquet.num_row_groups):
            rows = parquet.read_row_group(number, columns=columns)
            state = pc.if_else(pc.equal(rows["state"], "decoded"), "kept", rows["state"])
            rows = rows.set_column(rows.schema.get_field_index("state"), "state", state)
            places = {"evidence": [""] * len(rows), "part": [file.name] * len(rows)}
            places |= {"row_group": [number] * len(rows), "row": range(len(rows))}
            for column, values in places.items():
                rows = rows.append_column(column, pa.array(values, schema.field(column).type))
            groups.append(rows.select(schema.names).cast(schema))
    return pa.concat_tables(groups)


@cache
def _tokenizer() -> Path:
    """Folder of a byte-level tokenizer of VOCABULARY entries, trained on files of the large corpus; made once."""
    folder = BENCH / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        print("tokenizer: training ...", file=sys.stderr, flush=True)
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([split, level]), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        texts = _texts(corpus.real_corpora()["large"], COMPARED_FILES)
        tokenizer.train_from_iterator(_head(texts, TRAINED_BYTES).to_pylist(), trainer)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _texts(folder: Path, files: int) -> pa.LargeStringArray:
    """The contents of the first files of a corpus."""
    found = []
    for file in sorted(folder.glob("*.parquet")):
        found.append(pq.read_table(file, columns=["content"])["content"])
        if sum(map(len, found)) >= files:
            break
    columns = [chunk for column in found for chunk in column.chunks]
    return pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in columns]).slice(0, files)


def _head(texts: pa.LargeStringArray, size: int) -> pa.LargeStringArray:
    """The first of the texts, of about so many bytes."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy())
    return texts.slice(0, int(np.searchsorted(ends, size)) + 1)


def _exact(encoder: Tokenizer, texts: pa.LargeStringArray) -> list[list[int]]:
    return [one.ids for one in encoder.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)]


def _oracle() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_tokenizer() / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _differing(encoder: Encoder, texts: pa.LargeStringArray) -> int:
    """Files whose ids are not those of `tokenizers`, a thousand at a time."""
    oracle, differing = _oracle(), 0
    for first in range(0, len(texts), 1000):
        some = texts.slice(first, 1000)
        ids, bounds = encoder.encode_batch(some)
        exact = _exact(oracle, some)
        differing += sum(ids[bounds[at] : bounds[at + 1]].tolist() != wanted for at, wanted in enumerate(exact))
    return differing


def _speed(encoder: Encoder, texts: pa.LargeStringArray) -> float:
    """Megabytes a second of a fresh encoder's first pass over the texts, in batches as write_shards has them."""
    some = _head(texts, TIMED_TWICE_BYTES)
    fresh = Encoder(_tokenizer())
    begin = time.perf_counter()
    for first in range(0, len(some), 500):
        fresh.encode_batch(some.slice(first, 500))
    return pc.sum(pc.binary_length(some)).as_py() / (time.perf_counter() - begin) / 1e6


def _tokenizers_speed(texts: pa.LargeStringArray) -> float:
    """Megabytes a second of `tokenizers` on one thread."""
    some = _head(texts, TIMED_BYTES)
    contents, oracle = some.to_pylist(), _oracle()
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        begin = time.perf_counter()
        oracle.encode_batch_fast(contents, add_special_tokens=False)
        seconds = time.perf_counter() - begin
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
    return pc.sum(pc.binary_length(some)).as_py() / seconds / 1e6
