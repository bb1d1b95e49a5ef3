"""Reading token shards: a process at a time, from memory maps of files that are in the page cache.

Run as a program this measures one thing in a process of its own and prints a number; `figures` runs them all.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from corpus import BENCH
from processes import printed_figure

from tokenizer.shards import ShardIndex, ShardWriter, TokenStream

SHARDS, SHARD_TOKENS, DOCUMENT_TOKENS, VOCABULARY = 8, 32 << 20, 1 << 11, 32_768
MANY = 10_000
SEQUENCE_LENGTH, SEQUENCES, SEQUENCES_AT_ONCE, BATCHES = 1024, 64, 16, 300


def figures() -> dict[str, float]:
    """Every figure by the name of its function, each measured by a process of its own."""
    large, many = data_set(), _many()
    asked = {"sequential": large, "training_order": large, "nanogpt_order": large, "training_order_of_many": many}
    asked |= {"open_seconds": many, "first_touch_microseconds": many, "touched_bytes": many}
    found = {}
    for name, folder in asked.items():
        found[name] = printed_figure(__file__, name, folder)
    return found


def sequential(folder: Path) -> float:
    """Million tokens a second, from the first token to the last; the files are read once before."""
    stream, out = TokenStream(folder), np.empty(1 << 20, np.uint16)

    def read_all() -> float:
        begin = time.perf_counter()
        for start in range(0, len(stream) - len(out) + 1, len(out)):
            stream.read(start, out)
        return len(stream) / (time.perf_counter() - begin) / 1e6

    read_all()
    stream = TokenStream(folder)  # maps anew, so that page faults count
    return read_all()


def training_order(folder: Path) -> float:
    """Million tokens a second in the order of training, as the tensors that a step gets; each shard touched before."""
    import torch

    from training.batches import TrainingBatches

    torch.set_num_threads(1)
    stream = TokenStream(folder)
    _touch_all(stream)
    batches = TrainingBatches(stream, sequence_length=SEQUENCE_LENGTH, sequences=SEQUENCES, seed=0)

    def read(first: int) -> int:
        shares = (batches.share((first + step) * SEQUENCES, SEQUENCES_AT_ONCE, 0, 1) for step in range(BATCHES))
        return sum(batch.label_count for share in shares for batch in share)

    read(0)
    begin = time.perf_counter()
    return read(BATCHES) / (time.perf_counter() - begin) / 1e6


training_order_of_many = training_order


def first_touch_microseconds(folder: Path) -> float:
    """What it takes to learn where the tokens of a shard lie, once."""
    stream = TokenStream(folder)
    begin = time.perf_counter()
    _touch_all(stream)
    return (time.perf_counter() - begin) / len(stream.shards) * 1e6


def nanogpt_order(folder: Path) -> float:
    """The same number of random windows of a flat file, as nanoGPT's get_batch reads them."""
    import torch

    torch.set_num_threads(1)
    flat = folder.with_suffix(".bin")
    if not flat.exists():
        stream = TokenStream(folder)
        whole = np.empty(len(stream), stream.dtype)
        stream.read(0, whole)
        whole.tofile(flat)

    def read() -> None:
        for _ in range(BATCHES * SEQUENCES // SEQUENCES_AT_ONCE):
            data = np.memmap(flat, dtype=np.uint16, mode="r")
            starts = torch.randint(len(data) - SEQUENCE_LENGTH, (SEQUENCES_AT_ONCE,)).tolist()
            torch.stack([torch.from_numpy(data[at : at + SEQUENCE_LENGTH].astype(np.int64)) for at in starts])
            torch.stack([torch.from_numpy(data[at + 1 : at + 1 + SEQUENCE_LENGTH].astype(np.int64)) for at in starts])

    read()
    begin = time.perf_counter()
    read()
    return BATCHES * SEQUENCES * SEQUENCE_LENGTH / (time.perf_counter() - begin) / 1e6


def open_seconds(folder: Path) -> float:
    """From nothing to the first token of many shards, in a process that has imported what it needs."""
    begin = time.perf_counter()
    TokenStream(folder).read(0, np.empty(1, np.uint16))
    return time.perf_counter() - begin


def touched_bytes(folder: Path) -> float:
    """Bytes of memory that a shard costs when all but the first thousand are touched, in random order."""
    stream, out = TokenStream(folder), np.empty(1025, np.uint16)
    order = np.random.default_rng(0).permutation(MANY)
    tokens = stream.shards[0].tokens

    def touch(numbers: np.ndarray) -> int:
        for number in numbers.tolist():
            stream.read(number * tokens, out)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    few = touch(order[:1000])
    return (touch(order) - few) / (MANY - 1000)


def _touch_all(stream: TokenStream) -> None:
    start, out = 0, np.empty(1, np.uint16)
    for shard in stream.shards:
        stream.read(start, out)
        start += shard.tokens


def data_set() -> Path:
    """Half a gigabyte of random ids in documents of 2,048."""
    folder = BENCH / "reading" / "large"
    if not (folder / "index.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(0)
        ShardIndex(
            "random", VOCABULARY, 0, tuple(_shard(folder, f"{n}.arrow", SHARD_TOKENS, draw) for n in range(SHARDS))
        ).save(folder)
    return folder


def _many() -> Path:
    """Ten thousand names of one shard of a million ids."""
    folder = BENCH / "reading" / "many"
    if not (folder / "index.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        entry = _shard(folder, "one.arrow", 1 << 20, np.random.default_rng(1))
        entries = [dataclasses.replace(entry, name=f"{number}.arrow") for number in range(MANY)]
        for other in entries:
            (folder / other.name).unlink(missing_ok=True)
            os.link(folder / entry.name, folder / other.name)
        ShardIndex("random", VOCABULARY, 0, tuple(entries)).save(folder)
    return folder


def _shard(folder: Path, name: str, tokens: int, draw: np.random.Generator):
    with (folder / name).open("wb") as sink:
        writer = ShardWriter(sink, VOCABULARY)
        for number in range(tokens // DOCUMENT_TOKENS):
            ids = draw.integers(0, VOCABULARY, DOCUMENT_TOKENS, dtype=np.uint16)
            writer.append(ids, number.to_bytes(16, "big"), 2 * DOCUMENT_TOKENS)
        return writer.close(name, "train")


if __name__ == "__main__":
    print(json.dumps(float(globals()[sys.argv[1]](Path(sys.argv[2])))))
