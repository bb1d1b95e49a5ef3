"""What an exporter writes, the format's own rules give back: readers written here from the formats' descriptions.

test_foreign_readers.py opens the same with the libraries themselves.
"""

import dataclasses
import itertools
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
from small_data_set import call, small_files, write_data_set

from tokenizer import shards
from tokenizer.export_shards import main
from tokenizer.exporters import mds
from tokenizer.shards import ShardIndex, ShardWriter

FILES = small_files()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of shards, [(split, file id, tokens)] in the order of the shards), in small record batches."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", 500)
        tokens = write_data_set(folder, FILES)
    ordered = sorted(FILES, key=lambda file: (file.split, file.number))
    return folder, [(file.split, file.file_id, tokens[file.file_id]) for file in ordered]


@pytest.fixture(scope="module")
def large_ids(tmp_path_factory):
    """The same for a vocabulary of 2^20 entries, with documents at the lengths where MDS counts in more bytes."""
    folder, draw = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    lengths = (1, 255, 256, 65535, 65536, 70000, 3)
    rows = [(n.to_bytes(16, "big"), draw.integers(0, 1 << 20, size)) for n, size in enumerate(lengths)]
    with (folder / "train-00000-of-00001.arrow").open("wb") as sink:
        writer = ShardWriter(sink, 1 << 20)
        for file_id, tokens in rows:
            writer.append(tokens, file_id, 1)
        entry = writer.close("train-00000-of-00001.arrow", "train")
    ShardIndex("fingerprint", 1 << 20, 0, (entry,)).save(folder)
    return folder, [("train", file_id, tokens.tolist()) for file_id, tokens in rows]


def read_megatron(prefix):
    """Documents of an indexed dataset."""
    data, tokens = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert data[:9] == b"MMIDIDX\0\0"
    version, code, count, entries = struct.unpack_from("<QBQQ", data, 9)
    assert (version, entries) == (1, count + 1)
    dtype = np.dtype({8: "<u2", 4: "<i4"}[code])
    lengths = np.frombuffer(data, "<i4", count, 34)
    places = np.frombuffer(data, "<i8", count, 34 + 4 * count)
    assert np.frombuffer(data, "<i8", offset=34 + 12 * count).tolist() == list(range(count + 1))
    assert len(tokens) == int(lengths.sum()) * dtype.itemsize
    return [np.frombuffer(tokens, dtype, n, at).tolist() for n, at in zip(lengths, places, strict=True)]


def read_mds(folder):
    """Samples of an MDS data set as dictionaries."""
    index, samples = json.loads((folder / "index.json").read_text()), []
    assert index["version"] == 2
    for entry in index["shards"]:
        data = (folder / entry["raw_data"]["basename"]).read_bytes()
        assert len(data) == entry["raw_data"]["bytes"]
        assert xxhash.xxh3_128_hexdigest(data) == entry["raw_data"]["hashes"]["xxh3_128"]
        (count,) = struct.unpack_from("<I", data)
        assert count == entry["samples"]
        places = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert json.loads(data[8 + 4 * count : places[0]])["column_names"] == entry["column_names"]
        assert places[-1] == len(data)
        samples += [_sample(data[begin:end], entry) for begin, end in itertools.pairwise(places)]
    return samples


def _sample(data, entry):
    names, encodings = entry["column_names"], dict(zip(entry["column_names"], entry["column_encodings"], strict=True))
    sizes, at, found = struct.unpack_from(f"<{len(names)}I", data), 4 * len(names), {}
    for name, size in zip(names, sizes, strict=True):
        found[name], at = data[at : at + size], at + size
    assert at == len(data)
    kind = found["tokens"][0] - 4
    (length,) = struct.unpack_from("<" + "BHI"[kind], found["tokens"], 1)
    values = np.frombuffer(found["tokens"], encodings["tokens"].removeprefix("ndarray:"), offset=1 + 2**kind)
    assert len(values) == length
    return found | {"tokens": values.tolist()}


def of(rows, split):
    return [(file_id, list(tokens)) for where, file_id, tokens in rows if where == split]


@pytest.mark.parametrize("data", ["made", "large_ids"])
def test_megatron(data, request, tmp_path):
    folder, rows = request.getfixturevalue(data)
    main(shards=str(folder), to="megatron", output=str(tmp_path / "out"))
    for split in {split for split, _, _ in rows}:
        assert read_megatron(tmp_path / "out" / split) == [tokens for _, tokens in of(rows, split)]


