"""The job's own shards: sound by their ledger, and after damage byte by byte as before, without withdrawn files."""

import random
from types import SimpleNamespace

import pytest
from small_corpus import code, document, write_documents, write_ledger
from small_data_set import call

from spark_jobs import write_shards
from tokenizer import inspect_shards
from tokenizer.inspect_shards import find, forget, repair, show, verify
from tokenizer.shards import ShardIndex
from tokenizer.train import trained


@pytest.fixture(scope="module")
def job(spark, tmp_path_factory):
    """(inputs of the job by option, its output, ids of its files)."""
    folder, draw = tmp_path_factory.mktemp("job"), random.Random(3)
    rows = [document(code(draw, 30), repo=f"Owner/repo{n % 6}", path=f"{n}.py") for n in range(60)]
    documents = write_documents(folder / "documents", rows, 2)
    ledger = write_ledger(folder / "ledger", documents, {row["file_id"] for row in rows})
    (folder / "tokenizer").mkdir()
    trained([row["content"] for row in rows], 400).save(str(folder / "tokenizer" / "tokenizer.json"))
    inputs = {"documents": documents, "ledger": ledger, "tokenizer": str(folder / "tokenizer")}
    write_shards.main(**inputs, output=str(folder / "shards"), validation_share=0.2)
    return inputs, folder / "shards", [row["file_id"] for row in rows]


def in_this_process(command, **_):
    """Run the job's command in the session that is there; test_inspect_shards starts spark-submit."""
    script = command.index(str(inspect_shards.WRITE_SHARDS))
    return SimpleNamespace(returncode=call(write_shards.main, *command[script + 1 :]))


def test_the_job_is_sound_by_its_ledger_and_repaired_after_damage(job, monkeypatch, capsys):
    inputs, folder, file_ids = job

    def run(*words):
        code_ = call([show, verify, repair, find, forget], *words)
        printed = capsys.readouterr()
        return code_, printed.out + printed.err

    options = ("--shards", folder, "--ledger", inputs["ledger"])
    assert run("verify", *options)[0] == 0
    assert run("forget", "--shards", folder, "--file_ids", *(file_id.hex() for file_id in file_ids[::7]))[0] == 0
    assert run("forget", *options, "--repos", "owner/REPO3")[0] == 0
    assert run("verify", *options)[0] == 0
    index = ShardIndex.load(folder)
    assert index.revision == 2
    good = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    first, last = (folder / index.shards[number].name for number in (0, -1))
    first.write_bytes(b"\1" + good[first][1:])
    last.unlink()
    monkeypatch.setattr(inspect_shards.subprocess, "run", in_this_process)
    code_, text = run("repair", *options, "--documents", inputs["documents"])
    assert code_ == 0, text
    assert "sound, and what the ledger keeps" in text
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == good
    assert inspect_shards.WRITE_SHARDS.samefile(write_shards.__file__)
