"""Where a step's time goes: parts within parts, and collectives of real processes that wait for each other."""

import time

import pytest
import torch
from small_runs import ROOT, TINY, metrics, train
from small_shards import make_shards

from training.time_split import TimeSplit

PARTS = ("data_wait", "forward", "backward", "optimizer", "communication")
# train.py, whose second process is slow to begin the third step.
LATE = """
import os, sys, time
sys.path.insert(0, {root!r})
from tokenizer.command_line import run
from training import steps, train

plain = steps.seed_step

def seed_step(seed, step, rank):
    plain(seed, step, rank)
    time.sleep({late} if step == 3 and rank == 1 else 0)

steps.seed_step = seed_step
run(train.main)
"""


def test_parts_within_parts_count_once():
    split = TimeSplit(torch.device("cpu"))
    for part, seconds in (("forward", 0.02), ("communication", 0.05), (None, 0.03)):
        if part:
            split.begin(part)
        else:
            split.end("communication")
        time.sleep(seconds)
    split.end("optimizer")  # never began
    split.end("forward")
    time.sleep(0.02)
    found = split.seconds()
    assert found == pytest.approx({"forward": 0.05, "communication": 0.05, "optimizer": 0}, abs=0.02)
    assert split.seconds() == dict.fromkeys(found, 0)


@pytest.mark.parametrize("stage", [1, 3])
def test_waiting_for_another_process_is_communication(stage, tmp_path):
    late, script = 1.0, tmp_path / "late.py"
    script.write_text(LATE.format(root=str(ROOT), late=late))
    shards = make_shards(tmp_path / "shards")
    settings = tmp_path / "zero.json"
    settings.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    options = TINY | {"max_steps": 5, "evaluate_every": 2, "deepspeed": settings}
    train(shards, tmp_path / "run", options, script=script)
    rows = metrics(tmp_path / "run")
    for row in rows:
        assert sum(row[f"{part}_seconds"] for part in PARTS) == pytest.approx(row["seconds"], rel=0.05, abs=5e-3)
        assert row["communication_seconds"] > 0
    usual = max(row["communication_seconds"] for row in rows if row["step"] in (2, 4, 5))
    assert rows[2]["communication_seconds"] > usual + 0.6 * late
    assert rows[2]["forward_seconds"] + rows[2]["optimizer_seconds"] < 0.5 * late
