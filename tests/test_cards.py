"""The card of an exported model: every folder of shards is in it, and its example runs, whatever the objective."""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import yaml
from small_runs import ROOT, SHORT, train
from small_shards import make_shards

from tokenizer.encode import MASK, sentinel
from tokenizer.shard_index import ShardIndex
from training import data_card, model_card

MORE = (MASK, *(sentinel(number) for number in range(8)))


def test_every_folder_is_told_with_its_share(tmp_path):
    records = []
    for name, share in (("code", 0.75), ("prose", 0.25)):
        folder = make_shards(tmp_path / name, train=20, validation=0, seed=len(name))
        records.append(data_card.describe(ShardIndex.load(folder), folder, share))
    told = list(data_card.told(records))
    assert [line for line in told if line.startswith("###")] == [
        "### code: 75.0% of the sequences",
        "### prose: 25.0% of the sequences",
    ]
    assert sum(line.startswith("* train: 20 documents") for line in told) == 2
    assert not any(line.startswith("#") for line in data_card.told(records[:1]))


def test_names_from_data_stay_names_in_the_card():
    """Read as a Markdown reader does: a table of as many rows, and each name as it was but for its white space."""
    names = [
        "evil |\n\n# Heading\n\n<script>alert(1)</script>",
        "<b>x</b> `y` [z](http://z) \\",
        "a\u202eb\udcff",
        "x" * 500,
    ]
    record = {"folder": names[0], "share": 0.5, "states": {names[1]: {"files": 1, "bytes": 5}}}
    record["licences"] = {name: number for number, name in enumerate(names, 1)}
    told = list(data_card.told([record, record]))
    text = "\n".join(told)
    text.encode()
    assert not re.search(r"[<>`\[\]\\]|^# ", text, re.MULTILINE)
    assert {line.count("|") for line in told if line.startswith("|")} == {3, 4}
    folded = [" ".join(name.split()) for name in names[:2]] + ["a b", "x" * data_card.MOST_CHARACTERS]
    rows = [html.unescape(line).rpartition(" | ")[0] for line in told[told.index("| licence | files |") + 2 :][:4]]
    assert rows == [f"| {name}" for name in folded]
    assert html.unescape(told[0]) == f"### {folded[0]}: 50.0% of the sequences"


def exported(name, folder, options):
    """The card of a short run."""
    shards = make_shards(folder / "shards", train=80, more=MORE)
    short = SHORT | {"max_steps": 2, "evaluation_tokens": 0}
    train(shards, folder / name, short | options, world_size=1)
    return (folder / name / "export" / "README.md").read_text()


@pytest.mark.parametrize("configuration", [{}, {"inputs": {"ledger": "0a1b"}}])
@pytest.mark.parametrize("text", ["{", "{}", "[]", '"x"', "1"])
def test_a_ledger_beside_that_is_none_of_ours_costs_the_funnel_alone(tmp_path, text, configuration):
    shards = make_shards(tmp_path / "shards", train=20, validation=0)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "_manifest.json").write_text(text)
    record = data_card.describe(replace(ShardIndex.load(shards), configuration=configuration), shards)
    assert record["splits"]["train"]["documents"] == 20
    assert "states" not in record


def test_card_tells_what_was_trained_and_nothing_else(tmp_path):
    options = {"objective.kind": "masked", "objective.noise": 0.3, "data.warmup_steps": 1, "data.warmup_length": 8}
    card = exported("run", tmp_path, options | {"compute.precision": "bf16"})
    assert "| model.architecture | bert |" in card
    assert "| model.feed_forward_size | 128 |" in card
    assert "| objective.kind | masked |\n| objective.noise | 0.3 |" in card
    assert "| attention | sequence |" in card
    assert "| data.weights | by tokens |" in card
    assert "| data.warmup_length | 8 |\n| data.warmup_steps | 1 |" in card
    assert "| precision | fp32 |" in card
    assert "| compute.precision | bf16 |" in card
    assert "| compute.checkpoint_activations | False |" in card
    for unused in ("llama", "rope_theta", "objective.rate", "objective.span_length", "muon", "decay_share", "config"):
        assert unused not in card.partition("## Settings")[2]
    assert "base_model" not in card


