"""The steps of an evaluation: reading held-out files once for all tokenizers, the whole sample for one, and advice."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from tokenizers import Tokenizer

from tokenizer import samples
from tokenizer.candidates import Candidate, cut, token_bytes
from tokenizer.encode import SPECIAL_TOKENS, TOKENIZER_FILE, Encoder
from tokenizer.keywords import BUILTINS, KEYWORDS
from tokenizer.measures import Tally, layout_of, measured
from tokenizer.vocabulary import Uses, looked_at, words_of
from tokenizer.whole_folder import refuse_foreign

log = logging.getLogger("corella")

RECORD_FILE, PAGE_FILE = "evaluation.json", "evaluation.html"
OTHERS = "others"
# Text that is encoded at once; what `tokenizers` keeps of it takes some 40 times as much.
CHUNK_BYTES = 1 << 20
# Tokens that must be saved to be worth a vocabulary of one's own, and the loss of weights that know another.
WORTH = 0.03
INDENTATIONS = (*(" " * depth for depth in (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)), "\t", "\t" * 2, "\t" * 3, "\t" * 4)
_EVERY_SECONDS = 5.0


def configuration(tokenizer: str, sample: str, found: Sequence[Candidate], sizes: Sequence[int]) -> dict[str, Any]:
    """What decides an evaluation; ValueError if a size cannot be."""
    least = min(256 + len(SPECIAL_TOKENS), found[0].vocab_size)
    if bad := [size for size in sizes if not least <= size <= found[0].vocab_size]:
        raise ValueError(
            f"sizes has {bad[0]}; they must be from {least} to {found[0].vocab_size}, the size of {tokenizer}: "
            "train a larger one to try larger sizes"
        )
    marks = {one.name: xxhash.xxh3_64_hexdigest(one.tokenizer.to_str().encode()) for one in found}
    made_of = {"sample": samples.fingerprint(sample), "tokenizer_fingerprint": Encoder(_folder(tokenizer)).fingerprint}
    return {**made_of, "tokenizers": marks, "sizes": list(sizes)}


def _folder(tokenizer: str) -> Path:
    path = Path(tokenizer)
    return path.parent if path.name == TOKENIZER_FILE else path


def done(folder: Path, wanted: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the evaluation stands already; FileExistsError if something else does."""
    refuse_foreign(folder, [RECORD_FILE])
    if overwrite or not folder.exists():
        return False
    there = folder / RECORD_FILE
    if not there.is_file() or json.loads(there.read_text("utf-8")).get("configuration") != wanted:
        raise FileExistsError(f"{folder} is of another configuration; --overwrite replaces it")
    print(f"evaluate: already done, in {folder}")
    return True


def evaluated(tokenizer: str, sample: str, found: Sequence[Candidate], sizes: Sequence[int]) -> dict[str, Any]:
    """All that `evaluation.json` holds but its configuration; ValueError if no file is held out."""
    files, size_bytes = samples.amounts(sample, held_out=True)
    if not files:
        raise ValueError(f"{sample} holds out no file; draw one with --held_out_share above 0")
    lengths = token_bytes(found[0].tokenizer)
    tallies, swept = _held_out(sample, size_bytes, found, [cut(found[0].tokenizer, size) for size in sizes])
    shares = samples.manifest_of(sample).get("languages", {})
    described = [_described(one, tally, shares) for one, tally in zip(found, tallies, strict=True)]
    return {
        "held_out": {"files": files, "bytes": size_bytes},
        "candidates": described,
        "vocabulary": _vocabulary(tokenizer, sample, found[0].tokenizer, lengths),
        "sweep": [
            {"vocab_size": size, "tokens": tokens, "bytes_a_token": size_bytes / max(tokens, 1)}
            for size, tokens in zip(sizes, swept, strict=True)
        ],
        "advice": advice(described, sum(of["kept_bytes"] for of in shares.values()) or size_bytes),
    }


