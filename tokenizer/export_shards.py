"""Token shards -> the files of other trainers: Megatron, mosaicml-streaming (MDS), nanoGPT."""

from typing import Literal

from tokenizer.command_line import run

MARKS = ("*.bin", "*/index.json")  # of what is written here


def main(
    *,
    shards: str,
    to: Literal["megatron", "mds", "nanogpt"],
    output: str,
    splits: list[str] | None = None,
    sequence_length: int = 0,
    overwrite: bool = False,
) -> None:
    """Write every split in the format of another trainer; OUTPUT is there whole or not at all.

    Args:
        shards: folder of the shards.
        to: megatron writes SPLIT.bin and SPLIT.idx, mds a folder a split, nanogpt train.bin, val.bin and meta.pkl.
        output: folder that is made.
        splits: those to write; all if none is named.
        sequence_length: tokens of a sample, for mds alone; 0 makes a sample of each document.
        overwrite: replace what lies there.
    """
    from pathlib import Path

    from tokenizer.exporters import mds, megatron, nanogpt
    from tokenizer.shard_index import ShardIndex
    from tokenizer.whole_folder import require_apart, whole_folder

    folder, index = Path(shards).resolve(), ShardIndex.load(shards)
    require_apart(output, [shards])
    if sequence_length < 0 or (sequence_length and to != "mds"):
        raise ValueError(f"sequence_length is {sequence_length}; it is for --to mds, and 0 or more")
    wanted = splits or list(dict.fromkeys(shard.split for shard in index.shards))
    for split in wanted:
        tokens = sum(shard.tokens for shard in index.of_split(split))
        if sequence_length > tokens:
            raise ValueError(f"sequence_length is {sequence_length}, and {split} has {tokens} tokens in all")
    with whole_folder(Path(output), overwrite=overwrite, marks=MARKS) as place:
        for split in wanted:
            if to == "megatron":
                megatron.export_split(folder, index, split, place)
            elif to == "mds":
                mds.export_split(folder, index, split, place, sequence_length)
            else:
                nanogpt.export_split(folder, index, split, place)
    tokens = sum(shard.tokens for split in wanted for shard in index.of_split(split))
    print(f"export_shards: {tokens:,} tokens of {', '.join(wanted)} for {to} in {output}")


if __name__ == "__main__":
    run(main)
