"""Shards hold the kept documents and nothing else, byte by byte the same however the documents were cut."""

import json
import random
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import code, document, write_documents, write_ledger

from spark_jobs import write_shards
from spark_jobs.sharding import encoding, import_order, steps, writing
from spark_jobs.sharding.folder import FACTS
from spark_jobs.sharding.layout import Layout, Splits
from tokenizer import encode
from tokenizer.encode import END_OF_TEXT, Encoder
from tokenizer.shards import INDEX_NAME, ShardIndex, TokenStream, open_shard, verify_shard
from tokenizer.train import trained

SHARD_TOKENS = 1 << 15
SETTINGS = {"validation_share": 0.2, "test_share": 0.1, "shard_tokens": SHARD_TOKENS}


@pytest.fixture(scope="module")
def rows():
    """Documents of 20 repositories, one of which holds half of everything."""
    draw = random.Random(7)
    contents = [code(draw, draw.randrange(5, 90)) for _ in range(170)]
    contents += ["", " ", "x", "\0\n", END_OF_TEXT * 3, "日本 𝔘\r\n"]
    repos = [f"repo{draw.randrange(20) if draw.random() < 0.5 else 0}" for _ in contents]
    found = [
        document(text, repo=repo, path=f"{number}.py")
        for number, (text, repo) in enumerate(zip(contents, repos, strict=True))
    ]
    return [*found, document(None, path="binary.py")]


@pytest.fixture(scope="module")
def kept(rows):
    return {row["file_id"]: row for number, row in enumerate(rows[:-1]) if number % 5}


