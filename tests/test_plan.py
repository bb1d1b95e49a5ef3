"""The planner: counts against real models, laws against their sources, memory against autograd and real runs."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import counted_flops
from small_runs import TINY, metrics, train
from small_shards import make_shards

from tokenizer.shards import ShardIndex
from training import plan, scaling, sizing
from training.arithmetic import known_peak, size_of
from training.config import Batch, Compute, Model
from training.memory import Layout, activation_bytes, estimate
from training.model import build, configuration, count_parameters

ROOT = Path(__file__).parent.parent
SHAPES = [
    Model("llama", 64, 2, 4),
    Model("llama", 64, 3, 4, key_value_heads=2, tie_embeddings=False),
    Model("llama", 48, 1, 2, feed_forward_size=100),
    Model("gpt2", 64, 2, 4),
    Model("gpt2", 64, 1, 2, feed_forward_size=96, tie_embeddings=False),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def loss_of(model, rows):
    """The loss as training computes it."""
    from training.losses import computes_losses
    from training.micro_batch import MicroBatch
    from training.steps import summed_losses

    computes_losses(model, chunk_tokens=0, z_loss=0.0, autocast=None)
    return summed_losses(model, MicroBatch.of({"rows": rows.numpy()}))[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_built_model(shape):
    from training.operations import size_of_module

    model = build(configuration(shape, vocab_size=90, context_tokens=40, end_of_text_id=0), seed=0)
    size = size_of(shape, vocab_size=90, context_tokens=40)
    assert size == size_of_module(model)
    assert size.parameters == count_parameters(model)


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_a_token_are_those_that_a_profiler_counts(shape):
    """torch counts the operations of the matrix products that run; attention over all positions is 12·L·d·T."""
    import torch

    length = 32
    model = build(configuration(shape, vocab_size=90, context_tokens=length, end_of_text_id=0), seed=0)
    rows = torch.randint(0, 90, (2, length + 1))
    counted = counted_flops(lambda: loss_of(model, rows).backward()) / (2 * length)
    # Gains and biases are among the parameters and in no product.
    assert counted == pytest.approx(
        size_of(shape, vocab_size=90, context_tokens=length).flops_per_token(length), rel=0.03
    )


EAGER = [Layout(1, 1, 2, precision) for precision in ("fp32", "bf16")]
CHECKPOINTED = [replace(layout, checkpoints_activations=True) for layout in EAGER]
COMPILED = [replace(layout, compiled=True) for layout in (*EAGER, *CHECKPOINTED)]
CASES = [(shape, layout) for shape in SHAPES for layout in (*EAGER, *CHECKPOINTED)]
COMPILED_CASES = [(shape, layout) for shape in (SHAPES[1], SHAPES[3]) for layout in COMPILED]


@pytest.mark.parametrize(
    ("shape", "layout"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in COMPILED_CASES)]
)
def test_activations_are_what_autograd_saves(shape, layout):
    """The storages that the backward pass keeps, weights apart, counted by autograd's own hooks."""
    import torch

    from training.attention import use_fused
    from training.config import Objective

    rows, length, vocab_size = layout.micro_batch, 64, 90
    model = build(configuration(shape, vocab_size=vocab_size, context_tokens=length, end_of_text_id=0), seed=0)
    model = model.to(torch.float32 if layout.precision == "fp32" else torch.bfloat16).train()
    use_fused(model, Objective(), "sequence", in_16_bits=False)
    if layout.checkpoints_activations:
        model.gradient_checkpointing_enable()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    ids, kept = torch.randint(0, vocab_size, (rows, length + 1)), {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    if layout.compiled:
        torch._dynamo.reset()
        model.compile()
        loss_of(model, ids)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(model, ids)
    saved = sum(size for size, _ in kept.values())
    tokens, element = rows * length, layout.weight_bytes
    expected = activation_bytes(shape, tokens, layout) + tokens * vocab_size * (element if layout.compiled else 4)
    if layout.checkpoints_activations:  # the layer that is computed again comes in the backward pass
        whole = replace(layout, checkpoints_activations=False)
        two, one = (activation_bytes(replace(shape, layers=layers), tokens, whole) for layers in (2, 1))
        expected -= two - one
    generators = 5056 * shape.layers if layout.checkpoints_activations else 0  # their states are kept too
    assert expected == pytest.approx(saved, rel=0.05, abs=generators)


def test_peaks_are_those_of_data_sheets():
    peaks = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H200": 989e12,
        "NVIDIA H200 NVL": 835e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA H20": 148e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA B200": 2250e12,
        "NVIDIA GB200": 2500e12,
        "Matrox G200": None,
    }
    assert {name: known_peak(name) for name in peaks} == peaks


