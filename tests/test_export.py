"""Exported models against the training model itself: any ZeRO stage, one process and two."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from small_runs import ROOT, SHORT, free_port, train
from small_shards import make_shards

# Loads a checkpoint into an engine of its own layout, as training does, and writes the logits of the training model.
LOGITS = """
import sys, torch
from pathlib import Path
from training import engine as engines, processes
from training.checkpoint import Checkpoints
from training.run_folder import RunFolder
from training.zero_settings import read_configuration

run, configuration, output = sys.argv[1:]
everyone = processes.join(-1, 1)
folder = RunFolder(run)
plan, zero = folder.plan, read_configuration(configuration, folder.plan.recipe, everyone.world_size)
engine = engines.build(plan.recipe, plan.model_config(), zero, everyone)
last = Checkpoints(folder.checkpoints).latest_complete()
engine.load_checkpoint(str(folder.checkpoints), tag=last.name)
engine.eval()
with torch.no_grad():
    logits = engine(input_ids=torch.arange(64).view(2, 32), use_cache=False).logits
if everyone.is_first:
    torch.save(logits, output)
processes.leave()
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def layouts():
    """Every stage with one process and with two; all but one take long enough to be left to `make test-slow`."""
    for stage in range(4):
        for world_size in (1, 2):
            marks = () if (stage, world_size) == (3, 2) else (pytest.mark.slow,)
            yield pytest.param(stage, world_size, marks=marks, id=f"stage{stage}-{world_size}")


@pytest.mark.parametrize(("stage", "world_size"), list(layouts()))
def test_logits_are_those_of_the_training_model(shards, tmp_path, stage, world_size):
    import torch
    from transformers import AutoModelForCausalLM

    configuration = tmp_path / "zero.json"
    configuration.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    options = SHORT | {"max_steps": 3, "deepspeed": configuration, "evaluation_tokens": 0}
    run = tmp_path / "run"
    train(shards, run, options, world_size)
    script = tmp_path / "logits.py"
    script.write_text(LOGITS)
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    jobs = [
        subprocess.Popen(
            [sys.executable, str(script), str(run), str(configuration), str(tmp_path / "logits.pt")],
            env=environment(shared, rank),
        )
        for rank in range(world_size)
    ]
    assert [job.wait(timeout=200) for job in jobs] == [0] * world_size
    expected = torch.load(tmp_path / "logits.pt")
    shutil.rmtree(run / "export")
    done = subprocess.run(
        [sys.executable, str(ROOT / "training" / "export.py"), "--run", str(run), "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(64).view(2, 32)).logits
    assert expected.std() > 0.1
    assert torch.equal(logits, expected)


def environment(shared, rank):
    return os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
