"""What a shard writer is given a token stream gives back, wherever it is read; damage is found and named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import shards, token_stream
from tokenizer.shards import INDEX_NAME, ShardIndex, ShardWriter, TokenStream, shard_schema, token_dtype

VOCABULARIES = [3, 300, 1 << 16, (1 << 16) + 1, 1 << 20]


def write_shards(folder, documents_of_shards, vocab_size=300, split="train", name="s"):
    """One shard for each list of documents (lists of ids); the index's entries."""
    entries = []
    for number, documents in enumerate(documents_of_shards):
        with (folder / f"{name}-{number}.arrow").open("wb") as sink:
            writer = ShardWriter(sink, vocab_size)
            for place, ids in enumerate(documents):
                writer.append(ids, place.to_bytes(16, "big"), 2 * len(ids))
            entries.append(writer.close(f"{name}-{number}.arrow", split))
    return entries


def save(folder, entries, vocab_size=300, **options):
    ShardIndex("fingerprint", vocab_size, 0, tuple(entries), **options).save(folder)


@st.composite
def data_sets(draw):
    vocab_size = draw(st.sampled_from(VOCABULARIES))
    documents = st.lists(st.integers(0, vocab_size - 1), max_size=12)
    return (
        vocab_size,
        draw(st.lists(st.lists(documents, max_size=6), min_size=1, max_size=4)),
        draw(st.integers(1, 20)),
    )


@settings(deadline=None)
@given(data_sets(), st.data())
def test_every_run_of_tokens_is_read_as_it_was_written(data_set, data):
    vocab_size, documents, batch_tokens = data_set
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        patch.setattr(shards, "BATCH_TOKENS", batch_tokens)
        patch.setattr(token_stream, "MAX_MAPS", data.draw(st.integers(1, 4)))
        patch.setattr(token_stream, "SHORT_TOKENS", data.draw(st.integers(0, 10)))
        entries = write_shards(folder, documents, vocab_size)
        save(folder, entries, vocab_size)
        expected = [token for shard in documents for ids in shard for token in ids]
        stream = TokenStream(folder, verify=True)
        assert len(stream) == len(expected)
        assert stream.text_bytes == 2 * len(expected)
        for _ in range(4):
            start = data.draw(st.integers(0, len(expected)))
            out = np.zeros(data.draw(st.integers(0, len(expected) - start)), token_dtype(vocab_size))
            stream.read(start, out)
            assert out.tolist() == expected[start : start + len(out)]
        for start, length in ((-1, 1), (len(expected), 1), (0, len(expected) + 1)):
            with pytest.raises(IndexError):
                stream.read(start, np.zeros(length, token_dtype(vocab_size)))
        for entry, shard in zip(entries, documents, strict=True):
            assert (entry.rows, entry.tokens) == (len(shard), sum(map(len, shard)))
            assert entry.file_bytes == (folder / entry.name).stat().st_size


