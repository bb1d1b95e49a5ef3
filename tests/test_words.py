"""Words, their runs and exact similarities against plain Python."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import SHINGLE_WORDS, jaccard_of, shingles_of

from spark_jobs.near_duplicates.shingles import jaccard, shingle_sets

ROOT = Path(__file__).parent.parent

WORDS = ["a", "A", "b", "_", "x_1", "é", "e\u0301", "日本", "𝔘", "١٢", "word", "q" * 70]
GAPS = [" ", "\n", "\r\n", ".", "—", "\u2028", "🙂", "\0", " (", "\t\t", "@", "[", "`", "{", "/", ":", "\x7f"]
# They differ in their lengths alone, over what is hashed at once.
long_words = st.integers(1, 40).map(lambda length: "x" * length)
words_apart = st.tuples(st.sampled_from(WORDS) | long_words, st.sampled_from(GAPS)).map("".join)
small_texts = st.lists(words_apart, max_size=6).map("".join)
texts = small_texts | st.lists(words_apart, max_size=60).map("".join) | st.text(max_size=80)


def packed(documents):
    """UTF-8 end to end, in an array of just its size with letters behind it, and the bounds of the documents."""
    encoded = [document.encode() for document in documents]
    bounds = np.cumsum([0, *map(len, encoded)])
    return np.frombuffer(b"".join([*encoded, b"z" * 64]), np.uint8)[: bounds[-1]], bounds


def sets_of(documents, size=SHINGLE_WORDS):
    hashes, bounds = shingle_sets(*packed(documents), size)
    return [set(hashes[begin:end].tolist()) for begin, end in itertools.pairwise(bounds)]


def runs_of(text, size):
    r"""All runs of so many words, the matches of `\w+`; a shorter text has the one run of all its words."""
    words = re.findall(r"\w+", text)
    length = min(size, len(words))
    return {tuple(words[first : first + length]) for first in range(len(words) - length + 1)} if words else set()


def facts(documents, size=SHINGLE_WORDS):
    """What the sets of documents say: how many shingles each has, and all have, and how similar all pairs are."""
    hashes, bounds = shingle_sets(*packed(documents), size)
    assert hashes.dtype == np.uint64
    for begin, end in itertools.pairwise(bounds):
        shingles = hashes[begin:end]
        assert (shingles[1:] > shingles[:-1]).all()
    left, right = np.indices((len(documents), len(documents))).reshape(2, -1)
    similarities = jaccard(hashes, bounds, left, right)
    return np.diff(bounds).tolist(), len(set(hashes.tolist())), similarities.tolist()


def expected_facts(sets):
    """The same of sets of plain Python."""
    similarities = [jaccard_of(one, other) for one, other in itertools.product(sets, repeat=2)]
    return list(map(len, sets)), len(set().union(*sets)), similarities


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_shingle_sets_are_those_of_plain_python(documents):
    assert facts(documents) == expected_facts([shingles_of(document) for document in documents])


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.sampled_from([1, 2, 3, 10, 70]))
def test_runs_of_any_size_are_those_of_plain_python(documents, size):
    assert facts(documents, size) == expected_facts([runs_of(document, size) for document in documents])


def test_shingle_sets_of_source_files_are_those_of_plain_python():
    documents = [path.read_text() for path in sorted(ROOT.glob("spark_jobs/**/*.py"))]
    assert sum(map(len, documents)) > 100_000
    assert facts(documents) == expected_facts([shingles_of(document) for document in documents])


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.data())
def test_a_document_does_not_depend_on_its_neighbours(documents, data):
    """Nor on where it lies: documents touch each other, and a part of a buffer will do."""
    alone = [sets_of([document])[0] for document in documents]
    assert sets_of(documents) == alone
    assert sets_of(documents[::-1]) == alone[::-1]
    first = data.draw(st.integers(0, len(documents) - 1))
    last = data.draw(st.integers(first + 1, len(documents)))
    whole, bounds = packed(documents)
    hashes, ends = shingle_sets(whole, bounds[first : last + 1])
    assert ends[0] == 0
    assert [set(hashes[begin:end].tolist()) for begin, end in itertools.pairwise(ends)] == alone[first:last]


def test_every_character_parts_words_or_not_as_in_plain_python():
    codes = [code for code in (*range(0x3100), *range(0x3100, 0x110000, 97)) if not 0xD800 <= code < 0xE000]
    documents = [f"a{chr(code)}b" for code in codes]
    assert [len(found) for found in sets_of(documents, 1)] == [len(runs_of(document, 1)) for document in documents]


@pytest.mark.parametrize("letter", ["x", "é", "日", "𝔘"])
def test_a_word_is_the_same_wherever_it_stands(letter):
    """Across the borders of the 64 bytes that are searched at once too, and before a character that is not ASCII."""
    widths = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 62, 63, 64, 65, 66, 127, 128, 129, 200)
    documents = [
        " " * place + letter * width + gap for width in widths for place in range(131) for gap in ("", " ", "—")
    ]
    hashes, bounds = shingle_sets(*packed(documents), 1)
    assert (np.diff(bounds) == 1).all()
    by_width = hashes.reshape(len(widths), -1)
    assert (by_width == by_width[:, :1]).all()
    assert len(set(by_width[:, 0].tolist())) == len(widths)


def test_words_of_one_letter_fill_the_room():
    """No document has more words a byte: every length up to three times what is searched at once, and long ones."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    whole = " ".join(alphabet * 40)
    lengths = [*range(1, 200), *range(1023, 1027), len(whole) - 1, len(whole)]
    documents = [whole[:length] for length in lengths]
    for size in (1, SHINGLE_WORDS):
        assert [len(found) for found in sets_of(documents, size)] == [len(runs_of(one, size)) for one in documents]
    for document in documents[::20]:
        assert [len(found) for found in sets_of([document])] == [len(shingles_of(document))]


