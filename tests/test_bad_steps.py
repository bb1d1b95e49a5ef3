"""Steps whose gradient is not finite, or a spike: skipped, counted, gone back from, on real processes."""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import ROOT, TINY, finish, metrics, started, train, wait_for_step
from small_shards import make_shards

from training.guard import Guard, Record, Tolerance

FAULTY = Path(__file__).parent / "faulty_train.py"
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
ZEROS = [*({"stage": stage} for stage in range(4)), *({"stage": stage} | OFFLOAD for stage in (1, 3))]
OPTIONS = TINY | {"max_steps": 14, "checkpoint_every": 4, "evaluate_every": 100, "keep_checkpoints": 9}
SEQUENCES = TINY["batch.sequences"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def harm(monkeypatch):
    """Name the steps, counted by the data they see, at which one process meets harm."""

    def named(kind, *steps, rank=1):
        faults = {kind: [(step - 1) * SEQUENCES for step in steps], "rank": rank}
        monkeypatch.setenv("FAULTS", json.dumps(faults))

    return named


def same(rows, others):
    timed = {"tokens_per_second", "mfu", "memory_bytes", "resumed", "longest_data_wait_process"}
    bare = [
        [{k: v for k, v in row.items() if k not in timed and not k.endswith("seconds")} for row in run]
        for run in (rows, others)
    ]
    return bare[0] == bare[1]


def test_bad_steps_are_skipped_by_all_then_gone_back_from_and_a_killed_run_does_the_same(shards, tmp_path, harm):
    harm("nan", 3, 6, 7)
    options = OPTIONS | {"bad_steps": 2}
    (first, _) = train(shards, tmp_path / "run", options, script=FAULTY)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert [row["step"] for row in rows if row.get("skipped")] == [3]
    assert [row["skipped_steps"] for row in rows] == [0, 0, *[1] * 12]
    assert rows[2]["gradient_norm"] is None
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert "steps up to 7 were bad: going back to step 4, on other data" in first
    assert [row.get("rewound_from") for row in rows] == [None] * 4 + [7] + [None] * 9
    assert not any("resumed" in row for row in rows)
    assert all((row["rewinds"], row["steps_rewound"], row["skipped_steps_rewound"]) == (1, 3, 2) for row in rows[4:])
    rewound = [json.loads(line) for line in (tmp_path / "run" / "rewound.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("skipped")) for row in rewound] == [(5, None), (6, 1), (7, 1)]
    windows = [row["epoch"] for row in rows]
    assert windows[4] / windows[3] == pytest.approx(8 / 4, abs=1e-3)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["rewinds"] == [{"from_step": 7, "to_step": 4, "skipped": 2}]

    with started(shards, tmp_path / "killed", options, 2, script=FAULTY) as jobs:
        wait_for_step(tmp_path / "killed", 11, jobs)
        for job in jobs:
            os.killpg(job.pid, signal.SIGKILL)
    train(shards, tmp_path / "killed", options, script=FAULTY)
    assert same(metrics(tmp_path / "killed"), rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nan", "spike"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("zero", ZEROS, ids=json.dumps)
def test_skipped_step_leaves_weights_and_optimizer_as_they_were(shards, tmp_path, harm, zero, optimizer, kind):
    harm(kind, 20)
    configuration = tmp_path / "zero.json"
    configuration.write_text(json.dumps({"zero_optimization": zero}))
    options = OPTIONS | {"deepspeed": configuration, "max_steps": 20, "checkpoint_every": 19, "spike_factor": 20}
    options["optimizer.kind"] = optimizer
    train(shards, tmp_path / "run", options, script=FAULTY)
    assert [row["step"] for row in metrics(tmp_path / "run") if row.get("skipped")] == [20]
    before, after = (saved(tmp_path / "run" / "checkpoints" / f"step_000000{step}") for step in (19, 20))
    assert len(before) == len(after) > 20
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def saved(folder):
    """All tensors of a checkpoint, of weights and optimizer."""
    found = []

    def look(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for name in sorted(value, key=str):
                look(value[name])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                look(entry)

    for path in sorted(folder.glob("*.pt")):
        look(torch.load(path, map_location="cpu", weights_only=False))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_spike_is_skipped_unless_that_is_not_wanted(shards, tmp_path, harm, stage):
    harm("spike", 20)
    configuration = tmp_path / "zero.json"
    configuration.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    options = OPTIONS | {"deepspeed": configuration, "max_steps": 22}
    train(shards, tmp_path / "run", options, script=FAULTY)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if row.get("skipped")] == [20]
    assert rows[19]["gradient_norm"] > 20 * rows[18]["gradient_norm"]
    train(shards, tmp_path / "all", options | {"spike_factor": 0}, script=FAULTY)
    assert not [row for row in metrics(tmp_path / "all") if row.get("skipped")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_nan", "last"), [("stop", "3"), ("skip", "5, the last of 3 bad ones in a row (--bad_steps),")]
)
def test_run_ends_where_it_is_told_to(shards, tmp_path, harm, on_nan, last):
    harm("nan", 3, 4, 5)
    with started(shards, tmp_path / "run", OPTIONS | {"on_nan": on_nan}, 2, script=FAULTY) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1, 1]
    assert f"step {last} has loss" in printed[0]
    assert f"--on_nan is {on_nan}" in printed[0]
    assert "Traceback" not in printed[0]


@pytest.mark.slow
def test_run_that_is_bad_wherever_it_goes_ends(shards, tmp_path, harm):
    harm("nan", *range(3, 60), rank=0)
    with started(shards, tmp_path / "run", OPTIONS, 1, script=FAULTY) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1]
    assert "after going back to step 0 3 times; begin anew" in printed[0]
    assert "Traceback" not in printed[0]


class Engine:
    """What the guard asks of an engine that shards: the optimizer within the optimizer, and the norm."""

    def __init__(self):
        self.optimizer = self.sharded = type("Sharded", (), {})()
        self.sharded.optimizer = type("Base", (), {"step": lambda base: self.taken.append(self.now)})()
        self.taken = []

    def was_step_applied(self):
        return True

    def fp16_enabled(self):
        return False

    def gradient_clipping(self):
        return 1.0

    def get_global_grad_norm(self):
        return self.sharded._global_grad_norm


NORMS = st.lists(st.sampled_from([0.5, 1.0, 1.5, 100.0, math.nan, math.inf, -1.0]), max_size=60)


def judged(guard, norms):
    engine, refused = Engine(), []
    guard.attach(engine)
    for number, norm in enumerate(norms):
        engine.sharded._global_grad_norm, engine.now = norm, number
        guard.begin()
        for _ in range(2):  # DeepSpeed steps once for each group of parameters
            engine.sharded.optimizer.step()
        refused.append(guard.refused(engine))
        guard.settle(engine, refused[-1])
    assert engine.taken == [number for number in range(len(norms)) if not refused[number] for _ in range(2)]
    return refused


@given(norms=NORMS, cut=st.integers(0, 60))
def test_guard_goes_on_from_its_record_as_if_unbroken(norms, cut):
    tolerance = Tolerance(spike_factor=10)
    whole = Guard(tolerance, Record())
    refused = judged(whole, norms)
    before = Guard(tolerance, Record())
    first = judged(before, norms[:cut])
    after = Guard(tolerance, before.record)
    assert first + judged(after, norms[cut:]) == refused
    assert after.record == whole.record
    assert all(bad for bad, norm in zip(refused, norms, strict=True) if not 0 <= norm < math.inf)
    assert after.skipped == sum(refused)


def test_spike_is_judged_by_the_median_of_good_steps():
    guard = Guard(Tolerance(spike_factor=10), Record())
    assert judged(guard, [1.0] * 20 + [9.0, 11.0, 11.0, 1.0]) == [False] * 21 + [True, True, False]
    assert not any(judged(Guard(Tolerance(spike_factor=0), Record()), [1.0] * 20 + [1e9]))
    # Many times next to nothing is no more than clipping allows.
    assert judged(Guard(Tolerance(spike_factor=10), Record()), [0.001] * 20 + [9.0, 11.0]) == [False] * 21 + [True]
    assert judged(Guard(Tolerance(spike_factor=10), Record()), [4.0] * 20 + [39.0, 41.0]) == [False] * 21 + [True]
    assert not any(judged(Guard(Tolerance(spike_factor=10), Record()), [1.0] * 15 + [1e9]))


def test_in_fp16_a_step_counts_unless_the_loss_scale_still_finds_its_size():
    """An overflow halves the scale; at its least, and where the guard refused, it is a bad step."""
    scaler = SimpleNamespace(cur_scale=4.0, min_scale=1.0, raise_error_at_min_scale=True)
    engine, guard = Engine(), Guard(Tolerance(in_a_row=2, spike_factor=10), Record(norms=(1.0,) * 16))
    engine.fp16_enabled = lambda: True
    engine.optimizer.loss_scaler = scaler
    guard.attach(engine)
    assert not scaler.raise_error_at_min_scale
    counted = []
    for scale in (4.0, 2.0, 1.0):
        scaler.cur_scale, engine.sharded._global_grad_norm = scale, math.inf
        guard.begin()
        guard.settle(engine, refused=True)
        counted.append(guard.in_a_row)
    assert counted == [0, 0, 1]
    scaler.cur_scale, engine.sharded._global_grad_norm = 4.0, 100.0
    guard.begin()
    engine.sharded.optimizer.step()
    guard.settle(engine, guard.refused(engine))
    assert guard.gives_up


@pytest.mark.parametrize(
    ("wrong", "line"),
    [({"in_a_row": 0}, "bad_steps 0 is below 1"), ({"spike_factor": 0.5}, "spike_factor 0.5 is not")],
)
def test_tolerance_that_cannot_work_is_refused(wrong, line):
    with pytest.raises(ValueError, match=line):
        Tolerance(**wrong)


COUNTED = """
import sys, weakref
sys.path.insert(0, {root!r})
from tokenizer.command_line import run
from training import engine, train

build, built = engine.build, []

def counted(*arguments):
    print("engines before:", len(built), "of them there:", sum(one() is not None for one in built), flush=True)
    made = build(*arguments)
    built.append(weakref.ref(made.optimizer))
    return made

engine.build = counted
run(train.main)
"""


@pytest.mark.parametrize("stage", [1, 3])
def test_an_engine_is_gone_before_another_is_built(shards, tmp_path, stage):
    """DeepSpeed keeps one of stage 3, with all that it holds on the device."""
    script, zero = tmp_path / "counted.py", tmp_path / "zero.json"
    script.write_text(COUNTED.format(root=str(ROOT)))
    zero.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    options = TINY | {"train_minutes": 0.02, "evaluation_tokens": 0, "deepspeed": zero}
    for printed in train(shards, tmp_path / "run", options, script=script):
        assert "engines before: 1 of them there: 0" in printed
