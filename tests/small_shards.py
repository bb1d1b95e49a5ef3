"""Shards small enough for tests that train: invented code, a byte-level tokenizer of some 300 entries."""

import random
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenizer.encode import END_OF_TEXT, TOKENIZER_FILE, Encoder
from tokenizer.shards import ShardIndex, ShardWriter


def documents(count: int, seed: int) -> list[str]:
    """Functions over few names: text that a tiny model learns within some steps."""
    draw, texts = random.Random(seed), []
    for _ in range(count):
        name, value = draw.choice(["add", "join", "scale"]), draw.choice(["left", "right", "total"])
        lines = [f"def {name}({value}, other):", f'    """{name.title()} two values."""']
        lines += [f"    {value} = {value} + {draw.randrange(10)}" for _ in range(draw.randrange(1, 6))]
        texts.append("\n".join([*lines, f"    return {value}", ""]))
    return texts


def make_tokenizer(folder: Path, vocab_size: int = 300, more: tuple[str, ...] = ()) -> Encoder:
    """Train and save a byte-level BPE; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(50, seed=1), trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    return Encoder(folder)


def make_shards(
    folder: Path,
    *,
    train: int = 400,
    validation: int = 40,
    seed: int = 0,
    per_shard: int = 150,
    more: tuple[str, ...] = (),
) -> Path:
    """Write `train` and `validation` documents as shards, their tokenizer with `more` special tokens beside them."""
    encoder, shards = make_tokenizer(folder / "tokenizer", more=more), []
    for split, count in (("train", train), *([("validation", validation)] if validation else [])):
        texts = documents(count, seed=seed + (split == "train"))
        ids = encoder.encode(pa.array(texts))
        for number, first in enumerate(range(0, count, per_shard)):
            name = f"{split}-{number}.arrow"
            with (folder / name).open("wb") as file:
                writer = ShardWriter(file, encoder.vocab_size)
                for document in range(first, min(first + per_shard, count)):
                    writer.append(ids[document], bytes(16), len(texts[document].encode()))
                shards.append(writer.close(name, split))
    index = ShardIndex(encoder.fingerprint, encoder.vocab_size, encoder.end_of_text_id, tuple(shards))
    index.save(folder)
    return folder
