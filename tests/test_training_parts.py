"""The parts of training that need no second process: settings, model, optimizer, schedule, meter, checkpoints."""

import errno
import itertools
import json
import math
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import durable, model_card, results
from training.checkpoint import Checkpoints
from training.config import Batch, Model, Optimizer, Recipe, Schedule
from training.durable import damage, describe, write_durably
from training.guard import Record
from training.job import Job
from training.marker import MARKER, Checkpoint, read_marker
from training.meter import Meter, clock, read_metrics, write_metrics
from training.model import build, configuration, count_parameters
from training.optimizer import learning_rate, parameter_groups, progress
from training.preparation import _ending
from training.retention import Retention
from training.run_folder import Plan, Rewind, RunFolder
from training.run_page import page
from training.sample_chain import RECOMPUTED_SAMPLES, Chain
from training.saving import _copied

ROOT = Path(__file__).parent.parent
TINY = Model(hidden_size=32, layers=2, heads=2)
PLAN = Plan(Recipe(TINY, Batch(), Optimizer(), Schedule(), seed=0), "data", 50, 0, planned=())


def tiny(architecture, seed=0, **changes):
    model = replace(TINY, architecture=architecture, **changes)
    return build(configuration(model, vocab_size=50, context_tokens=17, end_of_text_id=0), seed)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_only_matrices_decay_and_every_weight_is_trained_once(architecture):
    model = tiny(architecture)
    groups = parameter_groups(model, Optimizer(weight_decay=0.1))
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        exempt = name.endswith("bias") or "norm" in name or ".ln_" in name
        assert decay[id(parameter)] == (0.0 if exempt else 0.1), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loss_is_that_of_transformers_and_weights_come_from_the_seed(architecture):
    import torch

    from training.losses import computes_losses
    from training.micro_batch import MicroBatch
    from training.steps import summed_losses

    model, tokens = tiny(architecture), torch.arange(34).view(2, 17)
    batch = MicroBatch.of({"rows": tokens.numpy()})
    with_losses = computes_losses(tiny(architecture), chunk_tokens=0, z_loss=0.0, autocast=None)
    nats = summed_losses(with_losses, batch)[1].item()
    assert nats / 32 == pytest.approx(model(tokens, labels=tokens).loss.item(), abs=1e-5)
    same, other = tiny(architecture), tiny(architecture, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_tied_embeddings_count_once():
    assert count_parameters(tiny("llama", tie_embeddings=False)) - count_parameters(tiny("llama")) == 50 * 32


@settings(deadline=None)  # a busy machine
@given(
    kind=st.sampled_from(["cosine", "wsd"]),
    max_steps=st.integers(1, 2000),
    warmup=st.integers(0, 3000),
    final=st.floats(0, 1),
)
def test_schedule_rises_to_the_peak_and_falls_to_the_final_fraction(kind, max_steps, warmup, final):
    schedule = Schedule(kind=kind, warmup_steps=warmup, final_fraction=final)
    rates = [learning_rate(step, ((0, max_steps),), 0.5, schedule) for step in range(1, max_steps + 1)]
    top = min(warmup, max_steps // 2)
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * final if max_steps > top else 0.5)
    if top:
        assert rates[top - 1] == pytest.approx(0.5)


@settings(deadline=None)  # a busy machine
@given(first=st.integers(2, 300), data=st.data())
def test_progress_bends_at_revisions_without_a_jump_and_ends_at_one(first, data):
    plan = PLAN.ending(0, first)
    for _ in range(data.draw(st.integers(0, 4))):
        begin = data.draw(st.integers(plan.planned[-1][0] + 1, plan.max_steps))
        plan = plan.ending(begin, begin + data.draw(st.integers(1, 300)))
    done = [progress(step, plan.planned) for step in range(plan.max_steps + 1)]
    steepest = max(1 / (end - begin) for begin, end in plan.planned)
    assert done[0] == 0
    assert done[-1] == pytest.approx(1)
    assert all(0 <= after - before <= steepest + 1e-9 for before, after in itertools.pairwise(done))


def test_plan_keeps_time_and_stays_once_revised():
    plan = PLAN.ending(0, 100)
    assert plan.keeping_time(50, seconds_left=50.5, seconds_per_step=1) is plan
    faster = plan.keeping_time(50, seconds_left=50, seconds_per_step=0.5)
    assert faster.planned == ((0, 100), (50, 150))
    assert faster.keeping_time(40, seconds_left=999, seconds_per_step=1) is faster
    assert plan.keeping_time(50, seconds_left=-9, seconds_per_step=1).max_steps == 55


@pytest.mark.parametrize(
    ("taken", "asked", "planned"),
    [
        (80, 200, ((0, 100), (100, 200))),
        (80, 300, ((0, 100), (80, 300))),
        (80, 120, ((0, 100), (80, 120))),
        (100, 300, ((0, 100), (100, 300))),
        (150, 300, ((0, 100), (100, 200), (150, 300))),
    ],
)
def test_another_length_is_taken_where_the_checkpoint_of_the_last_one_is_gone(taken, asked, planned):
    plan = PLAN.ending(0, 100).ending(100, 200)
    assert _ending(plan, asked, taken).planned == planned


@settings(deadline=None)  # a busy machine
@given(sequences=st.integers(1, 200), world_size=st.integers(1, 16), most=st.integers(1, 64))
def test_micro_batch_divides_the_share_of_a_process(sequences, world_size, most):
    batch = Batch(sequences=sequences, sequences_per_device=most)
    if sequences % world_size:
        with pytest.raises(ValueError, match="no multiple"):
            batch.micro_size(world_size)
    else:
        size = batch.micro_size(world_size)
        assert 1 <= size <= most
        assert sequences // world_size % size == 0


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda: Model(hidden_size=30, heads=4), "no multiple of model.heads 4"),
        (lambda: Model(hidden_size=12, heads=4), "even head size"),
        (lambda: Model(heads=4, key_value_heads=3), "must divide"),
        (lambda: Model(architecture="gpt2", key_value_heads=2), "of a llama"),
        (lambda: Model(dropout=2), "model.dropout 2 is outside 0 to 1"),
        (lambda: Batch(sequence_length=1), "batch.sequence_length 1 is below 2"),
        (lambda: Optimizer(learning_rate=0), "optimizer.learning_rate 0 is not above 0"),
        (lambda: Schedule(warmup_steps=-1), "schedule.warmup_steps -1 is below 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, line):
    with pytest.raises(ValueError, match=line):
        wrong()


def test_recipe_returns_from_its_record_and_tells_differences():
    recipe = Recipe(TINY, Batch(), Optimizer(), Schedule(), seed=3)
    assert Recipe.from_record(json.loads(json.dumps(asdict(recipe)))) == recipe
    assert recipe.differences(replace(recipe, seed=4, model=replace(TINY, layers=6))) == [
        "model.layers 2 (was 6)",
        "seed 3 (was 4)",
    ]


PRESETS = sorted((ROOT / "training" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_shipped_configurations_parse_and_have_the_size_they_name(path):
    import torch
    from jsonargparse import auto_parser
    from transformers import AutoModelForCausalLM

    from training import train

    parser = auto_parser(train.main, as_positional=False, parser_mode="yaml")
    flags = ["--config", str(path), "--shards+", "S", "--output", "R"]
    settings = parser.instantiate(parser.parse_args(flags))
    recipe = Recipe(**{name: settings[name] for name in ("model", "batch", "optimizer", "schedule", "seed")})
    words = path.stem.split("_", 1)[1] if "_" in path.stem else "1.9m"
    expected = float(words.replace("_", ".").rstrip("mb")) * (1e9 if words.endswith("b") else 1e6)
    vocab_size = {"1m": 4096, "7m": 8192, "30m": 16384, "1.9m": 8192}.get(words, 32768)
    config = configuration(
        recipe.model, vocab_size=vocab_size, context_tokens=recipe.batch.sequence_length, end_of_text_id=0
    )
    with torch.device("meta"):
        count = count_parameters(AutoModelForCausalLM.from_config(config))
    assert count == pytest.approx(expected, rel=0.1)


def test_presets_go_from_a_million_to_seven_billion():
    assert {path.stem for path in PRESETS} >= {"demo", "gpt2_110m", "gpt2_1_5b", "llama_1m", "llama_7b"}


def row(step):
    figures = {"loss": 1.0, "tokens": 8 * step, "tokens_per_second": 5.0, "learning_rate": 0.1, "seconds": 1.0}
    return {"step": step} | figures


def test_meter_goes_on_with_each_step_once(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    for first, last in ((0, 7), (4, 9)):
        meter = Meter(path, tmp_path / "tensorboard", step=first, max_steps=9)
        for step in range(first + 1, last + 1):
            meter.record(row(step))
        meter.flush()
        meter.close()
        with path.open("a") as file:
            file.write('{"step": 8, "lo')
    assert [row["step"] for row in read_metrics(path)] == list(range(1, 10))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(step, 1.0) for step in range(1, 10)]
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in (*row(1), "resumed") if name != "step"}
    assert "step 9/9  loss 1.000" in capsys.readouterr().err


def test_time_left_follows_the_steps_of_this_start_without_its_first(tmp_path):
    """Of runs that go on elsewhere, and compile; earlier steps tell while there are few of this start's."""
    meter = Meter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step=0, max_steps=300)
    for step, seconds in enumerate([60.0, *[4.0] * 199], 1):
        meter.record(row(step) | {"seconds": seconds})
    meter.close()
    assert meter.seconds_per_step == 4.0
    meter = Meter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step=200, max_steps=300)
    told = []
    for step, seconds in enumerate([60.0, *[0.5] * 4], 201):
        meter.record(row(step) | {"seconds": seconds})
        told.append(meter.seconds_per_step)
    meter.close()
    assert told == [4.0, *(pytest.approx(4.0, rel=0.1) for _ in range(3)), 0.5]
    assert meter.seconds == 60 + 199 * 4 + 60 + 4 * 0.5


