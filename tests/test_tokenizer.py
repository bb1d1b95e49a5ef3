"""The tokenizer gives every text back, never lets a text forge a special token, and is made of its sample alone."""

import json
import random
import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_corpus import code, document, write_documents, write_ledger
from tokenizers import Tokenizer

from tokenizer import train
from tokenizer.encode import END_OF_TEXT, SPECIAL_TOKENS, TOKENIZER_FILE, Encoder

NASTY = [
    "",
    " ",
    "\n",
    "\r\n\r\r\n",
    "\0",
    "\t" * 1000,
    " " * 5000 + "x",
    "a" * 5000,
    "0123456789" * 300,
    "=" * 3000 + "\n" * 3000,
    "it's I'LL we'Re 'S 'ſ 'd'",
    "é e\u0301 ﬁ İı ǅ ß \u212a",
    "日本語のテキスト。한국어 텍스트 العربية हिन्दी",
    "𝔘𝔫𝔦 🙂👩‍👩‍👧 \U0010ffff\ufffe\uffff",
    "\u200b\u200d\u2028\u2029\x85\x0b\x0c\x1c\u3000\u00a0 \u1680",
    "\ufeffmark",
    "²³¹ ½ ٣ Ⅷ 一",
    *SPECIAL_TOKENS,
    f"x{END_OF_TEXT}y <fim_prefix><fim_suffix>\n<file_sep> <|endoftext|",
]
texts = st.text(max_size=200) | st.lists(st.sampled_from([*NASTY[:5], *NASTY[10:], "def ", "x"]), max_size=6).map(
    "".join
)


def standard_library(count):
    """Some files of the standard library, the same on every run."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))
    files = [file for file in files if "site-packages" not in file.parts and file.stat().st_size < 60_000]
    chosen = random.Random(0).sample(files, count)
    return [file.read_bytes().decode("utf-8", "replace") for file in chosen]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A table of documents of which two thirds are kept, and its ledger."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(1)
    contents = [*standard_library(40), *(code(draw, 20) for _ in range(50)), *NASTY]
    rows = [document(text, path=f"{number}.py") for number, text in enumerate(contents)]
    rows.append(document(None, path="binary.py"))
    kept = [row["file_id"] for number, row in enumerate(rows[:-1]) if number % 3]
    documents = write_documents(folder / "documents", rows, parts=2, rows_a_group=9)
    other = write_documents(folder / "other", rows[::-1], parts=3, rows_a_group=20)
    return {
        "documents": documents,
        "ledger": write_ledger(folder / "ledger", documents, kept),
        "other": {"documents": other, "ledger": write_ledger(folder / "other_ledger", other, kept)},
        "kept": [row["content"] for row in rows if row["file_id"] in kept],
    }


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    """A folder with a tokenizer of 600 entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "out"
    train.main(documents=corpus["documents"], ledger=corpus["ledger"], output=str(folder), vocab_size=600)
    return folder


def encoded(encoder, contents):
    return [ids.tolist() for ids in encoder.encode(pa.array(contents, pa.large_string()))]


def test_special_tokens_have_the_first_ids_and_no_text_has_them(tokenizer):
    theirs = Tokenizer.from_file(str(tokenizer / TOKENIZER_FILE))
    assert [theirs.token_to_id(name) for name in SPECIAL_TOKENS] == list(range(7))
    assert theirs.get_vocab_size() == 600
    for fast in (True, False):
        encoder = Encoder(tokenizer, fast=fast)
        assert (encoder.end_of_text_id, encoder.vocab_size) == (0, 600)
        for ids in encoded(encoder, NASTY):
            assert ids[-1] == 0
            assert all(token >= len(SPECIAL_TOKENS) for token in ids[:-1])
    settings_of_it = json.loads((tokenizer / "tokenizer_config.json").read_text())
    assert settings_of_it["eos_token"] == END_OF_TEXT
    assert not settings_of_it["clean_up_tokenization_spaces"]


@settings(deadline=None)
@given(text=texts)
@example(text="".join(NASTY))
def test_decoding_what_was_encoded_is_the_identity(tokenizer, text):
    for encoder in encoders(tokenizer):
        (ids,) = encoder.encode(pa.array([text]))
        assert ids.dtype == np.uint32
        assert encoder.decode(ids) == encoder.decode(ids[:-1]) == text


def encoders(folder, known={}):  # noqa: B006 - loading one takes longer than a test
    return known.setdefault(folder, [Encoder(folder), Encoder(folder, fast=False)])