@pytest.mark.parametrize("limit", [1 << 26, 4096 + 2000])
@pytest.mark.parametrize("data", ["made", "large_ids"])
def test_mds(data, request, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(mds, "SIZE_LIMIT", limit)
    folder, rows = request.getfixturevalue(data)
    main(shards=str(folder), to="mds", output=str(tmp_path / "out"))
    for split in {split for split, _, _ in rows}:
        samples = read_mds(tmp_path / "out" / split)
        assert [(sample["file_id"], sample["tokens"]) for sample in samples] == of(rows, split)
        files = list((tmp_path / "out" / split).glob("*.mds"))
        assert (len(files) > 1) == (limit < 1 << 26)


def test_mds_in_sequences(made, tmp_path):
    folder, rows = made
    main(shards=str(folder), to="mds", output=str(tmp_path / "out"), sequence_length=64, splits=["train"])
    whole = [token for _, tokens in of(rows, "train") for token in tokens]
    samples = read_mds(tmp_path / "out" / "train")
    assert [token for sample in samples for token in sample["tokens"]] == whole[: len(whole) // 64 * 64]
    assert {len(sample["tokens"]) for sample in samples} == {64}
    assert not (tmp_path / "out" / "validation").exists()


def test_nanogpt(made, tmp_path):
    folder, rows = made
    main(shards=str(folder), to="nanogpt", output=str(tmp_path / "out"))
    for split, name in (("train", "train.bin"), ("validation", "val.bin")):
        read = np.memmap(tmp_path / "out" / name, dtype=np.uint16, mode="r")
        assert read.tolist() == [token for _, tokens in of(rows, split) for token in tokens]
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert meta == {"vocab_size": ShardIndex.load(folder).vocab_size}


def test_what_cannot_be_is_refused_and_leaves_nothing(made, large_ids, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    out, shards_folder = tmp_path / "out", made[0]
    faults = [
        (["--shards", large_ids[0], "--to", "nanogpt", "--output", out], "nanoGPT reads 16 bits, 65536 at most"),
        (["--shards", shards_folder, "--to", "mds", "--output", out, "--splits", "dev"], "no split 'dev'"),
        (["--shards", shards_folder, "--to", "nanogpt", "--output", out, "--sequence_length", 8], "is for --to mds"),
        (["--shards", shards_folder, "--to", "mds", "--output", tmp_path / "precious"], "holds something else than"),
        (["--shards", shards_folder, "--to", "mds", "--output", shards_folder / "out"], "lie in one another"),
        (["--shards", shards_folder, "--to", "mds", "--output", out, "--sequence_length", 10**9], "tokens in all"),
        (["--shards", shards_folder, "--to", "mds", "--output", tmp_path / "precious" / "file"], "is a file"),
        (["--shards", tmp_path, "--to", "mds", "--output", out], "index.json is missing"),
    ]
    for arguments, message in faults:
        assert call(main, *arguments) == 1
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert message in text
        assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert call(main, "--shards", shards_folder, "--to", "parquet", "--output", out) == 2
    with pytest.raises(
        FileExistsError, match=r"precious holds something else than what is written here; name another"
    ):
        main(shards=str(shards_folder), to="nanogpt", output=str(tmp_path / "precious"), overwrite=True)
    for to, names in (("nanogpt", {"train.bin", "val.bin", "meta.pkl"}), ("mds", {"train", "validation"})) * 2:
        main(shards=str(shards_folder), to=to, output=str(out), overwrite=True)
        assert {path.name for path in out.iterdir()} == names
    with pytest.raises(FileExistsError, match="out exists; --overwrite replaces it"):
        main(shards=str(shards_folder), to="mds", output=str(out))


# Runs a script, and tells the peak of its own memory: what the system reports counts the parent's before it.
_WITH_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
open("/proc/self/clear_refs", "w").write("5")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    sys.stderr.write(open("/proc/self/status").read())
"""


def test_a_killed_export_is_absent_and_memory_is_bounded(tmp_path):
    """500 MB of tokens: killed on its way there is no output; left alone it takes some of one batch of memory."""
    tokens = np.arange(2 << 20, dtype=np.uint16) % 300
    with (tmp_path / "train-00000-of-00001.arrow").open("wb") as sink:
        writer = ShardWriter(sink, 300)
        for number in range(16):
            writer.append(tokens, number.to_bytes(16, "big"), 1)
        entry = writer.close("train-00000-of-00001.arrow", "train")
    entries = [dataclasses.replace(entry, name=f"s{number}.arrow") for number in range(8)]
    for other in entries:
        os.link(tmp_path / entry.name, tmp_path / other.name)
    ShardIndex("fingerprint", 300, 0, tuple(entries)).save(tmp_path)
    words = [sys.executable, main.__code__.co_filename, "--shards", tmp_path, "--output", tmp_path.parent / "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for target in ("megatron", "mds"):
        process = subprocess.Popen([*words, "--to", target], env=environment, stdout=subprocess.DEVNULL)
        unfinished = tmp_path.parent / ".out.unfinished"
        while not list(unfinished.rglob("*.bin")) + list(unfinished.rglob("*.mds")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path.parent / "out").exists()
        whole = subprocess.run(
            [sys.executable, "-c", _WITH_PEAK, *words[1:], "--to", target],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert whole.returncode == 0
        peak_kib = int(whole.stderr.rsplit("VmHWM:", 1)[1].split()[0])
        assert peak_kib < 400_000  # the map of one shard shows 64 MiB, all tokens are 512 MiB
        assert not unfinished.exists()
        shutil.rmtree(tmp_path.parent / "out")
