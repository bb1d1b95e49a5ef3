"""Shards in remote storage, by file:// and by S3 from a server of moto: tokens, the bound of the cache, damage."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from pyarrow import fs
from small_runs import SHORT, losses, train, words
from small_shards import make_shards

from training.batches import read_windows
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


def read_all(stream, group=0):
    sources = Sources([stream], sequence_length=LENGTH, seed=0, shuffle_tokens=group * LENGTH)
    windows = sources(np.arange(sources.windows, dtype=np.uint64))[1]
    return read_windows(stream, windows, LENGTH)


def copies(tmp_path):
    return list((tmp_path / "cache").glob("*/*.arrow"))


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


def test_remote_damage_and_loss_are_named(folder, tmp_path):
    path = folder / "train-3.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (stream,) = storage(folder, tmp_path).streams("train")
    with pytest.raises(ValueError, match=r"file:.*train-3.arrow is damaged: its checksum differs"):
        read_all(stream)
    assert not [copy for copy in copies(tmp_path) if copy.name == path.name]
    path.unlink()
    with pytest.raises(ValueError, match=r"file:.*train-3.arrow is missing"):
        read_all(stream)


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
    train(near, tmp_path / "run", SHORT, world_size=1)
    train(upload(near, bucket, "trained"), tmp_path / "far_run", SHORT, world_size=1)
    assert losses(tmp_path / "far_run") == losses(tmp_path / "run")
    missing = [sys.executable, *words("s3://corpus/nothing", tmp_path / "no_run", SHORT)]
    done = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "no_run").exists()