def test_ten_thousand_shards_open_at_once_in_little_memory(tmp_path):
    """Names of one file: what grows with the number of shards would grow all the same."""
    (entry,) = write_shards(tmp_path, [[list(range(300))] * 200])
    entries = [dataclasses.replace(entry, name=f"{number}.arrow") for number in range(10_000)]
    for other in entries:
        os.link(tmp_path / entry.name, tmp_path / other.name)
    save(tmp_path, entries)
    program = """
import random, resource, sys, time
import numpy as np
from tokenizer.token_stream import MAX_MAPS, TokenStream
seconds = []
for _ in range(3):
    begin = time.perf_counter()
    stream = TokenStream(sys.argv[1])
    seconds.append(time.perf_counter() - begin)
out, place = np.empty(65, stream.dtype), random.Random(0)
def maps():
    return sum(sys.argv[1] in line for line in open("/proc/self/maps"))
def touch(shards):
    for number in shards:
        for long in (False, number % 7 == 0):
            start = number * 60_000 + place.randrange(60_000 - 65)
            read = np.empty(66_000, stream.dtype) if long and number < 9_998 else out
            stream.read(start, read)
            assert np.array_equal(read, (np.arange(start, start + len(read)) % 60_000 % 300).astype(stream.dtype))
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
few = touch(random.Random(1).sample(range(1000), 1000))
many = touch(random.Random(1).sample(range(10_000), 10_000))
print(min(seconds), few, many, maps(), MAX_MAPS)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    seconds, few, many, maps, bound = map(float, done.stdout.split())
    assert seconds < 1
    assert 0 < maps <= bound + 1
    assert many - few < 12_000, (few, many)  # KiB: of each shard that was touched its layout, some 600 bytes


@pytest.mark.parametrize(("most", "found"), [(7, True), (0, False)])
def test_reads_that_give_less_than_was_asked_for_are_gone_on_with(tmp_path, monkeypatch, most, found):
    """As POSIX allows, and network file systems do; a file that ends is named."""
    save(tmp_path, write_shards(tmp_path, [[list(range(300))] * 2] * 3))
    monkeypatch.setattr(token_stream, "MAX_MAPS", 1)
    stream, usual = TokenStream(tmp_path), os.preadv
    stream.read(0, np.empty(2, stream.dtype))  # maps the first shard, so that others are read
    reads = []

    def preadv(descriptor, buffers, place):
        reads.append(place)
        return usual(descriptor, [buffers[0][:most]], place)

    monkeypatch.setattr(os, "preadv", preadv)
    out = np.empty(100, stream.dtype)
    if not found:
        with pytest.raises(ValueError, match=r"shard .*s-1.arrow ends at byte \d+; write the shards again"):
            stream.read(700, out)
        return
    stream.read(700, out)
    assert out.tolist() == list(range(100, 200))
    assert len(reads) == -(-100 * out.itemsize // most)


def test_any_arrow_reader_opens_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_TOKENS", 10)
    documents = [list(range(length)) for length in (0, 3, 1, 12, 7, 0, 9, 2)]
    for vocab_size, kind in zip(VOCABULARIES, ["uint16", "uint16", "uint16", "uint32", "uint32"], strict=True):
        documents = [[token % vocab_size for token in ids] for ids in documents]
        write_shards(tmp_path, [documents], vocab_size)
        with pa.memory_map(str(tmp_path / "s-0.arrow")) as source:
            before = pa.total_allocated_bytes()
            reader = pa.ipc.open_file(source)
            rows = reader.read_all()
            assert pa.total_allocated_bytes() == before  # mapped, not copied
            assert reader.num_record_batches == 3
            assert rows.schema == shard_schema(vocab_size)
            assert str(rows.schema.field("token_ids").type.value_type) == kind
            assert rows.column("token_ids").to_pylist() == documents
            assert rows.column("file_id").to_pylist() == [place.to_bytes(16, "big") for place in range(len(documents))]


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    for vocab_size in VOCABULARIES:
        with (tmp_path / "s.arrow").open("wb") as sink:
            writer = ShardWriter(sink, vocab_size)
            writer.append([vocab_size - 1], bytes(16), 1)
            with pytest.raises(
                ValueError, match=f"token ids 0 to {vocab_size} are outside the vocabulary of {vocab_size}"
            ):
                writer.append([0, vocab_size], bytes(16), 1)
            with pytest.raises(ValueError, match="token ids -1 to 0 are outside"):
                writer.append([0, -1], bytes(16), 1)
            assert writer.close("s.arrow", "train").tokens == 1


def test_damage_is_found_and_the_shard_named(tmp_path):
    documents = [[[1, 2, 3]] * 50, [[4, 5, 6]] * 50]
    save(tmp_path, write_shards(tmp_path, documents))
    path = tmp_path / "s-1.arrow"
    data = path.read_bytes()
    out = np.zeros(300, np.uint16)
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"s-1\.arrow is damaged"):
            TokenStream(tmp_path, verify=True)
    path.write_bytes(data[:-1])
    TokenStream(tmp_path).read(0, out[:150])  # the first shard is whole
    with pytest.raises(ValueError, match=rf"s-1\.arrow is {len(data) - 1} bytes, the index says {len(data)}"):
        TokenStream(tmp_path).read(0, out)
    path.unlink()
    for verify in (True, False):
        with pytest.raises(ValueError, match=r"s-1\.arrow is missing"):
            TokenStream(tmp_path, verify=verify).read(0, out)
    path.write_bytes(data)
    TokenStream(tmp_path, verify=True).read(0, out)
    assert out.tolist() == [1, 2, 3] * 50 + [4, 5, 6] * 50


def test_an_index_that_is_missing_or_strange_is_refused(tmp_path):
    entries = write_shards(tmp_path, [[[1, 2]]])
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        TokenStream(tmp_path)
    save(tmp_path, entries, configuration={"seed": 1})
    assert ShardIndex.load(tmp_path).configuration == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []
    with pytest.raises(ValueError, match="no split 'validation'; they have train"):
        TokenStream(tmp_path, "validation")
    record = json.loads((tmp_path / INDEX_NAME).read_text())
    (tmp_path / INDEX_NAME).write_text(json.dumps(record | {"what a later version adds": 1}))
    assert len(TokenStream(tmp_path)) == 2
    (tmp_path / INDEX_NAME).write_text(json.dumps(record | {"format_version": 2}))
    with pytest.raises(ValueError, match="format version 2, this reader knows 1"):
        TokenStream(tmp_path)


def test_fingerprints_tell_data_and_not_places(tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    other.mkdir()
    entries = write_shards(first, [[[1, 2], [3]], [[4]]])
    held_out = write_shards(first, [[[5]]], split="validation", name="v")
    save(first, entries + held_out)
    index = ShardIndex.load(first)
    fingerprint = index.fingerprint("train")
    moved = shutil.copytree(first, tmp_path / "deep" / "moved")
    assert ShardIndex.load(moved).fingerprint("train") == fingerprint
    assert write_shards(other, [[[1, 2], [3]], [[4]]]) == entries
    changed = write_shards(other, [[[1, 2], [3]], [[0]]])
    others = [
        dataclasses.replace(index, shards=tuple(changed)),
        dataclasses.replace(index, shards=tuple(entries[::-1])),
        dataclasses.replace(index, shards=tuple(entries[:1])),
        dataclasses.replace(index, tokenizer_fingerprint="another"),
    ]
    assert len({fingerprint, index.fingerprint("validation"), *(each.fingerprint("train") for each in others)}) == 6
    assert dataclasses.replace(index, shards=tuple(entries)).fingerprint("train") == fingerprint
