"""The evaluation counts what plain Python counts, compares any tokenizers, and tells the domains apart."""

import json
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_corpus import code, document, write_sample
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from spark_jobs.sources.languages import require_known
from tokenizer import candidates, evaluate, evaluation, evaluation_page, keywords, train
from tokenizer.encode import SPECIAL_TOKENS, TOKENIZER_FILE, Encoder
from tokenizer.measures import COUNTS, Tally, layout_of, measured
from tokenizer.vocabulary import FEW_USES, OWN_USES, Uses, looked_at, looks_secret, words_of

VOCABULARY = 700
MARKUP = "<b>&\"'"


COMMON = """
the of and to in a is that it was for on are with as his they be at one have this from or had by hot but some
what there we can out other were all your when up use word how said an each she which do their time if will way
about many then them would write like so these her long make thing see him two has look more day could go come
did my sound no most number who over know water than call first people may down side been now find any new work
part take get place made live where after back little only round man year came show every good me give our under
name very through just form much great think say help low line before turn cause same mean differ move right boy
old too
"""


def prose(draw, words):
    """English of a few hundred words, the common ones often, in sentences."""
    lexicon = COMMON.split()
    chosen = draw.choices(lexicon, [1 / rank for rank in range(1, len(lexicon) + 1)], k=words)
    return re.sub(r"((?:\w+ ){6,9}\w+) ", lambda match: match[1].capitalize() + ". ", " ".join(chosen))


