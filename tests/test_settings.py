"""What a run may be told: DeepSpeed configurations, models by file, models to go on from."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_shards import make_shards, make_tokenizer

from training import objectives
from training.config import Batch, Compute, Model, Objective, Optimizer, Recipe, Schedule
from training.engine import _completed, zero_stage
from training.model import build, configuration, count_parameters, read_pretrained
from training.objectives import refuse_other_model
from training.optimizer import learning_rate, parameter_groups
from training.processes import Processes
from training.zero_settings import REMOVED, read_configuration

ROOT = Path(__file__).parent.parent
RECIPE = Recipe(Model(hidden_size=32, layers=2, heads=2), Batch(32, 8, 2), Optimizer(), Schedule(), seed=0)


def read(tmp_path, record, recipe=RECIPE, world_size=2):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(record))
    return read_configuration(str(path), recipe, world_size)


def test_shipped_deepspeed_configurations_hold_zero_alone():
    stages = {}
    for path in (ROOT / "infra" / "deepspeed").glob("*.json"):
        record = read_configuration(str(path), RECIPE, 1)
        assert list(record) == ["zero_optimization"]
        stages[path.stem] = record["zero_optimization"]["stage"]
    offloads = {"zero2_offload": 2, "zero3_offload": 3, "zero3_nvme": 3}
    assert stages == {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3} | offloads


def test_every_key_that_deepspeed_removed_is_named_with_what_to_do(tmp_path):
    from deepspeed.runtime import config

    zero = {f"zero_optimization.{key}" for key in config._REMOVED_ZERO_CONFIG_KEYS}
    assert set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS) | zero <= set(REMOVED)
    for key in REMOVED:
        section, _, name = key.rpartition(".")
        record = {section: {"stage": 2, name: True}} if section else {name: {"enabled": True}}
        with pytest.raises(ValueError, match=f"mine.json: '{re.escape(key)}' is no key of DeepSpeed any more: ..."):
            read(tmp_path, record)


def test_keys_of_zero_are_those_that_deepspeed_knows():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from training.zero_settings import NEUTRAL, ZERO

    fields = DeepSpeedZeroConfig.model_fields
    assert set(ZERO) <= {field.alias or name for name, field in fields.items()}
    left = {f"zero_optimization.{field.alias or name}" for name, field in fields.items()}
    left -= {f"zero_optimization.{name}" for name in ZERO}
    assert left <= {*REMOVED, *NEUTRAL, "zero_optimization.cpu_offload_param"}


BY_MUON = replace(RECIPE, optimizer=Optimizer(kind="muon"))
AGREEING = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-4, "weight_decay": 0.1, "betas": [0.9, 0.95]}},
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    "wall_clock_breakdown": True,
    "gradient_allreduce_op": "mean",
    "gradient_predivide_factor": 1.0,
}


def test_what_agrees_with_the_run_or_is_left_to_it_is_accepted(tmp_path):
    assert read(tmp_path, AGREEING) == {"zero_optimization": {"stage": 2}, "wall_clock_breakdown": True}


NVME = {"device": "nvme", "nvme_path": "/disk"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train_batch_size": 16}, r"train_batch_size 16 is not 2 a device \* 2 accumulation steps \* 2 processes"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5 is decided by --optimizer.gradient_clipping, .* 1.0"),
        ({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 4}, "4 is decided by --batch.sequences_per_d"),
        ({"optimizer": {"type": "Lamb"}}, "of type Lamb is decided by --optimizer"),
        ({"optimizer": {"params": {"weight_decay": 0.0}}}, "weight_decay 0.0 is decided by --optimizer.weight_decay"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' is decided by --schedule"),
        ({"bf16": {"enabled": True}}, "'bf16' is decided by --compute.precision, which is auto; give bf16 there"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype bf16: gradients are accumulated in fp32"),
        ({"communication_data_type": "bf16"}, "communication_data_type bf16: gradients are reduced in fp32"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "to cpu needs stage 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "needs nvme_path"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "needs nvme_path"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "ssd"}}}, "is none of none, cpu and nvme"),
        ({"zero_optimization": {"stage": 3, "offload_param": NVME | {"max_in_cpu": 9}}}, "max_in_cpu must be 0"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": NVME | {"fast_init": True}}}, "fast_init asks for"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": NVME | {"buffer_count": 3}}}, "3 is below 4"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "ratio: states"),
        ({"gradient_allreduce_op": "sum"}, "'gradient_allreduce_op' 'sum' is not offered: .*; remove it"),
        ({"prescale_gradients": True}, "'prescale_gradients' True is not offered: .*; remove it"),
        ({"gradient_predivide_factor": 2.0}, "'gradient_predivide_factor' 2.0 is not offered"),
        (
            {"zero_optimization": {"compute_grad_norm": False}},
            "'zero_optimization.compute_grad_norm' False is not off",
        ),
        ({"zero_optimization": {"zenflow": {}}}, "'zero_optimization.zenflow' {} is not offered"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}},
            "offload_optimizer' is 'cpu' and must be an",
        ),
        ({"optimizer": {"params": 3}}, "'optimizer.params' is 3 and must be an object"),
        ({"checkpoint": {"load_universal": True}}, "'checkpoint' is decided by this training: .* --resume; remove it"),
        ({"zero_optimisation": {"stage": 3}}, "'zero_optimisation' is no key .* did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stgae": 3}}, "'zero_optimization.stgae' is no key .* did you mean 'stage'"),
        ({"zero_optimization": 3}, "'zero_optimization' is 3 and must be an object"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage 7 is none of 0, 1, 2 and 3"),
        ({"zero_optimization": {"stage": "three"}}, "zero_optimization.stage 'three' is none of"),
        ({"fp16": "yes"}, "'fp16' is 'yes' and must be an object"),
    ],
)
def test_contradictions_are_named(tmp_path, change, line):
    with pytest.raises(ValueError, match=line):
        read(tmp_path, AGREEING | change)


@pytest.mark.parametrize(
    ("kind", "file", "line"),
    [
        ("masked", {"model_type": "gpt_neox"}, "masked trains a model of type bert, and .* gives a gpt_neox"),
        ("spans", {"model_type": "bert"}, "spans trains a model of type t5, and .* gives a bert"),
        ("causal", {"model_type": "bert"}, "gives a bert, .* causal does not train; give --objective.kind masked"),
    ],
)
def test_model_that_an_objective_cannot_train_is_refused(kind, file, line):
    with pytest.raises(ValueError, match=line):
        refuse_other_model(Objective(kind=kind), Model(config=json.dumps(file)))


def test_models_of_objectives_come_from_a_file_too():
    shape = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 96}
    file = {"model_type": "bert", "max_position_embeddings": 64, "vocab_size": 7, **shape}
    sizes = {"vocab_size": 300, "context_tokens": 32, "end_of_text_id": 0}
    config = objectives.configuration(Objective(kind="masked"), Model(config=json.dumps(file)), **sizes)
    model = build(config, seed=0)
    assert type(model).__name__ == "BertForMaskedLM"
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size, config.pad_token_id) == (3, 48, 300, None)
    file = {"model_type": "t5", "d_model": 48, "num_layers": 3, "num_heads": 2, "d_kv": 24, "d_ff": 96}
    config = objectives.configuration(Objective(kind="spans"), Model(config=json.dumps(file)), **sizes)
    assert type(build(config, seed=0)).__name__ == "T5ForConditionalGeneration"
    assert (config.num_layers, config.decoder_start_token_id) == (3, 0)


def test_a_default_that_would_have_been_another_is_told(tmp_path, caplog):
    read(tmp_path, {"optimizer": {"type": "AdamW", "params": {}}})
    assert "weight_decay: 0.1 by --optimizer.weight_decay, where DeepSpeed's default is 0.0" in caplog.text
    read(tmp_path, {"optimizer": {"type": "Muon", "params": {"lr": 0.02}}}, BY_MUON)
    assert "every matrix whose name lacks 'embed'" in caplog.text


def test_muon_is_not_offloaded_where_its_gradients_would_be_added_up_in_16_bits():
    for stage, precision in ((1, "bf16"), (3, "bf16"), (2, "fp32")):
        zero = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}
        _completed(BY_MUON, zero, Processes(0, 1, torch.device("cpu"), precision))
    zero["zero_optimization"]["stage"] = 2
    with pytest.raises(
        ValueError, match="at stage 2: DeepSpeed would add up Muon's gradients in bf16; choose stage 1"
    ):
        _completed(BY_MUON, zero, Processes(0, 1, torch.device("cpu"), "bf16"))
    with pytest.raises(ValueError, match="fp16 is not of muon"):
        replace(BY_MUON, compute=Compute(precision="fp16"))


def test_stage_0_in_half_precision_is_run_as_stage_1_and_said_so(caplog):
    caplog.set_level("INFO", "train")
    stage_0 = {"zero_optimization": {"stage": 0}}
    for precision, stage in (("fp32", 0), ("bf16", 1), ("fp16", 1)):
        caplog.clear()
        completed = _completed(RECIPE, stage_0, Processes(0, 1, torch.device("cpu"), precision))
        assert zero_stage(stage_0, precision) == completed["zero_optimization"]["stage"] == stage
        assert caplog.messages == [f"ZeRO stage 0 in {precision} is run as stage 1"] * stage


def of_file(path, **more):
    model = Model(config=str(path)).read()
    return configuration(model, **({"vocab_size": 300, "context_tokens": 32, "end_of_text_id": 0} | more))


NEOX = {"model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_any_configuration_of_transformers_becomes_a_model_with_the_vocabulary_of_the_shards(tmp_path):
    path = tmp_path / "neox.json"
    path.write_text(json.dumps(NEOX | {"intermediate_size": 64, "vocab_size": 7, "max_position_embeddings": 64}))
    model = build(of_file(path), seed=0)
    assert model.config.model_type == "gpt_neox"
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert model(input_ids=torch.arange(10).view(1, 10)).logits.shape == (1, 10, 300)
    with pytest.raises(ValueError, match=r"a context of 64 tokens, batch.sequence_length is 128"):
        of_file(path, context_tokens=128)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no model_type"):
        of_file(path)
    path.write_text(json.dumps({"model_type": "perceptron"}))
    with pytest.raises(ValueError, match="model_type 'perceptron', which this `transformers` does not know"):
        of_file(path)
    for wrong in ({"hidden_size": "32"}, {"hidden_size": 32.5}, {"num_hidden_layers": "two"}):
        path.write_text(json.dumps(NEOX | wrong))
        with pytest.raises(ValueError, match=r"is no configuration of `transformers` .gpt_neox"):
            of_file(path)
    with pytest.raises(ValueError, match=r"model.config has no model_type"):
        of_file('{"hidden_size": 64}')
    with pytest.raises(ValueError, match="no configuration of a model at"):
        of_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize("kind", ["gemma", "phi3"])
def test_no_padding_token_of_a_file_keeps_a_row_from_being_trained(kind):
    """Gemma's is 0, which ends texts here; Phi-3's lies beyond the vocabulary."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = build(of_file(json.dumps({"model_type": kind, "num_key_value_heads": 2} | shape)), seed=0)
    assert model.config.pad_token_id is None
    model(input_ids=torch.tensor([[0, 1, 2]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[0].abs().sum() > 0


def test_model_of_a_folder_goes_on_with_its_weights_if_the_vocabulary_is_that_of_the_shards(tmp_path):
    shards = make_shards(tmp_path / "shards", train=20, validation=0)
    saved = build(configuration(RECIPE.model, vocab_size=310, context_tokens=32, end_of_text_id=0), seed=5)
    saved.save_pretrained(tmp_path / "model")
    settings = read_pretrained(str(tmp_path / "model"), Model(), shards)
    config = configuration(settings, vocab_size=300, context_tokens=32, end_of_text_id=0)
    model = build(config, seed=0, pretrained=str(tmp_path / "model"))
    assert model.training
    assert count_parameters(model) == count_parameters(saved)
    for mine, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    deeper = json.dumps(json.loads(settings.config) | {"num_hidden_layers": RECIPE.model.layers + 1})
    config = configuration(replace(settings, config=deeper), vocab_size=300, context_tokens=32, end_of_text_id=0)
    with pytest.raises(ValueError, match=r"cannot be gone on from: model\.layers.* is missing, and 8 more"):
        build(config, seed=0, pretrained=str(tmp_path / "model"))
    make_tokenizer(tmp_path / "other", vocab_size=280)
    (tmp_path / "other" / "tokenizer.json").rename(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(ValueError, match="is not that of the shards"):
        read_pretrained(str(tmp_path / "model"), Model(), shards)
    build(configuration(RECIPE.model, vocab_size=290, context_tokens=32, end_of_text_id=0), 0).save_pretrained(
        tmp_path / "small"
    )
    with pytest.raises(ValueError, match="has 290 tokens, the shards have 300"):
        read_pretrained(str(tmp_path / "small"), Model(), shards)
    with pytest.raises(ValueError, match=r"no config\.json in"):
        read_pretrained(str(tmp_path), Model(), shards)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_muon_gets_the_matrices_of_the_blocks_whatever_their_names(architecture):
    shape = Model(architecture=architecture, hidden_size=32, layers=2, heads=2, tie_embeddings=architecture == "gpt2")
    model = build(configuration(shape, vocab_size=50, context_tokens=16, end_of_text_id=0), seed=0)
    groups = parameter_groups(model, Optimizer(kind="muon"))
    muons = {id(one) for group in groups if group["use_muon"] for one in group["params"]}
    names = {name for name, one in model.named_parameters() if id(one) in muons}
    assert len(names) == 2 * (7 if architecture == "llama" else 4)
    assert all(".layers." in name or ".h." in name for name in names)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_wsd_is_level_and_then_falls_in_a_line_and_constant_stays():
    schedule = Schedule(kind="wsd", warmup_steps=10, final_fraction=0.0, decay_share=0.5)
    rates = [learning_rate(step, ((0, 110),), 1.0, schedule) for step in range(1, 111)]
    assert rates[9:60] == [1.0] * 51
    assert rates[84] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0)
    constant = replace(schedule, kind="constant")
    assert {learning_rate(step, ((0, 110),), 1.0, constant) for step in range(10, 111)} == {1.0}


def test_compute_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"compute.loss_chunk_tokens -1 is below 0"):
        Compute(loss_chunk_tokens=-1)
    with pytest.raises(ValueError, match=r"optimizer.muon_learning_rate 2 is not above 0"):
        Optimizer(muon_learning_rate=2)


@pytest.mark.parametrize(
    ("group", "settings", "line"),
    [
        (Optimizer, {"beta1": 1.0}, "optimizer.beta1 1.0 is not 0 or more and below 1"),
        (Optimizer, {"beta2": 1.5}, "optimizer.beta2 1.5 is not 0 or more and below 1"),
        (Optimizer, {"beta2": -0.1}, "optimizer.beta2 -0.1 is not"),
        (Optimizer, {"muon_momentum": 1.0}, "optimizer.muon_momentum 1.0 is not"),
        (Optimizer, {"epsilon": 0.0}, "optimizer.epsilon 0.0 is not above 0"),
        (Optimizer, {"kind": "muon", "implementation": "deepspeed"}, "optimizer.implementation is of adamw"),
        (Optimizer, {"epsilon": math.nan}, "optimizer.epsilon nan is not above 0"),
        (Optimizer, {"weight_decay": math.nan}, "optimizer.weight_decay nan is below 0"),
        (Optimizer, {"epsilon": math.inf}, "optimizer.epsilon inf is not above 0 and finite"),
        (Optimizer, {"gradient_clipping": math.nan}, "optimizer.gradient_clipping nan is not 0 or more and finite"),
        (Optimizer, {"gradient_clipping": math.inf}, "optimizer.gradient_clipping inf is not 0 or more and finite"),
        (Model, {"rope_theta": 0.0}, "model.rope_theta 0.0 is below 1"),
        (Objective, {"noise": 0.0}, "objective.noise 0.0 is not above 0 and below 1"),
        (Objective, {"noise": 1.0}, "objective.noise 1.0 is not above 0 and below 1"),
    ],
)
def test_values_at_and_beyond_their_bounds_are_refused(group, settings, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        group(**settings)


def test_values_just_within_their_bounds_are_taken():
    assert Optimizer(beta1=0.0, beta2=0.0, muon_momentum=0.0, epsilon=1e-30).epsilon == 1e-30
    assert Objective(noise=1e-3).noise == 1e-3