def test_real_files_have_the_same_ids_fast_and_slow(tokenizer):
    pytest.importorskip("gigatoken")
    contents = [*NASTY, *standard_library(300)]
    fast, slow = Encoder(tokenizer), Encoder(tokenizer, fast=False)
    found = encoded(fast, contents)
    assert fast._fast is not None  # else two slow ones were compared
    assert found == encoded(slow, contents)
    assert [fast.decode(np.array(ids)) for ids in found] == contents
    theirs = Tokenizer.from_file(str(tokenizer / TOKENIZER_FILE))
    theirs.encode_special_tokens = True
    assert found == [[*theirs.encode(text).ids, 0] for text in contents]


def test_slices_and_kinds_of_columns_are_encoded_alike(tokenizer):
    contents = [f"x = {number}\n" for number in range(40)]
    for encoder in encoders(tokenizer):
        expected = encoded(encoder, contents)[7:19]
        for kind in (pa.string(), pa.large_string()):
            sliced = pa.array(contents, kind).slice(7, 12)
            assert [ids.tolist() for ids in encoder.encode(sliced)] == expected
        assert encoder.encode(pa.array([], pa.large_string())) == []


def test_the_same_sample_and_seed_give_the_same_tokenizer(corpus, tokenizer, tmp_path):
    again, cut = tmp_path / "again", tmp_path / "cut"
    train.main(documents=corpus["documents"], ledger=corpus["ledger"], output=str(again), vocab_size=600)
    train.main(**corpus["other"], output=str(cut), vocab_size=600)
    for other in (again, cut):
        assert (other / TOKENIZER_FILE).read_bytes() == (tokenizer / TOKENIZER_FILE).read_bytes()


def test_samples_are_drawn_from_the_kept_files_by_id(corpus):
    drawn = partial(train.sample, corpus["documents"], corpus["ledger"])
    whole = sorted(drawn(1 << 30, 0))
    assert whole == sorted(corpus["kept"])
    size_bytes = sum(len(text.encode()) for text in whole)
    half = sorted(drawn(size_bytes // 2, 0))
    assert half == sorted(train.sample(**corpus["other"], sample_bytes=size_bytes // 2, seed=0))
    assert 0.25 < sum(len(text.encode()) for text in half) / size_bytes < 0.75
    assert set(half) < set(whole)
    assert half != sorted(drawn(size_bytes // 2, 1))
    assert set(drawn(size_bytes // 4, 0)) < set(half)


def test_what_cannot_be_is_refused(corpus, tokenizer, tmp_path, capsys):
    inputs = {"documents": corpus["documents"], "ledger": corpus["ledger"]}
    with pytest.raises(ValueError, match="vocab_size is 262; it must be at least 263"):
        train.main(**inputs, output=str(tmp_path / "out"), vocab_size=262)
    assert not (tmp_path / "out").exists()
    train.main(**inputs, output=str(tmp_path / "least"), vocab_size=263)
    assert Encoder(tmp_path / "least").vocab_size == 263
    stamp = (tokenizer / TOKENIZER_FILE).stat().st_mtime_ns
    train.main(**inputs, output=str(tokenizer), vocab_size=600)
    assert "already done" in capsys.readouterr().out
    assert (tokenizer / TOKENIZER_FILE).stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="--overwrite"):
        train.main(**inputs, output=str(tokenizer), vocab_size=601)
    nothing = write_ledger(tmp_path / "ledger", corpus["documents"], kept=[])
    with pytest.raises(ValueError, match="keeps no file"):
        train.main(documents=corpus["documents"], ledger=nothing, output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="is not a finished table"):
        train.main(documents=corpus["documents"], ledger=str(tmp_path), output=str(tmp_path / "out"))
    strangers = [document(str(number), path=f"{number}.py") for number in range(200)]
    others = write_documents(tmp_path / "others", strangers, parts=2, rows_a_group=9)
    with pytest.raises(ValueError, match="was not made from"):
        train.main(documents=others, ledger=corpus["ledger"], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"holds no {TOKENIZER_FILE}"):
        Encoder(tmp_path)


def test_the_tokenizer_of_the_workspace_knows_its_kept_files(workspace):
    encoder = Encoder(workspace.tokenizer)
    contents = pq.read_table(workspace.documents).column("content").drop_null().combine_chunks()
    found = [encoder.decode(ids) for ids in encoder.encode(contents)]
    assert found == contents.to_pylist()
    assert 263 < encoder.vocab_size <= 500
