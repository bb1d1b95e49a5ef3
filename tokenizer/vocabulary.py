"""A vocabulary looked at entry by entry: what is never used, hardly used, of one repository alone, or looks secret.

The ids of a whole sample are walked as arrays; memory is a batch of texts and a few numbers an entry.
"""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Fewer uses in the whole sample teach a model little of a token.
FEW_USES = 20
# A token used so often, and in one repository alone, is that repository's own.
OWN_USES = 50
# Entries that are shown of each kind.
SHOWN = 40
# A name stands more often in lines about authors than in all others, and so often at least.
NAME_USES = 5
_AUTHOR = r"(?i)author|copyright|maintainer|written by|signed-off-by|©"
_AUTHOR_BYTES = re.compile("(?i:author|copyright|maintainer|written by|signed-off-by)|©".encode())
_LINE_BYTES = 200

_MAIL = re.compile(r"[\w.+-]{2,}@[\w-]{2,}|@(?:gmail|yahoo|hotmail|outlook|qq|163)\b|(?:gmail|yahoo|hotmail)\.com")
_KEY = re.compile(
    r"(?:AKIA|ASIA|ghp_|gho_|github_pat_|glpat-|xox[abp]-|[sr]k_live_|AIza|npm_|pypi-|hf_)[A-Za-z0-9]{4,}"
    r"|eyJ[A-Za-z0-9_-]{6,}|BEGIN \w+ PRIVATE KEY|MII[A-Z][A-Za-z]{6,}"
)
_LETTERS = re.compile(r"[A-Za-z0-9+/]{12,}")

Ids = NDArray[np.uint32]


class Uses:
    """How often each entry is used, in how many repositories (none, one or several), and in lines about authors."""

    def __init__(self, vocab_size: int) -> None:
        self.uses = np.zeros(vocab_size, np.int64)
        self.by_authors = np.zeros(vocab_size, np.int64)
        self._repo = np.zeros(vocab_size, np.uint64)
        self._several = np.zeros(vocab_size, bool)
        self._repos: set[int] = set()

    def add(self, ids: list[Ids], repos: list[str | None]) -> None:
        """Count the tokens of texts, each of a repository."""
        self.uses += np.bincount(np.concatenate([*ids, np.empty(0, np.uint32)]), minlength=len(self.uses))
        for tokens, repo in zip(ids, repos, strict=True):
            mark = np.uint64(xxhash.xxh3_64_intdigest((repo or "").encode()) | 1)
            if len(self._repos) < 2:
                self._repos.add(int(mark))
            there = self._repo[tokens]
            self._several[tokens[(there != 0) & (there != mark)]] = True
            self._repo[tokens[there == 0]] = mark

    def add_authors(self, texts: pa.Array, ids: list[Ids], sizes: NDArray[np.int64]) -> None:
        """Count the tokens in lines that tell of authors; `sizes` are the bytes of each entry."""
        for row in pc.indices_nonzero(pc.match_substring_regex(texts, _AUTHOR)).to_pylist():
            content = texts[row].as_buffer().to_pybytes()
            begins = np.cumsum(sizes[ids[row]]) - sizes[ids[row]]
            free_from = 0
            for match in _AUTHOR_BYTES.finditer(content):
                if match.start() < free_from:
                    continue
                end = content.find(b"\n", match.end(), match.end() + _LINE_BYTES)
                free_from = end if end >= 0 else match.end() + _LINE_BYTES
                first, last = np.searchsorted(begins, (match.end(), free_from))
                np.add.at(self.by_authors, ids[row][first:last], 1)

    def of_one_repository(self) -> NDArray[np.int64]:
        """Entries used OWN_USES times or more and in one repository alone; none if there is but one."""
        if len(self._repos) < 2:
            return np.empty(0, np.int64)
        return np.flatnonzero((self.uses >= OWN_USES) & ~self._several)

    def of_authors(self) -> NDArray[np.int64]:
        """Entries that are used mostly in lines about authors."""
        return np.flatnonzero((self.by_authors >= NAME_USES) & (2 * self.by_authors > self.uses))


def words_of(tokenizer: Tokenizer) -> list[str]:
    """What each entry stands for, by id; a part of a character shows as �."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return [
        str(text) for text in tokenizer.decode_batch([[number] for number in range(size)], skip_special_tokens=False)
    ]


def looked_at(words: list[str], uses: Uses, special: int) -> dict[str, Any]:
    """Counts and examples of what is odd in a vocabulary, the most used first; `special` ids come before it."""
    numbers = np.arange(special, len(words))
    counts = uses.uses[special:]
    never = [int(number) for number in numbers[counts == 0] if len(words[number]) != 1]
    few = numbers[(counts > 0) & (counts < FEW_USES)]
    names = [number for number in uses.of_authors().tolist() if _is_name(words[number])]
    own = [number for number in uses.of_one_repository().tolist() if len(words[number].strip()) > 2]
    secret = [number for number in numbers.tolist() if looks_secret(words[number])]
    return {
        "tokens": int(uses.uses.sum()),
        "few_uses": FEW_USES,
        "never_used": _shown(never, words, uses),
        "under_trained": _shown(few.tolist(), words, uses),
        "of_one_repository": _shown(own, words, uses),
        "names": _shown(names, words, uses),
        "secrets": _shown(secret, words, uses),
    }


def _shown(numbers: list[int], words: list[str], uses: Uses) -> dict[str, Any]:
    ordered = sorted(numbers, key=lambda number: (-int(uses.uses[number]), number))
    return {"entries": len(numbers), "examples": [[words[one], int(uses.uses[one])] for one in ordered[:SHOWN]]}


def _is_name(word: str) -> bool:
    """A word that begins with a capital and goes on in small letters, as names of people do."""
    bare = word.strip()
    return len(bare) > 2 and bare.isalpha() and bare.istitle()


def looks_secret(word: str) -> bool:
    """Whether an entry has the form of a mail address, a key, or a run of letters as chance makes them."""
    return bool(_MAIL.search(word) or _KEY.search(word) or any(map(_is_random, _LETTERS.findall(word))))


def _is_random(run: str) -> bool:
    """Letters that change between small and capital (or to digits) more often than any name does."""
    kinds = ["A" if letter.isupper() else "1" if letter.isdigit() else "a" for letter in run]
    changes = sum(before != after for before, after in pairwise(kinds))
    return 9 * changes > 4 * len(run)
