"""Which of two similar files is kept: keys compare as the documented order, and forks do not share out their files."""

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import document, write_documents

from spark_jobs import dedup
from spark_jobs.near_duplicates.keep_order import (
    KEY_BYTES,
    MAX_LOSSES,
    MAX_SIZE,
    MAX_STARS,
    RANK_BYTES,
    is_fresh,
    keys_of,
    settled,
    with_losses,
)
from spark_jobs.near_duplicates.records import spots_of
from spark_jobs.rules.licenses import licence_classes

LICENCES = {
    None: 1,
    (): 1,
    ("MIT", "apache-2.0 "): 0,
    ("MIT", "GPL-3.0-only"): 2,
    ("GPL-3.0-only",): 2,
    ("unheard of",): 2,
    ("MIT", None): 2,
}
files = st.lists(
    st.tuples(
        st.sampled_from(list(LICENCES)),
        st.sampled_from([-3, 0, 1, 50, MAX_STARS, 1 << 40]),
        st.integers(0, 3),  # losses by repository, below
        st.sampled_from([0, 10, 11, 1 << 33]),
        st.binary(min_size=16, max_size=16),
    ),
    min_size=1,
    unique_by=lambda file: file[-1],
)


@given(files, st.lists(st.integers(0, MAX_LOSSES), min_size=4, max_size=4))
def test_keys_compare_as_documented(drawn, losses):
    licences, stars, repos, sizes, ids = (list(column) for column in zip(*drawn, strict=True))
    lists = pa.array([None if licence is None else list(licence) for licence in licences], pa.list_(pa.string()))
    hashes = np.array([0, 1 << 29, (1 << 29) - 1, 0xFFFFFFFF_00000007], np.uint64)
    spots = np.arange(len(drawn), dtype=np.uint64) + np.uint64(70_000 << 32)
    raw = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)
    keys = keys_of(licence_classes(lists), np.array(stars), hashes[repos], np.array(sizes), raw, spots)
    keys = with_losses(keys, np.array(losses, np.uint64)[repos])
    assert keys.shape == (len(drawn), KEY_BYTES)
    assert is_fresh(keys).all()
    assert (spots_of(keys) == spots).all()

    def order(number):
        at = repos[number]
        place = LICENCES[licences[number]], -min(max(stars[number], 0), MAX_STARS), losses[at]
        return *place, int(hashes[at]) % (1 << 29), -min(sizes[number], MAX_SIZE), ids[number][:8], number

    numbers = range(len(drawn))
    assert sorted(numbers, key=lambda number: keys[number].tobytes()) == sorted(numbers, key=order)


def test_settled_keys_are_the_same_before_all_fresh_ones():
    keys = np.random.default_rng(8).integers(0, 256, (50, KEY_BYTES), dtype=np.uint8)
    keys[:, 0] |= 0x80
    keys[0, :RANK_BYTES], keys[1, :RANK_BYTES] = [0x80, *bytes(RANK_BYTES - 1)], 0xFF
    found = settled(keys)
    assert (found[:, 0] == keys[:, 0] & 0x7F).all()
    assert (found[:, 1:] == keys[:, 1:]).all()
    assert max(map(bytes, found)) < min(map(bytes, keys))
    assert not is_fresh(found).any()
    assert (settled(found) == found).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_licences_have_classes_wherever_their_list_begins(kind):
    lists = pa.array([None if licence is None else list(licence) for licence in LICENCES], kind)
    assert licence_classes(lists).tolist() == list(LICENCES.values())
    assert licence_classes(lists.slice(2, 3)).tolist() == list(LICENCES.values())[2:5]


def test_of_forks_one_keeps_all_shared_files(spark, tmp_path):
    draw = random.Random(3)
    texts = {f"{number}.py": " ".join(f"w{draw.randrange(10**6)}" for _ in range(30)) for number in range(60)}
    shared, alike = list(texts.items())[:40], list(texts.items())[40:]
    rows = [document(text, repo=repo, path=path) for path, text in shared for repo in ("fork", "origin", "third")]
    rows += [
        document(f"print({number}, 'a', 'b', 'c')", repo="origin", path=f"own{number}.py") for number in range(25)
    ]
    rows += [document(text, repo=repo, path=path) for path, text in alike for repo in ("left", "right")]
    dedup.main(documents=write_documents(tmp_path / "documents", rows, 3), output=str(tmp_path / "out"))
    removed = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["kind"] for row in removed} == {"exact"}
    sides = Counter((row["repo"], row["kept_repo"]) for row in removed)
    assert [sides.pop((fork, "origin")) for fork in ("fork", "third")] == [len(shared)] * 2
    # Two that are alike in all: which one stays is all the same, but it stays whole.
    assert sides in (Counter({("left", "right"): len(alike)}), Counter({("right", "left"): len(alike)}))
