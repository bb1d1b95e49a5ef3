"""Deliveries and withdrawals, one after the other, against a walk over the exact similarities of all files."""

import random
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from oracles import greedy, jaccard_of, shingles_of
from small_corpus import document, words, write_documents
from small_fingerprints import keys_by_id

from spark_jobs import dedup
from spark_jobs.near_duplicates.settings import Fingerprint

WORDS, PLACE, CHANGED = 200, 20, 18


def family(draw, variants):
    """A text, and variants of it: 0.8 similar to it and 0.63 to each other, so that banding finds all there is."""
    base = words(draw, WORDS)
    texts = [" ".join(base)]
    for number in range(variants):
        text, first = list(base), number * PLACE
        text[first : first + CHANGED] = words(draw, CHANGED)
        texts.append(" ".join(text))
    return texts


def read(folder):
    return pq.read_table(folder).to_pylist()


def ids(rows):
    return {row["file_id"] for row in rows}


def hexes(rows):
    return sorted(row["file_id"].hex() for row in rows)


class History:
    """A collection, delivery by delivery, and what a walk over all similarities makes of it.

    Attributes:
        output: what the last step wrote.
        kept: ids of the files that are kept now.
        duplicates: rows by id of those that went.
    """

    def __init__(self, folder, universe):
        self._folder, self._steps = folder, 0
        self._rows = {row["file_id"]: row for row in universe}
        self._shingles = {one: shingles_of(row["content"]) for one, row in self._rows.items()}
        self._keys, self._withdrawn, self._known = {}, set(), set()
        self.output, self.kept, self.duplicates = None, set(), {}

    def similar(self, one, other):
        near = jaccard_of(self._shingles[one], self._shingles[other]) >= 0.7
        return near or self._rows[one]["content"] == self._rows[other]["content"]

    def step(self, delivered=(), forget=(), with_survivors=False):
        """Deliver and withdraw, and compare the state with what it should be."""
        self._steps, options = self._steps + 1, {}
        index, self.output = self.output, self._folder / f"state-{self._steps}"
        survivors = self._folder / f"survivors-{self._steps}"
        if delivered:
            options["documents"] = write_documents(self._folder / f"documents-{self._steps}", list(delivered), 2, 5)
        if index:
            options |= {"index": str(index), "forget": hexes(forget)}
        if with_survivors:
            options["survivors"] = str(survivors)
        dedup.main(output=str(self.output), **options)
        expected, before = self._expected(ids(delivered), ids(forget)), self.kept
        self.duplicates = {row["file_id"]: row for row in read(self.output)}
        self.kept = self._known - self._withdrawn - set(self.duplicates)
        self._require_sound(before)
        assert self.kept == expected
        if with_survivors:
            new = [self._rows[one] for one in self.kept - before]
            assert sorted(read(survivors), key=str) == sorted(new, key=str)

    def _expected(self, delivered, forget):
        """The files that a walk keeps: those that stay, then the fresh and the released ones in the keep order."""
        self._withdrawn |= forget
        fresh = delivered - self._known - self._withdrawn
        self._known |= fresh
        if delivered:
            self._keys |= keys_by_id(self.output)
        assert set(self._keys) == self._known
        released = {one for one, row in self.duplicates.items() if row["kept_file_id"] in forget} - self._withdrawn
        settled = self.kept - self._withdrawn
        ranked = [*settled, *sorted(fresh | released, key=self._keys.__getitem__)]
        return set(greedy(ranked, self.similar))

    def _require_sound(self, before):
        assert len(self.duplicates) == len(read(self.output))
        for one, row in self.duplicates.items():
            assert row["kept_file_id"] in self.kept
            assert not {one, row["kept_file_id"]} & self._withdrawn
            assert one in self._known
            assert self.similar(one, row["kept_file_id"])
            same = self._rows[one]["content"] == self._rows[row["kept_file_id"]]["content"]
            assert (row["kind"] == "exact") == same
        assert before - self._withdrawn <= self.kept
        kept = sorted(self.kept)
        assert not [1 for at, one in enumerate(kept) for other in kept[:at] if self.similar(one, other)]
        counted = Counter(row["kept_file_id"] for row in self.duplicates.values())
        clusters = {row["kept_file_id"]: row["files"] - 1 for row in read(self.output / "_clusters")}
        assert clusters == counted


