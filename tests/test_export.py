"""Exported models against the training model itself: any ZeRO stage, one process and two; and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest
from small_runs import ROOT, SHORT, free_port, train
from small_shards import make_shards

from tokenizer.encode import Encoder
from tokenizer.whole_folder import whole_folder
from training import export as exporting
from training.config import Batch, Model, Objective, Optimizer, Recipe, Schedule
from training.export import WEIGHTS
from training.model import OBJECTIVE, build
from training.run_folder import Plan, RunFolder

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
    done = export(run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(64).view(2, 32)).logits
    assert expected.std() > 0.1
    assert torch.equal(logits, expected)


def environment(shared, rank):
    return os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}


def export(run, output, *options, limit_bytes=None, folder=None):
    """`limit_bytes` bounds each file that is written."""
    limit = ["prlimit", f"--fsize={limit_bytes}"] if limit_bytes else []
    command = [sys.executable, ROOT / "training" / "export.py", "--run", run, "--output", output, *options]
    return subprocess.run([*limit, *map(str, command)], cwd=folder, capture_output=True, text=True, check=False)


def refused(run, output, *options, **more):
    """The one line that an export ends with."""
    done = export(run, output, *options, **more)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def fresh(folder, kind="causal", **shape):
    """The export of a model that was not trained, of a shape and an objective; it and its configuration as written."""
    recipe = Recipe(Model(**shape), Batch(32, 8, 2), Optimizer(), Schedule(), 0, objective=Objective(kind))
    plan = Plan(recipe, "", vocab_size=300, end_of_text_id=0, planned=((0, 4),))
    model = build(plan.model_config(), seed=0).eval()
    folder.mkdir()
    exporting.save_model(plan, model.state_dict(), "fp32", folder)
    return model, json.loads((folder / "config.json").read_text())


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 16}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
WIDTHS |= {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ({"hidden_size": 32, "layers": 2, "heads": 2, "rope_theta": 100.0}, {"rope_theta": 100.0}),
        (
            {"config": {"model_type": "llama", "rope_scaling": LLAMA_3}},
            {"rope_theta": 10000.0, "rope_scaling": LLAMA_3},
        ),
        ({"config": {"model_type": "stablelm"}}, {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
        ({"architecture": "gpt2", "hidden_size": 32, "layers": 2, "heads": 2}, {}),
    ],
)
def test_rotary_positions_have_the_names_of_older_transformers_too(tmp_path, shape, names):
    """With 4.57 all of these gave the same logits, tried by hand; here, that version 5 is not misled."""
    import torch
    from transformers import AutoModelForCausalLM

    if "config" in shape:
        shape = {"config": json.dumps(shape["config"] | WIDTHS)}
    model, config = fresh(tmp_path / "model", **shape)
    older = ("rope_theta", "partial_rotary_factor", "rope_scaling")
    assert {name: config[name] for name in older if name in config} == names
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(*(one(torch.arange(32)[None]).logits for one in (model, read)))


def test_t5_can_be_fine_tuned_and_no_row_of_its_embedding_is_left_out(tmp_path):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model, config = fresh(tmp_path / "t5", "spans", hidden_size=32, layers=2, heads=2)
    assert config["pad_token_id"] == 0
    assert config[OBJECTIVE] == "spans"
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5").eval()
    ids, labels = torch.arange(32)[None], torch.tensor([[5, 6, 0, -100]])
    output = read(input_ids=ids, labels=labels)
    assert torch.equal(output.logits, model(input_ids=ids, decoder_input_ids=torch.tensor([[0, 5, 6, 0]])).logits)
    output.loss.backward()
    assert read.get_input_embeddings().weight.grad[0].any()
    for kind in ("causal", "masked"):  # their embeddings would leave the row out
        assert fresh(tmp_path / kind, kind, hidden_size=32, layers=2, heads=2)[1].get("pad_token_id") is None


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """A run of two checkpoints, to be read and not changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = SHORT | {"max_steps": 4, "checkpoint_every": 2, "evaluation_tokens": 0}
    train(shards, run, options, world_size=1)
    return run


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, 1000)


