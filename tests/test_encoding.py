"""Ids are those of `tokenizers` for any batch and any length, and where a faster way differs it is told."""

import json
import os
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_corpus import code
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tokenizer import encode, fast_encoding, long_documents
from tokenizer.encode import END_OF_TEXT, SPECIAL_TOKENS, Encoder
from tokenizer.fast_encoding import RefusedError
from tokenizer.train import SPLIT, trained

ROOT = Path(__file__).parents[1]
WORDS = [
    *["def f(x):", "x", "_y", "42", "'s", "'LL", "don't", "été", "日本語", "。", "١٢", "ſ", "e\u0301", "🙂👩‍👧", "\0"],
    *[" ", "  ", "\n", "\r\n", "\n\n  ", "\t", "\u3000", "\u00a0", "\x1c", "\x85", "\u2028", "!", "--", "...", "=\n"],
    *SPECIAL_TOKENS[:3],
]
LONG_WORDS = [
    "a" * 300,
    "ab" * 170,
    "日本" * 90,
    "=" * 400,
    " " * 350,
    "\n" * 300,
    " \n" * 150,
    "-\n" * 150,
    "1" * 280,
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=40).map("".join)
long_texts = st.lists(st.sampled_from([*WORDS, *LONG_WORDS]) | st.text(max_size=9), max_size=30).map("".join)