def test_order_case_and_number_of_words_tell_shingles_apart():
    documents = ["a b c d e", "a b c d E", "e d c b a", "a b c d", "a b c d e a b c d e", "ab c d e", "a b a b a b"]
    sets = sets_of(documents)
    assert [len(shingles) for shingles in sets] == [1, 1, 1, 1, 5, 1, 2]
    assert sets[0] < sets[4]
    assert len(set().union(*sets)) == 11


def test_documents_without_words_have_no_shingles_and_are_similar_to_none():
    documents = ["", " ", "\n\n", "...", "🙂🙂", "+-*/ ()[]{}", "\0", "\u0301", "a", ""]
    hashes, bounds = shingle_sets(*packed(documents))
    counts = np.diff(bounds)
    assert counts.tolist() == [len(shingles_of(document)) for document in documents]
    assert counts.sum() == 1
    everyone = np.arange(len(documents))
    assert jaccard(hashes, bounds, everyone, everyone).tolist() == counts.tolist()
    assert jaccard(hashes, bounds, everyone, np.roll(everyone, 1)).sum() == 0


@pytest.mark.parametrize("documents", [[], [""], ["", "", ""]])
def test_nothing_has_no_shingles(documents):
    hashes, bounds = shingle_sets(*packed(documents))
    assert (len(hashes), bounds.tolist()) == (0, [0] * (len(documents) + 1))


# Long documents


def cycle(names, laps):
    """A text of the names, again and again, whose distinct shingles are as many as the names, and all of it twice."""
    return " ".join(names * laps)


def test_repeated_shingles_count_once_however_full_their_table():
    """Tables are twice as large as the shingles, rounded up: their fill changes at powers of two."""
    numbers = [str(number) for number in range(2100)]
    counts = [power + near for power in (8, 16, 64, 256, 1024, 2048) for near in (-1, 0, 1, 2)]
    documents = [cycle(numbers[:count], laps) for count in counts for laps in (2, 3, 8)]
    assert [len(found) for found in sets_of(documents)] == [count for count in counts for _ in range(3)]


def test_sets_are_the_same_whether_sorted_or_in_a_table():
    """More than 2^20 shingles are sorted, one less goes through the largest table."""
    most = 1 << 20
    names = [str(number) for number in range(most)]
    few = names[: most // 2]
    documents = [
        " ".join([*names, *few[:4]]),  # the most that a table takes, all distinct
        " ".join([*names, *few[:5]]),
        cycle(few, 3),
        " ".join([*few, *few[:4]]),
    ]
    hashes, bounds = shingle_sets(*packed(documents))
    assert np.diff(bounds).tolist() == [most, most, most // 2, most // 2]
    first, second, third, fourth = (hashes[begin:end] for begin, end in itertools.pairwise(bounds))
    assert (first == second).all()
    assert (third == fourth).all()
    # All but the four that begin before the end of the half and go on in another way.
    both = most // 2 - 4
    pair = jaccard(hashes, bounds, np.array([0]), np.array([2]))
    assert pair.tolist() == [both / (most + most // 2 - both)]


def test_long_documents_of_few_shingles():
    documents = ["a b " * 700_000, "x" * (1 << 20), "x" * ((1 << 20) - 1), "é" * (1 << 19), "a b " * 50_000]
    sets = sets_of(documents)
    assert [len(found) for found in sets] == [2, 1, 1, 1, 2]
    assert sets[0] == sets[4]
    assert len(set().union(*sets)) == 5