def test_what_a_stopped_run_left_off_goes_into_the_row_of_its_step(tmp_path):
    for rows in ([row(1), row(2)], [row(1)], []):
        write_metrics(tmp_path / "metrics.jsonl", rows)
        meter = Meter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step=2, max_steps=9)
        meter.complete(2, {"validation_loss": 1.5, "bits_per_byte": 0.5})
        meter.record(row(3))
        meter.close()
        found = read_metrics(tmp_path / "metrics.jsonl")
        assert [one["step"] for one in found] == [*(one["step"] for one in rows), 3]
        assert [one["step"] for one in found if "validation_loss" in one] == [one["step"] for one in rows[1:]]


def test_steps_gone_back_from_are_kept_once(tmp_path):
    """A run that is killed between keeping them and saying so in its plan takes and keeps them again."""
    folder = RunFolder(tmp_path)
    for seconds in (1.0, 2.0):
        write_metrics(folder.metrics, [row(step) | {"seconds": seconds} for step in (3, 4, 5)])
        folder.keep_rewound(3)
    write_metrics(folder.metrics, [row(4) | {"loss": math.nan, "rewinds": 1}])
    folder.keep_rewound(3)
    kept = [(one["step"], one["seconds"], one.get("rewinds")) for one in read_metrics(folder.rewound)]
    assert kept == [(4, 2.0, None), (5, 2.0, None), (4, 1.0, 1)]
    assert '"loss": null' in folder.rewound.read_text()