@pytest.fixture(scope="module")
def tokenizer(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained([row["content"] for row in rows[:100]], 400).save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(scope="module")
def inputs(rows, kept, tokenizer, tmp_path_factory):
    """The same documents cut in three ways, with their ledgers: the arguments of the job by the number of files."""
    folder, found = tmp_path_factory.mktemp("inputs"), {}
    for parts, rows_a_group in ((1, 1000), (3, 10), (7, 1)):
        shuffled = random.Random(parts).sample(rows, len(rows))
        documents = write_documents(folder / f"documents{parts}", shuffled, parts, rows_a_group)
        ledger = write_ledger(folder / f"ledger{parts}", documents, kept)
        found[parts] = {"documents": documents, "ledger": ledger, "tokenizer": tokenizer}
    return found


@pytest.fixture(scope="module")
def folders(spark, inputs, tmp_path_factory):
    """Shards by the number of files that the documents came in."""
    folder = tmp_path_factory.mktemp("shards")
    for parts, given in inputs.items():
        write_shards.main(**given, output=str(folder / str(parts)), **SETTINGS)
    return {parts: folder / str(parts) for parts in inputs}


def test_shards_are_the_same_bytes_however_the_documents_were_cut(folders):
    def files(folder):
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first = files(folders[1])
    assert len(first) > 6
    assert not [name for name in first if name.startswith(("_", "."))]
    for parts in (3, 7):
        assert files(folders[parts]) == first


def rows_of(folder, index):
    """(shard, file id, token ids) of every row."""
    for shard in index.shards:
        for batch in open_shard(folder, shard):
            for tokens, file_id in zip(batch["token_ids"], batch["file_id"].to_pylist(), strict=True):
                yield shard, file_id, np.asarray(tokens.values, np.uint32)


def test_every_kept_document_is_there_once_and_decodes_to_its_text(folders, kept, tokenizer):
    folder = folders[3]
    index, encoder = ShardIndex.load(folder), Encoder(tokenizer)
    found = {file_id: (shard, ids) for shard, file_id, ids in rows_of(folder, index)}
    assert len(list(rows_of(folder, index))) == len(found) == len(kept)
    assert set(found) == set(kept)
    for file_id, (_, ids) in found.items():
        assert ids[-1] == encoder.end_of_text_id
        assert (ids[:-1] >= 7).all()
        assert encoder.decode(ids[:-1]) == kept[file_id]["content"]
        assert encoder.encode(pa.array([kept[file_id]["content"]]))[0].tolist() == ids.tolist()
    for shard in index.shards:
        verify_shard(folder, shard)
        inside = [file_id for file_id, (there, _) in found.items() if there is shard]
        assert shard.rows == len(inside)
        assert shard.tokens == sum(len(found[file_id][1]) for file_id in inside)
        assert shard.text_bytes == sum(kept[file_id]["size"] for file_id in inside)
        assert shard.tokens < 2 * SHARD_TOKENS
    assert (index.vocab_size, index.end_of_text_id) == (encoder.vocab_size, encoder.end_of_text_id)
    assert index.tokenizer_fingerprint == encoder.fingerprint == Encoder(folder / "tokenizer").fingerprint
    assert len(TokenStream(folder, "train", verify=True)) == sum(shard.tokens for shard in index.of_split("train"))


def test_repositories_are_held_out_whole(folders, kept):
    index = ShardIndex.load(folders[1])
    sides = {"train": set(), "validation": set(), "test": set()}
    for shard, file_id, _ in rows_of(folders[1], index):
        sides[shard.split].add(kept[file_id]["repo"])
    assert set.union(*sides.values()) == {row["repo"] for row in kept.values()}
    assert sum(map(len, sides.values())) == len({row["repo"] for row in kept.values()})
    total = sum(row["size"] for row in kept.values())
    for split, share in (("validation", 0.2), ("test", 0.1)):
        held_out = sum(shard.text_bytes for shard in index.of_split(split))
        assert share / 2 < held_out / total <= share * 1.5
    assert "repo0" in sides["train"]  # it would overshoot the share by far


def test_a_finished_folder_is_skipped_and_another_refused(folders, inputs, tmp_path):
    folder = folders[1]
    stamp = (folder / INDEX_NAME).stat().st_mtime_ns
    job = partial(write_shards.main, **inputs[1], shard_tokens=SHARD_TOKENS, test_share=0.1)
    job(output=str(folder), validation_share=0.2)
    assert (folder / INDEX_NAME).stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="--overwrite"):
        job(output=str(folder), validation_share=0.1)
    with pytest.raises(FileExistsError, match="--overwrite"):
        job(output=str(folder), validation_share=0.2, seed=1)
    (tmp_path / "precious").mkdir()
    with pytest.raises(FileExistsError, match="--overwrite"):
        job(output=str(tmp_path / "precious"))
    (tmp_path / "precious" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else than what is written here"):
        job(output=str(tmp_path / "precious"), overwrite=True)
    for name in ("documents", "ledger", "tokenizer"):
        with pytest.raises(ValueError, match="lie in one another"):
            job(output=inputs[1][name], overwrite=True)
    assert (folder / INDEX_NAME).stat().st_mtime_ns == stamp


def test_another_seed_gives_another_order_and_no_share_no_validation(spark, inputs, folders, kept, tmp_path):
    job = partial(write_shards.main, **inputs[3], shard_tokens=SHARD_TOKENS)
    job(output=str(tmp_path / "seed"), validation_share=0, test_share=0, seed=5)
    index = ShardIndex.load(tmp_path / "seed")
    assert {shard.split for shard in index.shards} == {"train"}
    order = [file_id for _, file_id, _ in rows_of(tmp_path / "seed", index)]
    before = [file_id for _, file_id, _ in rows_of(folders[3], ShardIndex.load(folders[3]))]
    assert sorted(order) == sorted(before) == sorted(kept)
    assert order != before


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"validation_share": 0.6}, "validation_share is 0.6"),
        ({"shard_tokens": 1000}, "shard_tokens is 1000"),
        ({"tokenizer": "/nowhere"}, "holds no tokenizer.json"),
        ({"ledger": "/nowhere"}, "does not exist"),
    ],
)
def test_what_cannot_be_is_refused(inputs, tmp_path, wrong, told):
    with pytest.raises(ValueError, match=told):
        write_shards.main(**{**inputs[1], **wrong}, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_ledger_of_other_documents_is_refused(inputs, tmp_path):
    other = write_documents(tmp_path / "other", [document("x")])
    with pytest.raises(ValueError, match="was not made from"):
        write_shards.main(**{**inputs[1], "documents": other}, output=str(tmp_path / "out"))


def test_a_failure_leaves_no_index(spark, inputs, tmp_path, kept):
    documents = write_documents(tmp_path / "documents", list(kept.values()), 2)
    ledger = write_ledger(tmp_path / "ledger", documents, kept)
    part = tmp_path / "documents" / "part-1.parquet"
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(Exception, match="Parquet magic bytes not found"):
        write_shards.main(**{**inputs[1], "documents": documents, "ledger": ledger}, output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        ShardIndex.load(tmp_path / "out")


def test_what_killed_attempts_left_is_gone_in_the_end(workspace, tmp_path, monkeypatch):
    layout_of = steps.layout_of

    def layout_while_attempts_die(*arguments):
        for name in ("_work/train-00000-of-00001.arrow.dead.partial", "train-00007-of-00009.arrow", "_work/x.json"):
            (tmp_path / "shards" / name).write_bytes(b"half")
        return layout_of(*arguments)

    monkeypatch.setattr(steps, "layout_of", layout_while_attempts_die)
    write_shards.main(
        documents=workspace.documents,
        ledger=workspace.ledger,
        tokenizer=workspace.tokenizer,
        output=str(tmp_path / "shards"),
        validation_share=0.1,
    )
    there = {path.name for path in (tmp_path / "shards").iterdir()}
    assert there == {"index.json", "tokenizer", *(shard.name for shard in ShardIndex.load(tmp_path / "shards").shards)}


def test_the_workspace_becomes_shards(workspace, tmp_path):
    write_shards.main(
        documents=workspace.documents,
        ledger=workspace.ledger,
        tokenizer=workspace.tokenizer,
        output=str(tmp_path / "shards"),
        validation_share=0.1,
    )
    index = ShardIndex.load(tmp_path / "shards")
    ledger = pq.read_table(workspace.ledger).to_pylist()
    found = sorted(file_id for _, file_id, _ in rows_of(tmp_path / "shards", index))
    assert found == sorted(row["file_id"] for row in ledger if row["state"] == "kept")
    assert index.configuration == json.loads(json.dumps(index.configuration))


class Wrong:
    """A fast encoder that gives every document one id."""

    def encode(self, data, bounds):
        return np.zeros(len(bounds) - 1, np.uint32), np.arange(len(bounds))


def test_differences_of_all_tasks_are_summed_and_told(inputs, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "fast_encoder", lambda settings: Wrong())
    known = Encoder(tokenizer)
    splits = Splits({}, 0, 0, False)
    sources = encoding.Sources(inputs[3]["documents"], tokenizer, known.fingerprint, known.vocab_size, splits, True)
    entries = []
    for number in range(3):
        encoding.encoder.cache_clear()  # every task in a worker of its own
        reading = pa.RecordBatch.from_pylist([{"part": f"part-{number}.parquet", "row_group": 0, "rows": [0, 1, 2]}])
        entries.append(encoding._encoded_part(iter([reading]), sources, tmp_path, f"part-{number:05d}"))
    encoding.encoder.cache_clear()
    found = encoding.sums(entries)
    differing = [entry["encoding"]["differing"] for entry in entries]
    assert min(differing) > 0
    assert found["encoding"]["differing"] == sum(differing)
    assert found["encoding"]["exact"] == found["rows"] == 9
    facts = {"encoding": found["encoding"], "redacted": found["redacted"]}
    told = steps.summary(ShardIndex("", 400, 0, (), {FACTS: facts}), "out")
    assert f"{sum(differing)} documents to which gigatoken gave other ids" in told
    assert "do not trust gigatoken" in told


@pytest.fixture(scope="module")
def repositories(spark, tmp_path_factory, tokenizer):
    """Shards in the order of repositories, from 1 and from 7 files, and the documents by id."""
    folder, contents = tmp_path_factory.mktemp("repositories"), {}
    for number in range(8):
        contents |= {(f"org/r{number}", path): text for path, text in REPOSITORY.items() if (number + len(path)) % 7}
    rows = [document(text, repo=repo, path=path) for (repo, path), text in contents.items()]
    kept, found = {row["file_id"]: row for row in rows}, []
    for parts in (1, 7):
        shuffled = random.Random(parts).sample(rows, len(rows))
        documents = write_documents(folder / f"documents{parts}", shuffled, parts, 5)
        ledger = write_ledger(folder / f"ledger{parts}", documents, kept)
        found.append(folder / f"out{parts}")
        inputs = {"documents": documents, "ledger": ledger, "tokenizer": tokenizer}
        write_shards.main(
            **inputs, output=str(found[-1]), order="repository", shard_tokens=1024, validation_share=0.2, test_share=0
        )
    return found, kept, inputs


REPOSITORY = {
    "README.md": "What it is\n" * 9,
    "setup.cfg": "[metadata]\nname = x\n",
    "pkg/__init__.py": "",
    "pkg/app.py": "from pkg.base import start\n" + "start()\n" * 30,
    "pkg/base.py": "import pkg.zero\n\n\ndef start():\n    return zero\n",
    "pkg/zero.py": "zero = 0\n",
}


def test_repositories_lie_together_in_import_order(repositories, tokenizer):
    (folder, other), kept, _ = repositories
    assert [path.read_bytes() for path in sorted(folder.glob("*.arrow"))] == [
        path.read_bytes() for path in sorted(other.glob("*.arrow"))
    ]
    index, encoder = ShardIndex.load(folder), Encoder(tokenizer)
    rows = list(rows_of(folder, index))
    assert sorted(file_id for _, file_id, _ in rows) == sorted(kept)
    assert len({shard.name for shard, _, _ in rows}) > 2
    name, separator, end = (encoder.id_of(word) for word in ("<repo_name>", "<file_sep>", END_OF_TEXT))
    stream = [ids for _, _, ids in rows]
    before = None
    for (shard, file_id, ids), following in zip(rows, [*rows[1:], None], strict=True):
        row, expected = kept[file_id], []
        if before != (shard, row["repo"]):
            expected += [name, *encoder.encode_batch(pa.array([row["repo"]])).ids]
        head, text = (encoder.encode_batch(pa.array([part])).ids for part in (f"{row['path']}\n", row["content"]))
        expected += [separator, *head, *text]
        if following is None or kept[following[1]]["repo"] != row["repo"]:
            expected.append(end)
        assert ids.tolist() == expected
        before = (shard, row["repo"])
    assert sum(end in ids for ids in stream) == len({row["repo"] for row in kept.values()})
    for repo in {row["repo"] for row in kept.values()}:
        paths = [kept[file_id]["path"] for _, file_id, _ in rows if kept[file_id]["repo"] == repo]
        assert paths == [path for path in IMPORT_ORDER if path in paths]
        assert len({shard.name for shard, file_id, _ in rows if kept[file_id]["repo"] == repo}) == 1


IMPORT_ORDER = ["README.md", "setup.cfg", "pkg/__init__.py", "pkg/zero.py", "pkg/base.py", "pkg/app.py"]


def test_a_huge_repository_comes_by_kind_and_folder_in_lots(repositories, tmp_path, monkeypatch):
    """As it is with more files than are looked at; with the same tokens and one name and one end."""
    _, kept, inputs = repositories
    encoder = Encoder(inputs["tokenizer"])
    known = (inputs["documents"], inputs["tokenizer"], encoder.fingerprint, encoder.vocab_size)
    sources = encoding.Sources(*known, Splits({}, 0, 0, True), True)
    reading = [{"part": f"part-{part}.parquet", "row_group": 0, "rows": list(range(5))} for part in range(7)]
    work = iter([pa.RecordBatch.from_pylist(reading)])
    encoding._encoded_part(work, sources, tmp_path, "part")
    target = writing.Target(tmp_path, tmp_path, ("part",), Layout((1, 0, 0)), sources)
    small = writing.write_shard(0, target)
    in_order = {file_id: len(ids) for _, file_id, ids in rows_of(tmp_path, ShardIndex("", 0, 0, (small,)))}
    monkeypatch.setattr(writing, "MAX_ORDERED_FILES", 2)
    large = writing.write_shard(0, target)
    assert (large.rows, large.tokens, large.text_bytes) == (small.rows, small.tokens, small.text_bytes)
    rows = [
        (kept[file_id]["repo"], kept[file_id]["path"])
        for _, file_id, _ in rows_of(tmp_path, ShardIndex("", 0, 0, (large,)))
    ]
    assert len(set(rows)) == len(rows) == len(in_order)
    for repo in {repo for repo, _ in rows}:
        paths = [path for other, path in rows if other == repo]
        places = [at for at, (other, _) in enumerate(rows) if other == repo]
        assert places == list(range(places[0], places[-1] + 1))
        assert [import_order.kind_of(path) for path in paths] == sorted(map(import_order.kind_of, paths))