def syllables(draw, words):
    """A language in the Devanagari script: words of one to four syllables from a lexicon, the short ones often."""
    consonants, signs = "कखगघचजटडतदनपबमयरलवशसह", "ािीुूेैोौ"
    lexicon = ["".join(draw.choice(consonants) + draw.choice(signs) for _ in range(1 + n // 80)) for n in range(300)]
    return " ".join(draw.choices(lexicon, [1 / (10 + rank) for rank in range(300)], k=words)) + "।\n"


def dna(draw, letters):
    """Bases with motifs that come again, in lines of 70, as FASTA has them."""
    motifs = ["".join(random.Random(n).choices("ACGT", k=draw.randrange(5, 12))) for n in range(40)]
    bases = "".join(draw.choice(motifs) for _ in range(letters // 8))
    return ">sequence\n" + "\n".join(re.findall(".{1,70}", bases)) + "\n"


DOMAINS = {"prose": (prose, 150), "devanagari": (syllables, 150), "dna": (dna, 1500), "code": (code, 30)}


def domain(name, seed, files=60):
    make, size = DOMAINS[name]
    return [make(random.Random(f"{name} {seed} {number}"), size) for number in range(files)]


@pytest.fixture(scope="module")
def of_domains():
    """A tokenizer of each domain, of the same size."""
    return {name: train.trained(domain(name, "training"), VOCABULARY) for name in DOMAINS}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_tokenizer_of_another_domain_costs_more(of_domains, name):
    held_out = domain(name, "held out", files=15)
    tokens = {
        of: sum(len(encoding) for encoding in tokenizer.encode_batch_fast(held_out))
        for of, tokenizer in of_domains.items()
    }
    for other in set(DOMAINS) - {name}:
        assert tokens[other] > 1.3 * tokens[name], f"{tokens} on {name}"
    for of, tokenizer in of_domains.items():
        encodings = tokenizer.encode_batch_fast(held_out)
        assert tokenizer.decode_batch([encoding.ids for encoding in encodings]) == held_out, of


alphabets = st.sampled_from(
    ["a", "Bc", "_x", "7", "42", "²", "é", "日本", "𝔘", " ", "    ", "\t", "\n", "\r\n", "(", "::", "🙂"]
)
texts = st.lists(alphabets | st.text(max_size=3), max_size=25).map("".join)


def counted(text, encoding):
    """COUNTS in plain Python."""
    spans = [match.span() for match in re.finditer(r"\w+", text) if not match[0][0].isnumeric()]
    pieces = [sum(begin < last and end > first for begin, end in encoding.offsets) for first, last in spans]
    indents, at = [], 0
    for line in text.split("\n"):
        size = len(line) - len(line.lstrip(" \t"))
        if 0 < size < len(line) and line[size] != "\r":
            indents.append((at, at + size))
        at += len(line) + 1
    blank = [sum(begin >= first and end <= last for begin, end in encoding.offsets) for first, last in indents]
    return {
        "files": 1,
        "bytes": len(text.encode()),
        "lines": text.count("\n") + (text != "" and not text.endswith("\n")),
        "tokens": len(encoding.ids),
        "words": len(spans),
        "split_words": sum(number > 1 for number in pieces),
        "pieces": sum(pieces),
        "indented_lines": len(indents),
        "indentation": sum(last - first for first, last in indents),
        "indentation_tokens": sum(blank),
        "changed_files": 0,
    }


@settings(deadline=None, max_examples=300)
@given(texts)
@example("")
@example("    \n\t\n  x\r\n \r\n    def f_1(x²): # 日本\n")
def test_what_is_measured_is_what_plain_python_counts(of_domains, text):
    for tokenizer in of_domains.values():
        encoding = tokenizer.encode(text, add_special_tokens=False)
        found = measured(layout_of(text), encoding, True)
        assert dict(zip(COUNTS, found.tolist(), strict=True)) == counted(text, encoding)


def test_tallies_add_up(of_domains):
    tokenizer, contents = of_domains["code"], [*domain("code", 1, 3), *domain("prose", 1, 2)]
    tally = Tally(np.zeros(VOCABULARY, np.int64))
    encodings = tokenizer.encode_batch(contents)
    for number, (text, encoding) in enumerate(zip(contents, encodings, strict=True)):
        tally.add("code" if number < 3 else "prose", measured(layout_of(text), encoding, number != 4))
    tally.use(encoding.ids for encoding in encodings)
    wanted = [counted(text, encoding) for text, encoding in zip(contents, encodings, strict=True)]
    whole, languages = tally.whole(), tally.languages()
    assert whole["tokens"] == sum(one["tokens"] for one in wanted) == tally.uses.sum()
    assert whole["changed_files"] == languages["prose"]["changed_files"] == 1
    assert languages["code"]["bytes_a_token"] == pytest.approx(
        sum(one["bytes"] for one in wanted[:3]) / sum(one["tokens"] for one in wanted[:3])
    )
    assert languages["prose"]["split_share"] == pytest.approx(
        sum(one["split_words"] for one in wanted[3:]) / sum(one["words"] for one in wanted[3:])
    )


@pytest.mark.parametrize("size", [263, 264, 400, 499, 520])
def test_a_vocabulary_cut_is_one_trained_smaller(of_domains, size):
    for name in ("dna", "devanagari"):
        smaller = train.trained(domain(name, "training"), size)
        found = candidates.cut(of_domains[name], size)
        assert found.get_vocab() == smaller.get_vocab()
        assert found.to_str() == smaller.to_str()
    with pytest.raises(ValueError, match="must be from 263 to 700"):
        candidates.cut(of_domains["dna"], 701)


def test_languages_are_spelled_as_everywhere():
    assert require_known(keywords.KEYWORDS) == sorted(keywords.KEYWORDS)
    for words in (*keywords.KEYWORDS.values(), *keywords.BUILTINS.values()):
        assert len(words) > 5
        assert len(set(words)) == len(words)
    assert {"def", "lambda"} <= set(keywords.KEYWORDS["Python"])
    assert {"len", "isinstance", "print"} <= set(keywords.BUILTINS["Python"])


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A sample of two languages, part of it held out, and what is kept of each."""
    rows = {}
    for kept_back, files in ((False, 40), (True, 8)):
        rows[kept_back] = [
            document(text, path=f"{kept_back}{language}{number}", language=language, repo=f"repo{number % 4}")
            for language, name in (("Python", "code"), (None, "prose"))
            for number, text in enumerate(domain(name, kept_back, files))
        ]
    kept = {"Python": {"kept_bytes": 1_000_000}, "others": {"kept_bytes": 10}}
    folder = tmp_path_factory.mktemp("evaluated") / "sample"
    return {"path": write_sample(folder, rows[False], rows[True], languages=kept), "held_out": rows[True]}


@pytest.fixture(scope="module")
def folders(sample, of_domains, tmp_path_factory):
    """Folders of a tokenizer trained on the sample and of one of another domain."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train.main(sample=sample["path"], output=str(folder / "own"), vocab_size=VOCABULARY)
    (folder / MARKUP).mkdir()
    of_domains["dna"].save(str(folder / MARKUP / TOKENIZER_FILE))
    return {"own": str(folder / "own"), "other": str(folder / MARKUP)}


@pytest.fixture(scope="module")
def evaluated(sample, folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate.main(tokenizer=folders["own"], sample=sample["path"], output=str(output), others=[folders["other"]])
    return output


def record_of(folder):
    return json.loads((folder / evaluation.RECORD_FILE).read_text())


def test_the_record_tells_what_the_tokenizers_do(sample, folders, evaluated):
    record = record_of(evaluated)
    held_out = [row["content"] for row in sample["held_out"]]
    assert record["held_out"] == {"files": len(held_out), "bytes": sum(len(text.encode()) for text in held_out)}
    for described, folder in zip(record["candidates"], (folders["own"], folders["other"]), strict=True):
        tokenizer = Tokenizer.from_file(f"{folder}/{TOKENIZER_FILE}")
        tokens = [len(tokenizer.encode(text).ids) for text in held_out]
        whole, languages = described["whole"], described["languages"]
        assert whole["tokens"] == sum(tokens)
        assert set(languages) == {"Python", "others"}
        assert languages["Python"]["tokens"] == sum(tokens[:8])
        assert whole["changed_files"] == 0
        rates = {name: figures["bytes_a_token"] for name, figures in languages.items()}
        assert described["corpus_tokens"] == pytest.approx(1_000_000 / rates["Python"] + 10 / rates["others"])
        python = described["keywords"]["Python"]["keywords"]
        whole_ones = [word for word in keywords.KEYWORDS["Python"] if word not in python["split"]]
        assert python["whole"] == len(whole_ones) == python["words"] - len(python["split"])
        for word in keywords.KEYWORDS["Python"]:
            assert (min(len(tokenizer.encode(text).ids) for text in (word, f" {word}")) == 1) == (word in whole_ones)
        used = {token for text in held_out for token in tokenizer.encode(text).ids}
        assert described["never_used"] == VOCABULARY - len(used)
    own, other = record["candidates"]
    assert "def" not in own["keywords"]["Python"]["keywords"]["split"]
    assert own["indentation"]["    "] < other["indentation"]["    "]


def test_the_sweep_is_that_of_tokenizers_trained_smaller(sample, folders, evaluated):
    record = record_of(evaluated)
    assert [one["vocab_size"] for one in record["sweep"]] == [700]
    held_out = [row["content"] for row in sample["held_out"]]
    output = evaluated.with_name("sizes")
    evaluate.main(tokenizer=folders["own"], sample=sample["path"], output=str(output), sizes=[300, 500, 700])
    sweep = record_of(output)["sweep"]
    for one in sweep:
        folder = evaluated.with_name(f"size{one['vocab_size']}")
        train.main(sample=sample["path"], output=str(folder), vocab_size=one["vocab_size"])
        smaller = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        assert one["tokens"] == sum(len(encoding) for encoding in smaller.encode_batch_fast(held_out))
    assert all(less["bytes_a_token"] < more["bytes_a_token"] for less, more in pairwise(sweep))


def test_the_page_and_the_table_tell_it_and_are_safe(folders, evaluated, sample, capsys, tmp_path):
    record, text = record_of(evaluated), (evaluated / evaluation.PAGE_FILE).read_text()
    own = record["candidates"][0]["whole"]
    for figure in (f"{own['bytes_a_token']:.3f}", f"{own['tokens']:,} tokens", f"{own['split_share']:.1%}"):
        assert figure in text
    assert "&lt;b&gt;&amp;&quot;&#x27;" in text
    assert MARKUP not in text
    assert not re.search(r"(src|href|url)\s*[=(]|https?://|@import|<script", text)
    evaluate.main(tokenizer=folders["own"], sample=sample["path"], output=str(tmp_path / "out"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("Advice: train one. No existing tokenizer was named")
    assert any(line.split()[:2] == ["Python", "8"] for line in printed)
    assert evaluation_page._shown(" a\n\t\0é<") == "␣a⏎⇥�é&lt;"


def test_what_stands_is_not_made_again_and_what_cannot_be_is_refused(folders, evaluated, sample, tmp_path, capsys):
    inputs = {"tokenizer": folders["own"], "sample": sample["path"]}
    stamp = (evaluated / evaluation.RECORD_FILE).stat().st_mtime_ns
    evaluate.main(**inputs, output=str(evaluated), others=[folders["other"]])
    assert "already done" in capsys.readouterr().out
    assert (evaluated / evaluation.RECORD_FILE).stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="--overwrite"):
        evaluate.main(**inputs, output=str(evaluated))
    output = str(tmp_path / "out")
    with pytest.raises(ValueError, match="sizes has 9000; they must be from 263 to 700"):
        evaluate.main(**inputs, output=output, sizes=[9000])
    with pytest.raises(ValueError, match=f"holds no {TOKENIZER_FILE}"):
        evaluate.main(**inputs, output=output, others=[str(tmp_path)])
    (tmp_path / TOKENIZER_FILE).write_text("{}")
    with pytest.raises(ValueError, match="is no file that tokenizers reads"):
        evaluate.main(**inputs, output=output, others=[str(tmp_path)])
    with pytest.raises(ValueError, match="no_such_package is not installed here"):
        evaluate.main(**inputs, output=output, packages=["no_such_package"])
    with pytest.raises(ValueError, match=f"ships no {TOKENIZER_FILE}"):
        evaluate.main(**inputs, output=output, packages=["pytest"])
    with pytest.raises(ValueError, match="lie in one another"):
        evaluate.main(**inputs, output=str(folders["other"]), others=[folders["other"]], overwrite=True)
    nothing = write_sample(tmp_path / "nothing", ["x = 1\n"])
    with pytest.raises(FileExistsError, match="holds something else than what is written here"):
        evaluate.main(**inputs, output=nothing, overwrite=True)
    with pytest.raises(ValueError, match="holds out no file"):
        evaluate.main(**inputs | {"sample": nothing}, output=output)


@pytest.mark.parametrize(
    ("size", "wanted"), [(292, [292]), (1024, [1024, 512]), (32768, [32768, 16384, 8192, 4096, 2048])]
)
def test_a_vocabulary_and_its_halves_are_tried(size, wanted):
    assert list(candidates.halved(size)) == wanted


def test_a_sweep_without_differences_is_drawn():
    page = evaluation_page._sweep([{"vocab_size": size, "bytes_a_token": 1.0} for size in (300, 600)])
    assert page.count("<circle") == 2
    assert "nan" not in page


def lossy():
    """A tokenizer of another kind: words in small letters, unknown ones lost."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "of": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_tokenizers_of_packages_and_of_other_kinds(sample, folders, of_domains, tmp_path, monkeypatch):
    site, merges = tmp_path / "site", tmp_path / "site" / "shipping" / "gpt"
    merges.mkdir(parents=True)
    lossy().save(str(site / "shipping" / "word_tokenizer.json"))
    (site / "shipping" / "other_tokenizer.json").write_text('{"not": "a tokenizer"}')
    of_domains["code"].model.save(str(merges))
    information = site / "shipping-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shipping\nVersion: 1.0\n")
    names = [path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()]
    (information / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(str(site))
    output = tmp_path / "out"
    evaluate.main(tokenizer=folders["own"], sample=sample["path"], output=str(output), packages=["shipping"])
    record = record_of(output)
    found = {one["name"]: one for one in record["candidates"][1:]}
    assert set(found) == {"shipping: shipping/word_tokenizer.json", "shipping: shipping/gpt"}
    assert found["shipping: shipping/word_tokenizer.json"]["whole"]["changed_files"] == len(sample["held_out"])
    assert found["shipping: shipping/gpt"]["whole"]["changed_files"] == 0
    assert "shipping: shipping/gpt" in record["advice"], "one that loses text is none to keep"


def described(name, tokens, changed=0):
    return {"name": name, "vocab_size": 1000, "corpus_tokens": tokens, "whole": {"changed_files": changed, "files": 9}}


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        ([], "train one. No existing tokenizer was named.*save 60.0% of the tokens"),
        ([described("a", 500), described("b", 800)], "train one. own needs 20.0% fewer tokens than a "),
        ([described("a", 404)], "keep a. own saves 1.0% of the tokens"),
        ([described("a", 320), described("b", 500)], "keep a. own needs 25.0% more tokens"),
        ([described("a", 300, changed=1), described("b", 500)], "train one. own needs 20.0% fewer tokens than b "),
        (
            [described("a", 300, changed=1)],
            "train one. No existing tokenizer gives every file back: a changes 1 of 9 files; own .* 33.3% more",
        ),
    ],
)
def test_advice_says_keep_or_train_and_by_how_much(others, wanted):
    found = evaluation.advice([described("own", 400), *others], 1000)
    assert re.match(f"Advice: {wanted}", found), found
    assert "\n" not in found


def test_the_vocabulary_is_looked_at_over_the_whole_sample(tmp_path):
    draw = random.Random(0)
    rows = [document(f"{code(draw, 10)}# shared_name shared_name\n", repo=f"r{n % 3}", path=f"{n}") for n in range(60)]
    rows += [document("zyxwvutsr " * 8 + "\n", repo="r0", path=f"own{n}") for n in range(20)]
    rows += [
        document(f"# Author: Zbigniew Kowalskiewicz\nx = {n}\n", repo=f"r{n % 3}", path=f"a{n}") for n in range(30)
    ]
    sample = write_sample(tmp_path / "sample", rows, ["x = 1\n"])
    train.main(sample=sample, output=str(tmp_path / "own"), vocab_size=600)
    evaluate.main(tokenizer=str(tmp_path / "own"), sample=sample, output=str(tmp_path / "out"))
    odd = record_of(tmp_path / "out")["vocabulary"]
    shown = {kind: dict(odd[kind]["examples"]) for kind in odd if isinstance(odd[kind], dict)}
    assert " zyxwvutsr" in shown["of_one_repository"]
    assert not any("shared" in word for word in shown["of_one_repository"])
    assert shown["names"] == {" Zbigniew": 30, " Kowalskiewicz": 30}
    tokenizer = Tokenizer.from_file(str(tmp_path / "own" / TOKENIZER_FILE))
    uses = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for text in [*(row["content"] for row in rows), "x = 1\n"]:
        np.add.at(uses, tokenizer.encode(text).ids, 1)
    assert odd["tokens"] == uses.sum()
    words = words_of(tokenizer)
    never = [
        number for number in range(len(SPECIAL_TOKENS), len(words)) if not uses[number] and len(words[number]) > 1
    ]
    assert odd["never_used"]["entries"] == len(never)
    assert odd["under_trained"]["entries"] == ((uses > 0) & (uses < FEW_USES)).sum()


def test_uses_in_one_repository_are_told_from_those_in_several():
    uses = Uses(5)
    for repo, ids in (("a", [1, 1, 2]), ("b", [2, 3]), ("a", [1, 4])):
        uses.add([np.array(ids * OWN_USES, np.uint32)], [repo])
    assert uses.of_one_repository().tolist() == [1, 3, 4]
    assert uses.uses.tolist() == [0, 3 * OWN_USES, 2 * OWN_USES, OWN_USES, OWN_USES]
    alone = Uses(5)
    alone.add([np.array([1] * OWN_USES, np.uint32)], ["a"])
    assert not len(alone.of_one_repository())
    assert looked_at(["", "a", "b", "c", "d"], alone, 1)["tokens"] == OWN_USES


@pytest.mark.parametrize(
    "word", ["ann@foo", " @gmail", "AKIA" + "QWER", "ghp_" + "aB3d", "eyJ" + "hbGciOi", "MIIEvgIBAD"]
)
def test_forms_of_secrets_are_seen(word):
    assert looks_secret(word)


@pytest.mark.parametrize("word", ["QpZxWvKtRsLm", "aB3dE6gH9jK2"])
def test_letters_of_chance_are_seen(word):
    assert looks_secret(word)


@pytest.mark.parametrize(
    "word",
    [
        " return",
        "isinstance",
        "getElementsByTagName",
        "HTTPSConnectionPool",
        "--------",
        "@property",
        "abcdefghijklmnop",
    ],
)
def test_names_of_programs_are_no_secrets(word):
    assert not looks_secret(word)


def test_the_text_of_a_special_token_is_text(folders):
    own = candidates.of_folder(folders["own"])
    assert all(token >= len(SPECIAL_TOKENS) for token in own.tokenizer.encode("<|endoftext|>").ids)
    assert own.vocab_size == Encoder(folders["own"]).vocab_size == VOCABULARY
