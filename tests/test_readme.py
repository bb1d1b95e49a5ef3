"""Every command of the README runs as printed, on a small corpus and, where it trains, for two small steps.

`make demo`, `make test` and `make package` are what other tests walk; the cluster's command is test_cluster's.
"""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_corpus
from small_runs import free_port

ROOT = Path(__file__).parent.parent
TRAIN_OPTIONS = shlex.split(
    "--max_steps 2 --evaluation_tokens 2048 --model.hidden_size 64 --model.layers 2 --model.heads 4 "
    "--model.key_value_heads 0 --model.feed_forward_size 0 --batch.sequence_length 128 --batch.sequences 8 "
    "--batch.sequences_per_device 2 --schedule.warmup_steps 1"
)


def commands():
    """The lines of the README's shell blocks that start a script of ours on the user's own files."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if ".py" in line]
    # What lies in `workspace` is the demo's (test_end_to_end runs these); HOST is a cluster's.
    return [line for line in lines if " workspace/" not in line and "HOST" not in line]


def place(folder):
    """A folder with what the README's commands name: the checkout, files, a Parquet data set, a benchmark."""
    for name in ("spark_jobs", "tokenizer", "training", "infra"):
        (folder / name).symlink_to(ROOT / name)
    small_corpus.write_files(folder / "my_files")
    draw = small_corpus.random.Random(9)
    (folder / "my_files" / "repo0" / "some_file.py").write_text(small_corpus.code(draw, 40))
    texts = [small_corpus.code(draw, 30) for _ in range(20)]
    (folder / "my_parquet").mkdir()
    table = pa.table({"content": texts + texts[:5], "license": ["mit"] * 25, "extra": list(range(25))})
    pq.write_table(table, folder / "my_parquet" / "0.parquet")
    (folder / "my_delivery").mkdir()
    more = pa.table({"content": [texts[0], small_corpus.code(draw, 30)], "license": ["mit"] * 2, "extra": [25, 26]})
    pq.write_table(more, folder / "my_delivery" / "0.parquet")
    (folder / "takedown.txt").write_text("0" * 32 + "\n")
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps({"task_id": "T/1", "prompt": "def sum of all of the beginnings of a list of numbers"}))


@pytest.mark.timeout(1800)  # for some thirty commands
def test_every_command_runs(tmp_path):
    place(tmp_path)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = commands()
    assert len(lines) == 30
    for line in lines:
        words = shlex.split(line.replace("--num_gpus 8", "--num_gpus 2"))
        if words[0] == "deepspeed":
            words[1:1] = ["--master_port", free_port()]
            words += TRAIN_OPTIONS
        done = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, "PATH": programs}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    survivors = pq.read_table(tmp_path / "survivors")
    assert survivors.column_names == ["content", "license", "extra"]
    assert len(survivors) == 20
    assert pq.read_table(tmp_path / "survivors_2").column("extra").to_pylist() == [26]
    assert (tmp_path / "w" / "megatron" / "train.idx").is_file()
    for run in ("run", "run_110m", "run_1b", "run_middle"):
        assert (tmp_path / "w" / run / "export" / "model.safetensors").is_file()
