"""The tokenizer gives every text back, never lets a text forge a special token, and is made of its sample alone."""

import json
import random
import shutil
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_corpus import code, write_sample
from tokenizers import Tokenizer

from tokenizer import samples, train
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
    """The same sample twice, cut differently, and its texts."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(1)
    contents = [*standard_library(26), *(code(draw, 20) for _ in range(33)), *NASTY]
    sample = write_sample(folder / "sample", contents, [code(draw, 10)])
    cut = write_sample(folder / "cut", contents[::-1], [code(random.Random(2), 10)], parts=3)
    return {"sample": sample, "cut": cut, "contents": contents}


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    """A folder with a tokenizer of 600 entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "out"
    train.main(sample=corpus["sample"], output=str(folder), vocab_size=600)
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


def test_the_same_sample_gives_the_same_tokenizer(corpus, tokenizer, tmp_path):
    for name in ("sample", "cut"):  # what is held out does not count, nor how the rows are cut
        train.main(sample=corpus[name], output=str(tmp_path / name), vocab_size=600)
        assert (tmp_path / name / TOKENIZER_FILE).read_bytes() == (tokenizer / TOKENIZER_FILE).read_bytes()


def test_training_reads_what_is_not_held_out_bit_by_bit(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "BATCH_FILES", 7)
    sizes = []
    trained = train.trained
    monkeypatch.setattr(train, "trained", lambda texts, *sizes_of: trained(seen(texts, sizes), *sizes_of))
    train.main(sample=corpus["sample"], output=str(tmp_path / "out"), vocab_size=300)
    assert sum(sizes) == len(corpus["contents"])
    assert max(sizes) <= 7
    held_out = [text for batch in samples.batches(corpus["sample"], True) for text in batch["content"].to_pylist()]
    assert len(held_out) == 1
    assert held_out[0] not in corpus["contents"]
    assert samples.amounts(corpus["sample"], True) == (1, len(held_out[0].encode()))


def seen(texts, sizes):
    for batch in texts:
        sizes.append(len(batch))
        yield batch


def test_words_are_split_alike_in_training_unless_they_are_long():
    whole, cut = train._split(train.SPLIT), train._split(train.TRAINING_SPLIT)
    for text in [*standard_library(60), *(text for text in NASTY if len(text) < 128)]:
        assert cut.pre_tokenize_str(text) == whole.pre_tokenize_str(text)
    for text in ("a" * 1000, "=" * 1000, " " * 1000 + "x", "\n" * 1000):
        pieces = [piece for piece, _ in cut.pre_tokenize_str(text)]
        assert max(map(len, pieces)) <= 257
        assert "".join(pieces) == "".join(piece for piece, _ in whole.pre_tokenize_str(text))


@settings(deadline=None)
@given(st.lists(texts, max_size=6), st.integers(0, 3))
def test_pairs_of_bytes_are_counted_within_texts(contents, first):
    counts = Counter()
    for text in contents[first:]:
        data = text.encode()
        counts.update(pairwise(data))
    column = pa.array(contents, pa.string()).slice(min(first, len(contents)))
    assert train.most_frequent_pair([column, column]) == 2 * max(counts.values(), default=0)


def test_a_sample_whose_pairs_cannot_be_counted_is_refused(corpus, tmp_path, monkeypatch):
    texts = pa.array(corpus["contents"])
    most = train.most_frequent_pair([texts])
    monkeypatch.setattr(train, "MAX_PAIR_COUNT", most)
    train.main(sample=corpus["sample"], output=str(tmp_path / "fits"), vocab_size=263)
    monkeypatch.setattr(train, "MAX_PAIR_COUNT", most - 1)
    with pytest.raises(ValueError, match=f"{most:,} times.*counts to {most - 1:,}.*--sample_bytes"):
        train.main(sample=corpus["sample"], output=str(tmp_path / "out"), vocab_size=263)
    assert not (tmp_path / "out").exists()


def test_a_sequence_without_ends_takes_linear_time():
    draw = random.Random(0)
    letters = "".join(draw.choices("ACGT", k=1 << 20))  # one word: uncut, this takes many minutes
    tokenizer = train.trained([letters], 400)
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.decode(tokenizer.encode(letters[:5000]).ids) == letters[:5000]


def test_what_cannot_be_is_refused(corpus, tokenizer, tmp_path, capsys):
    sample = corpus["sample"]
    with pytest.raises(ValueError, match="vocab_size is 262; it must be at least 263"):
        train.main(sample=sample, output=str(tmp_path / "out"), vocab_size=262)
    assert not (tmp_path / "out").exists()
    train.main(sample=sample, output=str(tmp_path / "least"), vocab_size=263)
    assert Encoder(tmp_path / "least").vocab_size == 263
    stamp = (tokenizer / TOKENIZER_FILE).stat().st_mtime_ns
    train.main(sample=sample, output=str(tokenizer), vocab_size=600)
    assert "already done" in capsys.readouterr().out
    assert (tokenizer / TOKENIZER_FILE).stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="--overwrite"):
        train.main(sample=sample, output=str(tokenizer), vocab_size=601)
    nothing = write_sample(tmp_path / "nothing", [], ["held out"])
    with pytest.raises(ValueError, match="holds no file to train on"):
        train.main(sample=nothing, output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="is not a finished table"):
        train.main(sample=str(tmp_path), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"holds no {TOKENIZER_FILE}"):
        Encoder(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{TOKENIZER_FILE} is no file that tokenizers reads"):
        Encoder(tmp_path)
    with pytest.raises(ValueError, match="lie in one another"):
        train.main(sample=sample, output=str(Path(sample).parent), overwrite=True)
    with pytest.raises(FileExistsError, match="holds something else than what is written here"):
        train.main(sample=sample, output=str(nothing), vocab_size=300, overwrite=True)


def test_a_training_that_fails_leaves_what_was_there(corpus, tokenizer, tmp_path):
    shutil.copytree(tokenizer, tmp_path / "out")
    shutil.copytree(corpus["sample"], tmp_path / "damaged")
    last = max((tmp_path / "damaged").glob("*.parquet"))
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{last.name} is damaged"):
        train.main(sample=str(tmp_path / "damaged"), output=str(tmp_path / "out"), vocab_size=300, overwrite=True)
    names = [path.name for path in tokenizer.iterdir()]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tokenizer / name).read_bytes()


def test_a_table_that_is_no_sample_is_refused(workspace, tmp_path):
    with pytest.raises(ValueError, match="is a table of ledger; needed is a sample"):
        train.main(sample=workspace.ledger, output=str(tmp_path / "out"))


def test_the_tokenizer_of_the_workspace_knows_its_kept_files(workspace):
    encoder = Encoder(workspace.tokenizer)
    contents = pq.read_table(workspace.documents).column("content").drop_null().combine_chunks()
    found = [encoder.decode(ids) for ids in encoder.encode(contents)]
    assert found == contents.to_pylist()
    assert 263 < encoder.vocab_size <= 500
