"""What only a GPU runs: documents by varlen attention, 16-bit weights, offload, resuming, the planner's memory.

All are skipped where there is none. In 16 bits the order of operations shows: curves, which fall by three nats, are
held to 0.1.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import TINY, finish, interrupted, losses, metrics, started, train, wait_for_step
from small_shards import make_shards
from test_nvme import HALF_WAY, WAYS, WIDE, needs_libaio, settings, written

from training.attention import FUSED, use_fused
from training.config import Model, Objective
from training.losses import has_liger, in_chunks, summed_losses
from training.memory import Layout, estimate
from training.micro_batch import MicroBatch, room_for
from training.model import build, configuration
from training.objectives import Causal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ZERO = Path(__file__).parent.parent / "infra" / "deepspeed"
END, VOCABULARY, NEAR = 0, 300, 0.1
GPU = TINY | {"model.hidden_size": 64, "max_steps": 16, "checkpoint_every": 6, "evaluate_every": 16}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    """A run at ZeRO stage 1 in bf16, the default on GPUs."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    train(shards, run, GPU | {"deepspeed": ZERO / "zero1.json"}, 1)
    return run


@pytest.mark.parametrize("shape", [Model("llama", 128, 2, 4, key_value_heads=2), Model("gpt2", 128, 2, 2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_documents_in_one_row_get_the_logits_of_each_alone(shape, compiled):
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (3, 129))
    rows[:, [5, 40, 41, 100]] = END
    config = configuration(shape, vocab_size=VOCABULARY, context_tokens=128, end_of_text_id=END)
    model = build(config, seed=0).to("cuda", torch.bfloat16).eval()
    batch = MicroBatch.of(Causal(END)(rows, [""] * 3), flatten=True).on("cuda")
    ids = torch.from_numpy(rows[:, :-1]).cuda()
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        alone = torch.empty(3, 128, VOCABULARY, device="cuda", dtype=torch.bfloat16)
        for row in range(3):
            begins = np.flatnonzero(rows[row, :-1] == END).tolist()
            for begin, end in zip([0, *begins], [*begins, 128], strict=True):
                alone[row, begin:end] = model(input_ids=ids[row : row + 1, begin:end]).logits[0]
        use_fused(model, Objective(), "document", in_16_bits=True)
        assert model.config._attn_implementation == FUSED
        forward = torch.compile(model, fullgraph=True) if compiled else model
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "document_borders")}
        together = forward(**inputs).logits.view_as(alone)
        across = model(input_ids=ids).logits
    assert (together - alone).norm() / alone.norm() < 0.01
    assert (across - alone).norm() / alone.norm() > 0.05


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_of_page_locked_memory_are_those_on_the_device(dtype):
    room = room_for(4, 1025, dtype)
    rows = room.numpy()
    rows[:] = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, rows.shape)
    assert room.is_pinned()
    there = MicroBatch.of({"rows": rows}, room=room).on("cuda")
    np.testing.assert_array_equal(there["input_ids"].cpu().numpy(), rows[:, :-1].astype(np.int64))
    np.testing.assert_array_equal(there["labels"].cpu().numpy(), rows[:, 1:].astype(np.int64))


@pytest.mark.skipif(not has_liger(), reason="needs liger-kernel")
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("biased", [False, True])
def test_chunks_by_liger_have_losses_and_gradients_of_the_whole(z_loss, biased):
    generator, ways = torch.Generator().manual_seed(0), []
    drawn = [torch.randn(*size, generator=generator).cuda() for size in ((200, 64), (300, 64), (300,))]
    labels = torch.randint(0, 300, (200,), generator=generator).cuda()
    labels[::3] = -100
    for chunked in (False, True):
        hidden, weight, *bias = (one.clone().requires_grad_() for one in (drawn if biased else drawn[:2]))
        if chunked:
            total, nats = in_chunks(hidden, weight, bias[0] if biased else None, labels, 40, z_loss)
        else:
            total, nats = summed_losses(torch.nn.functional.linear(hidden, weight, *bias), labels, z_loss)
        (total / 133).backward()
        ways.append([total.detach(), nats, hidden.grad, weight.grad, *(one.grad for one in bias)])
    for whole, parts in zip(*ways, strict=True):
        assert (parts - whole).norm() <= 1e-3 * whole.norm()