def gpt2_tokenizer(sample):
    """A byte-level tokenizer with GPT-2's pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizers by pattern; they know runs of letters, blanks and line ends."""
    draw = random.Random(3)
    sample = [code(draw, 30) for _ in range(30)] + ["".join(WORDS)] * 3
    sample += ["".join(word[: draw.randrange(12)] for word in LONG_WORDS) for _ in range(60)]
    cl100k = trained(sample, 700)
    split = pre_tokenizers.Split(Regex(long_documents.CL100K), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cl100k.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    found = {"qwen2": trained(sample, 700), "gpt2": gpt2_tokenizer(sample), "cl100k": cl100k}
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in found.items():
        (folder / name).mkdir()
        tokenizer.save(str(folder / name / "tokenizer.json"))
    return {name: folder / name for name in found}


@pytest.fixture(scope="module", params=["qwen2", "gpt2", "cl100k"])
def folder(request, folders):
    return folders[request.param]


def oracle(folder, contents):
    """What `tokenizers` makes of whole documents, special tokens being text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in contents]


def lists(encoded):
    return [ids.tolist() for ids in np.split(encoded.ids, encoded.bounds[1:-1])] if len(encoded.bounds) > 1 else []


def small_pieces(patch):
    """Limits so low that documents of some hundred bytes are long, and runs in them too."""
    patch.setattr(encode, "LONG_BYTES", 40)
    sizes = {"PIECE_BYTES": 40, "WINDOW_BYTES": 32, "CHUNK_BYTES": 32, "OVERLAP_BYTES": 12}
    for name, size in sizes.items():
        patch.setattr(long_documents, name, size)


def known(folder, fast, cache={}):  # noqa: B006 - loading one takes longer than an example
    return cache.setdefault((folder, fast), Encoder(folder, fast=fast))


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(texts, max_size=5))
def test_ids_are_those_of_tokenizers(folder, contents):
    for fast in (True, False):
        encoder = known(folder, fast)
        found = encoder.encode_batch(pa.array(contents, pa.large_string()))
        assert lists(found) == oracle(folder, contents)
        ended = lists(found.ended(encoder.end_of_text_id))
        assert ended == [[*ids, encoder.end_of_text_id] for ids in lists(found)]


@settings(deadline=None, max_examples=100)
@given(text=long_texts)
@example(text="def f(x):" + "\x80" * 7 + "\U00010000" * 2 + "\n\n  42" + "日本" * 90)
@example(text="日本" * 20 + "  " + "4" * 60 + "   " + "日本" * 20 + "   42")
def test_long_documents_have_the_ids_of_the_whole(folder, text):
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        for fast in (True, False):
            found = known(folder, fast).encode_batch(pa.array(["x", text, None, text[:50]]))
            assert lists(found) == oracle(folder, ["x", text, "", text[:50]])


@settings(deadline=None, max_examples=100)
@given(text=long_texts)
@example(text="\x1c" + " " * 350)
def test_pieces_are_whole_pretokens(text):
    data = np.frombuffer(text.encode(), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        for pattern in long_documents.PATTERNS:
            ends = {0}
            split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            for piece, _ in split.pre_tokenize_str(text):
                ends.add(max(ends) + len(piece.encode()))
            pieces = list(long_documents.Cutter(pattern).pieces(data))
            assert "".join(text.encode()[piece.begin : piece.end].decode() for piece in pieces) == text
            for piece in pieces:
                assert {piece.begin, piece.end} <= ends
                assert not piece.run or not {*range(piece.begin + 1, piece.end)} & ends
                assert piece.run or piece.end - piece.begin <= 40


def test_the_pattern_of_our_tokenizers_is_one_that_is_cut():
    assert SPLIT in long_documents.PATTERNS


@pytest.mark.parametrize("kind", ["letter", "letters", "blanks", "line ends", "signs", "CJK", "minified"])
def test_documents_without_a_break_take_linear_time(folders, kind):
    draw = random.Random(0)
    unit = {
        "letter": "a",
        "letters": "".join(draw.choices("abcdefgh", k=9973)),
        "blanks": " ",
        "line ends": "\n",
        "signs": "".join(draw.choices("=-+*/", k=9973)),
        "CJK": "".join(draw.choices("日本語文字列化", k=3331)) + "。",
        "minified": "".join(f"{draw.choice('abc')}={draw.randrange(99)};" for _ in range(3000)),
    }[kind]
    encoder, seconds = Encoder(folders["qwen2"]), []
    for size in (3 << 19, 3 << 20):
        text = unit * (size // len(unit.encode()))
        begin = time.process_time()
        encoded = encoder.encode_batch(pa.array([text], pa.large_string()))
        seconds.append(time.process_time() - begin)
        assert encoded.bounds.tolist() == [0, len(encoded.ids)]
    assert encoder.counts["long"] == 2
    assert seconds[1] < 5 * seconds[0] + 0.5  # twice the text; four times would be quadratic
    sizes = long_documents.token_sizes(encoder._tokenizer)
    assert sizes[encoded.ids].sum() == len(text.encode())


def test_a_tokenizer_that_is_not_known_is_not_cut(folders):
    settings_of = {name: json.loads((path / "tokenizer.json").read_text()) for name, path in folders.items()}
    assert all(long_documents.cutter_of(known_one) for known_one in settings_of.values())
    changes = [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": settings_of["gpt2"]["pre_tokenizer"] | {"add_prefix_space": True}},
        {"model": settings_of["gpt2"]["model"] | {"byte_fallback": True}},
        {"added_tokens": [settings_of["gpt2"]["added_tokens"][0] | {"special": False}]},
    ]
    for change in changes:
        assert long_documents.cutter_of(settings_of["gpt2"] | change) is None


def test_a_tokenizer_that_the_fast_encoder_does_not_take_is_encoded_by_tokenizers(folders, tmp_path, caplog):
    record = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(record | {"normalizer": {"type": "Lowercase"}}))
    texts = ["Def F(X):\n    Return X", ""]
    found = Encoder(tmp_path).encode_batch(pa.array(texts))
    expected = [one.ids for one in Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(texts)]
    assert [found.ids[begin:end].tolist() for begin, end in pairwise(found.bounds)] == expected
    assert caplog.messages == [
        "gigatoken does not take this tokenizer (Unsupported normalizer type: Lowercase): tokenizers encodes, some 80 "
        "times slower"
    ]


class Wrong:
    """A fast encoder that gives every document one id, and refuses documents with a certain text."""

    def __init__(self, real=None, refused=b"\0refused"):
        self.real, self.refused = real, refused

    def encode(self, data, bounds):
        if self.refused in data[bounds[0] : bounds[-1]].tobytes():
            raise RefusedError("told to")
        if self.real:
            return self.real.encode(data, bounds)
        return np.zeros(len(bounds) - 1, np.uint32), np.arange(len(bounds))


def test_differences_are_counted_and_tokenizers_decides(folders, monkeypatch):
    contents = ["def f(x): return x", "y = 1", ""]
    monkeypatch.setattr(encode, "fast_encoder", lambda settings: Wrong())
    encoder = Encoder(folders["qwen2"])
    for _ in range(2):
        assert lists(encoder.encode_batch(pa.array(contents))) == oracle(folders["qwen2"], contents)
    assert encoder.counts == {"compared": 2, "differing": 2, "exact": 6}
    assert any(
        line.startswith("2 documents to which gigatoken gave other ids") for line in encode.told(encoder.counts)
    )


def test_what_is_refused_goes_to_tokenizers_document_by_document(folders, monkeypatch):
    contents = ["def f(x): return x", "a\0refused\0refused", "y = 1"]
    monkeypatch.setattr(encode, "fast_encoder", lambda settings: Wrong(fast_encoding.fast_encoder(settings)))
    encoder = Encoder(folders["qwen2"])
    assert lists(encoder.encode_batch(pa.array(contents))) == oracle(folders["qwen2"], contents)
    assert (encoder.counts["refused"], encoder.counts["exact"]) == (1, 1 if encoder._fast.real else 3)


def test_the_first_documents_are_compared_and_a_share_of_the_others(folders):
    pytest.importorskip("gigatoken")
    encoder = Encoder(folders["qwen2"])
    texts = [f"x = {number}\n" * 100 for number in range(400)]
    size = sum(map(len, texts)) / len(texts)
    found = []
    for _ in range(41):
        encoder.encode_batch(pa.array(texts))
        found.append(encoder.counts["compared"])
    assert found[0] * size >= encode.CHECKED_AT_START_BYTES
    later = (found[-1] - found[0]) * size
    assert later == pytest.approx(40 * 400 * size / encode.CHECKED_ONE_IN, abs=2 * encode.CHECKED_BYTES)
    assert later > 0
    assert encoder.counts["differing"] == encoder.counts["exact"] == 0


# In a process of its own, whose memory is that of encoding alone: words that never repeat, which gigatoken takes eight
# times the memory to remember. Prints the growth, how often it was loaded anew, and three texts with their ids.
_MUCH_TO_REMEMBER = """
import json, sys, numpy as np, pyarrow as pa
from tokenizer import fast_encoding
from tokenizer.encode import Encoder

fast_encoding.CACHE_BYTES = 20 << 20
encoder, draw = Encoder(sys.argv[1]), np.random.default_rng(0)
sizes, loads, load = [], [], encoder._fast._load
encoder._fast._load = lambda: loads.append(load())
for _ in range(8):
    letters = draw.integers(97, 123, 6 << 20, dtype=np.uint8)
    letters[::9] = 32
    texts = pa.array([part.tobytes().decode() for part in np.split(letters, 64)], pa.large_string())
    ids, bounds = encoder.encode_batch(texts)
    sizes.append(fast_encoding._resident_bytes())
first = [ids[bounds[row] : bounds[row + 1]].tolist() for row in range(3)]
print(json.dumps([max(sizes) - sizes[1], len(loads), texts[:3].to_pylist(), first]))
"""


def test_what_gigatoken_remembers_is_bounded(folders):
    pytest.importorskip("gigatoken")
    done = subprocess.run(
        [sys.executable, "-c", _MUCH_TO_REMEMBER, str(folders["qwen2"])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    growth_bytes, loads, texts, found = json.loads(done.stdout)
    assert growth_bytes < 150 << 20  # 380 MB if it remembered all
    assert loads > 1
    assert found == oracle(folders["qwen2"], texts)


def test_without_gigatoken_the_same_ids_come(folders, tmp_path):
    contents = [*WORDS, *LONG_WORDS, "".join(WORDS)]
    (tmp_path / "gigatoken.py").write_text("raise ImportError('not here')\n")
    program = (
        "import json, sys, pyarrow as pa; from tokenizer.encode import Encoder;"
        "encoder = Encoder(sys.argv[1]); found = encoder.encode(pa.array(json.load(sys.stdin)));"
        "print(json.dumps([encoder.counts['exact'], [ids.tolist() for ids in found]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folders["qwen2"])],
        input=json.dumps(contents),
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    exact, found = json.loads(done.stdout)
    encoder = Encoder(folders["qwen2"])
    assert exact == len(contents)
    assert found == [[*ids, encoder.end_of_text_id] for ids in oracle(folders["qwen2"], contents)]
    assert "gigatoken is not installed" in done.stderr
