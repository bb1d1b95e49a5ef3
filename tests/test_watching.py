"""What a run shows of itself: metrics of its cost, samples, the page, the exported card; one real run, shared."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data_set import small_files, write_small_ledger
from small_runs import ROOT, SHORT, TINY, metrics, train
from small_shards import make_shards

from tokenizer.shards import ShardIndex
from training import data_card
from training.gauges import peak_memory_bytes
from training.line_charts import Line, chart, log_ticks, short, thinned, ticks
from training.meter import Meter, read_metrics
from training.run_folder import RunFolder
from training.run_page import events, page, write_page
from training.samples import read_samples

WATCHED = TINY | {"max_steps": 12, "checkpoint_every": 6, "evaluate_every": 4, "watch.sample_tokens": 8}
COSTS = tuple(f"{part}_seconds" for part in ("data_wait", "forward", "backward", "optimizer", "communication"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def watched(shards, tmp_path_factory):
    """A run of one process, and what it printed."""
    run = tmp_path_factory.mktemp("watched") / "run"
    (printed,) = train(shards, run, WATCHED, world_size=1)
    return run, printed


def test_every_step_tells_what_it_cost(watched, shards):
    run, printed = watched
    index = ShardIndex.load(shards)
    tokens, text = (sum(getattr(s, name) for s in index.of_split("train")) for name in ("tokens", "text_bytes"))
    for row in metrics(run):
        assert all(row[name] >= 0 for name in COSTS)
        assert sum(row[name] for name in COSTS) == pytest.approx(row["seconds"], rel=0.05, abs=2e-3)
        assert row["forward_seconds"] > 0
        assert row["optimizer_seconds"] > 0
        assert 0 < row["mfu"] < 1.5
        assert row["training_bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) * tokens / text, rel=1e-4)
    memory = [row["memory_bytes"] for row in metrics(run)]
    assert memory == sorted(memory)
    assert 1e8 < memory[-1] < 3e9
    assert "measured by a matrix product" in printed
    line = (
        r"step 12/12  loss \d\.\d{3}  \d\.\d{3} bits/byte  norm .*  lr .*  [\d,]+ tokens/s  MFU [\d.]+ %  [\d.]+ GB  "
    )
    assert re.search(line + r"data [\d.]+ %  0:00 left", printed)


def test_samples_are_written_at_each_evaluation_and_drawn_by_step(watched):
    rows = read_samples(watched[0] / "samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in (4, 8, 12) for _ in range(3)]
    assert [row["prompt"] for row in rows[:3]] == ["def fibonacci(n):", "import ", "class Stack:"]
    assert all(isinstance(row["completion"], str) for row in rows)


def test_sample_without_temperature_is_what_the_exported_model_writes(shards, tmp_path):
    from training.decoding import Sampling
    from training.exported import load
    from training.generate import Writer
    from training.prompts import Request

    options = SHORT | {"max_steps": 3, "watch.sample_tokens": 10, "watch.temperature": 0.0}
    train(shards, tmp_path / "run", options | {"watch.prompts": '["def add(", ""]'}, world_size=1)
    writer = Writer(*load(tmp_path / "run" / "export"), max_new_tokens=10, sampling=Sampling(), seed=0)
    expected = writer.complete([(Request("def add("), 0), (Request(""), 0)])
    assert [row["completion"] for row in read_samples(tmp_path / "run" / "samples.jsonl")] == expected


@pytest.mark.slow
def test_samples_of_a_model_that_is_cut_are_those_of_a_whole_one(shards, tmp_path):
    """Stage 3 on two processes, whose forward pass all of them must take, against stage 2 on one."""
    options = SHORT | {"max_steps": 4, "evaluate_every": 2, "watch.sample_tokens": 6}
    train(shards, tmp_path / "whole", options, world_size=1)
    zero3 = ROOT / "infra" / "deepspeed" / "zero3.json"
    train(shards, tmp_path / "cut", options | {"deepspeed": zero3}, world_size=2)
    assert read_samples(tmp_path / "cut" / "samples.jsonl") == read_samples(tmp_path / "whole" / "samples.jsonl")


def test_run_that_goes_on_says_so_and_has_each_sample_once(watched, shards, tmp_path):
    run = shutil.copytree(watched[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    (run / "summary.json").unlink()
    train(shards, run, WATCHED, world_size=1)
    assert [row["step"] for row in metrics(run) if row.get("resumed")] == [7]
    assert read_samples(run / "samples.jsonl") == read_samples(watched[0] / "samples.jsonl")
    assert "<td>the run went on from a checkpoint</td>" in (run / "run.html").read_text()


def test_page_shows_the_run_and_needs_nothing(watched):
    text = (watched[0] / "run.html").read_text()
    row = metrics(watched[0])[-1]
    assert f"<b>{row['validation_loss']:.4f}</b>" in text
    assert text.count("<svg") == 8  # the loss twice: for wide screens and narrow ones
    assert not re.search(r"<script|(src|href|url)\s*[=(]|https?://|@import", text)
    assert "def fibonacci(n):" in text
    drawn = re.search(r'aria-label="Loss by step">.*?</svg>', text).group()
    assert len(re.search(r'polyline points="([^"]+)"', drawn).group(1).split()) == 12
    assert drawn.count("<circle") == 3


def test_lines_that_are_no_rows_are_left_out_of_the_page(watched, tmp_path):
    run = shutil.copytree(watched[0], tmp_path / "run")
    folder, whole = RunFolder(run), (run / "run.html").read_text()
    for row in (
        "{}",
        '{"step": 13, "seconds": 1, "tokens": 1}',
        '{"step": 13, "loss": 1, "seconds": null, "tokens": 1}',
    ):
        with folder.metrics.open("a") as file:
            file.write(row + "\n")
    for row in ('{"step": 12, "completion": "a"}', '{"prompt": "a", "completion": "a"}'):
        with folder.samples.open("a") as file:
            file.write(row + "\n")
    write_page(folder)
    assert folder.page.read_text() == whole


def test_speed_is_that_of_the_steps_that_are_there(watched):
    folder = RunFolder(watched[0])
    rows = read_metrics(folder.metrics)[8:]
    speed = len(rows) * 8 * 32 / sum(row["seconds"] for row in rows)
    assert f"Tokens a second<b>{speed:,.0f}</b>" in page(watched[0], folder.plan, rows, [])


def test_page_escapes_and_tells_events(watched):
    folder = RunFolder(watched[0])
    rows = read_metrics(folder.metrics)
    rows[3] |= {"skipped": 1, "loss": math.nan}
    rows[5] |= {"loss": math.inf}
    rows[8] |= {"rewound_from": 11}
    told = events(rows)
    assert [step for step, _ in told] == [4, 6, 9]
    samples = [{"step": 4, "prompt": "<script>", "completion": "&<b>"}]
    text = page(Path("<i>"), folder.plan, rows, samples)
    assert "<script" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;</b>&amp;&lt;b&gt;" in text
    assert "nan" not in re.search(r'aria-label="Loss by step">.*?</svg>', text).group()
    assert text.count("stroke-dasharray") == 3 * 8


def read(label):
    """The number that a label of an axis says."""
    digits, _, unit = label.partition(" ")
    return float(digits) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]


def test_curves_cover_their_points_and_are_thinned():
    points = [(float(step), math.sin(step)) for step in range(2000)]
    groups = thinned(points, 100)
    assert len(groups) == 100
    assert all(low <= mean <= high for _, mean, low, high in groups)
    assert sum(mean for _, mean, _, _ in groups) / 100 == pytest.approx(sum(y for _, y in points) / 2000)
    svg = chart([Line("a", "own", points)], label="a")
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", svg):
        assert 0 <= float(x) <= 540
        assert 0 <= float(y) <= 230
    assert chart([Line("a", "own", [(1.0, math.nan)])], label="a") == ""
    assert chart([Line("a", "own", [(1.0, 0.0)])], label="a", log_scale=True) == ""
    spans = [(0, 0), (5, 5), (-1, 1e9), (0.1, 0.1000001), (1e-13, 3e-13), (0, 1e-30), (0, 5e-324), (1, 1 + 2e-16)]
    spans += [(0, peak) for peak in (1.1e-4, 2e-4, 1.2e-3, 9_999.6, 12_345.6, 9e5, 3e12)] + [(10_000, 10_004)]
    for low, high in spans:
        found = ticks(low, high, 6)
        assert found[0] <= low <= high <= found[-1]
        assert 2 <= len(found) <= 10
        assert [read(short(tick)) for tick in found] == pytest.approx(found, rel=1e-12)
        assert len({short(tick) for tick in found}) == len(found)
        assert chart([Line("a", "own", [(1.0, low), (2.0, high)])], label="a")
    for low, high in ((0, 0), (-0.7, 0.4), (-3, 2), (0.5, 0.50001), (1, 1.2)):
        found = log_ticks(low, high)
        assert found[0] <= low <= high <= found[-1]
        assert found[0] < found[-1]


def test_memory_is_at_least_what_is_held():
    import torch

    block = torch.ones(50_000_000)
    assert peak_memory_bytes(torch.device("cpu")) >= block.nbytes


def test_pages_of_shards_are_not_memory_of_the_process(tmp_path):
    """In a process of its own, whose memory nothing else ever filled."""
    path = tmp_path / "shard"
    path.write_bytes(bytes(300 << 20))
    code = """
