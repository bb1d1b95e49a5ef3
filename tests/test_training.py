"""Training as a user runs it: real processes, real DeepSpeed, tiny models."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import (
    LIMIT_SECONDS,
    LONG,
    ROOT,
    SHORT,
    TINY,
    finish,
    free_port,
    losses,
    metrics,
    started,
    train,
    wait_for_step,
    words,
)
from small_shards import make_shards

from tokenizer.encode import Encoder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    """A run to its end through the launcher, and what it printed."""
    output = tmp_path_factory.mktemp("unbroken") / "run"
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", free_port()]
    job = subprocess.run(
        [*launcher, *words(shards, output, LONG)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    return output, job.stdout + job.stderr


def test_launcher_trains_two_processes_and_records_every_step(unbroken):
    run, printed = unbroken
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 81))
    assert rows[-1]["tokens"] == 80 * 8 * 32
    assert sum(losses(run)[-5:]) / 5 < 0.5 * rows[0]["loss"]
    assert all(row["gradient_norm"] > 0 and row["tokens_per_second"] > 0 and row["seconds"] > 0 for row in rows)
    evaluated = [row for row in rows if "validation_loss" in row]
    assert [row["step"] for row in evaluated] == [40, 80]
    assert evaluated[-1]["perplexity"] == pytest.approx(math.exp(evaluated[-1]["validation_loss"]))
    assert evaluated[-1]["validation_loss"] < evaluated[0]["validation_loss"]
    assert list((run / "tensorboard").glob("events.*"))
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == ["step_00000060", "step_00000080"]
    assert printed.count("held-out loss   ") == 1
    assert "step 80/80" in printed


def test_learning_rate_in_the_metrics_is_the_schedule(unbroken):
    from training.config import Schedule
    from training.optimizer import learning_rate

    for row in metrics(unbroken[0]):
        assert row["learning_rate"] == learning_rate(row["step"], ((0, 80),), 0.01, Schedule(warmup_steps=4))


def held_out_loss(model, shards, max_tokens):
    """Held-out loss by `transformers` alone: its own shifted labels, window by window."""
    import torch

    from tokenizer.shards import TokenStream
    from training.batches import EvaluationBatches

    batches = EvaluationBatches(TokenStream(shards, "validation"), sequence_length=32, max_tokens=max_tokens)
    with torch.no_grad():
        there = [batch.on("cpu") for batch in batches.share(1, 0, 1)]
        windows = [model(**batch, shift_labels=batch["labels"]).loss.item() for batch in there]
    return sum(windows) / len(windows)


def open_offline(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_export_opens_offline_and_predicts_what_the_engine_predicted(unbroken, shards, monkeypatch):
    run, _ = unbroken
    model, tokenizer = open_offline(run / "export", monkeypatch)
    expected = metrics(run)[-1]["validation_loss"]
    assert held_out_loss(model, shards, 2000) == pytest.approx(expected, abs=2e-6)
    text = "def add(left, other):\n    total = left"
    ids = tokenizer(text)["input_ids"]
    assert ids == Encoder(shards / "tokenizer").encode(pa.array([text]))[0][:-1].tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    card = (run / "export" / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"{expected:.4f}" in card


def test_export_logits_equal_those_of_the_checkpoint(unbroken, tmp_path, monkeypatch):
    """The exported model against the fp32 weights that DeepSpeed's own tool puts together from the parts."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    run, _ = unbroken
    job = subprocess.run(
        [sys.executable, str(ROOT / "training" / "export.py"), "--run", str(run), "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert job.returncode == 0, job.stderr
    model, _ = open_offline(tmp_path / "out", monkeypatch)
    rows = torch.arange(64).view(2, 32)
    with torch.no_grad():
        exported = model(input_ids=rows).logits
        model.load_state_dict(get_fp32_state_dict_from_zero_checkpoint(run / "checkpoints", tag="step_00000080"))
        assert torch.equal(model(input_ids=rows).logits, exported)
    assert exported.std() > 0.1


def test_generate_continues_with_the_exported_model(unbroken):
    import torch

    run, _ = unbroken
    command = [sys.executable, str(ROOT / "training" / "generate.py"), "--model", str(run / "export")]
    job = subprocess.run(
        [*command, "--prompt", "def add(", "def join(", "--max_new_tokens", "12"], capture_output=True, text=True
    )
    assert job.returncode == 0, job.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (one.from_pretrained(run / "export") for one in (AutoModelForCausalLM, AutoTokenizer))
    for prompt in ("def add(", "def join("):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(12):
            with torch.no_grad():
                following = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            if int(following) == 0:
                break
            ids = torch.cat([ids, following], dim=1)
        assert tokenizer.decode(ids[0]) in job.stdout


def test_finished_run_is_left_as_it_is_and_other_settings_are_refused(unbroken, shards):
    run, _ = unbroken
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    (printed,) = train(shards, run, LONG, world_size=1)
    assert "already trained" in printed
    for changed, line in (
        (LONG | {"optimizer.learning_rate": 0.02}, "optimizer.learning_rate 0.02 (was 0.01)"),
        (LONG | {"resume": "never"}, "holds a training run"),
        (LONG | {"max_steps": 70}, "has taken 80 steps, more than the 70 asked for"),
    ):
        with started(shards, run, changed, 1) as jobs:
            (code,), (printed,) = finish(jobs)
        assert code == 1
        assert line in printed
        assert "Traceback" not in printed
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_killed_then_stopped_then_resumed_run_equals_the_unbroken_one(unbroken, shards, tmp_path):
    run = tmp_path / "run"
    step = random.randrange(25, 40)
    with started(shards, run, LONG, 2) as jobs:
        wait_for_step(run, step, jobs)
        while not (run / "checkpoints/step_00000020/complete.json").is_file():
            time.sleep(0.01)
        for job in jobs:
            os.killpg(job.pid, signal.SIGKILL)
    assert step <= len(metrics(run)) < 80
    shutil.copytree(run / "checkpoints/step_00000020", run / "checkpoints/step_00000030")
    (run / "checkpoints/step_00000030/complete.json").unlink()

    with started(shards, run, LONG, 2) as jobs:
        wait_for_step(run, 45, jobs)
        jobs[1].send_signal(signal.SIGTERM)
        codes, outputs = finish(jobs)
    assert codes == [75, 75], outputs
    assert not (run / "checkpoints/step_00000030").exists()
    reached = len(metrics(run))
    assert 45 <= reached < 80
    assert (run / f"checkpoints/step_{reached:08d}/complete.json").is_file()

    train(shards, run, LONG)
    assert [row["step"] for row in metrics(run)] == list(range(1, 81))
    assert losses(run) == losses(unbroken[0])
    assert metrics(run)[-1]["validation_loss"] == metrics(unbroken[0])[-1]["validation_loss"]
    weights = [(path / "export" / "model.safetensors").read_bytes() for path in (run, unbroken[0])]
    assert weights[0] == weights[1], f"killed at step {step}"


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """The short run in one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(shards, run, SHORT | {"save_in_background": "false"}, world_size=1)
    return run


def test_finished_run_goes_on_when_more_steps_are_asked_for(alone, shards, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    shutil.rmtree(run / "export")
    train(shards, run, SHORT | {"max_steps": 12}, world_size=1)
    assert [row["step"] for row in metrics(run)] == list(range(1, 13))
    assert losses(run)[:8] == losses(alone)
    assert json.loads((run / "summary.json").read_text())["steps"] == 12
    assert (run / "export" / "model.safetensors").is_file()


SLOW_STAGES = [pytest.param(name, marks=pytest.mark.slow) for name in ("zero1", "zero3")]  # test_exactness.py has them


@pytest.mark.parametrize("name", ["zero2", "zero3_offload", *SLOW_STAGES])
def test_every_zero_stage_on_two_processes_trains_as_one_process_does(alone, shards, tmp_path, name, monkeypatch):
    run = tmp_path / "run"
    size = {"zero1": 1, "zero2": 4}.get(name, 2)
    options = {"deepspeed": ROOT / "infra" / "deepspeed" / f"{name}.json", "batch.sequences_per_device": size}
    train(shards, run, SHORT | options)
    assert losses(run) == pytest.approx(losses(alone), abs=1e-5)
    norms = [[row["gradient_norm"] for row in metrics(path)] for path in (run, alone)]
    assert norms[0] == pytest.approx(norms[1], abs=1e-4)
    model, _ = open_offline(run / "export", monkeypatch)
    assert held_out_loss(model, shards, 2000) == pytest.approx(metrics(alone)[-1]["validation_loss"], abs=1e-5)
    assert json.loads((run / "plan.json").read_text())["max_steps"] == 8


def test_data_without_a_validation_split_trains_without_held_out_figures(tmp_path):
    shards = make_shards(tmp_path / "shards", validation=0)
    (printed,) = train(shards, tmp_path / "run", SHORT | {"max_steps": 2}, world_size=1)
    assert "no validation split" in printed
    assert len(losses(tmp_path / "run")) == 2
    assert not any("validation_loss" in row for row in metrics(tmp_path / "run"))


def test_minutes_become_steps_that_are_revised_and_written_down(shards, tmp_path):
    from training.config import Schedule
    from training.optimizer import learning_rate

    run = tmp_path / "run"
    options = TINY | {"train_minutes": 0.03, "checkpoint_every": 7, "keep_checkpoints": 1}
    train(shards, run, options, world_size=1)
    plan, summary = json.loads((run / "plan.json").read_text()), json.loads((run / "summary.json").read_text())
    assert plan["planned"][0][0] == 0
    assert plan["max_steps"] == plan["planned"][-1][1] == summary["steps"] == len(metrics(run)) > 7
    assert [row["step"] for row in metrics(run) if "validation_loss" in row] == [summary["steps"]]
    for row in metrics(run):
        assert row["learning_rate"] == learning_rate(row["step"], plan["planned"], 0.01, Schedule(warmup_steps=4))
    (printed,) = train(shards, run, options, world_size=1)
    assert "already trained" in printed
