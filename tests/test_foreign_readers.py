"""Shards and what is exported of them, opened by the libraries that they are for."""

import json

import numpy as np
import pytest
from small_data_set import small_files, write_data_set
from small_environments import answer_of, python_with
from test_shard_format import README

from tokenizer import shards
from tokenizer.export_shards import main
from tokenizer.shards import ShardIndex, ShardWriter

pytestmark = pytest.mark.slow
MEGATRON = ("megatron-core==0.16.1",)
STREAMING = ("mosaicml-streaming==0.13.0",)
READERS = ("datasets==5.2.0", "duckdb==2.0.1")

READ_MEGATRON = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
data = IndexedDataset(sys.argv[1], mmap=True)
assert data.document_indices.tolist() == list(range(len(data) + 1))
print(json.dumps([str(data[0].dtype), [data[number].tolist() for number in range(len(data))]]))
"""
READ_MDS = """
import json, sys
from streaming import StreamingDataset
data = StreamingDataset(local=sys.argv[1], split="train", shuffle=False, batch_size=1, validate_hash="xxh3_128")
rows = [data[number] for number in range(data.num_samples)]
tokens = [row["tokens"].tolist() for row in rows]
print(json.dumps([str(rows[0]["tokens"].dtype), [row["file_id"].hex() for row in rows if "file_id" in row], tokens]))
"""
WRITE_MDS = """
import json, sys
import numpy as np
from streaming import MDSWriter
columns = {"tokens": "ndarray:" + sys.argv[3], "file_id": "bytes"}
with MDSWriter(columns=columns, out=sys.argv[1], hashes=["xxh3_128"]) as writer:
    for file_id, tokens in json.load(open(sys.argv[2])):
        writer.write({"tokens": np.array(tokens, sys.argv[3]), "file_id": bytes.fromhex(file_id)})
"""
READ_TABLES = """
import json, re, sys
names = {}
for block in re.findall("```python\\n(.*?)```", open(sys.argv[1]).read(), re.DOTALL):
    exec(block, names)
cache, paths = sys.argv[2], sys.argv[3:]
rows = names["hugging_face"](paths, cache)
frames = [row for path in paths for row in names["pandas_frame"](path).itertuples()]
pandas = [[row.file_id.hex(), row.token_ids.tolist()] for row in frames]
duckdb = [[file_id.hex(), count] for file_id, count in names["duckdb_rows"](paths)]
print(json.dumps([[[row["file_id"].hex(), row["token_ids"]] for row in rows], pandas, duckdb]))
"""


@pytest.fixture(scope="module", params=[300, 1 << 17], ids=["uint16", "uint32"])
def made(request, tmp_path_factory):
    """(folder of shards, [(file id, tokens)] of train), in small record batches."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BATCH_TOKENS", 500)
        if request.param == 300:
            files = [file for file in small_files() if file.split == "train"]
            tokens = write_data_set(folder, files)
            ordered = sorted(files, key=lambda file: file.number)
            return folder, [(file.file_id.hex(), tokens[file.file_id]) for file in ordered]
        folder.mkdir()
        draw, name = np.random.default_rng(1), "train-00000-of-00001.arrow"
        rows = [(n.to_bytes(16, "big"), draw.integers(0, request.param, 1 + 37 * n).tolist()) for n in range(40)]
        rows.append((b"\xff" * 16, draw.integers(0, request.param, 70_000).tolist()))
        with (folder / name).open("wb") as sink:
            writer = ShardWriter(sink, request.param)
            for file_id, tokens in rows:
                writer.append(tokens, file_id, 1)
            entry = writer.close(name, "train")
        ShardIndex("fingerprint", request.param, 0, (entry,)).save(folder)
        return folder, [(file_id.hex(), tokens) for file_id, tokens in rows]


def test_megatron_core_opens_the_export(made, tmp_path):
    folder, rows = made
    main(shards=str(folder), to="megatron", output=str(tmp_path / "out"))
    dtype, documents = json.loads(
        answer_of(python_with("megatron", *MEGATRON), READ_MEGATRON, tmp_path / "out" / "train")
    )
    assert documents == [tokens for _, tokens in rows]
    assert dtype == ("uint16" if ShardIndex.load(folder).vocab_size == 300 else "int32")


def test_mosaicml_streaming_opens_the_export_and_writes_the_same_bytes(made, tmp_path):
    folder, rows = made
    python = python_with("streaming", *STREAMING)
    main(shards=str(folder), to="mds", output=str(tmp_path / "out"))
    dtype, file_ids, tokens = json.loads(answer_of(python, READ_MDS, tmp_path / "out"))
    assert list(zip(file_ids, tokens, strict=True)) == rows
    assert dtype == shards.token_dtype(ShardIndex.load(folder).vocab_size).name
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    answer_of(python, WRITE_MDS, tmp_path / "theirs", tmp_path / "rows.json", dtype)
    for name in ("shard.00000.mds", "index.json"):
        assert (tmp_path / "out" / "train" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    main(shards=str(folder), to="mds", output=str(tmp_path / "packed"), sequence_length=100)
    _, _, sequences = json.loads(answer_of(python, READ_MDS, tmp_path / "packed"))
    whole = [token for _, document in rows for token in document]
    assert sequences == [whole[first : first + 100] for first in range(0, len(whole) - 99, 100)]


def test_datasets_pandas_and_duckdb_open_the_shards(made, tmp_path):
    folder, rows = made
    paths = [folder / shard.name for shard in ShardIndex.load(folder).shards]
    answer = answer_of(python_with("tables", *READERS), READ_TABLES, README, tmp_path / "cache", *paths)
    hugging_face, pandas, duckdb = json.loads(answer)
    assert hugging_face == pandas == [list(row) for row in rows]
    assert sorted(duckdb) == sorted([file_id, len(tokens)] for file_id, tokens in rows)