def drawn_universe(draw):
    """Families of texts, some files of them copied into other repositories, of licences and fame of all kinds."""
    rows = []
    texts = [text for _ in range(7) for text in family(draw, 3)] + ["a b", "short one"]
    for number, text in enumerate(texts):
        for copy in range(draw.choice([1, 1, 2, 3])):
            fame = {"stars": draw.choice([None, 0, 10]), "licenses": draw.choice([[], ["MIT"], ["GPL-3.0-only"]])}
            rows.append(document(text, repo=f"repo{draw.randrange(9)}-{copy}", path=f"{number}.py", **fame))
    return rows


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_any_sequence_of_deliveries_and_withdrawals(spark, tmp_path, seed):
    draw = random.Random(seed)
    universe = drawn_universe(draw)
    history = History(tmp_path, universe)
    history.step(draw.sample(universe, 25))
    for number in range(5):
        forget = draw.sample(universe, 6) if number != 1 else []
        # Some of those that others went for, so that there is something to promote.
        followed = {row["kept_file_id"] for row in history.duplicates.values()}
        forget += draw.sample([row for row in universe if row["file_id"] in followed], min(3, len(followed)))
        history.step(draw.sample(universe, 12) if number != 3 else [], forget, with_survivors=number in (2, 3))
    assert history.kept
    assert history.duplicates


def test_the_best_of_those_that_went_is_promoted(spark, tmp_path):
    base, *variants = family(random.Random(10), 2)
    best = document(base, path="best.py", stars=100)
    near = [document(text, path=f"near{number}.py", stars=50 - number) for number, text in enumerate(variants)]
    copies = [document(base, repo=f"copy{number}", path="best.py") for number in range(2)]
    history = History(tmp_path, [best, *near, *copies])
    history.step([best, *near, copies[0]])
    assert history.kept == ids([best])
    assert {row["kind"] for row in history.duplicates.values()} == {"exact", "near"}
    # Both variants, which are not similar to each other, are kept again; the copy goes for one of them.
    history.step([copies[1]], [best], with_survivors=True)
    assert history.kept == ids(near)
    assert set(history.duplicates) == ids(copies)
    # Withdrawn files that come again stay out, and what is there already is no new file.
    history.step([best, *near, *copies])
    assert history.kept == ids(near)
    history.step(forget=near)
    assert len(history.kept) == 1
    assert set(history.duplicates) | history.kept == ids(copies)
    history.step(forget=copies)
    assert (history.kept, history.duplicates) == (set(), {})


def test_copies_without_words_are_promoted_too(spark, tmp_path):
    rows = [document(text, repo=repo, path=f"{len(text)}.py") for text in ("", "...") for repo in "abcd"]
    history = History(tmp_path, rows)
    history.step(rows)
    assert len(history.kept) == 2
    history.step(forget=[row for row in rows if row["file_id"] in history.kept])
    assert len(history.kept) == 2
    assert len(history.duplicates) == 4


@pytest.fixture(scope="module")
def first(spark, tmp_path_factory):
    """The state after one delivery of a few files; to be read and not changed."""
    folder = tmp_path_factory.mktemp("first")
    rows = [document(text, path=f"{number}.py") for number, text in enumerate(family(random.Random(11), 3))]
    documents = write_documents(folder / "documents", rows)
    dedup.main(documents=documents, output=str(folder / "state"))
    return folder


