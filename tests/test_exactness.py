"""One run, however it is cut: processes, ZeRO stages, kills and changes of both in the middle, on real processes."""

import json
import os
import random
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TINY, finish, interrupted, losses, metrics, started, train, wait_for_step
from small_shards import make_shards

from tokenizer.shards import ShardIndex

EXACT = TINY | {"max_steps": 16, "checkpoint_every": 6, "evaluate_every": 16, "keep_checkpoints": 3}
HALF_WAY = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def configuration(folder, stage):
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return path


def run_in(folder, shards, stage, world_size, **changed):
    run = folder / f"run_{stage}_{world_size}"
    train(shards, run, EXACT | {"deepspeed": configuration(folder, stage)} | changed, world_size)
    return run


@pytest.fixture(scope="module")
def layouts(shards, tmp_path_factory):
    """Unbroken runs by ZeRO stage and number of processes, each made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("layouts"), {}

    def run(stage, world_size):
        if (stage, world_size) not in made:
            made[stage, world_size] = run_in(folder, shards, stage, world_size)
        return made[stage, world_size]

    return run


def weights(run):
    return load_file(run / "export" / "model.safetensors")


def assert_same_curve(run, other):
    assert losses(run) == pytest.approx(losses(other), abs=1e-5)
    assert metrics(run)[-1]["validation_loss"] == pytest.approx(metrics(other)[-1]["validation_loss"], abs=1e-5)
    norms = [[row["gradient_norm"] for row in metrics(path)] for path in (run, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


LAYOUTS = [(0, 1), (1, 2), (3, 2)]
MORE_LAYOUTS = [(0, 2), (0, 4), (1, 4), (2, 2), (2, 4), (3, 1), (3, 4)]


@pytest.mark.parametrize(
    ("stage", "world_size"), [*LAYOUTS[1:], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_LAYOUTS)]
)
def test_processes_and_stages_draw_one_curve(layouts, stage, world_size):
    assert_same_curve(layouts(stage, world_size), layouts(0, 1))


def test_processes_on_two_machines_draw_the_same_curve(layouts, shards, tmp_path):
    """Each is the first of its machine: what belongs to one machine's processes is told by LOCAL_RANK alone."""
    options = EXACT | {"deepspeed": configuration(tmp_path, 1)}
    train(shards, tmp_path / "run", options, machines=2)
    assert losses(tmp_path / "run") == losses(layouts(1, 2))


def test_processes_with_other_data_or_settings_are_refused_by_all(shards, tmp_path):
    other = make_shards(tmp_path / "other", seed=5)
    with started(lambda rank: [shards, other][rank], tmp_path / "run", EXACT, 2) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1, 1]
    assert re.search("data of process 1 is [0-9a-f]+, that of process 0 is [0-9a-f]+; give all processes", printed[0])
    assert not (tmp_path / "run").exists()


def test_processes_that_would_not_evaluate_together_are_refused_by_all(shards, tmp_path):
    """The same training data, but no held-out split on the second machine: it would wait for ever at an evaluation."""
    other = shutil.copytree(shards, tmp_path / "other")
    index = ShardIndex.load(other)
    replace(index, shards=tuple(shard for shard in index.shards if shard.split == "train")).save(other)
    with started(lambda rank: [shards, other][rank], tmp_path / "run", EXACT, 2) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1, 1]
    assert "held-out data of process 1 is None, that of process 0 is " in printed[0]
    assert not (tmp_path / "run").exists()


CHANGES = [((1, 2), (3, 1)), ((3, 2), (0, 1))]
MORE_CHANGES = [
    *[((stage, 2), (stage, 1)) for stage in (0, 1, 2, 3)],
    *[((stage, 1), (stage, 2)) for stage in (0, 1, 3)],
    *[((stage, 2), (stage, 4)) for stage in (2, 3)],
    *[((1, 2), (3, 2)), ((3, 2), (1, 2)), ((0, 2), (2, 2)), ((0, 1), (3, 2)), ((2, 2), (0, 2)), ((1, 2), (2, 2))],
]


@pytest.mark.parametrize(
    ("saved", "resumed"), [*CHANGES, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_CHANGES)]
)
def test_run_goes_on_with_other_processes_and_at_another_stage(layouts, shards, tmp_path, saved, resumed):
    run = interrupted(layouts(*saved), tmp_path / "run", HALF_WAY)
    stage, world_size = resumed
    options = EXACT | {"deepspeed": configuration(tmp_path, stage), "batch.sequences_per_device": 1}
    printed = train(shards, run, options, world_size)
    assert f"going on after step {HALF_WAY}" in printed[0]
    if saved != resumed:
        assert f"gone on with by {world_size} at stage {stage}" in printed[0]
    assert_same_curve(run, layouts(*saved))
    assert not [path for path in (run / "checkpoints").glob("step_*") if path.suffix]
    old, new = weights(layouts(*saved)), weights(run)
    assert all(torch.allclose(old[name], new[name], atol=2e-4) for name in old)


