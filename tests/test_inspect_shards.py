"""What inspect_shards tells of shards is so, and damage of every kind is found, named and given the exit code 1."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data_set import SmallFile, call, small_files, write_data_set, write_small_ledger

from tokenizer import file_ids, inspect_shards, shards
from tokenizer.file_ids import Piles, as_ids, doubles_in, hex_of, member_places
from tokenizer.inspect_shards import find, repair, show, verify
from tokenizer.shards import ShardIndex, ShardWriter, TokenStream, shard_schema

IDS = st.lists(st.one_of(st.binary(min_size=16, max_size=16), st.integers(0, 9).map(lambda n: n.to_bytes(16, "big"))))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of shards, ledger, files, tokens by id), made in record batches of few documents."""
    folder, files = tmp_path_factory.mktemp("made"), small_files()
    ledger = write_small_ledger(folder / "ledger", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", 500)
        tokens = write_data_set(folder / "shards", files, ledger)
    return folder / "shards", ledger, files, tokens


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


def rewritten(folder, shard, documents, vocab_size=None):
    """Put other documents into a shard and make the index agree with its bytes, as a faulty writer would."""
    with (folder / shard.name).open("wb") as sink:
        writer = ShardWriter(sink, vocab_size or ShardIndex.load(folder).vocab_size)
        for file_id, tokens in documents:
            writer.append(tokens, file_id, 1)
        entered(folder, writer.close(shard.name, shard.split))


def replaced_by(folder, shard, table):
    """The same with a table that no writer of ours would write."""
    path = folder / shard.name
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    digest, tokens = xxhash.xxh3_128_hexdigest(path.read_bytes()), pc.sum(pc.list_value_length(table[0])).as_py()
    facts = {"rows": len(table), "tokens": tokens, "file_bytes": path.stat().st_size, "xxh3_128": digest}
    entered(folder, dataclasses.replace(shard, **facts))


def entered(folder, entry):
    """Put an entry in the place of that of the same name."""
    index = ShardIndex.load(folder)
    others = tuple(entry if other.name == entry.name else other for other in index.shards)
    dataclasses.replace(index, shards=others).save(folder)


def told(capsys, function, *arguments):
    """Exit code and output of a subcommand."""
    code = call([show, verify, repair, find, inspect_shards.forget], function.__name__, *arguments)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_sound_shards_are_sound_and_shown(made, capsys):
    folder, ledger, files, _ = made
    assert told(capsys, verify, "--shards", folder, "--ledger", ledger) == (
        0,
        f"verify: 5 shard(s), {len(files)} files: sound, and what the ledger keeps\n",
    )
    code, text = told(capsys, show, "--shards", folder)
    assert code == 0
    train = [file for file in files if file.split == "train"]
    assert f"4 shard(s) {len(train):>13,} documents" in text
    assert ShardIndex.load(folder).fingerprint("train") in text
    shard = ShardIndex.load(folder).shards[1]
    inside = [file for file in files if (file.split, file.number) == ("train", 1)]
    for row in (0, 17, len(inside) - 1):
        assert told(capsys, show, "--shards", folder, "--shard", shard.name, "--row", row) == (
            0,
            inside[row].text + "\n",
        )
    assert told(capsys, show, "--shards", folder, "--shard", shard.name, "--row", len(inside))[0] == 1
    assert told(capsys, show, "--shards", folder, "--shard", "other")[0] == 1


def test_every_flipped_bit_and_missing_or_stray_file_is_found(made, copy, capsys):
    index = ShardIndex.load(copy)
    path = copy / index.shards[2].name
    data = path.read_bytes()
    for place in range(0, len(data), 997):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        code, text = told(capsys, verify, "--shards", copy)
        assert (code, text.count("broken: ")) == (1, 1)
        assert f"broken: shard {path} is damaged" in text
    path.unlink()
    (copy / "train-00009-of-00010.arrow").touch()
    (copy / "_train-00000-of-00004.arrow.dead").touch()
    (copy / "notes.txt").touch()
    code, text = told(capsys, verify, "--shards", copy, "--ledger", made[1])
    assert code == 1
    assert f"broken: shard {path} is missing" in text
    assert "stray: train-00009-of-00010.arrow" in text
    assert "stray: _train-00000-of-00004.arrow.dead" in text
    assert text.count("stray: ") == 2
    assert text.endswith("3 fault(s), 1 of them broken shards\n")
    (copy / "index.json").write_text('{"format_version": 1, "shards": [')
    code, text = told(capsys, verify, "--shards", copy)
    assert (code, text.count("\n")) == (1, 1)
    assert "index.json is damaged" in text


def test_faults_of_a_writer_are_found_though_the_checksums_agree(made, copy, capsys):
    folder, ledger, files, tokens = made
    index = ShardIndex.load(folder)
    first = [(f.file_id, tokens[f.file_id]) for f in files if (f.split, f.number) == ("train", 0)]
    shard = index.shards[0]
    hex_first = first[0][0].hex()
    rewritten(copy, shard, first[1:])
    code, text = told(capsys, verify, "--shards", copy, "--ledger", ledger)
    assert code == 1
    assert f"1 file(s) kept by the ledger and in no shard: {hex_first}\n" in text
    assert told(capsys, verify, "--shards", copy)[0] == 0
    rewritten(copy, shard, [*first, first[0]])
    assert f"1 file(s) in the shards more than once: {hex_first}\n" in told(capsys, verify, "--shards", copy)[1]
    rewritten(copy, shard, [*first, (b"\xff" * 16, [1, 2])])
    code, text = told(capsys, verify, "--shards", copy, "--ledger", ledger)
    assert code == 1
    assert f"1 file(s) in the shards and not kept by the ledger: {'ff' * 16}\n" in text
    rewritten(copy, shard, [*first[:-1], (first[-1][0], [index.vocab_size])], vocab_size=index.vocab_size + 1)
    code, text = told(capsys, verify, "--shards", copy)
    assert f"has the id {index.vocab_size}, outside the vocabulary of {index.vocab_size}" in text
    rewritten(copy, shard, first, vocab_size=1 << 20)
    assert "has other columns than the format" in told(capsys, verify, "--shards", copy)[1]
    schema = shard_schema(index.vocab_size)
    replaced_by(copy, shard, pa.table({"token_ids": [[1], [2]], "file_id": [bytes(16), b"short"]}, schema))
    assert "file ids are of 16 bytes; here are some of 5 to 16" in told(capsys, verify, "--shards", copy)[1]
    rewritten(copy, shard, first)
    entered(copy, dataclasses.replace(ShardIndex.load(copy).shards[0], rows=3))
    assert f"has {len(first)} rows, the index says 3" in told(capsys, verify, "--shards", copy)[1]


def test_another_ledger_is_refused(made, tmp_path, capsys):
    other = write_small_ledger(tmp_path / "ledger", small_files(20, seed=3))
    code, text = told(capsys, verify, "--shards", made[0], "--ledger", other)
    assert (code, text.count("\n")) == (1, 1)
    assert f"was not made from the ledger {other}" in text
    (other / "_manifest.json").unlink()
    assert "is not a finished table" in told(capsys, verify, "--shards", made[0], "--ledger", other)[1]


def test_files_are_found_where_their_tokens_are(made, capsys):
    folder, _, files, tokens = made
    streams = {split: TokenStream(folder, split) for split in ("train", "validation")}
    wanted = files[::19]
    code, text = told(
        capsys, find, "--shards", folder, "--file_ids", *(file.file_id.hex() for file in wanted), "00" * 16
    )
    assert code == 0
    lines = text.splitlines()
    assert lines[-1] == f"{'00' * 16}: in no shard"
    by_id = {line.split(":")[0]: line for line in lines}
    assert len(lines) == len(by_id) == len(wanted) + 1
    for file in wanted:
        words = by_id[file.file_id.hex()].replace(",", "").replace(";", "").split()
        name, row, begin, end = words[1], int(words[3]), int(words[5]), int(words[7])
        split, position = words[-1], int(words[-3])
        assert (name[:-6], split) == (
            f"{file.split}-{file.number:05d}-of-{4 if split == 'train' else 1:05d}",
            file.split,
        )
        inside = [other for other in files if (other.split, other.number) == (file.split, file.number)]
        assert inside[row] is file
        out = np.zeros(end - begin, np.uint16)
        streams[split].read(position, out)
        assert out.tolist() == tokens[file.file_id]
        assert begin == sum(len(tokens[other.file_id]) for other in inside[:row])


def test_files_are_found_by_name(made, capsys):
    folder, ledger, files, _ = made
    code, text = told(capsys, find, "--shards", folder, "--ledger", ledger, "--repos", "owner3/REPO", "only/here")
    assert code == 0
    expected = {file.file_id.hex() for file in files if file.repo in ("Owner3/Repo", "Only/Here")}
    assert {line.split()[0] for line in text.splitlines()} == expected
    assert " Owner3/Repo/" in text
    code, text = told(
        capsys, find, "--shards", folder, "--ledger", ledger, "--paths", "wide.py", "--repos", "owner0/repo"
    )
    assert (code, text) == (
        1,
        f"{'ff' * 16} Owner0/Repo/wide.py: in no shard; the ledger says filtered: line_length\n",
    )
    for words, found in (
        (["--paths", "7.py"], {f for f in files if f.path == "7.py"}),
        (
            ["--paths", "Repo/7.py", "Owner1/Repo/8.py"],
            {f for f in files if f.path == "7.py" or f.repo + f.path == "Owner1/Repo8.py"},
        ),
        (
            ["--paths", "1.py", "2.py", "--repos", "ONLY/here"],
            {f for f in files if f.repo == "Only/Here" and f.path in ("1.py", "2.py")},
        ),
    ):
        lines = told(capsys, find, "--shards", folder, "--ledger", ledger, *words)[1].splitlines()
        assert {line.split()[0] for line in lines} == {file.file_id.hex() for file in found}
    faults = [
        (["--paths", "py"], "name it with --ledger"),
        (["--paths", "py", "--ledger", ledger], "has no file at py"),
        (["--repos", "nobody/nothing"], "name it with --ledger"),
        (["--repos", "nobody/nothing", "--ledger", ledger], "has no file of the repository nobody/nothing"),
        (["--paths", "no.py", "--ledger", ledger], "has no file at no.py"),
        (["--file_ids", "12"], "--file_ids 12: neither a file id"),
        ([], "name files"),
    ]
    for arguments, message in faults:
        code, text = told(capsys, find, "--shards", folder, *arguments)
        assert (code, text.count("\n")) == (1, 1)
        assert message in text


def test_repair_removes_strays_and_tells_the_command_that_needs_inputs(made, copy, capsys):
    assert told(capsys, repair, "--shards", copy)[0] == 0
    (copy / "train-00009-of-00010.arrow").touch()
    (copy / "notes.txt").touch()
    code, text = told(capsys, repair, "--shards", copy, "--ledger", made[1])
    assert code == 0
    assert "sound, and what the ledger keeps\n" in text
    assert (copy / "notes.txt").exists()
    assert not (copy / "train-00009-of-00010.arrow").exists()
    broken = copy / ShardIndex.load(copy).shards[1].name
    broken.write_bytes(broken.read_bytes()[:-9])
    code, text = told(capsys, repair, "--shards", copy, "--ledger", made[1])
    assert code == 1
    assert f"broken: shard {broken}" in text
    assert f"--documents DOCUMENTS --ledger {made[1]} --tokenizer {copy}/tokenizer --output {copy} --repair" in text


def test_repair_has_the_job_write_the_broken_shards(made, copy, tmp_path, monkeypatch, capsys):
    """The job's part is played by a script that spark-submit starts; test_write_shards tests the job's own."""
    index = ShardIndex.load(copy)
    broken = copy / index.shards[1].name
    good = broken.read_bytes()
    script = tmp_path / "write_shards.py"
    script.write_text(
        "import shutil, sys\n"
        "assert sys.argv[-1] == '--repair', sys.argv\n"
        "given = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2]))\n"
        f"assert given['--documents'] == {str(made[0])!r}\n"
        f"shutil.copy(given['--documents'] + '/{broken.name}', given['--output'])\n"
    )
    monkeypatch.setattr(inspect_shards, "WRITE_SHARDS", script)
    broken.write_bytes(b"")
    quick = Path(__file__).parents[1] / "infra" / "spark" / "local.conf"
    options = ["--shards", copy, "--ledger", made[1], "--properties_file", quick]
    code, text = told(capsys, repair, *options, "--documents", made[0])
    assert code == 0, text
    assert "sound, and what the ledger keeps\n" in text
    assert broken.read_bytes() == good
    broken.unlink()
    code, text = told(capsys, repair, *options, "--documents", "elsewhere")
    assert code == 1
    assert "write_shards.py --repair ended with exit code 1" in text


@settings(deadline=None, max_examples=40)
@given(IDS, IDS, st.integers(1, 5), st.integers(1, 4))
def test_piles_bring_equal_ids_together_and_lose_none(tmp_path_factory, first, second, pile_ids, buffered):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_ids, "PILE_IDS", pile_ids)
        patch.setattr(file_ids, "BUFFERED_IDS", buffered)
        piles = Piles(tmp_path_factory.mktemp("piles"), len(first))
        for kind, ids in (("a", first), ("b", second)):
            for begin in range(0, len(ids), 3):
                piles.add(kind, as_ids(b"".join(ids[begin : begin + 3])))
        read = [(piles.read(number, "a"), piles.read(number, "b")) for number in range(piles.count)]
    for kind, ids in ((0, first), (1, second)):
        assert sorted(text for pile in read for text in hex_of(pile[kind])) == sorted(value.hex() for value in ids)
    doubles = {text for pile in read for text in hex_of(doubles_in(pile[0]))}
    assert doubles == {value.hex() for value in first if first.count(value) > 1}
    both = set()
    for a, b in read:
        rows, _ = member_places(a, b)
        both |= set(hex_of(a[rows]))
    assert both == {value.hex() for value in first if value in second}