@pytest.mark.parametrize(
    ("losses", "known", "line"),
    [([2.0, 1.5, math.nan], (1.5, 2), "loss   1.5000 at step 2"), ([math.nan], (None, None), "")],
)
def test_a_last_step_that_was_skipped_costs_no_figure(tmp_path, losses, known, line):
    rows = [row(step) | {"loss": loss} for step, loss in enumerate(losses, 1)]
    rows[-1] |= {"validation_loss": math.inf, "perplexity": math.exp(700), "bits_per_byte": math.inf}
    folder = RunFolder(tmp_path)
    folder.finish(results.figures(rows))
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert (folder.summary["loss"], folder.summary["loss_step"]) == known
    told = results.told(SimpleNamespace(folder=folder))
    card = str(model_card._results(rows))
    assert line in told
    for shown in (told, card, page(tmp_path, PLAN, rows, []).partition("<h2>Events")[0]):
        assert not re.search(r"\b(nan|inf)\b", shown)
        assert ("1.5000" in shown) == bool(line)


def test_figures_that_are_not_finite_are_in_no_marker(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_durably(tmp_path / "plan.json", {"loss": math.nan})
    assert not any(tmp_path.iterdir())
    alone = SimpleNamespace(is_first=True, wait=lambda: None, world_size=1, precision="fp32")
    job = SimpleNamespace(plan=PLAN, configuration={"zero_optimization": {"stage": 1}})
    assert [Job.checkpoint(job, 0, alone, validation_loss=loss).validation_loss for loss in (math.nan, 1.5)] == [
        None,
        1.5,
    ]
    (tmp_path / CHECKPOINT.name).mkdir()
    write_durably(tmp_path / CHECKPOINT.name / MARKER, asdict(CHECKPOINT))
    for loss in (1.5, math.nan):
        Checkpoints(tmp_path).record_loss(CHECKPOINT, loss, alone)
    assert read_marker(tmp_path / CHECKPOINT.name / MARKER).validation_loss == 1.5


@pytest.mark.parametrize(("bytes_per_token", "told"), [((2.0, 4.0), True), ((0.0, 0.0), False)])
def test_losses_are_told_by_the_bytes_of_their_tokens_where_there_are_some(tmp_path, capsys, bytes_per_token, told):
    path = tmp_path / "metrics.jsonl"
    meter = Meter(path, tmp_path / "tensorboard", step=0, max_steps=9, bytes_per_token=bytes_per_token)
    meter.record(row(1) | {"loss": math.log(2)})
    meter.complete(1, {"validation_loss": math.log(2)})
    meter.record(row(2) | {"validation_loss": math.log(2)})
    meter.close()
    for one in read_metrics(path):
        figures = [one.get("bits_per_byte"), one.get("perplexity")]
        assert figures == ([pytest.approx(0.25), pytest.approx(2)] if told else [None] * 2)
    assert read_metrics(path)[0].get("training_bits_per_byte") == (0.5 if told else None)
    line = capsys.readouterr().err
    assert "held-out loss 0.693" in line
    assert ("held-out loss 0.693, 0.250 bits per byte" in line) == ("bits/byte" in line) == told


def test_clock():
    assert [clock(59.6), clock(3600), clock(61)] == ["1:00", "1:00:00", "1:01"]


CHECKPOINT = Checkpoint(20, 160, "data", 32, 0, 2, 2, "fp32")


def test_only_complete_checkpoints_count(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_complete() is None
    for step in (20, 40):
        (tmp_path / f"step_{step:08d}").mkdir()
        write_durably(tmp_path / f"step_{step:08d}" / "complete.json", asdict(replace(CHECKPOINT, step=step)))
    (tmp_path / "step_00000060").mkdir()
    (tmp_path / "step_00000070").mkdir()
    (tmp_path / "step_00000070" / "complete.json").write_text('{"step": 7')
    (tmp_path / "step_00000080.partial").mkdir()
    assert checkpoints.latest_complete() == replace(CHECKPOINT, step=40)
    checkpoints.remove_incomplete()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000020", "step_00000040", "step_00000060", "step_00000070"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data_fingerprint": "other"}, "was trained on data data in sequences of 32, this run has other"),
        ({"sequence_length": 64}, "this run has data in sequences of 64"),
        ({"samples": 168}, "has seen 160 sequences, this run would have seen 168"),
        ({"precision": "bf16"}, "saved in fp32, this run has bf16"),
    ],
)
def test_checkpoint_of_another_kind_is_refused(change, line):
    with pytest.raises(ValueError, match=line):
        CHECKPOINT.refuse_other(replace(CHECKPOINT, **change))


