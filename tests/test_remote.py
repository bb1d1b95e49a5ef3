"""Shards in remote storage, by file:// and by S3 from a server of moto: tokens, the bound of the cache, damage."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import fs
from small_runs import SHORT, finish, losses, started, train, words
from small_shards import make_shards

from training import batches as batches_module
from training import checks, remote
from training.batches import TrainingBatches, read_windows
from training.checks import Checks
from training.durable import damage, describe
from training.remote import is_remote, without_keys
from training.sources import CheckedStream, Sources, Storage

LENGTH = 32


@pytest.fixture
def folder(tmp_path):
    return make_shards(tmp_path / "far", train=60, per_shard=6, validation=0)


@pytest.fixture(scope="module")
def bucket():
    """A bucket of an S3 server on this machine, which the environment names as it would name any other."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        endpoint = "{}:{}".format(*server.get_host_and_port())
        known = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (known | {"AWS_ENDPOINT_URL": f"http://{endpoint}"}).items():
            patch.setenv(name, value)
        remote, _ = fs.FileSystem.from_uri("s3://corpus?allow_bucket_creation=true")
        remote.create_dir("corpus")
        yield remote
    server.stop()


def upload(folder, bucket, name):
    """The URI of a copy of a folder in the bucket."""
    fs.copy_files(str(folder), f"corpus/{name}", source_filesystem=fs.LocalFileSystem(), destination_filesystem=bucket)
    return f"s3://corpus/{name}"


def storage(folder, tmp_path, limit=1 << 30):
    place = folder if isinstance(folder, str) else folder.as_uri()
    return Storage([place], cache=tmp_path / "cache", cache_bytes=limit)


def verify(stream, shared=()):
    """Have all shards of a stream checked, for those too that share its checks."""
    if stream.checks is None:
        descriptor = os.memfd_create("checks")
        os.ftruncate(descriptor, len(stream.shards))
        for one in (stream, *shared):
            one.checks = Checks(descriptor, 0, len(stream.shards))
    everyone = SimpleNamespace(is_first=True, gathered=lambda value: [value])
    assert checks.verify([stream], everyone, SimpleNamespace(came=False))


def read_all(stream, group=0):
    sources = Sources([stream], sequence_length=LENGTH, seed=0, shuffle_tokens=group * LENGTH)
    windows = sources(np.arange(sources.windows, dtype=np.uint64))[1]
    return read_windows(stream, windows, LENGTH)


def copies(tmp_path):
    return list((tmp_path / "cache").glob("*/*.arrow"))