def test_gradients_of_documents_are_those_of_a_mask():
    rows = np.random.default_rng(1).integers(1, VOCABULARY, (2, 129))
    rows[:, ::20] = END
    shape, found = Model("llama", 128, 2, 4, key_value_heads=2), []
    config = configuration(shape, vocab_size=VOCABULARY, context_tokens=128, end_of_text_id=END)
    for fused in (False, True):
        model = build(config, seed=0).to("cuda", torch.bfloat16)
        if fused:
            use_fused(model, Objective(), "document", in_16_bits=True)
        batch = MicroBatch.of(Causal(END)(rows, [""] * 2), flatten=fused).on("cuda")
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        found.append(torch.cat([one.grad.flatten().float() for one in model.parameters()]))
    assert (found[1] - found[0]).norm() / found[0].norm() < 0.03


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_stages_and_offload_agree_with_stage_1(unbroken, shards, tmp_path, name):
    if not (ZERO / f"{name}.json").is_file():
        pytest.fail(f"no {name}.json")
    train(shards, tmp_path / "run", GPU | {"deepspeed": ZERO / f"{name}.json"}, 1)
    assert losses(tmp_path / "run") == pytest.approx(losses(unbroken), abs=NEAR)
    assert losses(unbroken)[-1] < losses(unbroken)[0] - 1


@needs_libaio
@pytest.mark.parametrize("way", ["optimizer", "weights", "both"])
def test_what_waits_on_a_disk_is_trained_as_in_memory_and_goes_on_in_the_same_bits(shards, tmp_path, way):
    (tmp_path / "disk").mkdir()
    train(shards, tmp_path / "memory", WIDE | {"deepspeed": ZERO / "zero3.json"}, 1)
    options = WIDE | {"deepspeed": written(tmp_path, settings(tmp_path / "disk", **WAYS[way]))}
    train(shards, tmp_path / "run", options, 1)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "memory"), abs=NEAR)
    resumed = interrupted(tmp_path / "run", tmp_path / "resumed", HALF_WAY)
    train(shards, resumed, options, 1)
    assert losses(resumed) == losses(tmp_path / "run")