def test_memory_does_not_grow_with_the_ids(tmp_path):
    """Eight million ids, all but one distinct, within the memory of two piles and a buffer."""
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from tokenizer import file_ids
file_ids.PILE_IDS = file_ids.BUFFERED_IDS = 1 << 18
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
piles = file_ids.Piles(Path(sys.argv[1]), 8 << 20)
for first in range(0, 8 << 20, 1 << 16):
    halves = np.zeros((1 << 16, 2), "<u8")
    halves[:, 1] = np.arange(first, first + (1 << 16))
    piles.add("a", halves.view("S16").ravel())
piles.add("a", np.array([b"\\1" * 16, b"\\0" * 8 + b"\\5"], "S16"))
doubles = [file_ids.doubles_in(piles.read(number, "a")) for number in range(piles.count)]
found = [text for some in doubles for text in file_ids.hex_of(some)]
print(found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base, piles.count)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    found, grown, count = done.stdout.rsplit(" ", 2)
    assert json.loads(found.replace("'", '"')) == ["0" * 16 + "05" + "0" * 14]
    assert int(count) == 32
    assert int(grown) < 40_000  # KiB; the ids are 128 MiB


def test_a_small_file_is_what_the_fixture_says():
    ids = [file.file_id for file in small_files()]
    assert len(set(ids)) == len(ids)
    assert any(value.endswith(b"\0") for value in ids)
    assert SmallFile("a", "b", "", "train", 0).file_id != SmallFile("a", "c", "", "train", 0).file_id