def damaged(path):
    """A file with one bit turned in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """The names of the copies that were hashed because they were there."""
    names = []

    def counted(path, record):
        if path.exists():
            names.append(path.name)
        return damage(path, record)

    monkeypatch.setattr(remote, "damage", counted)
    return names


def test_uris_are_remote_and_paths_are_not():
    assert [is_remote(place) for place in ("s3://a/b", "gs://a", "/a/b", "a", "C:/a")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_remote_tokens_are_those_of_the_folder_and_the_cache_stays_bounded(folder, tmp_path):
    sizes = sorted(path.stat().st_size for path in folder.glob("*.arrow"))
    limit = 3 * sizes[-1]
    near = storage(folder, tmp_path, limit)
    (stream,) = near.streams("train")
    sources = Sources([stream], sequence_length=LENGTH, seed=0, shuffle_tokens=16 * LENGTH)
    assert sources.all[0].name == folder.name
    for first in range(0, sources.windows, 10):
        windows = sources(np.arange(first, min(first + 10, sources.windows), dtype=np.uint64))[1]
        expected = read_windows(CheckedStream(folder), windows, LENGTH)
        np.testing.assert_array_equal(read_windows(stream, windows, LENGTH), expected)
        assert sum(path.stat().st_size for path in copies(tmp_path)) <= limit
    assert (near.folders[0] / "tokenizer" / "tokenizer.json").read_bytes() == (
        folder / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_expected_shards_are_copied_before_they_are_read(folder, tmp_path):
    (stream,) = storage(folder, tmp_path).streams("train")
    assert not copies(tmp_path)
    stream.expect(np.arange(0, len(stream), LENGTH, dtype=np.uint64))
    deadline = time.monotonic() + 60
    while len(copies(tmp_path)) < len(stream.shards):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    np.testing.assert_array_equal(read_all(stream), read_all(CheckedStream(folder)))


def test_numbers_of_the_past_copy_no_shards_and_reading_copies_those_to_come(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(batches_module, "ORDER_BLOCK", 4)
    streams = storage(folder, tmp_path).streams("train")
    batches = TrainingBatches(streams, sequence_length=LENGTH, sequences=4, seed=0)
    asked = []
    monkeypatch.setattr(streams[0], "expect", lambda starts: asked.append(len(starts)))
    for consumed in range(0, 40, 4):
        batches.samples(consumed)
    assert not asked
    for consumed in range(0, 40, 4):
        list(batches.share(consumed, 2, 0, 1))
    assert asked == [4] * 10


def test_remote_damage_and_loss_are_named(folder, tmp_path):
    path = damaged(folder / "train-3.arrow")
    (stream,) = storage(folder, tmp_path).streams("train")
    with pytest.raises(ValueError, match=r"file:.*train-3.arrow is damaged: its checksum differs"):
        read_all(stream)
    assert not [copy for copy in copies(tmp_path) if copy.name == path.name]
    path.unlink()
    with pytest.raises(ValueError, match=r"file:.*train-3.arrow is missing"):
        read_all(stream)


def test_a_store_that_refuses_for_a_while_is_waited_for(folder, tmp_path, monkeypatch, caplog):
    stream, waits, left = storage(folder, tmp_path).streams("train")[0], [], [3]
    usual = remote.Cache._copy

    def refusing(cache, name, checksum=""):
        if left[0]:
            left[0] -= 1
            raise OSError("When reading: AWS Error SLOW_DOWN")
        usual(cache, name, checksum)

    monkeypatch.setattr(remote.Cache, "_copy", refusing)
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    verify(stream)
    assert waits == [1, 2, 4]
    assert f"{folder.as_uri()}/train-0.arrow: When reading: AWS Error SLOW_DOWN; again in 4 s" in caplog.text
    (other,) = storage(folder, tmp_path / "other").streams("train")
    left[0] = 1000
    with pytest.raises(OSError, match="SLOW_DOWN"):
        other.check(0)


def test_a_shard_that_the_store_refuses_keeps_no_other_waiting(folder, tmp_path, monkeypatch):
    """Neither of this process nor of another, and what is copied ahead is tried once."""
    (stream,), (other,) = (storage(folder, tmp_path).streams("train") for _ in range(2))
    usual, tries, refused, patience = remote.Cache._copy, [], threading.Event(), threading.Event()

    def refusing(cache, name, checksum=""):
        tries.append(name)
        if name == "train-2.arrow":
            raise OSError("When reading: AWS Error SLOW_DOWN")
        usual(cache, name, checksum)

    def sleep(_):
        refused.set()
        patience.wait(60)

    monkeypatch.setattr(remote.Cache, "_copy", refusing)
    monkeypatch.setattr(remote.time, "sleep", sleep)

    def wait():
        with pytest.raises(OSError, match="SLOW_DOWN"):
            stream.check(2)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        assert refused.wait(60)
        for near in (stream, other):
            near.check(0)
        other.expect(np.array([other._ends[1], other._ends[2]]))
        while "train-3.arrow" not in tries:
            patience.wait(0.01)
        assert tries == ["train-2.arrow", "train-0.arrow", "train-2.arrow", "train-3.arrow"]
    finally:
        patience.set()
        waiting.join()


def test_a_full_disk_keeps_no_half_of_a_copy(folder, tmp_path, monkeypatch):
    (stream,) = storage(folder, tmp_path).streams("train")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        stream.check(0)
    assert not list(stream.folder.glob("*.partial"))


def test_a_file_system_without_locks_is_told_in_a_line(folder, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(remote.fcntl, "flock", flock)
    with pytest.raises(
        ValueError, match=r"knows no locks \(Function not implemented\); give --cache a folder on a disk"
    ):
        storage(folder, tmp_path)


def test_a_copy_that_was_damaged_is_fetched_anew(folder, tmp_path):
    expected = read_all(CheckedStream(folder))
    (stream,) = storage(folder, tmp_path).streams("train")
    read_all(stream)
    first, second = sorted(copies(tmp_path))[:2]
    sizes = first.stat().st_size, second.stat().st_size
    damaged(first)
    second.write_bytes(second.read_bytes()[:-1])
    (stream,) = storage(folder, tmp_path).streams("train")
    np.testing.assert_array_equal(read_all(stream), expected)
    assert (first.stat().st_size, second.stat().st_size) == sizes
    assert first.read_bytes() == (folder / first.name).read_bytes()


def test_copies_of_shards_that_were_written_again_are_fetched_anew(folder, tmp_path):
    read_all(storage(folder, tmp_path).streams("train")[0])
    shutil.rmtree(folder)
    make_shards(folder, train=60, per_shard=10, validation=0, seed=5)
    (stream,) = storage(folder, tmp_path).streams("train")
    np.testing.assert_array_equal(read_all(stream), read_all(CheckedStream(folder)))


def test_a_copy_of_the_same_size_but_of_another_index_is_fetched_anew(folder, tmp_path):
    read_all(storage(folder, tmp_path).streams("train")[0])
    record = json.loads((folder / "index.json").read_text())
    shard = record["shards"][2]
    shard["xxh3_128"] = describe(damaged(folder / shard["name"]))["xxh3_128"]
    (folder / "index.json").write_text(json.dumps(record))
    (stream,) = storage(folder, tmp_path).streams("train")
    np.testing.assert_array_equal(read_all(stream), read_all(CheckedStream(folder)))


def test_an_index_that_is_gone_is_not_replaced_by_its_copy(folder, tmp_path):
    storage(folder, tmp_path).streams("train")
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match=r"holds no shards: index.json is missing"):
        storage(folder, tmp_path).streams("train")


def test_a_copy_is_hashed_once_by_all_processes_and_again_by_the_next(folder, tmp_path, hashed):
    one, other = (storage(folder, tmp_path) for _ in range(2))
    for near in (one, other, one):
        read_all(near.streams("train")[0])
    assert not hashed
    names = [copy.name for copy in copies(tmp_path)]
    del near, one, other
    one, other = (storage(folder, tmp_path) for _ in range(2))
    for near in (one, other, one):
        read_all(near.streams("train")[0])
    assert sorted(hashed) == sorted(names)


def test_verify_fetches_each_shard_once_within_the_bound(folder, tmp_path, monkeypatch):
    fetched, copy = [], remote.Cache._copy

    def counted(cache, name, *checksum):
        fetched.append(name)
        copy(cache, name, *checksum)

    monkeypatch.setattr(remote.Cache, "_copy", counted)
    limit = 3 * max(path.stat().st_size for path in folder.glob("*.arrow"))
    streams = [storage(folder, tmp_path, limit).streams("train")[0] for _ in range(2)]
    for stream in streams:
        verify(stream, shared=streams)
    names = [shard.name for shard in streams[0].shards]
    assert [name for name in fetched if name.endswith(".arrow")] == names
    assert 0 < sum(path.stat().st_size for path in copies(tmp_path)) <= limit
    for stream in streams:
        np.testing.assert_array_equal(read_all(stream), read_all(CheckedStream(folder)))


def test_verify_names_a_damaged_and_a_missing_shard(folder, tmp_path):
    path = damaged(folder / "train-3.arrow")
    with pytest.raises(ValueError, match=r"shard file:.*train-3.arrow is damaged: its checksum differs"):
        verify(storage(folder, tmp_path).streams("train")[0])
    path.unlink()
    with pytest.raises(ValueError, match=r"file:.*train-3.arrow is missing; write the shards again"):
        verify(storage(folder, tmp_path).streams("train")[0])


def test_a_run_with_verify_is_refused_before_it_has_a_folder(tmp_path):
    near = make_shards(tmp_path / "near")
    for name in ("train-1.arrow", "validation-0.arrow"):
        sound = (near / name).read_bytes()
        damaged(near / name)
        options = SHORT | {"verify": "true", "cache": tmp_path / name}  # without a sound copy from before
        with started(near.as_uri(), tmp_path / "run", options, world_size=2) as jobs:
            codes, outputs = finish(jobs)
        assert codes == [1, 1]
        assert outputs[0].startswith(f"error: shard {near.as_uri()}/{name} is damaged: its checksum differs")
        assert outputs[0].count("\n") == 1
        assert not (tmp_path / "run").exists()
        (near / name).write_bytes(sound)


def test_a_run_on_damaged_copies_is_that_on_the_folder(tmp_path):
    near = make_shards(tmp_path / "near")
    options = SHORT | {"cache": str(tmp_path / "cache")}
    train(near.as_uri(), tmp_path / "run", options)
    for copy in copies(tmp_path):
        damaged(copy)
    train(near.as_uri(), tmp_path / "other_run", options)
    # Some may have been in line to be looked at when the run ended; those that were read are whole again.
    assert any(copy.read_bytes() == (near / copy.name).read_bytes() for copy in copies(tmp_path))
    assert losses(tmp_path / "other_run") == losses(tmp_path / "run")


def test_s3_gives_the_tokens_of_the_folder_and_the_cache_stays_bounded(folder, bucket, tmp_path):
    limit = 3 * max(path.stat().st_size for path in folder.glob("*.arrow"))
    (stream,) = storage(upload(folder, bucket, "whole"), tmp_path, limit).streams("train")
    np.testing.assert_array_equal(read_all(stream, group=16), read_all(CheckedStream(folder), group=16))
    assert 0 < sum(path.stat().st_size for path in copies(tmp_path)) <= limit


def test_damage_and_loss_in_s3_are_named_without_the_keys_of_the_uri(folder, bucket, tmp_path):
    place = upload(folder, bucket, "damaged")
    with bucket.open_output_stream("corpus/damaged/train-3.arrow") as file:
        file.write((folder / "train-3.arrow").read_bytes()[:-1] + b"?")
    uri = f"s3://key:secret@corpus/damaged?endpoint_override={os.environ['AWS_ENDPOINT_URL'][7:]}&scheme=http"
    (stream,) = storage(uri, tmp_path).streams("train")
    with pytest.raises(ValueError, match=rf"shard {place}/train-3.arrow is damaged: its checksum differs"):
        read_all(stream)
    bucket.delete_file("corpus/damaged/train-3.arrow")
    with pytest.raises(ValueError, match=rf"^{place}/train-3.arrow is missing; write the shards again"):
        read_all(stream)


def test_shards_that_s3_lacks_are_told_before_the_first_step(bucket, tmp_path):
    near = make_shards(tmp_path / "near")
    place, shard = upload(near, bucket, "lacking"), json.loads((near / "index.json").read_text())["shards"][2]
    name, size = shard["name"], (near / shard["name"]).stat().st_size
    with bucket.open_output_stream(f"corpus/lacking/{name}") as file:
        file.write((near / name).read_bytes()[:-1])
    shorter = f"error: shard {place}/{name} has {size - 1:,} bytes, the index says {size:,}; write it again\n"
    missing = f"error: {place}/{name} is missing; write the shards again, or copy it there\n"
    for told in (shorter, missing):
        if told == missing:
            bucket.delete_file(f"corpus/lacking/{name}")
        with started(place, tmp_path / "run", SHORT, world_size=2) as jobs:
            codes, outputs = finish(jobs)
        assert codes == [1, 1]
        assert outputs[0] == told
        assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_listed_is_read_all_the_same(folder, tmp_path, monkeypatch, caplog):
    place = storage(folder, tmp_path)
    (stream,) = place.streams("train")

    def refused(_):
        raise PermissionError(errno.EACCES, "no right to list")

    remote_folder = SimpleNamespace(get_file_info=refused, open_input_stream=stream._cache._remote.open_input_stream)
    monkeypatch.setattr(stream._cache, "_remote", remote_folder)
    stream.require(range(len(stream.shards)))
    assert caplog.messages == [
        f"{folder.as_uri()} cannot be listed, so shards are not looked for: [Errno 13] no right to list"
    ]
    np.testing.assert_array_equal(read_all(stream), read_all(CheckedStream(folder)))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://key:sec/ret@corpus/a/?region=x", "s3://corpus/a"),
        ("hdfs://host:8020/a/b", "hdfs://host:8020/a/b"),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_uris_are_told_without_keys(place, told):
    assert without_keys(place) == told


def test_a_key_that_breaks_the_uri_is_not_told(tmp_path):
    with pytest.raises(ValueError, match=r"^s3://corpus/a is no URI that pyarrow can open; keys belong in") as raised:
        storage("s3://key:sec/ret@corpus/a", tmp_path)
    assert "ret" not in str(raised.value).replace("secret", "").replace("SECRET", "")


def test_a_run_on_s3_is_that_on_the_folder(bucket, tmp_path):
    near = make_shards(tmp_path / "near")
    train(near, tmp_path / "run", SHORT)
    printed = train(upload(near, bucket, "trained"), tmp_path / "far_run", SHORT, machines=2)
    told = f"copies of shards go to {tmp_path}/far_run.cache, for all machines; --cache is best on a disk of each"
    assert [told in lines for lines in printed] == [True, False]
    assert losses(tmp_path / "far_run") == losses(tmp_path / "run")
    missing = [sys.executable, *words("s3://corpus/nothing", tmp_path / "no_run", SHORT)]
    done = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "no_run").exists()