def test_checkpoint_returns_from_its_marker_and_from_one_without_guard_and_chain():
    full = replace(CHECKPOINT, guard=Record(3, 1, (0.1, 0.2)), chain=Chain(20, "ab", ((0, ""), (10, "cd"))))
    assert Checkpoint.from_record(json.loads(json.dumps(asdict(full) | {"files": {}}))) == full
    bare = {name: value for name, value in asdict(CHECKPOINT).items() if name not in ("guard", "chain")}
    assert Checkpoint.from_record(bare) == replace(CHECKPOINT, chain=Chain(20, "", ((20, ""),)))


@settings(deadline=None)  # a busy machine
@given(
    losses=st.lists(st.none() | st.floats(0, 9), min_size=1, max_size=30),
    last=st.integers(1, 4),
    best=st.booleans(),
    every=st.integers(0, 5),
)
def test_retention_keeps_the_last_the_best_and_milestones(losses, last, best, every):
    complete = [replace(CHECKPOINT, step=step, validation_loss=loss) for step, loss in enumerate(losses, 1)]
    dropped = {checkpoint.step for checkpoint in Retention(last, best, every).dropped(complete)}
    for step, loss in enumerate(losses, 1):
        wanted = step > len(losses) - last or (every and step % every == 0)
        if best and loss is not None and all(other is None or other >= loss for other in losses):
            wanted = wanted or losses.index(loss) == step - 1
        assert (step in dropped) != bool(wanted)


