"""Withdrawn files are gone, what is left is what would have been written without them, and no kill is in the way."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import small_shards
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data_set import call, small_files, write_data_set, write_small_ledger
from tokenizers import Tokenizer

from tokenizer import inspect_shards, shards
from tokenizer.inspect_shards import forget, verify
from tokenizer.receipts import withdrawn_ids
from tokenizer.shards import ShardIndex, TokenStream, open_shard
from tokenizer.withdrawal import _text_bytes, alone

FILES = small_files()
# In the child: forget runs in a copy of the shards and is killed at its n-th call of these, before or after it.
KILLED = """
import os, signal, sys
from tokenizer import inspect_shards
from tokenizer.inspect_shards import forget

import tokenizer.withdrawal, tokenizer.shard_text  # so that a fork costs little
for number, folder in enumerate(sys.argv[2:]):
    child = os.fork()
    if not child:
        counter = [1]
        for name in ("fsync", "replace", "unlink"):
            at, after = divmod(number + 2, 2)
            call = getattr(os, name)
            def wrapped(*arguments, call=call, **options):
                counter[0] += 1
                if counter[0] == at + 1 and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*arguments, **options)
                if counter[0] == at + 1 and after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            setattr(os, name, wrapped)
        forget(shards=folder, file_ids=sys.argv[1].split(","))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of shards, ledger), in record batches of few documents."""
    folder = tmp_path_factory.mktemp("made")
    ledger = write_small_ledger(folder / "ledger", FILES)
    with small_batches():
        write_data_set(folder / "shards", FILES, ledger)
    return folder / "shards", ledger


@contextlib.contextmanager
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", 500)
        yield


def contents(folder):
    """(split, file id, tokens) of every row."""
    index = ShardIndex.load(folder)
    return [
        (shard.split, row["file_id"], row["token_ids"])
        for shard in index.shards
        for batch in open_shard(folder, shard)
        for row in batch.to_pylist()
    ]


def without_names(folder):
    """What an index says but for the names of shards."""
    return [
        (s.split, s.rows, s.tokens, s.text_bytes, s.file_bytes, s.xxh3_128) for s in ShardIndex.load(folder).shards
    ]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(FILES), unique=True, max_size=30), st.booleans())
def test_what_is_left_is_what_would_have_been_written_without(made, tmp_path_factory, gone, whole_shard):
    place = tmp_path_factory.mktemp("forget")
    gone = {file.file_id for file in gone} | {f.file_id for f in FILES if whole_shard and f.repo == "Only/Here"}
    if not gone:
        return
    left = [file for file in FILES if file.file_id not in gone]
    folder, fresh = shutil.copytree(made[0], place / "shards"), place / "fresh"
    shutil.copytree(made[0] / "tokenizer", fresh / "tokenizer")
    before = ShardIndex.load(folder)
    with small_batches():
        write_data_set(fresh, left)
        forget(shards=str(folder), file_ids=[value.hex() for value in gone])
    assert contents(folder) == contents(fresh)
    assert without_names(folder) == without_names(fresh)
    after = ShardIndex.load(folder)
    assert (after.revision, after.configuration) == (1, before.configuration)
    touched = {(f.split, f.number) for f in FILES if f.file_id in gone}
    for shard in after.shards:
        number = int(shard.name.split("-")[1])
        assert (".r0001.arrow" in shard.name) == ((shard.split, number) in touched)
    on_disk = {path.name for path in folder.iterdir()}
    assert on_disk == {"index.json", "tokenizer", "receipts", *(shard.name for shard in after.shards)}
    _require_true_receipt(folder, before, after, gone)


def test_bytes_of_text_do_not_count_the_names_before_it(tmp_path):
    encoder = small_shards.make_tokenizer(tmp_path / "tokenizer", 310)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens(["<repo_name>", "<file_sep>"])
    name, separator = (tokenizer.token_to_id(text) for text in ("<repo_name>", "<file_sep>"))

    def ids(text):
        return encoder.encode(pa.array([text]))[0].tolist()[:-1]

    for text in ("", "x = 1\n\n", "é\n<file_sep>\n"):
        plain, path = ids(text), ids("a/b é.py\n")
        first, other = [name, *ids("Owner/Repo"), separator, *path, *plain], [separator, *path, *plain]
        for whole in (plain, first, other):
            for end in ([], [encoder.end_of_text_id]):
                assert _text_bytes(whole + end, tokenizer) == len(text.encode())


def _require_true_receipt(folder, before, after, gone):
    receipt = json.loads((folder / "receipts" / "forget-0001.json").read_text())
    old = {shard.name: shard for shard in before.shards}
    new = {shard.name: shard for shard in after.shards}
    assert {file["file_id"] for file in receipt["files"]} == {value.hex() for value in gone}
    assert receipt["index_new_xxh3_128"] == xxhash.xxh3_128_hexdigest((folder / "index.json").read_bytes())
    assert receipt["revision"] == 1
    assert {row.tobytes() for ids in withdrawn_ids(folder, 1) for row in ids} == gone
    assert sum(shard.tokens for shard in old.values()) - receipt["tokens_removed"] == sum(
        s.tokens for s in new.values()
    )
    assert len(gone) == receipt["files_removed"] == sum(shard["files_removed"] for shard in receipt["shards"])
    assert sum(file["tokens"][1] - file["tokens"][0] for file in receipt["files"]) == receipt["tokens_removed"]
    for shard in receipt["shards"]:
        assert old[shard["old"]].xxh3_128 == shard["old_xxh3_128"]
        assert (new[shard["new"]].xxh3_128 if shard["new"] else None) == shard["new_xxh3_128"]
    unchanged = set(old) - {shard["old"] for shard in receipt["shards"]}
    assert set(new) == unchanged | {shard["new"] for shard in receipt["shards"] if shard["new"]}


def test_withdrawals_follow_each_other_and_verify_knows_them(made, tmp_path, capsys):
    folder = str(shutil.copytree(made[0], tmp_path / "shards"))
    commands = [inspect_shards.show, verify, inspect_shards.repair, inspect_shards.find, forget]

    def run(*words):
        code = call(commands, *words)
        out = capsys.readouterr()
        return code, out.out + out.err

    count = sum(file.repo == "Owner2/Repo" for file in FILES)
    by_name = ("--shards", folder, "--ledger", made[1], "--repos", "oWNER2/repo")
    index = (Path(folder) / "index.json").read_bytes()
    code, text = run("forget", *by_name, "--dry_run")
    assert code == 0
    assert text.startswith(f"forget: would remove {count} of {count} files in ")
    assert (Path(folder) / "index.json").read_bytes() == index
    assert run("forget", *by_name)[0] == 0
    assert run("forget", "--shards", folder, "--file_ids", FILES[-1].file_id.hex(), "0" * 32)[0] == 0
    assert ShardIndex.load(folder).revision == 2
    code, text = run("verify", "--shards", folder, "--ledger", made[1])
    assert (code, text.split(":")[-1]) == (0, " sound, and what the ledger keeps\n")
    assert not [
        row for row in contents(Path(folder)) if row[1] in {f.file_id for f in FILES if f.repo == "Owner2/Repo"}
    ]
    receipt = json.loads((Path(folder) / "receipts" / "forget-0002.json").read_text())
    assert (receipt["files_removed"], receipt["files_not_in_the_shards"]) == (1, 1)
    first = (Path(folder) / "index.json").read_bytes()
    code, text = run("forget", *by_name)
    assert (code, text) == (
        0,
        f"forget: removed 0 of {count} files in 0 shard(s), 0 tokens; nothing is left to remove\n",
    )
    assert (Path(folder) / "index.json").read_bytes() == first
    assert run("find", *by_name)[0] == 1
    TokenStream(folder, "train", verify=True)
    (Path(folder) / "receipts" / "forget-0001.json").unlink()
    code, text = run("verify", "--shards", folder, "--ledger", made[1])
    assert code == 1
    assert "forget-0001.json is missing" in text


def test_what_cannot_be_is_refused_and_changes_nothing(made, tmp_path, capsys):
    folder = Path(shutil.copytree(made[0], tmp_path / "shards"))
    file_id = FILES[3].file_id.hex()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def refused(message, *words):
        assert call([forget, verify], "forget", "--shards", folder, *words) == 1
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert message in text

    refused("name files", "--dry_run")
    refused("has no file of the repository nobody/here", "--repos", "nobody/here", "--ledger", made[1])
    (tmp_path / "ids.txt").write_text(f"{file_id}\nnonsense\n")
    refused("'nonsense' is no file id", "--file_ids", tmp_path / "ids.txt")
    with alone(folder):
        refused("is being changed by another run", "--file_ids", file_id)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    broken = folder / ShardIndex.load(folder).shards[FILES[3].number if FILES[3].split == "train" else -1].name
    data = bytearray(broken.read_bytes())
    data[600] ^= 1
    broken.write_bytes(data)
    refused("is damaged: its checksum differs", "--file_ids", file_id)
    broken.write_bytes(before[broken])
    shutil.rmtree(folder / "tokenizer")
    refused("tokenizer.json is missing", "--file_ids", file_id)
    assert ShardIndex.load(folder).revision == 0
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
        path: data for path, data in before.items() if path.parent == folder
    }


def test_killed_anywhere_the_folder_is_the_old_or_the_new_one(made, tmp_path):
    gone = [file.file_id.hex() for file in FILES[::9]] + [FILES[-1].file_id.hex()]
    whole = shutil.copytree(made[0], tmp_path / "whole")
    forget(shards=str(whole), file_ids=gone)
    old, new = contents(made[0]), contents(whole)
    copies = [shutil.copytree(made[0], tmp_path / f"copy{number}") for number in range(60)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, ",".join(gone), *copies],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    ends = [int(line) for line in done.stdout.splitlines() if not line.startswith("forget")]
    kills = ends.index(0)
    assert kills > 20
    assert set(ends[:kills]) == {signal.SIGKILL}
    states = []
    for folder in copies[:kills]:
        there = contents(folder)
        assert there in (old, new)
        states.append(there == new)
        if there == old:
            assert ShardIndex.load(folder).revision == 0
            for shard in ShardIndex.load(folder).shards:
                shards.verify_shard(Path(folder), shard)
        forget(shards=str(folder), file_ids=gone)
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.arrow")}
        assert files == {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*.arrow")}
        assert ShardIndex.load(folder) == ShardIndex.load(whole)
        assert (folder / "receipts" / "forget-0001.json").is_file()
        assert not list(folder.glob("_*"))
    assert states == sorted(states)
    assert 4 < sum(states) < kills - 4