def test_a_gpu_has_to_hold_the_weights_before_they_are_cut():
    shape, cut = Model(hidden_size=4096, layers=32, heads=32), Layout(3, 64, 1, "bf16", offload=True)
    memory = estimate(shape, vocab_size=32768, sequence_length=128, layout=cut)
    assert memory.peak == 2 * size_of(shape, vocab_size=32768, context_tokens=128).parameters


def test_memory_is_that_of_the_card_that_a_name_means():
    names = [
        "H100",
        "NVIDIA H200",
        "NVIDIA A100-SXM4-40GB",
        "A100",
        "Tesla V100-SXM2-16GB",
        "NVIDIA H100 NVL",
        "GH200 480GB",
    ]
    assert [plan.memory_of(name) for name in names] == [80, 141, 40, 80, 16, 94, None]


def test_configurations_without_a_model_are_no_sizes(tmp_path):
    (tmp_path / "run.yaml").write_text("max_steps: 3\n")
    with pytest.raises(ValueError, match=r"no run configuration in .* has a model.hidden_size"):
        list(plan.sizes(tmp_path, None))


@settings(deadline=None)  # a busy machine
@given(unique=st.floats(1e6, 1e13), epochs=st.floats(0.1, 200))
def test_repetition_is_worth_less_and_less(unique, epochs):
    worth = scaling.effective(epochs * unique, unique, scaling.REPETITION_SCALE)
    assert worth <= epochs * unique * (1 + 1e-9)
    assert worth <= unique * (1 + scaling.REPETITION_SCALE)
    if epochs <= 1:
        assert worth == epochs * unique
    if epochs <= scaling.FREE_EPOCHS:
        assert worth >= 0.9 * epochs * unique


def test_laws_give_the_published_figures():
    """Chinchilla: 70 billion parameters on 1.4 trillion tokens. The loss of one epoch is the plain fit."""
    parameters, tokens = scaling.optimal_size(6 * 70e9 * 1.4e12)
    assert parameters == pytest.approx(70e9)
    assert tokens == pytest.approx(1.4e12)
    plain = 1.87 + 521 / 1e9**0.3526596 + 1488 / 30e9**0.3526596
    assert scaling.expected_loss(1e9, 30e9, 30e9) == pytest.approx(plain)
    # Fig. 1 of Muennighoff et al.: four epochs are within half a percent of as much new data, forty are far from it.
    fresh, few, many = (scaling.expected_loss(1e9, tokens, 25e9) for tokens in (25e9, 100e9, 1000e9))
    assert scaling.expected_loss(1e9, 100e9, 100e9) == pytest.approx(few, rel=0.005)
    assert fresh > few > many > scaling.expected_loss(1e9, 1000e9, 1000e9) + 0.02


@settings(deadline=None)  # a busy machine
@given(flops=st.floats(1e15, 1e25), unique=st.floats(1e5, 1e14))
def test_the_best_of_some_data_is_that_of_all_sizes_tried(flops, unique):
    def loss(parameters):
        return scaling.expected_loss(parameters, min(flops / 6 / parameters, 40 * unique), unique)

    parameters, tokens = scaling.best_of_data(flops, unique)
    assert tokens <= min(flops / 6 / parameters, 40 * unique) * (1 + 1e-9)
    tried = [loss(10 ** (exponent / 20)) for exponent in range(20, 20 * 20)]
    assert loss(parameters) <= min(tried) * (1 + 1e-6)
    if unique > flops:  # no bound
        assert tokens / parameters == pytest.approx(scaling.TOKENS_PER_PARAMETER, rel=0.05)


