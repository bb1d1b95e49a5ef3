"""Shards in remote storage, here a folder by its file:// URI: the same tokens, a bounded cache, damage named."""

import time

import numpy as np
import pytest
from small_shards import make_shards

from training.batches import read_windows
from training.remote import is_remote
from training.sources import CheckedStream, Sources, Storage

LENGTH = 32


@pytest.fixture
def folder(tmp_path):
    return make_shards(tmp_path / "far", train=60, per_shard=6, validation=0)


def storage(folder, tmp_path, limit=1 << 30):
    return Storage([folder.as_uri()], cache=tmp_path / "cache", cache_bytes=limit)


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
