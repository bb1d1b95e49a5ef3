"""Every objective and way of computing is as exact as the plain one: however a batch is cut, and when resumed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TINY, interrupted, losses, metrics, train
from small_shards import make_shards

from tokenizer.encode import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, MASK, sentinel
from tokenizer.shards import ShardIndex

MARKERS = (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, MASK, *(sentinel(number) for number in range(8)))
SHORT = TINY | {"max_steps": 8, "checkpoint_every": 4, "evaluate_every": 8, "keep_checkpoints": 2}
HALF_WAY = 4
WAYS = {
    "fill_in_the_middle": {"objective.kind": "fill_in_the_middle"},
    "masked": {"objective.kind": "masked", "model.dropout": 0.1},
    "masked documents": {"objective.kind": "masked", "attention": "document"},
    "spans": {"objective.kind": "spans"},
    "spans documents": {"objective.kind": "spans", "attention": "document"},
    "documents": {"attention": "document"},
    "growing": {"data.warmup_steps": 6, "data.warmup_length": 8},
    "mixture": {"data.weights": "[3, 1]", "data.shuffle_tokens": 2000},
    "muon": {"optimizer.kind": "muon"},
    "gpt2": {"model.architecture": "gpt2", "model.tie_embeddings": "false", "optimizer.z_loss": 0.001},
    "saving": {"compute.loss_chunk_tokens": 40, "compute.checkpoint_activations": "true"},
    "compiled": {"compute.compile": "true"},
    "bf16": {"compute.precision": "bf16"},
}
# Where what is drawn, or rounded, belongs to a process and its micro-batch, another cut is another run.
CUT_MATTERS = ("masked", "bf16")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards", more=MARKERS)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """More shards of the same tokenizer."""
    return make_shards(tmp_path_factory.mktemp("data") / "others", more=MARKERS, seed=7, train=150)


def weights(run):
    return load_file(run / "export" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_run_is_one_however_it_is_cut_and_goes_on_in_the_same_bits(way, shards, others, tmp_path):
    settings = tmp_path / "zero.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    if way == "mixture":
        shards = [shards, others]
    options, whole = SHORT | WAYS[way] | {"deepspeed": settings}, tmp_path / "whole"
    train(shards, whole, options, 2)
    if way not in CUT_MATTERS:
        train(shards, tmp_path / "alone", options | {"batch.sequences_per_device": 8}, 1)
        assert losses(tmp_path / "alone") == pytest.approx(losses(whole), abs=1e-5)

    if way == "mixture":
        last = metrics(whole)[-1]
        tokens = [sum(one.tokens for one in ShardIndex.load(folder).of_split("train")) for folder in shards]
        read = [last["epoch_0_shards"] * tokens[0], last["epoch_1_others"] * tokens[1]]
        assert read[0] > 2 * read[1] > 0
        assert sum(read) == pytest.approx(8 * 8 * 32, rel=0.01)  # steps, sequences and tokens of each
    resumed = interrupted(whole, tmp_path / "resumed", HALF_WAY)
    printed = train(shards, resumed, options, 2)
    assert f"going on after step {HALF_WAY}" in printed[0]
    assert losses(resumed) == losses(whole)
    assert metrics(resumed)[-1]["validation_loss"] == metrics(whole)[-1]["validation_loss"]
    assert all(
        torch.equal(old, new) for old, new in zip(weights(whole).values(), weights(resumed).values(), strict=True)
    )