def _held_out(
    sample: str, size_bytes: int, found: Sequence[Candidate], cuts: Sequence[Tokenizer]
) -> tuple[list[Tally], list[int]]:
    """What each tokenizer makes of the held-out files, and the tokens that those of other sizes make of them."""
    tallies = [Tally(np.zeros(one.vocab_size, np.int64)) for one in found]
    swept, read, told = [0] * len(cuts), 0, time.monotonic()
    for chunk in _chunks(samples.batches(sample, True, ("language", "size", "content"))):
        texts = chunk.column("content").to_pylist()
        languages = [language or OTHERS for language in chunk.column("language").to_pylist()]
        layouts = [layout_of(text) for text in texts]
        for one, tally in zip(found, tallies, strict=True):
            encodings = one.tokenizer.encode_batch(texts, add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
            back = one.tokenizer.decode_batch(ids, skip_special_tokens=False)
            for number, encoding in enumerate(encodings):
                same = back[number] == texts[number]
                tally.add(languages[number], measured(layouts[number], encoding, same))
            tally.use(ids)
        for number, smaller in enumerate(cuts):
            encodings = smaller.encode_batch_fast(texts, add_special_tokens=False)
            swept[number] += sum(map(len, encodings))
        read += sum(chunk.column("size").to_pylist())
        if time.monotonic() - told > _EVERY_SECONDS:
            told = time.monotonic()
            log.info("evaluate: %.1f of %.1f MB held out", read / 1e6, size_bytes / 1e6)
    return tallies, swept


def _chunks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows in batches of about CHUNK_BYTES."""
    for batch in batches:
        ends = np.cumsum(np.asarray(batch.column("size")))
        bounds = np.searchsorted(ends, np.arange(CHUNK_BYTES, ends[-1], CHUNK_BYTES)) + 1
        for begin, end in zip([0, *bounds], [*bounds, batch.num_rows], strict=True):
            if end > begin:
                yield batch.slice(begin, end - begin)


def _described(one: Candidate, tally: Tally, shares: Mapping[str, Any]) -> dict[str, Any]:
    whole, languages = tally.whole(), tally.languages()
    return {
        "name": one.name,
        "vocab_size": one.vocab_size,
        "whole": whole,
        "languages": languages,
        "corpus_tokens": _corpus_tokens(whole, languages, shares),
        "never_used": int((tally.uses == 0).sum()),
        "keywords": _keywords(one.tokenizer),
        "indentation": {text: _extra(one.tokenizer, text) for text in INDENTATIONS},
    }


def _corpus_tokens(
    whole: Mapping[str, float], languages: Mapping[str, Mapping[str, float]], shares: Mapping[str, Any]
) -> float:
    """Tokens of all kept files, each language at its own rate: the sample has them in other proportions."""
    if not shares:
        return whole["tokens"]
    rates = {language: figures["bytes_a_token"] for language, figures in languages.items()}
    return sum(
        float(of["kept_bytes"]) / (rates.get(language) or whole["bytes_a_token"]) for language, of in shares.items()
    )


def _keywords(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Of each language: keywords and builtins, how many are one token, alone or after a space, and which are not."""
    return {
        language: {"keywords": _whole(tokenizer, words), "builtins": _whole(tokenizer, BUILTINS[language])}
        for language, words in KEYWORDS.items()
    }


def _whole(tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, Any]:
    split = [word for word in words if not _is_one(tokenizer, word)]
    return {"words": len(words), "whole": len(words) - len(split), "split": split}


def _is_one(tokenizer: Tokenizer, word: str) -> bool:
    return any(len(tokenizer.encode(text, add_special_tokens=False)) == 1 for text in (word, f" {word}"))


def _extra(tokenizer: Tokenizer, indentation: str) -> int:
    """Tokens that an indentation costs: those of an indented line less those of the line."""
    return len(tokenizer.encode(f"x\n{indentation}return", add_special_tokens=False)) - len(
        tokenizer.encode("x\nreturn", add_special_tokens=False)
    )


def _vocabulary(tokenizer: str, sample: str, exact: Tokenizer, lengths: Mapping[int, int]) -> dict[str, Any]:
    """The entries of the tokenizer as the whole sample uses them."""
    encoder = Encoder(_folder(tokenizer))
    uses = Uses(encoder.vocab_size)
    sizes = np.array([lengths.get(number, 0) for number in range(encoder.vocab_size)], np.int64)
    told, read = time.monotonic(), 0
    for batch in samples.batches(sample, None, ("repo", "size", "content")):
        texts = batch.column("content").cast(pa.large_string())
        ids = [tokens[:-1] for tokens in encoder.encode(texts)]
        uses.add(ids, batch.column("repo").to_pylist())
        uses.add_authors(texts, ids, sizes)
        read += pc.sum(batch.column("size")).as_py()
        if time.monotonic() - told > _EVERY_SECONDS:
            told = time.monotonic()
            log.info("evaluate: %.1f MB of the sample looked at", read / 1e6)
    return looked_at(words_of(exact), uses, len(SPECIAL_TOKENS))


def advice(described: Sequence[Mapping[str, Any]], corpus_bytes: int) -> str:
    """Keep an existing tokenizer or train one, and by how much, in one line."""
    own, others = described[0], described[1:]
    exact = [one for one in others if not one["whole"]["changed_files"]]
    if not others:
        saved = 1 - own["corpus_tokens"] / max(corpus_bytes, 1)
        return (
            f"Advice: train one. No existing tokenizer was named (--others, --packages); against bytes alone the "
            f"{own['vocab_size']:,} entries of {own['name']} save {saved:.1%} of the tokens."
        )
    best = min(exact or others, key=lambda one: float(one["corpus_tokens"]))
    ratio = own["corpus_tokens"] / max(best["corpus_tokens"], 1e-9)
    sizes = f"({own['vocab_size']:,} entries against {best['vocab_size']:,})"
    if not exact:
        changed = f"{best['whole']['changed_files']:,} of {best['whole']['files']:,} files"
        more = f"{abs(1 - ratio):.1%} {'fewer' if ratio <= 1 else 'more'}"
        return (
            f"Advice: train one. No existing tokenizer gives every file back: {best['name']} changes {changed}; "
            f"{own['name']} changes none and needs {more} tokens {sizes}."
        )
    if 1 - ratio >= WORTH:
        return f"Advice: train one. {own['name']} needs {1 - ratio:.1%} fewer tokens than {best['name']} {sizes}."
    if ratio <= 1:
        gain = f"saves {1 - ratio:.1%} of the tokens {sizes}, and {WORTH:.0%} would be worth it"
        return f"Advice: keep {best['name']}. {own['name']} {gain}."
    return f"Advice: keep {best['name']}. {own['name']} needs {ratio - 1:.1%} more tokens {sizes}."