def test_estimates_do_without_the_documents_of_earlier_deliveries(spark, first, tmp_path):
    state = tmp_path / "state"
    documents = str(shutil.copytree(first / "documents", tmp_path / "documents"))
    dedup.main(documents=documents, output=str(state))
    (kept,) = {row["kept_file_id"] for row in read(state)}
    (text,) = (row["content"] for row in read(documents) if row["file_id"] == kept)
    others = [row for row in read(documents) if row["file_id"] not in ids(read(state))]
    fresh = [
        document(f"{text} end", path="like.py"),
        document(" ".join(words(random.Random(12), 50)), path="other.py"),
    ]
    later = {
        "documents": write_documents(tmp_path / "fresh", fresh),
        "index": str(state),
        "output": str(tmp_path / "out"),
    }
    shutil.rmtree(documents)
    with pytest.raises(ValueError, match=r"is gone or has changed.*--verify sketch"):
        dedup.main(**later)
    assert not (tmp_path / "out").exists()
    dedup.main(**later, verify="sketch", survivors=str(tmp_path / "survivors"))
    removed = {row["path"]: row["kept_file_id"] for row in read(tmp_path / "out")}
    assert removed["like.py"] == kept
    assert "other.py" not in removed
    assert len(removed) == len(read(state)) + 1
    assert [row["path"] for row in read(tmp_path / "survivors")] == ["other.py"]
    withdrawal = {"index": str(state), "output": str(tmp_path / "less"), "survivors": str(tmp_path / "promoted")}
    with pytest.raises(ValueError, match=r"documents is gone, and files of it are kept again"):
        dedup.main(**withdrawal, forget=hexes(others), verify="sketch")
    assert not (tmp_path / "promoted").exists()


def test_survivors_have_the_columns_of_their_delivery(spark, tmp_path):
    """Data of other tools may have others each time."""
    draw = random.Random(13)
    columns, job = ("extra", "number"), {}
    for number, name in enumerate(columns):
        (tmp_path / f"data{number}").mkdir()
        rows = [{"content": " ".join(words(draw, 20)), name: row} for row in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"data{number}" / "part.parquet")
        job |= {"documents": str(tmp_path / f"data{number}"), "output": str(tmp_path / f"state{number}")}
        dedup.main(**job, survivors=str(tmp_path / "survivors"), overwrite=True)
        assert sorted(read(tmp_path / "survivors"), key=str) == sorted(rows, key=str)
        job["index"] = job["output"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 0.8}, r"made with threshold 0\.7, this run has 0\.8"),
        ({"fingerprint": Fingerprint(strip_header=True)}, "made with scheme"),
        ({"resolve": "components"}, "--index needs --resolve leaders"),
        ({"forget": ["12345"]}, "12345: neither a file id"),
        ({"forget": ["x" * 32]}, "neither a file id"),
    ],
)
def test_what_does_not_belong_together_is_refused(first, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        dedup.main(index=str(first / "state"), output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_an_index_is_the_output_of_a_whole_run(first, tmp_path):
    (tmp_path / "empty").mkdir()
    for index, told in ((tmp_path / "empty", "is not a table"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(ValueError, match=told):
            dedup.main(index=str(index), output=str(tmp_path / "out"), forget=["0" * 32])
    broken = shutil.copytree(first / "state", tmp_path / "broken")
    manifest = (broken / "_manifest.json").read_text()
    (broken / "_manifest.json").write_text(manifest.replace(str(first / "state"), str(tmp_path / "moved")))
    with pytest.raises(ValueError, match=r"moved.*which are gone"):
        dedup.main(index=str(broken), output=str(tmp_path / "out"), forget=["0" * 32])
    assert not (tmp_path / "out").exists()


def test_withdrawals_need_a_collection(first, tmp_path):
    with pytest.raises(ValueError, match="name its output with --index"):
        dedup.main(documents=str(first / "documents"), output=str(tmp_path / "out"), forget=["0" * 32])
    with pytest.raises(ValueError, match="name --documents"):
        dedup.main(output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_withdrawals_may_stand_in_files(spark, first, tmp_path):
    gone = [row["file_id"] for row in read(first / "documents")]
    (tmp_path / "odd.txt").write_text(f"{gone[0].hex()}\nno id\n")
    job = {"index": str(first / "state"), "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"odd\.txt: 'no id' is no file id"):
        dedup.main(**job, forget=[str(tmp_path / "odd.txt")])
    (tmp_path / "ids.txt").write_text(
        "\n".join(["", *(f" {one.hex().upper()} " for one in gone[1:]), gone[1].hex(), ""])
    )
    dedup.main(**job, forget=[gone[0].hex(), str(tmp_path / "ids.txt")])
    assert read(tmp_path / "out") == []
    withdrawn = read(tmp_path / "out" / "_index" / "withdrawn")
    assert sorted(row["file_id"] for row in withdrawn) == sorted(gone)
