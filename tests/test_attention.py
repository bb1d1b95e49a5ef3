"""Attention that is told that it is causal, and where documents begin, against `transformers`' own with masks."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from training import objectives
from training.attention import FUSED, refuse_other_reading, separate_cross_attention, use_fused
from training.config import Model, Objective
from training.micro_batch import MicroBatch
from training.model import build, configuration
from training.objectives import Causal

END, VOCABULARY, LENGTH = 0, 90, 48
SHAPES = [Model("llama", 64, 2, 4, key_value_heads=2), Model("llama", 64, 2, 4), Model("gpt2", 64, 2, 4)]


def model_of(shape, **changed):
    config = configuration(shape, vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=END)
    config.update(changed)
    return build(config, seed=0)


def rows_of(count):
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (count, LENGTH + 1))
    rows[:, [3, 20, 21]] = END
    return rows


def one_by_one(query, key, value, borders, others, longest, other, *, scale, window_size):
    """varlen_attn by plain attention of one document after the other."""
    assert window_size == (-1, 0)
    assert longest == other == LENGTH
    torch.testing.assert_close(borders, others)
    parts = []
    for begin, end in zip(borders.tolist(), borders.tolist()[1:], strict=False):
        if begin < end:
            assert end - begin <= longest
            rows = (one[begin:end].transpose(0, 1) for one in (query, key, value))
            parts.append(functional.scaled_dot_product_attention(*rows, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention_is_that_of_transformers(shape):
    plain, fused, rows = model_of(shape), model_of(shape), torch.from_numpy(rows_of(3)[:, :-1])
    use_fused(fused, Objective("fill_in_the_middle"), "sequence", in_16_bits=False)
    assert fused.config._attn_implementation == FUSED
    torch.testing.assert_close(fused(input_ids=rows).logits, plain(input_ids=rows).logits)
    assert FUSED not in fused.config.to_json_string(use_diff=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_documents_by_their_borders_are_those_by_a_mask(shape, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", one_by_one)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    plain, fused, arrays = model_of(shape), model_of(shape), Causal(END)(rows_of(3), [""] * 3)
    use_fused(fused, Objective(), "document", in_16_bits=True)
    by_mask, by_borders = (MicroBatch.of(arrays, flatten=flatten).on("cpu") for flatten in (False, True))
    for batch in (by_mask, by_borders):
        del batch["labels"]
    expected = plain(**by_mask).logits
    torch.testing.assert_close(fused(**by_borders).logits.view_as(expected), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
@pytest.mark.parametrize(("width", "dropout"), [(64, 0.0), (64, 0.1), (80, 0.0)])
def test_documents_keep_their_mask_where_the_kernel_is_not_for_them(capability, width, dropout, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    model = model_of(Model("gpt2", width, 1, 4, dropout=dropout))
    use_fused(model, Objective(), "document", in_16_bits=True)
    assert (model.config._attn_implementation == FUSED) == (capability >= (8, 0) and width == 64 and not dropout)


def test_other_models_objectives_and_choices_are_left_alone():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    other = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, num_key_value_heads=2, **small))
    chosen, masked = model_of(SHAPES[1]), model_of(SHAPES[1])
    chosen.set_attn_implementation("eager")
    for model, objective in ((other, "causal"), (chosen, "causal"), (masked, "masked")):
        before = model.config._attn_implementation
        use_fused(model, Objective(objective), "sequence", in_16_bits=True)
        assert model.config._attn_implementation == before
    use_fused(masked, Objective(), "document", in_16_bits=False)
    assert masked.config._attn_implementation == "sdpa"


def test_documents_are_refused_where_nothing_would_keep_them_apart():
    model = model_of(SHAPES[1])
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="needs a mask, which flash_attention_2 does not take"):
        refuse_other_reading(model, Objective(), "document")


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BY_NAME = {
    "gpt_neox": SMALL,
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, **SMALL},
    "falcon": SMALL,
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1},
    "roberta": SMALL,
    "electra": SMALL | {"embedding_size": 32},
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("kind", ["masked", "spans"])
def test_model_is_asked_whether_it_heeds_the_masks_of_documents(kind, implementation):
    """An eager one adds a mask to the scores, which one of True and False must not be."""
    objective = Objective(kind)
    config = objectives.configuration(
        objective, Model(hidden_size=32, heads=2), vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=END
    )
    model = build(config, seed=0)
    model.set_attn_implementation(implementation)
    refuse_other_reading(model, objective, "sequence")
    separate_cross_attention(model, objective, "document")
    if implementation == "sdpa":
        refuse_other_reading(model, objective, "document")
        return
    with pytest.raises(ValueError, match=f"needs a mask, which {implementation} does not take here; leave"):
        refuse_other_reading(model, objective, "document")


@pytest.mark.parametrize("name", BY_NAME)
def test_models_that_see_what_they_must_not_are_refused(name):
    """Told by what a model does: `transformers` has no list of them."""
    text = json.dumps({"model_type": name} | BY_NAME[name])
    config = configuration(Model(config=text), vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=END)
    model = build(config, seed=0)
    readings = {}
    for attention in ("sequence", "document"):
        try:
            refuse_other_reading(model, Objective(), attention)
        except ValueError as error:
            readings[attention] = str(error)
    assert model.training
    if name in ("gpt_neox", "qwen2"):
        assert not readings
    elif name == "roberta":  # which counts positions from its padding token, of which there is none
        assert "model roberta cannot be trained here" in readings["sequence"]
    elif name == "electra":
        assert "model electra sees the tokens that it is to predict" in readings["sequence"]
    else:
        assert list(readings) == ["document"]
        assert "use --attention sequence" in readings["document"]