import mmap, sys
from types import SimpleNamespace
from training.gauges import mapped_bytes, peak_memory_bytes
cpu, before = SimpleNamespace(type="cpu"), mapped_bytes()
held = peak_memory_bytes(cpu, before)
with open(sys.argv[1], "rb") as file:
    shard = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sum(shard[place] for place in range(0, len(shard), 4096))
    print(peak_memory_bytes(cpu) - held, peak_memory_bytes(cpu, before) - held)
"""
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    shown, counted = map(int, done.stdout.split())
    assert shown > 250 << 20
    assert abs(counted) < 30 << 20


FAKE_WANDB = """
import json, pathlib
steps = {}
class Run:
    def __init__(self, **given):
        assert not set(given["id"]) & set("/\\\\#?%:;,'")
        self.id, self.file = given["id"], pathlib.Path(given["dir"]).with_suffix(".sent").open("a")
        self.send(given)
    def send(self, what): self.file.write(json.dumps(what) + chr(10)); self.file.flush()
    def define_metric(self, name, step_metric): self.send({"axis": step_metric, "of": name})
    def log(self, row, step=None):
        last = steps.get(self.id, 0)
        if step is None or step >= last:  # rows of earlier steps are dropped, as the real one does
            steps[self.id] = step or last + 1
            self.send(row)
    def finish(self): self.send({"finished": True})