@pytest.mark.parametrize("stage", [1, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2, 3))])
def test_killed_at_a_random_step_and_begun_again_is_bit_identical(layouts, shards, tmp_path, stage):
    run, options = tmp_path / "run", EXACT | {"deepspeed": configuration(tmp_path, stage)}
    step = random.randrange(8, 16)  # the first checkpoint, of step 6, is complete some steps later
    with started(shards, run, options, 2) as jobs:
        wait_for_step(run, step, jobs)
        for job in jobs:
            os.killpg(job.pid, signal.SIGKILL)
    printed = train(shards, run, options)
    assert "going on after step" in printed[0], f"killed at step {step}"
    unbroken = layouts(stage, 2)
    assert losses(run) == losses(unbroken), f"killed at step {step}"
    for name in ("gradient_norm", "learning_rate", "tokens", "epoch"):
        assert [row[name] for row in metrics(run)] == [row[name] for row in metrics(unbroken)]
    assert metrics(run)[-1]["validation_loss"] == metrics(unbroken)[-1]["validation_loss"]
    old, new = weights(unbroken), weights(run)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_full_disk_and_damaged_file_cost_steps_but_not_the_run(layouts, shards, tmp_path):
    """One process cannot write its part of step 16; then the checkpoint before is cut off too."""
    run, options = (
        interrupted(layouts(1, 2), tmp_path / "run", HALF_WAY),
        EXACT | {"deepspeed": configuration(tmp_path, 1)},
    )
    with started(shards, run, options, 2, limits={1: 40_000}) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1, 1], printed
    assert "step_00000016 cannot be written: " in printed[0]
    assert "step_00000012 stands; the same command goes on" in printed[0]
    assert "Traceback" not in printed[0]
    names = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert names == ["step_00000006", "step_00000012"]

    part = next((run / "checkpoints" / "step_00000012").glob("zero_pp_rank_1*"))
    size = part.stat().st_size
    os.truncate(part, size - 100)
    printed = train(shards, run, options)
    line = f"step_00000012 is damaged: {part.name} has {size - 100:,} of {size:,} bytes; going on from step_00000006"
    assert printed[0].count("is damaged") == printed[0].count(line) == 1
    assert losses(run) == losses(layouts(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(layouts(1, 2)).values(), strict=True))


MUON_CHANGES = [((1, 2), (2, 1)), ((2, 2), (3, 4)), ((3, 2), (0, 1)), ((0, 1), (1, 4)), ((2, 2), (2, 2))]


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [MUON_CHANGES[0], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MUON_CHANGES[1:])],
)
def test_muon_goes_on_with_other_processes_and_at_another_stage(shards, tmp_path, saved, resumed):
    by_muon = EXACT | {"optimizer.kind": "muon", "max_steps": 10, "batch.sequences_per_device": 1}
    train(shards, tmp_path / "run", by_muon | {"deepspeed": configuration(tmp_path, saved[0])}, saved[1])
    run = interrupted(tmp_path / "run", tmp_path / "again", 6)
    train(shards, run, by_muon | {"deepspeed": configuration(tmp_path, resumed[0])}, resumed[1])
    if saved == resumed:
        assert losses(run) == losses(tmp_path / "run")
    else:
        assert losses(run) == pytest.approx(losses(tmp_path / "run"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("offloaded", [False, True])
def test_deepspeeds_adam_draws_the_curve_of_torchs_and_goes_on_like_it(layouts, shards, tmp_path, offloaded):
    """It counts its steps in another form, which resuming in the same layout and in others has to keep."""
    zero = {"stage": 2} | ({"offload_optimizer": {"device": "cpu"}} if offloaded else {})
    settings = tmp_path / "zero.json"
    settings.write_text(json.dumps({"zero_optimization": zero}))
    options = EXACT | {"optimizer.implementation": "deepspeed", "deepspeed": settings}
    unbroken = tmp_path / "unbroken"
    train(shards, unbroken, options)
    assert_same_curve(unbroken, layouts(2, 2))
    same, other = (interrupted(unbroken, tmp_path / name, HALF_WAY) for name in ("same", "other"))
    train(shards, same, options)
    assert losses(same) == losses(unbroken)
    train(shards, other, options | {"deepspeed": configuration(tmp_path, 3)}, 1)
    assert_same_curve(other, unbroken)


@pytest.mark.slow
def test_flipped_bit_is_found_and_other_data_is_refused(layouts, shards, tmp_path):
    run, options = (
        interrupted(layouts(0, 1), tmp_path / "run", HALF_WAY),
        EXACT | {"deepspeed": configuration(tmp_path, 0)},
    )
    marker = run / "checkpoints" / "step_00000012" / "complete.json"
    record = json.loads(marker.read_text())
    marker.write_text(json.dumps(record | {"chain": record["chain"] | {"digest": "00" * 16}}))
    with started(shards, run, options, 1) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1]
    assert "the samples of steps 1 to 12 have digest" in printed[0]
    marker.write_text(json.dumps(record))
    for folder in (run / "checkpoints").glob("step_*"):
        path = next(folder.glob("*.pt"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with started(shards, run, options, 1) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1]
    assert re.search(r"checkpoints/step_00000012: \S+ has another checksum, and there is no other that is", printed[0])
    assert "; put the file back, or begin anew with --overwrite" in printed[0]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step_00000006", "step_00000012"]
