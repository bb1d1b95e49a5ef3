"""tokenizer/README.md tells the format: the readers printed there read what is written, and its numbers are so."""

import dataclasses
import itertools
import json
import re
import struct
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import shards
from tokenizer.shards import BATCH_TOKENS, Shard, ShardIndex, ShardWriter

README = Path(shards.__file__).with_name("README.md")
VOCABULARIES = [300, 1 << 16, (1 << 16) + 1]


def printed_readers():
    """The functions of the README's Python blocks."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(block, names)
    return names


def write(path, documents, vocab_size):
    """The entry of a shard of (file id, ids)."""
    with path.open("wb") as sink:
        writer = ShardWriter(sink, vocab_size)
        for file_id, ids in documents:
            writer.append(ids, file_id, 1)
        return writer.close(path.name, "train")


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(VOCABULARIES), st.integers(1, 9))
def test_the_printed_readers_read_every_document(data, vocab_size, batch_tokens):
    ids = st.lists(st.integers(0, vocab_size - 1), max_size=6)
    documents = data.draw(st.lists(st.tuples(st.binary(min_size=16, max_size=16), ids), max_size=9))
    readers = printed_readers()
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", batch_tokens)
        path = Path(place) / "s.arrow"
        entry = write(path, documents, vocab_size)
        content = path.read_bytes()
        assert list(readers["documents"](content, vocab_size)) == documents
        flat = [(tokens.tolist(), ends.tolist()) for tokens, ends in readers["batches"](path)]
        assert [tokens[begin:end] for tokens, ends in flat for begin, end in itertools.pairwise(ends)] == [
            ids for _, ids in documents
        ]
        assert all(len(tokens) >= batch_tokens for tokens, _ in flat[:-1])
        frame = readers["pandas_frame"](path)
        assert frame["file_id"].tolist() == [file_id for file_id, _ in documents]
        assert [list(ids) for ids in frame["token_ids"]] == [ids for _, ids in documents]
        assert entry.xxh3_128 == xxhash.xxh3_128_hexdigest(content)
        _require_layout(content, len(flat))


def _require_layout(content, batches):
    """Magic, padding and end marker where the page says."""
    assert content[:8] == b"ARROW1\0\0"
    assert content[-6:] == b"ARROW1"
    (footer_bytes,) = struct.unpack_from("<i", content, len(content) - 10)
    end = len(content) - 10 - footer_bytes
    place, found = 8, []
    reader = printed_readers()
    while content[place : place + 8] != b"\xff\xff\xff\xff" + bytes(4):
        mark, length = struct.unpack_from("<Ii", content, place)
        assert (mark, length % 8, place % 8) == (0xFFFFFFFF, 0, 0)
        message = reader["fields"](content, reader["follow"](content, place + 8))
        body = struct.unpack_from("<q", content, message[3])[0] if len(message) > 3 and message[3] else 0
        found.append(content[message[1]])
        place += 8 + length + body
    assert place + 8 == end
    assert found == [1] + [3] * batches  # a schema, then record batches


def test_the_page_names_every_field_and_the_true_numbers(tmp_path):
    page = README.read_text()
    entry = write(tmp_path / "s.arrow", [(bytes(16), [1, 2])], 300)
    ShardIndex("fingerprint", 300, 0, (entry,)).save(tmp_path)
    record = json.loads((tmp_path / "index.json").read_text())
    named = set(re.findall(r"`([a-z_0-9]+)`", page))
    assert set(record) <= named
    assert set(record["shards"][0]) == {field.name for field in dataclasses.fields(Shard)} <= named
    assert f"{BATCH_TOKENS:,} ids" in page
    assert f"Format version {record['format_version']}," in page
    index = ShardIndex.load(tmp_path)
    assert index.fingerprint("train") == xxhash.xxh3_128_hexdigest(f"1:fingerprint:{entry.xxh3_128}".encode())


def test_a_shard_of_the_first_release_stays_as_it_is(tmp_path):
    """The bytes that were written when version 1 was fixed; a change of these breaks the promise."""
    documents = [(bytes(range(16)), [1, 2, 3]), (bytes(16), []), (b"\xff" * 16, [299])]
    assert write(tmp_path / "s.arrow", documents, 300).xxh3_128 == "9dbef7a965f3cef17847029a73ce6348"
    wide = write(tmp_path / "s.arrow", documents, 1 << 17)
    assert wide.xxh3_128 == "141e4ece73003083fd8dcd3cba1c90b0"


def test_what_a_later_version_adds_is_ignored_and_another_version_refused(tmp_path):
    entry = write(tmp_path / "s.arrow", [(bytes(16), [1, 2])], 300)
    ShardIndex("fingerprint", 300, 0, (entry,), {"seed": 1}).save(tmp_path)
    path = tmp_path / "index.json"
    record = json.loads(path.read_text())
    later = record | {"more": [1], "shards": [record["shards"][0] | {"even_more": 2}]}
    path.write_text(json.dumps(later))
    assert ShardIndex.load(tmp_path).shards == (entry,)
    del later["revision"]
    path.write_text(json.dumps(later))
    assert ShardIndex.load(tmp_path).revision == 0
    for wrong in ({"format_version": 2}, {"format_version": None}):
        path.write_text(json.dumps(record | wrong))
        with pytest.raises(ValueError, match="this reader knows 1"):
            ShardIndex.load(tmp_path)
    for text in ("", "[]", "{}", json.dumps({"format_version": 1}), json.dumps(record | {"shards": [{"name": "a"}]})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            ShardIndex.load(tmp_path)


def test_compressed_or_foreign_ids_are_refused(tmp_path):
    rows = pa.table({"token_ids": [[1, 2, 3]] * 50, "file_id": [bytes(16)] * 50}, shards.shard_schema(300))
    for schema_of, options, message in (
        (300, pa.ipc.IpcWriteOptions(compression="zstd"), "is compressed"),
        (1 << 17, None, "has ids of uint16, the index says uint32"),
    ):
        path = tmp_path / "s.arrow"
        with pa.ipc.new_file(path, rows.schema, options=options) as file:
            file.write_table(rows)
        entry = Shard("s.arrow", "train", 50, 150, 1, path.stat().st_size, "")
        ShardIndex("fingerprint", schema_of, 0, (entry,)).save(tmp_path)
        stream = shards.TokenStream(tmp_path)
        with pytest.raises(ValueError, match=message):
            stream.read(0, np.zeros(2, stream.dtype))
