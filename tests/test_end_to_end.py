"""The whole path as `make demo` walks it, on a small corpus with every oddity."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_corpus

from tokenizer.encode import Encoder
from tokenizer.shards import ShardIndex, open_shard

ROOT = Path(__file__).parent.parent
TRAIN_OPTIONS = (
    "--max_steps 12 --evaluate_every 6 --checkpoint_every 6 --evaluation_tokens 2048 --model.hidden_size 64 "
    "--model.layers 2 --batch.sequence_length 128 --schedule.warmup_steps 2"
)


def demo(workspace, corpus):
    """Run the demo's script as `make demo` does; its output."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "TRAIN_OPTIONS": TRAIN_OPTIONS, "PYSPARK_PYTHON": sys.executable}
    command = [ROOT / "infra" / "demo.sh", workspace, corpus]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workspace after the demo, its corpus, and what the demo printed."""
    folder = tmp_path_factory.mktemp("demo")
    corpus, workspace = folder / "corpus", folder / "workspace"
    copies, near = small_corpus.write_files(corpus)
    printed = demo(workspace, corpus)
    return {"corpus": corpus, "workspace": workspace, "copies": copies, "near": near, "printed": printed}


@pytest.fixture(scope="module")
def ledger(run):
    """Rows of the ledger by path."""
    return {row["path"]: row for row in pq.read_table(run["workspace"] / "ledger").to_pylist()}


def test_every_file_has_one_state(run, ledger):
    files = {path.relative_to(run["corpus"]).as_posix() for path in run["corpus"].rglob("*") if path.is_file()}
    assert set(ledger) == files
    assert len(pq.read_table(run["workspace"] / "ledger")) == len(files)


def test_odd_files_end_as_they_must(ledger):
    states = {path.removeprefix("odd/"): row["state"] for path, row in ledger.items() if path.startswith("odd/")}
    expected = {"nul.py": "binary", "empty.py": "empty", "noise.py": "undecodable", "long_line.py": "oversized"}
    assert {name: states[name] for name in expected} == expected
    assert states["generated.py"] == "filtered: auto_generated"
    assert all(states[name] == "kept" for name in ("latin.py", "wide.py", "mark.py", "special.py"))


def test_copies_name_a_kept_twin(run, ledger):
    twins = {row["path"]: row for row in pq.read_table(run["workspace"] / "duplicates").to_pylist()}
    for kind, pairs in (("exact", run["copies"]), ("near", run["near"])):
        assert pairs
        for original, copy in pairs.items():
            states = {ledger[original]["state"], ledger[copy]["state"]}
            if any(state.startswith("filtered") for state in states):
                continue
            removed = original if ledger[original]["state"] != "kept" else copy
            assert states == {"kept", "exact copy" if kind == "exact" else "near-duplicate"}
            assert twins[removed]["kept_path"] == (copy if removed == original else original)
            assert twins[removed]["kind"] == kind


def test_shards_hold_every_kept_file_once_and_decode_to_its_text(run, ledger):
    folder, documents = run["workspace"] / "shards", pq.read_table(run["workspace"] / "documents")
    texts = dict(zip(documents["file_id"].to_pylist(), documents["content"].to_pylist(), strict=True))
    encoder, index = Encoder(folder / "tokenizer"), ShardIndex.load(folder)
    split_of, repo_of = {}, {row["file_id"]: row["repo"] for row in ledger.values()}
    for shard in index.shards:
        for batch in open_shard(folder, shard):
            for tokens, file_id in zip(batch["token_ids"], batch["file_id"].to_pylist(), strict=True):
                ids = np.asarray(tokens.values, np.uint32)
                assert ids[-1] == index.end_of_text_id
                assert index.end_of_text_id not in ids[:-1]
                assert encoder.decode(ids[:-1]) == texts[file_id]
                assert file_id not in split_of
                split_of[file_id] = shard.split
    assert set(split_of) == {row["file_id"] for row in ledger.values() if row["state"] == "kept"}
    sides = {split: {repo_of[one] for one, there in split_of.items() if there == split} for split in split_of.values()}
    assert {"train", "validation"} <= set(sides) <= {"train", "validation", "test"}
    assert sum(map(len, sides.values())) == len(set.union(*sides.values()))


def test_the_model_was_trained_measured_and_completes(run):
    rows = [json.loads(line) for line in (run["workspace"] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["bits_per_byte"] > 0
    completions = (run["workspace"] / "run" / "completions.jsonl").read_text().splitlines()
    assert json.loads(completions[0])["prompt"] == "def fibonacci(n):"
    for words in ("def fibonacci(n):", "held-out loss", "perplexity", "bits per byte", "report.html", "run/export"):
        assert words in run["printed"]


def test_the_report_tells_the_same_counts(run, ledger):
    page = (run["workspace"] / "report.html").read_text()
    assert f"{len(ledger):,}" in page
    assert "near-duplicate" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_explain_tells_why_a_file_is_gone(run):
    (original, _), *_ = run["near"].items()
    command = [sys.executable, "spark_jobs/explain.py", "--workspace", str(run["workspace"]), "--path", original]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert original in done.stdout


def test_the_two_commands_of_the_readme_work_as_they_stand(run):
    """The user of this project types them after `make demo`: on the demo's workspace, and to the end."""
    readme = (ROOT / "README.md").read_text()
    dedup, train = re.findall(r"^(?:spark-submit|deepspeed) .*workspace/.*$", readme, re.MULTILINE)
    train = train.replace("--train_minutes 1", TRAIN_OPTIONS)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (dedup, train):
        words = shlex.split(command.replace("workspace/", f"{run['workspace']}/"))
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, "PATH": programs}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    alone = pq.read_table(run["workspace"] / "duplicates_alone").to_pylist()
    assert set(run["copies"].values()) | set(run["copies"]) >= {row["path"] for row in alone if row["kind"] == "exact"}
    assert (run["workspace"] / "run_alone" / "export" / "model.safetensors").is_file()


def test_a_second_run_does_nothing_again(run):
    kept = [path for name in ("_manifest.json", "index.json", "plan.json") for path in run["workspace"].rglob(name)]
    before = {path: path.stat().st_mtime_ns for path in kept}
    printed = demo(run["workspace"], run["corpus"])
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert "already trained" in printed
