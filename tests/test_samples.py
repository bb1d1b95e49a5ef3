"""Samples of models that fill in what is hidden: masked ones and encoder-decoders; real runs, and models by hand."""

import re

import numpy as np
import pytest
import torch
from small_runs import ROOT, SHORT, train
from small_shards import make_shards
from tokenizers import Tokenizer

from tokenizer.encode import MASK, Encoder, sentinel
from training.config import Objective
from training.objectives import model_class, prediction
from training.samples import read_samples
from training.writing import shown

MARKERS = (MASK, *(sentinel(number) for number in range(8)))
PROMPTS = ("def add(first, second):\n    return first + second\n", "import os\n", "")
TOLD = ("metrics.jsonl", "summary.json", "run.html", "export/README.md")
OPTIONS = SHORT | {
    "max_steps": 4,
    "evaluate_every": 2,
    "watch.sample_tokens": 7,
    "watch.temperature": 0.0,
    "watch.prompts": '["def add(first, second):\\n    return first + second\\n", "import os\\n", ""]',
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards", more=MARKERS)


@pytest.fixture(scope="module")
def words(shards):
    return Tokenizer.from_file(str(shards / "tokenizer" / "tokenizer.json"))


def read(kind, shards, words):
    """What a model is given of each prompt that has two tokens: the last of as many as its context has."""
    predict = prediction(Objective(kind), "sequence", Encoder(shards / "tokenizer"), 32)
    rows = [words.encode(prompt, add_special_tokens=False).ids[-32:] for prompt in PROMPTS[:2]]
    return [predict(np.array([[*row, 0]]), [f"sample:{number}"]) for number, row in enumerate(rows)]


def exported(run):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(run / "export")
    return model_class(config).from_pretrained(run / "export").eval()


def test_masked_model_fills_in_each_text_as_it_does_alone(shards, words, tmp_path):
    (printed,) = train(shards, tmp_path / "run", OPTIONS | {"objective.kind": "masked"}, world_size=1)
    told = (printed, *(path.read_text() for path in map((tmp_path / "run").joinpath, TOLD)))
    assert all("alidation_loss" in text or "eld-out loss" in text for text in told)
    assert not any(re.search("bits|perplexity", text) for text in told)  # of hidden tokens they would say nothing
    rows = read_samples(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    assert [row["prompt"] for row in rows[:2]] == [row["prompt"] for row in rows[2:]]
    model, mask = exported(tmp_path / "run"), words.token_to_id(MASK)
    for row, one in zip(rows[2:], read("masked", shards, words), strict=True):
        text = shown(one, mask)
        assert row["prompt"] == words.decode(text, skip_special_tokens=False)
        assert MASK in row["prompt"]
        with torch.no_grad():
            best = model(input_ids=torch.tensor([text])).logits[0].argmax(-1).tolist()
        filled = [new if old == mask else old for old, new in zip(text, best, strict=True)]
        assert row["completion"] == words.decode(filled, skip_special_tokens=False)


def test_exported_masked_model_fills_masks_as_its_card_says(shards, tmp_path):
    from transformers import pipeline

    train(shards, tmp_path / "run", SHORT | {"max_steps": 2, "objective.kind": "masked"}, world_size=1)
    fill = pipeline("fill-mask", model=str(tmp_path / "run" / "export"))
    found = fill(f"def add(left,{MASK}):")
    assert fill.tokenizer.mask_token == MASK
    assert len(found) == 5
    assert sum(one["score"] for one in found) < 1


def test_encoder_decoder_writes_the_hidden_runs_as_generate_does(shards, words, tmp_path):
    train(shards, tmp_path / "run", OPTIONS | {"objective.kind": "spans"}, world_size=1)
    rows = read_samples(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    model = exported(tmp_path / "run")
    for row, one in zip(rows[2:], read("spans", shards, words), strict=True):
        assert row["prompt"] == words.decode(one["input_ids"][0].tolist(), skip_special_tokens=False)
        assert sentinel(0) in row["prompt"]
        written = model.generate(
            torch.tensor(one["input_ids"]), max_new_tokens=7, do_sample=False, decoder_start_token_id=0, eos_token_id=0
        )[0].tolist()[1:]
        text = written[: written.index(0)] if 0 in written else written
        assert row["completion"] == words.decode(text, skip_special_tokens=False)
    page = (tmp_path / "run" / "run.html").read_text()
    assert "&lt;extra_id_0&gt;" in page


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "spans"])
def test_samples_of_a_model_that_is_cut_are_those_of_a_whole_one(kind, shards, tmp_path):
    train(shards, tmp_path / "whole", OPTIONS | {"objective.kind": kind}, world_size=1)
    zero3 = ROOT / "infra" / "deepspeed" / "zero3.json"
    train(shards, tmp_path / "cut", OPTIONS | {"objective.kind": kind, "deepspeed": zero3}, world_size=2)
    assert read_samples(tmp_path / "cut" / "samples.jsonl") == read_samples(tmp_path / "whole" / "samples.jsonl")
