"""documents + ledger -> a byte-level BPE tokenizer, trained on the files that survived."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Letters in runs, single digits, punctuation with one space before it, line ends and indentation apart from words:
# the split of Qwen2 (QwenLM/Qwen2, tokenizer.json), which faster encoders know too.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RECORD_FILE = "training.json"


def main(
    *,
    documents: str,
    ledger: str,
    output: str,
    vocab_size: int = 32768,
    sample_bytes: int = 256 << 20,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Train a tokenizer on a sample of the kept files, drawn by file id.

    Args:
        documents: table of documents.
        ledger: table of states; the kept files are sampled.
        output: folder for `tokenizer.json` and its configuration.
        vocab_size: entries, special tokens among them.
        sample_bytes: text to train on at most, about; memory is some times that.
        seed: of the sample.
        overwrite: replace what lies there.
    """
    from tokenizer.encode import SPECIAL_TOKENS, TOKENIZER_FILE

    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least {least}: all bytes and the special tokens")
    folder = Path(output)
    record = {
        "inputs": {"documents": _fingerprint(documents), "ledger": _fingerprint(ledger)},
        "sample_bytes": sample_bytes,
        "seed": seed,
        "vocab_size": vocab_size,
    }
    if _done(folder, record, overwrite):
        return
    begin = time.monotonic()
    texts = list(sample(documents, ledger, sample_bytes, seed))
    if not texts:
        raise ValueError(f"{ledger} keeps no file to train on")
    read_bytes = sum(map(len, texts))
    print(f"tokenizer: training {vocab_size:,} entries on {len(texts):,} files, {read_bytes / 1e6:,.1f} M characters")
    tokenizer = trained(texts, vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    for name, content in _transformers_files().items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"tokenizer: {tokenizer.get_vocab_size():,} entries in {time.monotonic() - begin:.0f} s, in {output}")


def trained(texts: list[str], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE tokenizer of at most `vocab_size` entries; the special tokens have the first ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from tokenizer.encode import SPECIAL_TOKENS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def sample(documents: str, ledger: str, sample_bytes: int, seed: int) -> Iterator[str]:
    """Texts of kept files, about `sample_bytes` of them or all: those whose hash by file id falls under the share.

    The ledger is streamed twice and content is read from the row groups that hold a chosen file alone.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    rows = ds.dataset(ledger, format="parquet", exclude_invalid_files=False)
    kept = pc.field("state") == "kept"
    kept_bytes = sum(pc.sum(batch["size"]).as_py() or 0 for batch in rows.to_batches(columns=["size"], filter=kept))
    share = min(1.0, sample_bytes / max(kept_bytes, 1))
    chosen: dict[tuple[str, int], dict[int, bytes]] = {}
    for batch in rows.to_batches(columns=["file_id", "part", "row_group", "row"], filter=kept):
        for row in batch.to_pylist():
            if _draw(row["file_id"], seed) < share:
                chosen.setdefault((row["part"], row["row_group"]), {})[row["row"]] = row["file_id"]
    for (part, row_group), ids in sorted(chosen.items()):
        numbers = sorted(ids)
        with pq.ParquetFile(Path(documents) / part) as file:
            found = file.read_row_group(row_group, columns=["file_id", "content"]).take(numbers)
        if found.column("file_id").to_pylist() != [ids[number] for number in numbers]:
            raise ValueError(f"{ledger} was not made from the documents {documents}; make it again from them")
        yield from found.column("content").to_pylist()


def _draw(file_id: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the file and the seed alone."""
    import xxhash

    return xxhash.xxh3_64_intdigest(file_id, seed) / (1 << 64)


def _fingerprint(table: str) -> str:
    from tokenizer.manifest import MANIFEST_NAME, identity

    manifest = Path(table) / MANIFEST_NAME
    if not manifest.is_file():
        raise ValueError(f"{table} is not a finished table: no {manifest.name}")
    return identity(json.loads(manifest.read_text()))


def _done(folder: Path, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether the tokenizer stands already; FileExistsError if another one does."""
    if overwrite or not folder.exists():
        return False
    there = folder / RECORD_FILE
    if not there.is_file() or json.loads(there.read_text()) != record:
        raise FileExistsError(f"{folder} holds something else, or of another configuration; --overwrite replaces it")
    print(f"tokenizer: already done, in {folder}")
    return True


def _transformers_files() -> dict[str, dict[str, Any]]:
    """What `AutoTokenizer.from_pretrained` reads beside `tokenizer.json`."""
    from tokenizer.encode import END_OF_TEXT, SPECIAL_TOKENS

    roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": "<fim_pad>"}
    special = {**roles, "additional_special_tokens": list(SPECIAL_TOKENS[1:])}
    configuration = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    return {"tokenizer_config.json": configuration, "special_tokens_map.json": special}


if __name__ == "__main__":
    run(main)
