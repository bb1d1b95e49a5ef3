"""What a user can get wrong in training: one line, an exit code, and nothing left behind."""

import json
import shutil
import subprocess
import sys

import pytest
from small_runs import LIMIT_SECONDS, SHORT, finish, metrics, started, train, wait_for_step, words
from small_shards import make_shards, make_tokenizer


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def refused(shards, output, options, folder=None):
    job = subprocess.run(
        [sys.executable, *words(shards, output, options)], capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert not output.exists()
    assert "Traceback" not in job.stderr
    return job


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"shards": "nowhere"}, "index.json is missing"),
        ({"batch.sequence_length": 10**6}, "batch.sequence_length 1000000 needs 1000001 tokens"),
        ({"model.hidden_size": 33}, "model.hidden_size 33 is no multiple of model.heads 2"),
        ({"optimizer.learning_rate": 3}, "optimizer.learning_rate 3.0 is not above 0 and below 1"),
        ({"optimizer.weight_decay": ".inf"}, "optimizer.weight_decay inf is not finite"),
        ({"model.rope_theta": ".nan"}, "model.rope_theta nan is below 1"),
        ({"seed": 2**80}, "has more than 64 bits"),
        ({"watch.temperature": ".nan"}, "watch.temperature nan is not 0 or more and finite"),
        ({"watch.wandb": "me/code"}, "watch.wandb 'me/code' has one of the characters /\\#?%:, which no project"),
        ({"threads": 10**6}, "threads 1000000 is above 4,096"),
        ({"model.config": '{"model_type": "vit"}'}, "gives a vit, which does not continue text; give a causal"),
        ({"model.config": '{"model_type": "bart"}'}, "gives a bart, which does not continue text; give a causal"),
        ({"optimizer.beta2": 1}, "optimizer.beta2 1.0 is not 0 or more and below 1"),
        ({"objective.noise": 0}, "objective.noise 0.0 is not above 0 and below 1"),
        ({"threads": -1}, "threads -1 is below 0"),
        ({"evaluation_tokens": -1}, "evaluation_tokens -1 is below 0"),
        ({"cache_bytes": -1}, "cache_bytes -1 is below 0"),
        ({"max_steps": 0}, "max_steps 0 is below 1"),
        ({"checkpoint_every": 0}, "checkpoint_every 0 is below 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints 0 is below 1"),
        ({"batch.sequences": 10**8}, "batch.sequences 100000000 of a step are too many: an epoch has "),
        ({"data.warmup_steps": 4}, "data.warmup_length 128 is not below batch.sequence_length 32; choose a shorter"),
        ({"output": ""}, "output is empty; name the folder of the run"),
        ({"deepspeed": "nowhere.json"}, "no DeepSpeed configuration at nowhere.json"),
        ({"tokenizer": "nowhere"}, "no tokenizer.json in nowhere"),
    ],
)
def test_faults_of_the_user_cost_one_line_and_leave_no_folder(shards, tmp_path, changed, line):
    options = SHORT | changed
    job = refused(options.pop("shards", shards), tmp_path / "run", options)
    assert job.returncode == 1
    assert line in job.stderr
    assert job.stderr.count("\n") == 1


def test_unknown_option_is_a_usage_error(shards, tmp_path):
    assert refused(shards, tmp_path / "run", SHORT | {"modell.layers": 3}).returncode == 2


def test_tokenizer_of_other_shards_is_refused(shards, tmp_path):
    make_tokenizer(tmp_path / "other", vocab_size=280)
    job = refused(shards, tmp_path / "run", SHORT | {"tokenizer": tmp_path / "other"})
    assert job.returncode == 1
    assert "280 entries" in job.stderr


def test_damaged_shard_is_named(shards, tmp_path):
    broken = shutil.copytree(shards, tmp_path / "shards")
    with (broken / "train-1.arrow").open("ab") as file:
        file.write(b"more")
    with started(broken, tmp_path / "run", SHORT, 1) as jobs:
        (code,), (printed,) = finish(jobs)
    assert code == 1
    assert "train-1.arrow" in printed
    assert "Traceback" not in printed


def test_keys_of_the_run_in_a_deepspeed_configuration_are_refused(shards, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "optimizer": {"type": "Lamb"}}))
    job = refused(shards, tmp_path / "run", SHORT | {"deepspeed": path})
    assert job.returncode == 1
    assert "'optimizer' of type Lamb is decided by --optimizer.*; remove it" in job.stderr