def init(**given): return Run(**given)
"""


def test_wandb_gets_every_row_and_goes_on_under_one_id_until_a_run_is_begun_anew(tmp_path, monkeypatch):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "library")
    run = tmp_path / "my run:1, a?"
    row = {"loss": 1.0, "tokens": 8, "tokens_per_second": 5.0, "learning_rate": 0.1, "seconds": 1.0}
    for first, last in ((0, 3), (2, 4), (0, 1)):  # to a kill; on from a checkpoint; anew
        if first == 0:
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
        meter = Meter(run / "metrics.jsonl", run / "tensorboard", step=first, max_steps=4, wandb="project")
        for step in range(first + 1, last + 1):
            meter.record({"step": step} | row)
        meter.close()
    sent = [json.loads(line) for line in run.with_suffix(".sent").read_text().splitlines()]
    begun = [one for one in sent if "project" in one]
    assert [one["step"] for one in sent if "step" in one] == [1, 2, 3, 3, 4, 1]
    assert [one["axis"] for one in sent if one.get("of") == "*"] == ["step"] * 3
    assert {one["name"] for one in begun} == {run.name}
    assert begun[0]["id"] == begun[1]["id"] != begun[2]["id"]
    assert begun[0]["resume"] == "allow"
    assert sent[-1] == {"finished": True}
    assert "wandb" in sys.modules
    monkeypatch.delitem(sys.modules, "wandb")


def test_wandb_that_is_not_installed_is_one_line(shards, tmp_path):
    command = [sys.executable, str(ROOT / "training" / "train.py"), "--shards", str(shards)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run"), "--watch.wandb", "p"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: wandb is not installed; pip install wandb, or leave --watch.wandb out\n"
    assert not (tmp_path / "run").exists()


def export(run, output, *options):
    script = str(ROOT / "training" / "export.py")
    return subprocess.run(
        [sys.executable, script, "--run", str(run), "--output", str(output), *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_checkpoint_of_a_step_is_exported_with_its_figures(watched, tmp_path):
    import torch
    from safetensors.torch import load_file

    run, _ = watched
    done = export(run, tmp_path / "out", "--step", 6)
    assert done.returncode == 0, done.stderr
    saved = torch.load(
        run / "checkpoints/step_00000006/mp_rank_00_model_states.pt", map_location="cpu", weights_only=False
    )["module"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in written.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{metrics(run)[5]['loss']:.4f}" in card
    assert f"{metrics(run)[3]['validation_loss']:.4f} nats a token, at step 4" in card
    assert "| steps | 6 of 12 |" in card
    assert "* train: 400 documents, 17,850 tokens" in card
    assert "| optimizer.learning_rate | 0.01 |" in card
    assert "<svg" in (tmp_path / "out" / "curves.svg").read_text()
    assert "var(" not in (tmp_path / "out" / "curves.svg").read_text()
    done = export(run, tmp_path / "other", "--step", 7)
    assert done.returncode == 1
    assert done.stderr.endswith("has no checkpoint of step 7; it has 6, 12\n")


def test_card_tells_funnel_and_licences_of_the_kept(tmp_path, monkeypatch):
    files = small_files(40)
    write_small_ledger(tmp_path / "ledger", files)
    manifest = tmp_path / "ledger" / "_manifest.json"
    states = {"kept": {"files": len(files), "bytes": 9_000_000}, "near-duplicate": {"files": 7, "bytes": 1_000_000}}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"states": states}))
    licences = [["MIT"], ["mit ", "Apache-2.0"], [], None, [" "]]
    rows = [{"file_id": file.file_id, "licenses": licences[n % 5]} for n, file in enumerate(files)]
    rows.append({"file_id": b"\xff" * 16, "licenses": ["gpl-3.0"]})
    (tmp_path / "signals").mkdir()
    schema = pa.schema([("file_id", pa.binary()), ("licenses", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "signals" / "part-0.parquet")
    monkeypatch.setattr("tokenizer.file_ids.PILE_IDS", 9)
    (record,) = data_card.of_workspace([{}], tmp_path)
    kept = range(len(files))
    assert record["licences"] == {
        "none known": sum(n % 5 > 1 for n in kept),
        "mit": sum(n % 5 < 2 for n in kept),
        "apache-2.0": sum(n % 5 == 1 for n in kept),
    }
    told = "\n".join(data_card.told([record]))
    assert (
        f"| {len(files) + 7:,} | in | 10.0 |\n| −7 | near-duplicate | −1.0 |\n| {len(files):,} | kept | 9.0 |" in told
    )
    with pytest.raises(ValueError, match="was not made from the ledger"):
        data_card.of_workspace([{"configuration": {"inputs": {"ledger": "other"}}}, {}], tmp_path)