@pytest.mark.parametrize(
    ("harm", "told"),
    [(flip, "has another checksum"), (cut, "has 1,000 of "), (os.remove, "is missing")],
)
def test_damaged_checkpoint_is_named_and_a_sound_one_exported(trained, tmp_path, harm, told):
    run = shutil.copytree(trained, tmp_path / "run")
    harm(run / "checkpoints" / "step_00000004" / WEIGHTS)
    line = refused(run, tmp_path / "out")
    assert f"{run}/checkpoints/step_00000004 is damaged: {WEIGHTS} {told}" in line
    assert line.endswith("; choose a sound --step (2), or train on\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    done = export(run, tmp_path / "out", "--step", 2)
    assert done.returncode == 0, done.stderr
    harm(run / "checkpoints" / "step_00000002" / WEIGHTS)
    line = refused(run, tmp_path / "out", "--step", 2, "--overwrite")
    assert line.endswith("; put it back, or train anew (--overwrite)\n")
    assert (tmp_path / "out" / "config.json").is_file()


def test_damaged_part_of_stage_3_is_named(shards, tmp_path):
    configuration = tmp_path / "zero.json"
    configuration.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    options = SHORT | {"max_steps": 2, "deepspeed": configuration, "evaluation_tokens": 0}
    train(shards, tmp_path / "run", options, world_size=1)
    (part,) = (tmp_path / "run" / "checkpoints" / "step_00000002").glob("*optim_states.pt")
    flip(part)
    assert f"{part.name} has another checksum" in refused(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_leaves_the_model_that_was_there(trained, tmp_path):
    output = shutil.copytree(trained / "export", tmp_path / "out")
    (output / "README.md").write_text("of the one that was there")
    before = contents(output)
    line = refused(trained, output, "--overwrite", limit_bytes=100_000)
    assert f"{output} cannot be written: " in line
    assert "File too large" in line
    assert contents(output) == before
    assert "cannot be written" in refused(trained, tmp_path / "new", limit_bytes=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    done = export(trained, output, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert contents(output) == contents(trained / "export")


def test_tokenizer_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    """The library of tokenizers, written in Rust, raises a plain Exception."""

    def fail(*_):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr("training.export.checkpoint_of", lambda *_: SimpleNamespace(precision="fp32"))
    for name in ("require_sound", "read_weights", "save_model"):
        monkeypatch.setattr(f"training.export.{name}", lambda *_: None)
    monkeypatch.setattr("training.export.save_tokenizer", fail)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").touch()
    monkeypatch.setattr(RunFolder, "plan", SimpleNamespace())
    with pytest.raises(OSError, match=r"out cannot be written: No space left on device \(os error 28\); nothing"):
        exporting.export(RunFolder(tmp_path), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_only_a_model_is_overwritten(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear to someone")
    (tmp_path / "file").write_text("dear to someone")
    before = contents(tmp_path)
    for options in ([], ["--overwrite"]):
        assert "mine exists and is no exported model; choose another" in refused(trained, tmp_path / "mine", *options)
        assert "file is a file; choose another --output" in refused(trained, tmp_path / "file", *options)
        line = refused(trained, ".", *options, folder=tmp_path / "mine")
        assert f"error: . is or holds {tmp_path}/mine, which must stay; choose another --output" in line
        assert "is or holds" in refused(trained, trained, *options)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]
    model = shutil.copytree(trained / "export", tmp_path / "model")
    (model / ".git").mkdir()
    line = refused(trained, model, "--overwrite")
    assert f"{model} holds .git, which no export writes; move it, or choose another --output" in line
    assert contents(model) == contents(trained / "export")
    assert "choose another --output, or --overwrite" in refused(trained, trained / "export")


def test_model_that_a_run_began_from_is_never_replaced(trained, tmp_path):
    base = shutil.copytree(trained / "export", tmp_path / "base")
    run = shutil.copytree(trained, tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    plan["recipe"]["from_pretrained"] = str(base)
    (run / "plan.json").write_text(json.dumps(plan))
    assert f"base is or holds {base}, which must stay" in refused(run, base, "--overwrite")
    assert contents(base) == contents(trained / "export")


def test_model_that_a_killed_export_set_aside_is_put_back(trained, tmp_path):
    aside, model = shutil.copytree(trained / "export", tmp_path / ".model.replaced"), tmp_path / "model"
    (tmp_path / ".model.unfinished").mkdir()
    before = contents(aside)
    assert "model exists; choose another --output, or --overwrite" in refused(trained, model)
    assert contents(model) == before
    model.rename(aside)
    with pytest.raises(FileExistsError, match="model exists"), whole_folder(model, overwrite=False):
        raise AssertionError
    assert contents(model) == before
    assert not aside.exists()


def test_model_behind_a_link_is_replaced_where_it_lies(trained, tmp_path):
    shutil.copytree(trained / "export", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("of the one that was there")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    done = export(trained, tmp_path / "link", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "model") == contents(trained / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]


def test_tokenizer_is_that_of_the_shards_for_older_transformers_too(shards, trained):
    from transformers import AutoTokenizer

    settings = json.loads((trained / "export" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    read, text = AutoTokenizer.from_pretrained(trained / "export"), "def add(left, other):\n    return  left"
    assert read(text)["input_ids"] == Encoder(shards / "tokenizer").encode(pa.array([text]))[0][:-1].tolist()
    assert (read.eos_token_id, read.pad_token_id, read.model_max_length) == (0, 0, 32)


def test_run_without_its_tokenizer_is_one_line(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "tokenizer" / "tokenizer.json").unlink()
    assert f"no tokenizer.json in {run}/tokenizer; put back" in refused(run, tmp_path / "out")
