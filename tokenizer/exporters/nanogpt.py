"""nanoGPT's files: train.bin and val.bin are uint16 tokens and nothing else; meta.pkl tells the vocabulary's size.

nanoGPT's train.py reads them with `numpy.memmap(path, dtype=numpy.uint16, mode="r")`. Its sample.py knows letters and
GPT-2's tokenizer alone, and so cannot turn these tokens into text.
"""

import pickle
from pathlib import Path

from tokenizer.exporters.documents import documents
from tokenizer.shard_index import ShardIndex

_NAMES = {"validation": "val"}


def export_split(folder: Path, index: ShardIndex, split: str, output: Path) -> None:
    """Write a split's tokens one after the other, and meta.pkl; ValueError if the ids do not fit into 16 bits."""
    if index.vocab_size > 1 << 16:
        raise ValueError(f"the vocabulary has {index.vocab_size} entries; nanoGPT reads 16 bits, {1 << 16} at most")
    with (output / f"{_NAMES.get(split, split)}.bin").open("wb") as tokens:
        for some in documents(folder, index, split):
            tokens.write(some.tokens.data)
    (output / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": index.vocab_size}))