@settings(deadline=None)  # a busy machine
@given(
    stage=st.sampled_from([0, 1, 2, 3]),
    world_size=st.sampled_from([1, 2, 8]),
    micro=st.integers(1, 32),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_memory_grows_with_the_batch_and_shrinks_with_processes(stage, world_size, micro, precision):
    def peak(**changes):
        layout = replace(Layout(stage, world_size, micro, precision), **changes)
        return estimate(SHAPES[0], vocab_size=1000, sequence_length=128, layout=layout).peak

    assert peak(micro_batch=micro + 1) >= peak()
    assert peak(world_size=2 * world_size) <= peak()
    assert peak(accumulates=True) >= peak()


def hardware(**changes):
    given = sizing.Hardware(8, "H100", 80e9, 989e12, 0.45, 24.0)
    return replace(given, **changes)


def table_for(unique, device):
    shapes = plan.sizes(plan.CONFIGURATIONS, None)
    found = [
        sizing.choice(name, shape, batch, compute, 32768, unique, device) for name, shape, batch, compute in shapes
    ]
    return found, plan.verdict(found, unique, device)


def test_verdict_turns_on_data_and_on_hours():
    _, told = table_for(50_000_000_000, hardware())
    assert told.startswith("Verdict: enough data to train from scratch: ")
    _, told = table_for(100_000_000, hardware())
    assert told.startswith("Verdict: fine-tune an existing model: 100 M tokens, read 4 times, feed a model of 20 M ")
    _, told = table_for(50_000_000_000, hardware(gpus=0, peak_flops=1e11, mfu=0.5))
    assert told.startswith(
        "Verdict: fine-tune an existing model: 24 hours on this hardware are enough for a model of "
    )
    _, told = table_for(50_000_000_000, hardware(memory_bytes=1e6))
    assert told.startswith("Verdict: none of these sizes fits")
    _, told = table_for(1_000_000_000, hardware())
    assert told.startswith("Verdict: train from scratch, short of data: llama_1b is the best of these, 40 epochs in 2")


@pytest.mark.parametrize(("unique", "best"), [(20_000, "llama_1m"), (400_000_000, "llama_1b")])
def test_nothing_is_read_more_often_than_helps_and_of_equals_the_smaller_is_best(unique, best):
    found, told = table_for(unique, hardware(hours=720.0))
    assert all(one.epochs == pytest.approx(scaling.MOST_EPOCHS) for one in found)
    assert all(one.hours * one.tokens_per_second * 3600 == pytest.approx(one.tokens) for one in found)
    (hours,) = (one.hours for one in found if one.name == best)
    assert told.endswith(f"From scratch, {best} is the best of these, 40 epochs in {hours:.3g} hours.")


def test_a_model_that_does_not_fit_one_gpu_is_cut():
    shape = Model(hidden_size=4096, layers=32, heads=32)
    alone, _ = sizing.best_layout(shape, 32768, Batch(2048), Compute(), hardware(gpus=1))
    cut, memory = sizing.best_layout(shape, 32768, Batch(2048), Compute(), hardware())
    assert alone is None or alone.offload
    assert cut.stage > 1
    assert memory.peak < 80e9
    found, _ = table_for(1_000_000_000_000, hardware())
    assert all(one.memory_bytes < 72e9 for one in found if one.layout)
    assert all(one.tokens == pytest.approx(one.tokens_per_second * 86400) for one in found)


def test_micro_batches_are_those_of_the_configurations_batch():
    for gpus in (1, 8):
        for name, shape, batch, compute in plan.sizes(plan.CONFIGURATIONS, None):
            layout, _ = sizing.best_layout(shape, 32768, batch, compute, hardware(gpus=gpus))
            micro = replace(batch, sequences_per_device=layout.micro_batch).micro_size(gpus)
            assert layout.micro_batch == micro, name
            assert layout.accumulates == (micro * gpus < batch.sequences), name


def test_offloaded_sizes_are_told_with_the_memory_of_the_host_and_as_an_upper_bound():
    found, told = table_for(500_000_000_000, hardware(gpus=1, hours=25_000.0))
    shown = plan.table(found, 500_000_000_000, hardware(gpus=1)).splitlines()
    (large,) = (one for one in found if one.is_offloaded)
    assert large.name == "llama_7b"
    assert large.host_bytes == 18 * large.parameters
    assert re.search(r" 3 offload .* ≤ [\d,]+ ", next(line for line in shown if "llama_7b" in line))
    assert re.search(r"^≤: .* llama_7b 121 GB\.$", shown[-1])
    assert told.endswith("llama_7b is the best of these, 1.4 epochs in 25,000 hours, or longer, as it is offloaded.")


def run_plan(*options):
    script = str(ROOT / "training" / "plan.py")
    return subprocess.run([sys.executable, script, *map(str, options)], capture_output=True, text=True, check=False)


def test_command_prints_a_table_and_a_verdict_or_json(shards):
    done = run_plan("--shards", shards, "--gpus", 8, "--device", "H100", "--hours", 24)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    shown = sorted(name for name, *_ in plan.sizes(plan.CONFIGURATIONS, None))
    assert sorted(line.split()[0] for line in lines[3:-1]) == shown
    assert lines[-1].startswith("Verdict: fine-tune")
    assert re.search(
        r"compute-optimal are [\d.]+ B parameters on [\d.]+ B tokens; of this data, .* \(40 epochs\)$", lines[0]
    )
    assert len({len(line) for line in lines[2:-1]}) == 1
    done = run_plan("--shards", shards, "--gpus", 0, "--memory_gb", 8, "--peak_tflops", 0.1, "--json")
    record = json.loads(done.stdout)
    assert record["verdict"].startswith("Verdict: ")
    assert record["hardware"]["gpus"] == 0
    assert {one["name"] for one in record["sizes"]} == set(shown)
    assert not any(math.isnan(one["expected_loss"]) for one in record["sizes"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--device", "Abacus"], "give its --peak_tflops"),
        (["--device", "Abacus", "--peak_tflops", 1], "give its --memory_gb"),
        (["--device", "NVIDIA GH200 480GB"], "give its --memory_gb"),
        (["--hours", 0], "hours 0.0 above 0"),
        (["--mfu", 45], "mfu 45.0 is outside 0 to 1"),
        (["--configs", "nowhere"], "nowhere holds no run configurations"),
        (["--sequence_length", 0], "sequence_length 0 is not above 0"),
        (["--memory_gb", 0], "memory_gb 0.0 is not above 0"),
        (["--peak_tflops", -1], "peak_tflops -1.0 is not above 0"),
    ],
)
def test_what_is_not_known_is_asked_for_in_one_line(shards, options, line):
    done = run_plan("--shards", shards, *options)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "model: {hidden_size: 64",
        "model:\n\thidden_size: 64\n",
        "- model",
        "model: {hidden_size: wide}",
        "model: {hidden_size: 63}",
        "model: {hidden_size: 64, lyers: 12}",
        "model: {hidden_size: 64, architecture: lama}",
        "model: {hidden_size: 64}\nbatch: {sequence_length: 0}",
        "model: {hidden_size: 64}\ncompute: fast",
        "model: {hidden_size: 64}\nname: \udce9",
    ],
)
def test_a_configuration_that_is_none_is_named_in_one_line(shards, tmp_path, text):
    (tmp_path / "broken.yaml").write_bytes(text.encode(errors="surrogateescape"))
    done = run_plan("--shards", shards, "--configs", tmp_path)
    assert done.returncode == 1
    assert "broken.yaml is no run configuration: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "stage", "micro_batch", "accumulated"),
    [
        *(("llama", stage, micro_batch, 1) for stage, micro_batch in ((0, 8), (1, 2), (2, 2), (2, 8), (3, 2), (3, 8))),
        *(("llama", stage, 8, 2) for stage in (0, 1, 2, 3)),
        *(("gpt2", stage, 8, accumulated) for stage, accumulated in ((1, 1), (2, 2), (3, 1))),
    ],
)
def test_memory_is_what_a_run_takes(shards, tmp_path, architecture, stage, micro_batch, accumulated):
    """The peak of a real run; and so much of it as lies above that of the smallest one, which is the libraries'."""

    def peak(name, shape, micro_batch, length):
        configuration = ROOT / "infra" / "deepspeed" / f"zero{stage}.json"
        names = ("architecture", "hidden_size", "layers", "heads")
        settings = {f"model.{key}": getattr(shape, key) for key in names}
        settings |= {"batch.sequence_length": length, "batch.sequences": accumulated * micro_batch}
        settings |= {"max_steps": 5, "checkpoint_every": 2}
        settings |= {"batch.sequences_per_device": micro_batch, "evaluation_tokens": 0, "deepspeed": configuration}
        train(shards, tmp_path / name, TINY | settings, world_size=1)
        return metrics(tmp_path / name)[-1]["memory_bytes"]

    shape = Model(architecture, hidden_size=384, layers=4, heads=6)
    run, base = peak("run", shape, micro_batch, 256), peak("base", Model(architecture, 32, 1, 2), 1, 32)
    layout = Layout(stage, 1, micro_batch, "fp32", accumulates=accumulated > 1, on_gpu=False)
    vocab_size = ShardIndex.load(shards).vocab_size
    memory = estimate(shape, vocab_size=vocab_size, sequence_length=256, layout=layout)
    assert memory.peak == pytest.approx(run, rel=0.15)
    assert memory.peak - memory.libraries == pytest.approx(run - base, rel=0.25)
