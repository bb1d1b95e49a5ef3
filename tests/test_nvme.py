"""Optimizer states and weights that wait on a disk: one curve with those that do not, and checkpoints like theirs."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TINY, finish, interrupted, losses, started, train
from small_shards import make_shards

from training import nvme

# A weight waits on the disk from a megabyte on: here most of a layer's do, in one process, and their sizes are none
# that disks like.
WIDE = TINY | {
    **{"model.hidden_size": 516, "model.heads": 6, "batch.sequences": 4, "optimizer.learning_rate": 0.001},
    "model.feed_forward_size": 1371,
    **{"max_steps": 6, "checkpoint_every": 2, "evaluate_every": 6, "keep_checkpoints": 3},
}
HALF_WAY = 4
PARTS = {"stage": 3, "sub_group_size": 1_000_000, "stage3_param_persistence_threshold": 1000}


def has_headers():
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)


needs_libaio = pytest.mark.skipif(
    nvme.has_cuda_without_toolkit() or not has_headers(),
    reason="needs the headers of libaio (infra/libaio.sh), and with GPUs the CUDA toolkit",
)


def settings(disk, *, optimizer=False, weights=False, pipelined=False):
    """ZeRO settings whose optimizer states, weights or both wait on a disk."""
    waits = {"device": "nvme", "nvme_path": str(disk)}
    ahead = {"pipeline_read": pipelined, "pipeline_write": pipelined}
    both = {"offload_optimizer": waits | ahead} if optimizer else {}
    return PARTS | both | ({"offload_param": waits} if weights else {})


def written(folder, zero):
    path = folder / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    return path


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def test_folders_belong_to_one_process_and_are_gone_afterwards(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(nvme, "_refuse_what_is_missing", lambda: None)
    configuration, seen = {"zero_optimization": settings(disk, optimizer=True, weights=True)}, set()
    for run, rank in (("one", 0), ("one", 1), ("other", 0)):
        with nvme.own_folders(configuration, tmp_path / run, rank, 2) as own:
            paths = {one["nvme_path"] for one in nvme.offloads(own).values()}
            assert len(paths) == 1
            assert Path(*paths).is_dir()
            seen |= paths
            (Path(*paths) / "rest").write_text("of a step")
    assert len(seen) == 3
    assert list(disk.iterdir()) == []
    assert configuration == {"zero_optimization": settings(disk, optimizer=True, weights=True)}


def test_disk_that_cannot_be_used_is_named(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(nvme, "_refuse_what_is_missing", lambda: None)
    nowhere = {"zero_optimization": settings(tmp_path / "nowhere", optimizer=True)}
    with (
        pytest.raises(ValueError, match=r"offload_optimizer.nvme_path .*/nowhere is no folder"),
        nvme.own_folders(nowhere, tmp_path, 0, 1),
    ):
        pass
    monkeypatch.setattr(nvme.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000_000))
    monkeypatch.setenv("LOCAL_SIZE", "2")
    model = torch.nn.Linear(50_000, 20_000, bias=False, device="meta")
    configuration = {"zero_optimization": settings(disk, optimizer=True)}
    with pytest.raises(ValueError, match=r"has 10\.0 GB free, this machine's processes need 16\.0; name"):
        nvme.completed(configuration, model, world_size=2)
    assert nvme.completed(configuration, model, world_size=4)["zero_optimization"]["stage"] == 3


def test_gradients_are_cut_where_a_disk_can_reach_them():
    from deepspeed.runtime.swap_tensor.optimizer_utils import OptimizerSwapper

    nvme._align_gradients()
    nvme._align_gradients()
    swapper = OptimizerSwapper.__new__(OptimizerSwapper)
    swapper.min_aio_bytes, swapper.swap_element_size, swapper.numel_alignment = 1024, 4, 256
    whole = torch.arange(3000.0)
    tensors, offsets = [whole[:1000], whole[1000:1100], whole[1100:]], [0, 1000, 1100]
    pieces, places = swapper._adjust_for_misaligned_lengths(tensors, offsets)
    assert torch.equal(torch.cat(pieces), whole)
    assert places == [int(piece[0]) for piece in pieces]
    to_disk = [(place, len(piece)) for piece, place in zip(pieces, places, strict=True) if len(piece) >= 256]
    assert to_disk == [(0, 768), (1280, 1536)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def reader():
    """DeepSpeed's reader, built once: it takes minutes, more than a run in a test may."""
    code = "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def in_memory(shards, tmp_path_factory):
    """The same run without a disk."""
    folder = tmp_path_factory.mktemp("memory")
    train(shards, folder / "run", WIDE | {"deepspeed": written(folder, PARTS)}, 1)
    return folder / "run"


def weights(run):
    return load_file(run / "export" / "model.safetensors")


def same_weights(run, other, tolerance=0.0):
    old, new = weights(run), weights(other)
    return all(torch.allclose(old[name], new[name], rtol=0, atol=tolerance) for name in old)


WAYS = {
    "optimizer": {"optimizer": True},
    "weights": {"weights": True},
    "both": {"optimizer": True, "weights": True},
    "pipelined": {"optimizer": True, "pipelined": True},
}


@needs_libaio
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("way", "adam"), [*((way, "torch") for way in WAYS), ("both", "deepspeed")])
def test_run_with_a_disk_is_the_run_without_and_goes_on_in_the_same_bits(
    reader, in_memory, shards, disk, tmp_path, way, adam
):
    options = WIDE | {"deepspeed": written(tmp_path, settings(disk, **WAYS[way])), "optimizer.implementation": adam}
    train(shards, tmp_path / "run", options, 1)
    assert losses(tmp_path / "run") == pytest.approx(losses(in_memory), abs=1e-5)
    assert same_weights(tmp_path / "run", in_memory, tolerance=1e-5)
    assert list(disk.iterdir()) == []

    resumed = interrupted(tmp_path / "run", tmp_path / "resumed", HALF_WAY)
    printed = train(shards, resumed, options, 1)
    assert f"going on after step {HALF_WAY}" in printed[0]
    assert losses(resumed) == losses(tmp_path / "run")
    assert same_weights(resumed, tmp_path / "run")


@needs_libaio
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_checkpoints_pass_between_disk_and_memory_stages_and_processes(reader, in_memory, shards, disk, tmp_path):
    """From memory in one process to the disk in two, and from there to stage 1 in one."""
    on_disk, last = settings(disk, optimizer=True, weights=True), in_memory
    for step, zero, world_size in ((2, on_disk, 2), (4, {"stage": 1}, 1)):
        last = interrupted(last, tmp_path / f"run_{step}_{world_size}_{zero['stage']}", step)
        printed = train(shards, last, WIDE | {"deepspeed": written(tmp_path, zero)}, world_size)
        assert f"going on after step {step}" in printed[0]
        assert "and is gone on with by" in printed[0]
        assert losses(last) == pytest.approx(losses(in_memory), abs=1e-5)
        assert same_weights(last, in_memory, tolerance=1e-5)


@needs_libaio
def test_folder_that_is_not_there_ends_a_run_in_a_line(shards, tmp_path):
    zero = settings(tmp_path / "nowhere", optimizer=True)
    with started(shards, tmp_path / "run", WIDE | {"deepspeed": written(tmp_path, zero)}, 1) as jobs:
        codes, printed = finish(jobs)
    assert codes == [1]
    assert "nowhere is no folder; make it on a fast local disk, on every machine" in printed[0]
    assert "Traceback" not in printed[0]
