"""The step before all comparison: each file once, the best of each content, and who goes for it."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.near_duplicates import copies
from spark_jobs.near_duplicates.copies import content_bucket, folded, ranked
from spark_jobs.near_duplicates.exchange import scattered
from spark_jobs.near_duplicates.keep_order import MAX_LOSSES, RANK_BYTES, settled, with_losses
from spark_jobs.near_duplicates.records import COPY, FILE, KIND_COPY, KIND_FILE, KIND_SLIM, SLIM, bucket_of, spots_of
from spark_jobs.near_duplicates.runs import sorted_runs


def drawn_files(draw, count, contents, repos):
    """FILEs of a few contents and repositories; many come several times, with one id and another place."""
    files = np.zeros(count, FILE)
    number = draw.integers(0, contents, count)
    files["content"][:, 0], files["content"][:, 1] = number // 2 * (1 << 40), number % 2  # halves alike
    files["repo"] = draw.integers(0, repos, count) * (1 << 33)
    files["id"][:, 0] = files["repo"]
    files["id"][:, 1] = draw.integers(0, 3, count)
    files["key"][:, 0] = 0x80
    files["key"][:, 3] = draw.integers(0, 2, count) << 6  # of the stars
    files["key"][:, 12:RANK_BYTES] = draw.integers(0, 256, (count, RANK_BYTES - 12))
    spots = draw.permutation(count).astype(np.uint64) + (draw.integers(0, 3, count).astype(np.uint64) << np.uint64(32))
    files["key"][:, RANK_BYTES:] = spots.astype(">u8")[:, None].view(np.uint8)
    files["shingles"] = files["place"]["shingles"] = number
    files["place"]["row"] = np.arange(count)
    return files


def once(files):
    """Of the files with one content and id the one with the least spot."""
    first = {}
    for number in np.argsort(spots_of(files["key"])).tolist():
        first.setdefault((*files["content"][number].tolist(), *files["id"][number].tolist()), number)
    return files[sorted(first.values())]


def best_of(files, order=lambda file: file["key"].tobytes()):
    """For each file the best of its content."""
    best = {}
    for file in sorted(files, key=order):
        best.setdefault(tuple(file["content"]), file)
    return [best[tuple(file["content"])] for file in files]


def with_their_losses(files):
    """The same files as they rank when it is known what their repositories lose."""
    lost, all_ = Counter(), Counter(files["repo"].tolist())

    def first_choice(file):
        return int.from_bytes(file["key"][:8].tobytes(), "big") >> 37, *file["id"].tolist()

    for file, best in zip(files, best_of(files, first_choice), strict=True):
        lost[int(file["repo"])] += int(file["repo"] != best["repo"])
    shares = [-(-lost[repo] * MAX_LOSSES // all_[repo]) if repo else 0 for repo in files["repo"].tolist()]
    files = files.copy()
    files["key"] = with_losses(files["key"], np.array(shares, np.uint64))
    return files


def table_of(spark, files, tasks):
    batches = [scattered(part, KIND_FILE, content_bucket(part, tasks)) for part in np.array_split(files, 4)]
    return spark.createDataFrame(pa.Table.from_batches(batches))


@pytest.mark.parametrize(("contents", "tasks"), [(40, 3), (400, 1), (10**6, 5)])
def test_each_file_competes_once_and_each_content_by_its_best(spark, tmp_path, contents, tasks):
    draw = np.random.default_rng(contents)
    fresh = drawn_files(draw, 400, contents, 6)
    earlier = once(drawn_files(draw, 60, contents, 4))
    earlier["key"] = settled(earlier["key"])
    earlier["key"][:, RANK_BYTES] = 7  # of other files of fingerprints
    expected = np.concatenate([with_their_losses(once(fresh)), earlier])
    everything = ranked(table_of(spark, fresh, tasks), tasks).unionAll(table_of(spark, earlier, tasks))
    found = folded(everything, tasks, 7, str(tmp_path))
    blobs = [blob for kind in (KIND_SLIM, KIND_COPY) for blob in found.blobs(spark, kind).collect()]
    kept, gone = {}, {}
    for blob in blobs:
        records = np.frombuffer(blob.records, SLIM if blob.kind == KIND_SLIM else COPY)
        assert blob.kind in (KIND_SLIM, KIND_COPY)
        assert len(records) == blob["count"]
        at = records["key"] if blob.kind == KIND_SLIM else records["kept"]
        assert (bucket_of(spots_of(at), 7) == blob.bucket).all()
        for record in records:
            place = record["place"].tolist()
            assert record["shingles"] == record["place"]["shingles"]
            if blob.kind == KIND_SLIM:
                kept[record["key"].tobytes()] = place
            else:
                gone[record["key"].tobytes()] = place, record["kept"].tobytes()
    assert sum(blob["count"] for blob in blobs) == len(expected)
    for file, best in zip(expected, best_of(expected), strict=True):
        key, place = file["key"].tobytes(), file["place"].tolist()
        assert (
            (kept[key] == place) if (file["key"] == best["key"]).all() else gone[key] == (place, best["key"].tobytes())
        )
    if contents == 40:
        assert len(once(fresh)) < len(fresh)
        assert gone


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(1, 12), st.integers(1, 60))
def test_contents_may_span_runs(seed, count, contents, run_files):
    files = drawn_files(np.random.default_rng(seed), count, contents, 3)
    run_bytes = run_files * FILE.itemsize
    parts = np.array_split(files, 3)
    found = np.concatenate(list(copies._without_repeats(sorted_runs(parts, copies._BY_ID, run_bytes=run_bytes))))
    assert sorted(file.tobytes() for file in found) == sorted(file.tobytes() for file in once(files))
    best = defaultdict(bytes)
    for run, theirs in copies._with_best(sorted_runs([found], copies._BY_KEY, run_bytes=run_bytes)):
        best |= {file.tobytes(): one.tobytes() for file, one in zip(run, theirs, strict=True)}
    assert best == {file.tobytes(): one.tobytes() for file, one in zip(found, best_of(found), strict=True)}
