"""Near-duplicate removal on real files, judged by exact similarities of all pairs in plain Python."""

import os
import sysconfig
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from oracles import jaccard_of, shingles_of
from small_corpus import document, write_documents

from spark_jobs import dedup

pytestmark = pytest.mark.slow

FILES = 1200


@pytest.fixture(scope="module")
def texts():
    """The standard library and packages of this environment, and a few edited copies, by path."""
    roots = [Path(os.__file__).parent, Path(sysconfig.get_path("purelib"))]
    paths = sorted(
        path for root in roots for path in root.rglob("*.py") if root == roots[1] or "site-packages" not in str(path)
    )
    found = {}
    for path in paths[:: max(1, len(paths) // FILES)]:
        text = path.read_bytes().decode("utf-8", "ignore")
        if text:
            found[str(path)] = text
            if len(found) % 10 == 0:
                found[f"{path} edited"] = text.replace("return", "yield", 5)
    return found


def with_better_twin(shingles, threshold):
    """The names that are similar to an earlier one, over all pairs; sets of n <= m are at most n / m alike."""
    names = sorted(shingles, key=lambda name: len(shingles[name]))
    found = set()
    for place, right in enumerate(names):
        for left in reversed(names[:place]):
            if len(shingles[left]) < threshold * len(shingles[right]):
                break
            if jaccard_of(shingles[left], shingles[right]) >= threshold:
                found.add(right)
                break
    return found


@pytest.mark.parametrize("threshold", [0.7, 0.85])
def test_every_removal_is_justified_and_few_duplicates_stay(spark, texts, tmp_path, threshold):
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1000")
    rows = [document(text, path=path) for path, text in texts.items()]
    documents = write_documents(tmp_path / "documents", rows, parts=3, rows_a_group=300)
    dedup.main(documents=documents, output=str(tmp_path / "duplicates"), threshold=threshold)
    removed = {row["path"]: row for row in pq.read_table(tmp_path / "duplicates").to_pylist()}
    shingles = {path: shingles_of(text) for path, text in texts.items()}
    assert len(removed) > len(texts) // 20
    for path, row in removed.items():
        assert row["kept_path"] not in removed
        if row["kind"] == "exact":
            assert texts[path] == texts[row["kept_path"]]
        else:
            similarity = jaccard_of(shingles[path], shingles[row["kept_path"]])
            assert similarity >= threshold
            assert row["similarity"] == pytest.approx(similarity, abs=1e-12 if row["proof"] == "shingles" else 0.12)
    kept = {path: found for path, found in shingles.items() if path not in removed and found}
    residual = with_better_twin(kept, threshold)
    print(f"threshold {threshold}: {len(removed)} removed, {len(residual)} of {len(kept)} kept are residual")
    assert len(residual) <= 0.002 * len(kept)
