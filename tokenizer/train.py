"""sample -> a byte-level BPE tokenizer. The same sample and size of vocabulary give the same file, byte by byte."""

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

log = logging.getLogger("corella")

# Letters in runs, single digits, punctuation with one space before it, line ends and indentation apart from words:
# the split of Qwen2 (QwenLM/Qwen2, tokenizer.json), which faster encoders know too.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same with runs cut at 128 characters (blank ones at 256), to train with: the time for a word grows with the
# square of its length, and a sequence of a million letters is one word. Shorter words are split alike (tested).
TRAINING_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}{1,128}|\p{N}| ?[^\s\p{L}\p{N}]{1,128}[\r\n]{0,128}"
    r"|\s{0,128}[\r\n]{1,128}|\s{1,128}(?!\S)|\s{1,128}"
)
# `tokenizers` counts pairs in 32 bits with a sign, and a count that overflows is a wrong merge.
MAX_PAIR_COUNT = (1 << 31) - 1
RECORD_FILE = "training.json"


def main(*, sample: str, output: str, vocab_size: int = 32768, sentinels: int = 0, overwrite: bool = False) -> None:
    """Train a tokenizer on the files of a sample that are not held out.

    Text is read as it is needed: what grows in memory are the distinct words.

    Args:
        sample: table of a sample, as spark_jobs/sample.py writes it.
        output: folder for `tokenizer.json` and its configuration; it is there whole or not at all.
        vocab_size: entries, special tokens among them.
        sentinels: also give it `<mask>` and so many of `<extra_id_0>`, …, for training with --objective.kind masked
            or spans; spans hides one run of a sequence for each, with its settings as they are one in 20 tokens.
        overwrite: replace what lies there.
    """
    from tokenizer import samples
    from tokenizer.encode import TOKENIZER_FILE
    from tokenizer.whole_folder import require_apart, whole_folder

    if sentinels < 0:
        raise ValueError(f"sentinels {sentinels} is below 0; choose 0 or more")
    least = 256 + len(special_tokens(sentinels))
    if vocab_size < least:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least {least}: all bytes and the special tokens")
    folder = Path(output)
    record: dict[str, Any] = {"inputs": {"sample": samples.fingerprint(sample)}, "vocab_size": vocab_size}
    record |= {"sentinels": sentinels} if sentinels else {}
    require_apart(output, [sample])
    if _done(folder, record, overwrite):
        return
    begin = time.monotonic()
    files, text_bytes = samples.amounts(sample, held_out=False)
    if not files:
        raise ValueError(f"{sample} holds no file to train on")
    require_countable(sample, text_bytes)
    print(f"tokenizer: training {vocab_size:,} entries on {files:,} files, {text_bytes / 1e6:,.1f} MB")
    with whole_folder(folder, overwrite=overwrite, marks=[TOKENIZER_FILE]) as place:
        with _Progress(text_bytes) as progress:
            rows = samples.batches(sample, held_out=False, columns=("content", "size"))
            tokenizer = trained(progress.texts_of(rows), vocab_size, sentinels)
        tokenizer.save(str(place / TOKENIZER_FILE))
        for name, content in _transformers_files(sentinels).items():
            (place / name).write_text(json.dumps(content, indent=1) + "\n")
        (place / RECORD_FILE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    made = tokenizer.get_vocab_size()
    fewer = f" (of {vocab_size:,}: the sample has no more pairs to merge)" if made < vocab_size else ""
    print(f"tokenizer: {made:,} entries{fewer} in {time.monotonic() - begin:.0f} s, in {output}")


def special_tokens(sentinels: int = 0) -> list[str]:
    """All special tokens of a tokenizer in the order of their ids."""
    from tokenizer.encode import MASK, SPECIAL_TOKENS, sentinel

    more = [MASK, *(sentinel(number) for number in range(sentinels))] if sentinels else []
    return [*SPECIAL_TOKENS, *more]


def trained(texts: Iterable[str] | Iterable[list[str]], vocab_size: int, sentinels: int = 0) -> "Tokenizer":
    """A byte-level BPE tokenizer of at most `vocab_size` entries; the special tokens have the first ids.

    The order of the texts does not matter.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split(TRAINING_SPLIT)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens(sentinels),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _split(SPLIT)
    return tokenizer


def _split(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def require_countable(sample: str, text_bytes: int) -> None:
    """Refuse a sample in which a pair may occur more often than `tokenizers` can count.

    No pair of tokens occurs more often than the last byte of one and the first of the other stand side by side, so
    the pairs of bytes bound all counts. They are counted, which takes a reading, only where there are enough bytes.
    """
    from tokenizer import samples

    if text_bytes <= MAX_PAIR_COUNT:
        return
    log.info("tokenizer: counting pairs of bytes, because 32 bits may not count them")
    most = most_frequent_pair(batch.column("content") for batch in samples.batches(sample, held_out=False))
    if most > MAX_PAIR_COUNT:
        fitting = int(text_bytes * (MAX_PAIR_COUNT / most) * 0.95)
        raise ValueError(
            f"{sample}: one pair of bytes occurs {most:,} times, and tokenizers counts to {MAX_PAIR_COUNT:,}; "
            f"draw a smaller sample (spark_jobs/sample.py --sample_bytes {fitting})"
        )


def most_frequent_pair(texts: Iterable["pa.Array"]) -> int:
    """How often the most frequent pair of neighbouring bytes occurs in string columns, in 64 bits."""
    import numpy as np
    import pyarrow as pa

    counts = np.zeros(1 << 16, np.int64)
    for column in texts:
        large = column.cast(pa.large_string())
        _, offsets, data = large.buffers()
        bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
        if len(large) == 0 or bounds[-1] - bounds[0] < 2:
            continue
        content = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]].astype(np.uint16)
        pairs = (content[:-1] << 8) | content[1:]
        borders = bounds[1:-1] - bounds[0]  # a pair does not reach from one text into the next
        inner = np.ones(len(pairs), bool)
        inner[borders[(borders > 0) & (borders < len(content))] - 1] = False
        counts += np.bincount(pairs[inner], minlength=1 << 16)
    return int(counts.max())


class _Progress:
    """Says every few seconds how much text is counted and how long that still takes, then how long merging does."""

    def __init__(self, text_bytes: int, every_seconds: float = 5.0) -> None:
        self._all, self._every = text_bytes, every_seconds
        self._read, self._begin, self._counted = 0, time.monotonic(), 0.0
        self._stop = threading.Event()
        self._reporter = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> "_Progress":
        self._reporter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._reporter.join()

    def texts_of(self, rows: Iterable["pa.RecordBatch"]) -> Iterator[list[str]]:
        """The content of rows, whose sizes are counted as they are taken."""
        for batch in rows:
            yield batch.column("content").to_pylist()
            self._read += sum(batch.column("size").to_pylist())
        self._counted = time.monotonic()

    def _report(self) -> None:
        while not self._stop.wait(self._every):
            now = time.monotonic()
            if self._counted:
                log.info("tokenizer: merging pairs, %.0f s", now - self._counted)
            elif self._read:
                left = (now - self._begin) * (self._all - self._read) / self._read
                done = f"{self._read / 1e6:,.1f} of {self._all / 1e6:,.1f} MB"
                log.info("tokenizer: %s read, %.0f s, about %.0f s left", done, now - self._begin, max(left, 0))


def _done(folder: Path, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether the tokenizer stands already; FileExistsError if another one does."""
    from tokenizer.encode import TOKENIZER_FILE
    from tokenizer.whole_folder import refuse_foreign

    refuse_foreign(folder, [TOKENIZER_FILE])
    if overwrite or not folder.exists():
        return False
    there = folder / RECORD_FILE
    if not there.is_file() or json.loads(there.read_text()) != record:
        raise FileExistsError(f"{folder} is of another configuration; --overwrite replaces it")
    print(f"tokenizer: already done, in {folder}")
    return True


def _transformers_files(sentinels: int) -> dict[str, dict[str, Any]]:
    """What `AutoTokenizer.from_pretrained` reads beside `tokenizer.json`."""
    from tokenizer.encode import END_OF_TEXT, MASK

    roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": "<fim_pad>"}
    roles |= {"mask_token": MASK} if sentinels else {}
    special = {**roles, "additional_special_tokens": special_tokens(sentinels)[1:]}
    configuration = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    return {"tokenizer_config.json": configuration, "special_tokens_map.json": special}


if __name__ == "__main__":
    run(main)
