"""The card of an exported model: every folder of shards is in it, and its example runs, whatever the objective."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from small_runs import ROOT, SHORT, train
from small_shards import make_shards

from tokenizer.encode import MASK, sentinel
from tokenizer.shard_index import ShardIndex
from training import data_card

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
    folders = [make_shards(tmp_path / name, more=more, train=80, seed=len(name)) for name in ("code", "prose")]
    shards = f'["{folders[0]}", "{folders[1]}"]'
    options = SHORT | {"objective.kind": kind, "data.weights": "[3, 1]", "max_steps": 2, "evaluation_tokens": 500}
    train(shards, tmp_path / "run", options, world_size=1)
    run(ROOT / "training" / "export.py", "--run", tmp_path / "run", "--output", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"pipeline_tag: {task}\n" in card
    assert "### code: 75.0% of the sequences" in card
    assert "### prose: 25.0% of the sequences" in card
    (example,) = re.findall(r"```python\n(.+?)```", card, re.DOTALL)
    assert run("-c", example, folder=tmp_path / "model").output.strip("\n")
