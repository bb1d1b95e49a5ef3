"""datatrove: the four stages of its example, minhash_deduplication.py, on this machine with two processes."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.typeshelper import Languages
from documents import write_kept

PROCESSES = 2


def main(folder: str, kept: str) -> None:
    config = MinhashConfig()  # 14 buckets of 8: its threshold is about 0.72
    files = sorted(Path(folder).glob("*.parquet"))
    reader = ParquetReader(folder, text_key="content")
    stages = (
        ([reader, MinhashDedupSignature("signatures", config=config, language=Languages.english)], len(files)),
        ([MinhashDedupBuckets("signatures", "buckets", config=config)], config.num_buckets),
        ([MinhashDedupCluster("buckets", "removed", config=config)], 1),
        ([reader, MinhashDedupFilter("removed"), JsonlWriter("output")], len(files)),
    )
    for number, (pipeline, tasks) in enumerate(stages):
        logs = f"logs/{number}"
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=PROCESSES, logging_dir=logs).run()
    write_kept(kept, _kept_rows(files))


def _kept_rows(files: list[Path]) -> list[int]:
    """Row numbers; its third stage wrote the removed ones of each task, which is a file, as 32-bit integers."""
    kept, before = [], 0
    for task, file in enumerate(files):
        rows = pq.read_metadata(file).num_rows
        removals = Path("removed", f"{task:06d}.remove")
        removed = np.fromfile(removals, np.uint32) if removals.exists() else np.empty(0, np.uint32)
        kept += (before + np.setdiff1d(np.arange(rows), removed)).tolist()
        before += rows
    return kept


if __name__ == "__main__":
    main(*sys.argv[1:3])
