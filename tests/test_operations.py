"""Operations of live models against what a profiler counts: encoder-decoders, head sizes, experts that few meet."""

import pytest
import torch
from small_models import counted_flops

from training.config import Model, Objective
from training.micro_batch import MicroBatch
from training.objectives import configuration, model_class
from training.operations import flops_per_token, size_of_module
from training.spans import Spans


def test_operations_of_an_encoder_decoder_are_those_that_a_profiler_counts():
    objective, length = Objective("spans", noise=0.3), 64
    shape = Model(hidden_size=64, layers=3, heads=4)
    config = configuration(objective, shape, vocab_size=90, context_tokens=length, end_of_text_id=0)
    model = model_class(config).from_config(config)
    rows = Spans(list(range(60, 90)), 0, 0.3, 3.0)(torch.randint(1, 60, (2, length + 1)).numpy(), ["a", "b"])
    batch = MicroBatch.of(rows).on("cpu")
    counted = counted_flops(lambda: model(**batch, use_cache=False).loss.backward())
    assert counted / (2 * length) == pytest.approx(flops_per_token(model, length, objective), rel=0.03)


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 32}),
        ("MiniCPM3Config", {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8}),
    ],
)
def test_attention_counts_by_its_heads_where_they_are_not_the_hidden_size(kind, heads):
    import transformers
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(vocab_size=90, **sizes, **heads))
    rows = torch.randint(0, 90, (2, 64))
    counted = counted_flops(lambda: model(input_ids=rows, labels=rows, use_cache=False).loss.backward())
    assert counted / rows.numel() == pytest.approx(flops_per_token(model, 64, Objective()), rel=0.03)


@pytest.mark.parametrize("kind", ["MixtralConfig", "JetMoeConfig"])
def test_of_experts_those_that_a_token_meets_count(kind):
    import transformers
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    found = []
    for experts in (2, 8):
        config = getattr(transformers, kind)(
            vocab_size=90, num_local_experts=experts, num_experts_per_tok=2, num_key_value_heads=2, **sizes
        )
        with torch.device("meta"):
            found.append(size_of_module(AutoModelForCausalLM.from_config(config)))
    assert found[1].multiplied == pytest.approx(found[0].multiplied, rel=0.02)  # a router for more
    assert found[1].parameters > 2 * found[0].parameters
