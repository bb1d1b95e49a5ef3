"""Going on in another layout: what some processes saved at one stage is what others restore at another, bit by bit."""

import os
import subprocess
import sys
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_steps import RINGS, before
from small_runs import LIMIT_SECONDS, ROOT, free_port

from training.fragments import laid_out, part_of_all, part_of_each
from training.saved_parameters import SavedParameters

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)
GENERATIONS = {"first": 2, "second": 3, "third": 1}  # and how many processes each has


def named(sizes):
    return {f"parameter {number}": size for number, size in enumerate(sizes)}


def numbered(sizes):
    """Parameters whose numbers are all different."""
    every = torch.arange(sum(sizes)).split(sizes)
    return dict(zip(named(sizes), every, strict=True))


def assert_describes(fragments, flat, parameters):
    for one in fragments:
        there = flat[one.offset : one.offset + one.count]
        assert torch.equal(there, parameters[one.name][one.start : one.start + one.count])
    assert sum(one.count for one in fragments) == int((flat >= 0).sum())


@given(SIZES, st.integers(1, 7), st.integers(0, 9))
def test_fragments_are_what_cutting_all_parameters_at_once_gives(sizes, world_size, padding):
    parameters = numbered(sizes)
    padded = [part for one in parameters.values() for part in (one, torch.full((padding,), -1))]
    whole = torch.cat(padded)
    size = -(-len(whole) // world_size)
    whole = torch.cat([whole, torch.full((size * world_size - len(whole),), -1)])
    group = laid_out(named(sizes), dict.fromkeys(parameters, padding))
    for rank, flat in enumerate(whole.split(size)):
        assert_describes(part_of_all(group, size, rank), flat, parameters)


@given(SIZES, st.integers(1, 7))
def test_fragments_are_what_cutting_each_parameter_gives(sizes, world_size):
    parameters = numbered(sizes)
    for rank in range(world_size):
        parts = []
        for one in parameters.values():
            size = -(-len(one) // world_size)
            padded = torch.cat([one, torch.full((size * world_size - len(one),), -1)])
            parts.append(padded.split(size)[rank])
        assert_describes(part_of_each(named(sizes), world_size, rank), torch.cat(parts), parameters)


def start(folder, generation, world_size, *rest):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world_size)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "layout_steps.py"), str(folder), generation, *map(str, rest)]
    jobs = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world_size)
    ]
    try:
        assert [job.wait(LIMIT_SECONDS) for job in jobs] == [0] * world_size
    finally:
        for job in jobs:
            job.kill()


@pytest.fixture(scope="module")
def generations(tmp_path_factory):
    folder, rest = tmp_path_factory.mktemp("generations"), ()
    for generation, world_size in GENERATIONS.items():
        start(folder, generation, world_size, *rest)
        rest = generation, world_size
    return folder


def saved(generations, generation, ring, name):
    stage = RINGS[ring][name].zero["stage"]
    return SavedParameters(generations / generation / ring / name, stage, GENERATIONS[generation])


def states(found):
    """Each kind of state of each parameter, whole."""
    return {
        (name, kind): found.fill(torch.full((prod(shape),), torch.nan), laid_out({name: prod(shape)}), kind)
        for name, shape in found.shapes.items()
        for kind in found.kinds([name])
    }


@pytest.mark.parametrize("ring", RINGS)
def test_every_layout_restores_the_bits_that_another_saved(generations, ring):
    for new, old in (("second", "first"), ("third", "second")):
        for name in RINGS[ring]:
            source, target = saved(generations, old, ring, before(ring, name)), saved(generations, new, ring, name)
            assert source.taken == target.taken == 3.0
            assert source.counters == target.counters
            expected, found = states(source), states(target)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected), (new, name)


@pytest.mark.parametrize("ring", RINGS)
def test_every_layout_trains_the_same_model(generations, ring):
    """Stage 0 is plain torch; a parameter whose gradient went astray would be as far off as it is large.

    Muon makes matrices orthogonal in bf16, which turns the last bits of a sum into the third digits of an update.
    """
    layouts = [states(saved(generations, "first", ring, name)) for name in RINGS[ring]]
    for found in layouts[1:]:
        for key, expected in layouts[0].items():
            if "muon" in ring:
                assert (found[key] - expected).abs().mean() < 0.05 * expected.abs().mean(), key
            else:
                assert torch.allclose(found[key], expected, rtol=0, atol=1e-4 if ring == "frozen" else 1e-5), key


def test_weights_are_those_that_deepspeed_would_export(generations):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    for name in RINGS["adamw"]:
        found = saved(generations, "first", "adamw", name).weights()
        folder = generations / "first" / "adamw"
        if RINGS["adamw"][name].zero["stage"] == 3:
            expected = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=name)
        else:
            expected = torch.load(folder / name / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        assert all(torch.equal(found[one], expected[one]) for one in found), name


def test_weights_that_are_never_trained_are_exported_from_every_stage(generations):
    module = torch.load(generations / "first/frozen/whole/mp_rank_00_model_states.pt", weights_only=False)["module"]
    found = saved(generations, "first", "frozen", "each").weights()
    trained = saved(generations, "first", "frozen", "each").shapes
    assert set(module) - set(found) <= {"lm_head.weight"}  # tied
    assert len(set(found) - set(trained)) == 1
    assert all(torch.equal(found[name], module[name]) for name in set(found) - set(trained))


def test_what_is_not_there_is_named(generations):
    found = saved(generations, "first", "adamw", "each")
    name, shape = next(iter(found.shapes.items()))
    with pytest.raises(KeyError, match=f"0 of .* numbers of momentum_buffer of {name} are there"):
        found.fill(torch.zeros(prod(shape)), laid_out({name: prod(shape)}), "momentum_buffer")