CHOICES = {
    "fp32": {"compute.precision": "fp32"},
    "fp16": {"compute.precision": "fp16", "bad_steps": 20},
    "compiled": {"compute.compile": "true"},
    "chunks": {"compute.loss_chunk_tokens": 40, "compute.checkpoint_activations": "true"},
    "compiled chunks": {"compute.loss_chunk_tokens": 40, "compute.compile": "true"},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_precisions_compilation_and_chunks_stay_near(unbroken, shards, tmp_path, choice):
    options = GPU | {"deepspeed": ZERO / "zero1.json"} | CHOICES[choice]
    train(shards, tmp_path / "run", options, 1)
    rows = metrics(tmp_path / "run")
    assert all(row["gradient_norm"] > 0 for row in rows if not row.get("skipped"))
    if choice == "fp16":  # the scale comes down from 2^16 by steps that are skipped
        assert rows[-1]["loss"] < rows[0]["loss"] - 1
        return
    assert losses(tmp_path / "run") == pytest.approx(losses(unbroken), abs=NEAR)


@pytest.mark.parametrize("more", [{}, {"compute.compile": "true"}, {"optimizer.kind": "muon"}])
def test_documents_are_trained_on_apart(shards, tmp_path, more):
    options = GPU | {"attention": "document", "model.architecture": "gpt2"} | more
    train(shards, tmp_path / "run", options, 1)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 1


def test_killed_and_resumed_goes_on_as_unbroken(unbroken, shards, tmp_path):
    options = GPU | {"deepspeed": ZERO / "zero1.json"}
    with started(shards, tmp_path / "run", options, 1) as jobs:
        wait_for_step(tmp_path / "run", 9, jobs)
        jobs[0].send_signal(signal.SIGKILL)
    train(shards, tmp_path / "run", options | {"deepspeed": ZERO / "zero3.json"}, 1)
    assert losses(tmp_path / "run") == pytest.approx(losses(unbroken), abs=NEAR)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    "choice", [{"optimizer.implementation": "deepspeed"}, {"compute.precision": "fp16", "bad_steps": 20}]
)
def test_fused_adam_and_scaled_losses_learn_and_go_on_in_the_same_bits(unbroken, shards, tmp_path, choice, stage):
    """By DeepSpeed's kernels; and in fp16, whose loss scale comes down from 2^16 by steps that are skipped."""
    options = GPU | {"deepspeed": ZERO / f"zero{stage}.json", "keep_checkpoints": 3} | choice
    train(shards, tmp_path / "run", options, 1)
    if "compute.precision" in choice:
        assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 1
    else:
        assert losses(tmp_path / "run") == pytest.approx(losses(unbroken), abs=NEAR)
    resumed = interrupted(tmp_path / "run", tmp_path / "resumed", 6)
    (printed,) = train(shards, resumed, options, 1)
    assert "going on after step 6" in printed
    assert losses(resumed) == losses(tmp_path / "run")


def test_stopped_by_a_signal_saves_and_goes_on(shards, tmp_path):
    options = GPU | {"max_steps": 2000, "checkpoint_every": 1000, "evaluate_every": 2000}
    with started(shards, tmp_path / "run", options, 1) as jobs:
        wait_for_step(tmp_path / "run", 5, jobs)
        jobs[0].send_signal(signal.SIGTERM)
        codes, outputs = finish(jobs)
    assert codes != [0], outputs
    taken = len(losses(tmp_path / "run"))
    train(shards, tmp_path / "run", options | {"max_steps": taken + 3}, 1)
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, taken + 4))


def test_export_generates_and_gauges_add_up(unbroken):
    command = [sys.executable, "training/generate.py", "--model", str(unbroken / "export"), "--prompt", "def add("]
    done = subprocess.run(
        [*command, "--max_new_tokens", "8"], capture_output=True, text=True, check=True, cwd=ZERO.parents[1]
    )
    assert "def add(" in done.stdout
    for row in metrics(unbroken)[2:]:
        parts = ("data_wait", "forward", "backward", "optimizer", "communication")
        assert 0 < sum(row[f"{part}_seconds"] for part in parts) <= row["seconds"] * 1.05
        assert 0 <= row["mfu"] < 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_memory_is_what_the_planner_says(shards, tmp_path, architecture):
    shape = {"model.architecture": architecture, "model.hidden_size": 768, "model.layers": 12, "model.heads": 12}
    batch = {"batch.sequence_length": 512, "batch.sequences": 16, "batch.sequences_per_device": 8}
    options = shape | batch | {"max_steps": 4, "evaluation_tokens": 0, "deepspeed": ZERO / "zero1.json"}
    train(shards, tmp_path / "run", options, 1)
    vocab_size = json.loads((shards / "index.json").read_text())["vocab_size"]
    layout = Layout(1, 1, 8, "bf16", accumulates=True)
    expected = estimate(Model(architecture, 768, 12, 12), vocab_size=vocab_size, sequence_length=512, layout=layout)
    assert metrics(tmp_path / "run")[-1]["mfu"] > 0.01
    assert max(row["memory_bytes"] for row in metrics(tmp_path / "run")) == pytest.approx(expected.peak, rel=0.15)
