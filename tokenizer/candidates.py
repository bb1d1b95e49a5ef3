"""Tokenizers to compare: from folders, from installed packages, and smaller ones cut from a larger one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tokenizer.encode import TOKENIZER_FILE, read_tokenizer

# How GPT-2 and its kin keep a tokenizer.
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"


@dataclass(frozen=True)
class Candidate:
    """A tokenizer under a name that tells where it is from. Text of special tokens is plain text to it."""

    name: str
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    @property
    def vocab_size(self) -> int:
        """Entries, special tokens among them."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))


def of_folder(folder: str) -> Candidate:
    """The tokenizer of a folder (or of a `tokenizer.json`); ValueError if there is none that `tokenizers` reads."""
    path = Path(folder)
    if path.is_file() or (path / TOKENIZER_FILE).is_file():
        return Candidate(folder, read_tokenizer(path if path.is_file() else path / TOKENIZER_FILE))
    if (path / VOCABULARY_FILE).is_file() and (path / MERGES_FILE).is_file():
        return Candidate(folder, _read_merges(path))
    raise ValueError(f"{folder} holds no {TOKENIZER_FILE}, nor {VOCABULARY_FILE} and {MERGES_FILE}")


def of_package(package: str) -> list[Candidate]:
    """The tokenizers that an installed package ships; ValueError if it is not installed or ships none."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ValueError(f"the package {package} is not installed here; install it first") from None
    found = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name.endswith(TOKENIZER_FILE) and (tokenizer := _readable(path)):
            found.append(Candidate(f"{package}: {file}", tokenizer))
        elif file.name == MERGES_FILE and path.with_name(VOCABULARY_FILE).is_file():
            found.append(Candidate(f"{package}: {file.parent}", _read_merges(path.parent)))
    if not found:
        raise ValueError(f"the package {package} ships no {TOKENIZER_FILE} that tokenizers reads")
    return found


def _readable(path: Path) -> Tokenizer | None:
    """A package's file may have that name and be something else."""
    try:
        return read_tokenizer(path)
    except ValueError:
        return None


def _read_merges(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / VOCABULARY_FILE), str(folder / MERGES_FILE)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> dict[int, int]:
    """Bytes of each token by id; ValueError if this is no byte-level BPE, of which each character is a byte."""
    record = json.loads(tokenizer.to_str())
    if record["model"]["type"] != "BPE" or (record["decoder"] or {}).get("type") != "ByteLevel":
        raise ValueError("the tokenizer is no byte-level BPE, as tokenizer/train.py makes it; name it in --others")
    return {number: len(token) for token, number in record["model"]["vocab"].items()}


def cut(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """A byte-level BPE as training would have left it with fewer entries: the beginning of its merges."""
    record: dict[str, Any] = json.loads(tokenizer.to_str())
    model = record["model"]
    made = {merge_result(merge) for merge in model["merges"]}
    kept = {token: number for token, number in model["vocab"].items() if token not in made}
    if not len(kept) <= vocab_size <= len(model["vocab"]):
        raise ValueError(f"the size {vocab_size} must be from {len(kept)} to {len(model['vocab'])}")
    merges = []
    for merge in model["merges"]:
        if len(kept) >= vocab_size:
            break
        kept[merge_result(merge)] = model["vocab"][merge_result(merge)]
        merges.append(merge)
    record["model"] = model | {"vocab": kept, "merges": merges}
    return Tokenizer.from_str(json.dumps(record))


def merge_result(merge: str | list[str]) -> str:
    """The token that a merge makes; older files write its parts as one string."""
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def halved(vocab_size: int, least: int = 512, most: int = 5) -> Iterator[int]:
    """A size of vocabulary and its halves, down to `least`, at most `most` in all."""
    yield vocab_size
    for _ in range(most - 1):
        vocab_size //= 2
        if vocab_size >= least:
            yield vocab_size