def test_retention_counts_only_what_a_run_can_go_back_to():
    """Stopped twice among bad steps: 101 and 102 were saved on the way, and 100 is where it would go back to."""
    bad = Record(skipped=1, in_a_row=1)
    complete = [replace(CHECKPOINT, step=step, guard=bad if step > 100 else Record()) for step in (98, 100, 101, 102)]
    assert [one.step for one in Retention(1).dropped(complete)] == [98, 101]
    assert [one.step for one in Retention(2).dropped(complete)] == [101]


def test_a_loss_that_is_no_number_is_never_the_best():
    losses = {1: float("nan"), 2: 1.5, 3: 1.7, 4: float("inf")}
    complete = [replace(CHECKPOINT, step=step, validation_loss=loss) for step, loss in losses.items()]
    assert [one.step for one in Retention(1).dropped(complete)] == [1, 3]


def test_files_are_known_by_their_bytes(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(b"weights" * 1000)
    record = describe(path)
    assert damage(path, record) is None
    path.write_bytes(b"weightz" * 1000)
    assert damage(path, record) == "has another checksum"
    path.write_bytes(b"weights")
    assert damage(path, record) == "has 7 of 7,000 bytes"
    path.unlink()
    assert damage(path, record) == "is missing"


def test_a_file_that_the_disk_does_not_give_back_is_damaged(tmp_path, monkeypatch):
    path = tmp_path / "part"
    path.write_bytes(b"weights")
    record = describe(path)

    def broken(path, progress):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(durable, "describe", broken)
    assert damage(path, record) == "cannot be read: Input/output error"


def test_chain_is_checked_against_the_recipe_from_its_marks():
    import numpy as np

    def samples(step, shift=0):
        return np.arange(step, step + RECOMPUTED_SAMPLES // 4, dtype=np.uint64) + np.uint64(shift)

    chain = Chain()
    for step in range(1, 16):
        chain = chain.after(samples(step))
    assert [step for step, _ in chain.marks] == [8, 12]
    chain.refuse_other(samples)
    with pytest.raises(ValueError, match="the samples of steps 9 to 15 have digest"):
        chain.refuse_other(lambda step: samples(step, shift=step == 10))
    assert Chain.from_record(json.loads(json.dumps(asdict(chain)))) == chain


def test_what_is_saved_in_the_background_is_a_copy_with_the_same_sharing():
    import torch

    flat = torch.arange(12.0)
    state = {
        "module": {"embedding": flat[:6].view(2, 3), "head": flat[:6].view(2, 3), "gain": flat[6:]},
        "shapes": [{"embedding": torch.Size([2, 3])}],
        "groups": [{"lr": 0.1, "params": (0, flat[8:])}],
    }
    copy = _copied(state, {})
    flat += 1
    assert copy["module"]["embedding"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copy["module"]["head"] is copy["module"]["embedding"]
    assert copy["groups"][0]["params"][1].tolist() == [8, 9, 10, 11]
    assert isinstance(copy["shapes"][0]["embedding"], torch.Size)
    copy["groups"][0]["lr"] = 0.2
    assert state["groups"][0]["lr"] == 0.1


def test_rewinds_leave_data_out_and_are_told():
    sequences = PLAN.recipe.batch.sequences
    plan = replace(PLAN, rewinds=(Rewind(7, 4, 2), Rewind(6, 4, 1), Rewind(20, 10, 3)))
    consumed = [plan.consumed(step) // sequences for step in (1, 4, 5, 10, 11)]
    assert consumed == [0, 3, 4 + 3 + 2, 9 + 3 + 2, 10 + 3 + 2 + 10]
    assert plan.rewinds_told(4) == {}
    assert plan.rewinds_told(5) == {
        **{"rewinds": 2, "steps_rewound": 5, "skipped_steps_rewound": 3},
        "rewound_from": 6,
    }
    assert plan.rewinds_told(12) == {"rewinds": 3, "steps_rewound": 15, "skipped_steps_rewound": 6}


@given(moves=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=6))
def test_no_data_is_seen_again_after_going_back_however_far(moves):
    """A run that takes some steps, goes back some, and so on, to any step before."""
    plan, step, seen = PLAN, 0, []
    for forward, back in moves:
        seen += [plan.consumed(number) for number in range(step + 1, step + forward + 1)]
        step += forward
        begin = max(0, step - 1 - back)
        plan, step = replace(plan, rewinds=(*plan.rewinds, Rewind(step, begin, 1))), begin
    assert seen == [number * PLAN.recipe.batch.sequences for number in range(len(seen))]


class Killed(BaseException):
    """As if the process had ended there."""


@pytest.mark.parametrize("holds_a_run", [False, True])
def test_folder_that_was_being_laid_out_when_its_run_was_killed_can_be_begun(holds_a_run, tmp_path, monkeypatch):
    """Before its plan was whole, or while what an earlier run left was being removed."""
    (tmp_path / "tokenizer.json").write_text("{}")
    folder, other = RunFolder(tmp_path / "run"), replace(PLAN, data_fingerprint="other")
    if holds_a_run:
        folder.begin(other, tmp_path / "tokenizer.json", begun=False)
        step = folder.checkpoints / "step_00000001"
        step.mkdir()
        (step / "complete.json").write_text("{}")

    def killed(path, *_):
        path.with_suffix(".partial").write_text("{")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("training.run_folder.write_durably", killed)
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(Killed):
            folder.begin(PLAN, tmp_path / "tokenizer.json", begun=False)
    assert not folder.is_begun(PLAN.recipe, PLAN.data_fingerprint, resume=True, overwrite=holds_a_run)
    assert not list(folder.checkpoints.glob("*/complete.json"))
    folder.begin(PLAN, tmp_path / "tokenizer.json", begun=False)
    assert folder.is_begun(PLAN.recipe, PLAN.data_fingerprint, resume=True, overwrite=False)
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "plan.json", "tokenizer"]


def test_job_that_is_queued_again_does_not_overwrite_what_it_began(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = RunFolder(tmp_path / "run")
    folder.begin(replace(PLAN, begun_by="77"), tmp_path / "tokenizer.json", begun=False)
    for job, restarts, goes_on in (("77", "0", False), ("77", "1", True), ("78", "1", False), ("", "1", False)):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        for resume in (True, False):
            assert folder.is_begun(PLAN.recipe, PLAN.data_fingerprint, resume=resume, overwrite=True) == goes_on