def test_folder_that_is_no_run_is_never_overwritten(shards, tmp_path):
    (tmp_path / "thesis.txt").write_text("dear to someone")
    with started(shards, tmp_path, SHORT | {"overwrite": "true"}, 1) as jobs:
        (code,), (printed,) = finish(jobs)
    assert code == 1
    assert "is no training run" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_run_reads_is_not_emptied_with_its_folder(shards, tmp_path):
    run = tmp_path / "run"
    train(shards, run, SHORT | {"max_steps": 2}, 1)
    for options in ({"from_pretrained": run / "export"}, {"tokenizer": run / "tokenizer"}):
        with started(shards, run, SHORT | {"overwrite": "true"} | options, 1) as jobs:
            (code,), (printed,) = finish(jobs)
        assert code == 1
        assert f"lies in {run}, which the run would empty; copy it to another place, or choose another" in printed
        assert printed.count("\n") == 1
    assert (run / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"max_steps": "null", "train_minutes": ".nan"}, "train_minutes nan is not above 0 and finite"),
        ({"model.hidden_size": 10**12}, "a llama of these sizes cannot be made"),
        ({"model.config": '{"model_type": "llama", "hidden_act": "foo"}'}, "a llama of these sizes cannot be made"),
    ],
)
def test_models_that_cannot_be_made_are_a_line_and_leave_no_folder(shards, tmp_path, changed, line):
    job = refused(shards, tmp_path / "run", SHORT | changed)
    assert job.returncode == 1
    assert line in job.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"steps_per_print": 0}, "steps_per_print 0 is no number of steps from 1 on"),
        ({"timers": 2}, "DeepSpeed cannot take the configuration of --deepspeed: "),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "zero_optimization.reduce_bucket_size"),
    ],
)
def test_what_deepspeed_cannot_take_is_a_line_and_leaves_no_folder(shards, tmp_path, more, line):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}} | more))
    job = refused(shards, tmp_path / "run", SHORT | {"deepspeed": path})
    assert job.returncode == 1
    last = job.stderr.splitlines()[-1]
    assert line.split(".")[-1] in last
    assert last.startswith("error: ")


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "0"), ("WORLD_SIZE", "x"), ("OMP_NUM_THREADS", "abc")])
def test_variables_that_are_no_numbers_are_named(shards, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    job = refused(shards, tmp_path / "run", SHORT)
    assert job.returncode == 1
    assert f"{name} is '{value}' in the environment, which is no number from 1 on" in job.stderr


@pytest.mark.parametrize(("name", "content"), [("plan.json", "{"), ("plan.json", "{}"), ("plan.json", "[]")])
def test_damaged_file_of_a_run_is_named(shards, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with started(shards, tmp_path, SHORT, 1) as jobs:
        (code,), (printed,) = finish(jobs)
    assert code == 1
    assert f"{tmp_path / name} is damaged" in printed
    assert printed.count("\n") == 1


def test_output_that_is_a_file_is_refused(shards, tmp_path):
    (tmp_path / "run").write_text("dear to someone")
    with started(shards, tmp_path / "run", SHORT, 1) as jobs:
        (code,), (printed,) = finish(jobs)
    assert (code, printed.count("\n")) == (1, 1)
    assert "is a file; choose another --output" in printed
    assert (tmp_path / "run").read_text() == "dear to someone"


def test_a_second_run_in_a_folder_is_refused_while_the_first_lives_and_not_after_its_death(shards, tmp_path):
    run = tmp_path / "run"
    with started(shards, run, SHORT | {"max_steps": 5000}, 1) as first:
        wait_for_step(run, 2, first)
        with started(shards, run, SHORT | {"max_steps": 5000}, 1) as second:
            (code,), (printed,) = finish(second)
        assert code == 1
        assert f"{run} is being written by process {first[0].pid} on " in printed
        assert "Traceback" not in printed
        wait_for_step(run, 10, first)
    with started(shards, run, SHORT | {"overwrite": "true"}, 1) as third:
        (code,), (printed,) = finish(third)
    assert code == 0, printed


@pytest.mark.slow
def test_overwriting_is_done_once_by_a_job_that_is_queued_again(shards, tmp_path, monkeypatch):
    """The same command, `--overwrite` and all, goes on after a restart; another job begins anew."""
    run, steps = tmp_path / "run", {"max_steps": 6, "overwrite": "true", "schedule.final_fraction": 0.1}
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    train(shards, run, SHORT | steps, 1)
    train(shards, run, SHORT | steps, 1)
    assert json.loads((run / "plan.json").read_text())["begun_by"] == "77"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(shards, run, SHORT | steps | {"max_steps": 8}, 1)
    assert [row["step"] for row in metrics(run) if "resumed" in row] == [7]
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    train(shards, run, SHORT | steps | {"max_steps": 8}, 1)
    assert not [row for row in metrics(run) if "resumed" in row]
    (run / "checkpoints").rename(tmp_path / "lost")
    before = (run / "metrics.jsonl").read_bytes()
    with started(shards, run, SHORT | steps | {"max_steps": 10, "overwrite": "false"}, 1) as jobs:
        (code,), (printed,) = finish(jobs)
    assert (code, printed.count("\n")) == (1, 1)
    assert f"{run}/checkpoints holds no checkpoint, though its run had some; put them back, or begin anew" in printed
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_more_steps_at_a_learning_rate_of_nothing_are_refused(shards, tmp_path):
    run, options = tmp_path / "run", SHORT | {"max_steps": 4, "schedule.final_fraction": 0}
    train(shards, run, options, 1)
    with started(shards, run, options | {"max_steps": 8}, 1) as jobs:
        (code,), (printed,) = finish(jobs)
    assert (code, printed.count("\n")) == (1, 1)
    assert "the run is at its end, step 4, and its learning rate at 0, where it would stay; train on from" in printed
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4]


def test_folder_of_shards_is_mixed_by_weight_and_not_by_naming_it_twice(shards, tmp_path):
    job = refused([shards, shards], tmp_path / "run", SHORT)
    assert (
        job.stderr
        == f"error: {shards} is named twice in --shards; name it once, and how much of it by --data.weights\n"
    )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_missing_shard_is_told_before_the_first_step(shards, tmp_path, split):
    """Of held-out data too, which is not read for long."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    missing = sorted(folder.glob(f"{split}*.arrow"))[-1]
    missing.unlink()
    job = refused(folder, tmp_path / "run", SHORT)
    assert job.stderr.startswith(f"error: shard {missing} is missing, the index says ")
    assert job.stderr.count("\n") == 1


def test_what_the_run_does_not_do_as_one_might_think_is_told(shards, tmp_path):
    options = SHORT | {"max_steps": 4, "data.warmup_steps": 4, "data.warmup_length": 16}
    shape = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    (printed,) = train(shards, tmp_path / "run", options | {"model.config": json.dumps(shape)}, 1)
    assert "no step will have batch.sequence_length 32: data.warmup_steps 4 are not over" in printed
    assert "model.hidden_size, model.layers, model.heads: not used, the model's own configuration decides" in printed
    page = (tmp_path / "run" / "run.html").read_text()
    assert "<td>model.config.num_hidden_layers</td><td>1</td>" in page
    assert "model.layers" not in page


def test_lines_of_a_run_that_are_broken_are_left_out_and_told(shards, tmp_path):
    """A loss of power may leave zeros where rows were."""
    run = tmp_path / "run"
    train(shards, run, SHORT, 1)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[3], lines[5] = b"\0" * 40 + b"\n", b"5\n"
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    (run / "samples.jsonl").write_bytes(b"[1]\n\xff\n" + (run / "samples.jsonl").read_bytes())
    (printed,) = train(shards, run, SHORT | {"max_steps": 10}, 1)
    assert f"{run}/metrics.jsonl lacks 2 of the steps up to 8" in printed
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 5, 7, 8, 9, 10]


def test_end_of_another_process_is_told_in_a_line(shards, tmp_path):
    run = tmp_path / "run"
    with started(shards, run, SHORT | {"max_steps": 5000, "checkpoint_every": 5}, 2) as jobs:
        wait_for_step(run, 12, jobs)
        jobs[1].kill()
        codes, printed = finish(jobs)
    assert codes[0] == 1
    assert "error: another process of the run ended or cannot be reached (" in printed[0]
    assert "; the same command goes on from the last checkpoint" in printed[0]
    assert "Traceback" not in printed[0]