def test_card_of_a_configuration_and_of_a_model_gone_on_with_tells_the_true_shape(tmp_path):
    shape = {"model_type": "gpt_neox", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    (tmp_path / "neox.json").write_text(json.dumps(shape | {"intermediate_size": 96, "vocab_size": 9}))
    true = ("architecture | gpt_neox", "hidden_size | 48", "layers | 3", "heads | 4", "feed_forward_size | 96")
    first = exported("first", tmp_path, {"model.config": tmp_path / "neox.json"})
    base = (tmp_path / "first" / "export").rename(tmp_path / "small-neox")
    shutil.rmtree(tmp_path / "shards")
    second = exported("second", tmp_path, {"from_pretrained": base})
    for card in (first, second):
        assert all(f"| model.{told} |\n" in card for told in true)
        assert "llama" not in card
        assert str(tmp_path) not in card
    assert "base_model" not in first
    assert "from_pretrained |" not in first
    assert yaml.safe_load(second.split("---")[1])["base_model"] == "small-neox"
    written = f"Written by `transformers` {version('transformers')}."
    assert f"Trained with Corella, from the weights of small-neox.\n{written}" in second
    assert "| from_pretrained | small-neox |" in second


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", ""),
        ("gpt2", "gpt2"),
        ("owner/model", "owner/model"),
        ("/home/someone/models/gpt2/", "gpt2"),
        ("../gpt2", "gpt2"),
        ("/cache/hub/models--owner--model/snapshots/0a1b", "owner/model"),
    ],
)
def test_base_is_called_by_its_name_not_by_where_it_lies(place, name):
    assert model_card.base_name(place) == name


@pytest.mark.parametrize(
    ("licences", "base", "told"),
    [
        ([{"mit": 3}, {"mit": 1}], "", "mit"),
        ([{"bsd-3-clause": 3}], "", "bsd-3-clause"),
        ([{"evil\n---\n# b": 3}], "", ("other", "evil --- # b")),
        ([{"proprietary": 3}], "", ("other", "proprietary")),
        ([{"mit": 3}], "gpt2", None),
        ([{"mit": 3, "apache-2.0": 1}], "", None),
        ([{"mit": 3, data_card.NO_LICENCE: 1}], "", None),
        ([{"mit": 3}, None], "", None),
        ([], "", None),
    ],
)
def test_licence_is_told_where_all_data_has_it(licences, base, told):
    records = [{"licences": one} if one else {} for one in licences]
    front = yaml.safe_load(model_card.front_matter("text-generation", base, records))
    licence = front.get("license")
    assert (licence if licence != "other" else (licence, front["license_name"])) == told
    assert ("license_name" in front) == (licence == "other")
    assert front.get("base_model") == (base or None)


def run(*words, folder=None):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(output=done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task"),
    [("fill_in_the_middle", "text-generation"), ("masked", "fill-mask"), ("spans", "text2text-generation")],
)
def test_example_runs_whatever_the_objective(tmp_path, kind, task):
    from tokenizer.encode import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

    more = (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, *MORE)
    shards = [make_shards(tmp_path / name, more=more, train=80, seed=len(name)) for name in ("code", "prose")]
    options = SHORT | {"objective.kind": kind, "data.weights": "[3, 1]", "max_steps": 2, "evaluation_tokens": 500}
    train(shards, tmp_path / "run", options, world_size=1)
    run(ROOT / "training" / "export.py", "--run", tmp_path / "run", "--output", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"pipeline_tag: {task}\n" in card
    assert "### code: 75.0% of the sequences" in card
    assert "### prose: 25.0% of the sequences" in card
    (example,) = re.findall(r"```python\n(.+?)```", card, re.DOTALL)
    assert run("-c", example, folder=tmp_path / "model").output.strip("\n")
