"""README.md of an exported model: front matter for model hubs, settings, results, curve, data."""

from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.encode import MASK, sentinel
from training import data_card
from training.checkpoint import Checkpoint
from training.line_charts import Line, chart
from training.meter import Row
from training.run_folder import Plan

CURVES = "curves.svg"


class Example(NamedTuple):
    """How a model is used: the task's name on model hubs, its `transformers` class, and code behind `inputs`."""

    task: str
    model: str
    text: str
    use: str
    does: str


_GENERATE = "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"
_CAUSAL = Example("text-generation", "AutoModelForCausalLM", "def fibonacci(n):", _GENERATE, "continues")
_FILL = f"""hidden = inputs["input_ids"][0] == tokenizer.convert_tokens_to_ids("{MASK}")
print(tokenizer.decode(model(**inputs).logits[0, hidden].argmax(-1)))"""
# By objective; the others are causal.
_EXAMPLES = {
    "masked": Example("fill-mask", "AutoModelForMaskedLM", f"return left {MASK} right", _FILL, "completes"),
    "spans": Example(
        "text2text-generation", "AutoModelForSeq2SeqLM", f"def add(a, b): {sentinel(0)}", _GENERATE, "completes"
    ),
}


def write(plan: Plan, checkpoint: Checkpoint, rows: list[Row], data: list[data_card.Record], target: Path) -> None:
    """Write README.md, and the curve of the loss beside it, for the weights of a checkpoint.

    Args:
        rows: the run's metrics; those after the checkpoint are left out.
        data: what `data_card.describe` gives of each folder of shards.
        target: the folder of the model.
    """
    rows = [row for row in rows if row["step"] <= checkpoint.step]
    curve = _curve(rows)
    if curve:
        (target / CURVES).write_text(curve)
    (target / "README.md").write_text(card(plan, checkpoint, rows, data, has_curve=bool(curve)))


def card(plan: Plan, checkpoint: Checkpoint, rows: list[Row], data: list[data_card.Record], *, has_curve: bool) -> str:
    """The text of the card."""
    settings = "\n".join(f"| {name} | {value} |" for name, value in _settings(plan, checkpoint))
    results = "\n".join(f"| {name} | {value} |" for name, value in _results(rows))
    told, example = "\n".join(data_card.told(data)), _EXAMPLES.get(plan.recipe.objective.kind, _CAUSAL)
    picture = f"![Training and held-out loss by step]({CURVES})\n\n" if has_curve else ""
    return f"""---
library_name: transformers
pipeline_tag: {example.task}
tags:
- code
- corella
---

# A language model of source code

Trained with Corella.

```python
from transformers import {example.model}, AutoTokenizer

model, tokenizer = {example.model}.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer("{example.text}", return_tensors="pt", return_token_type_ids=False)
{example.use}
```

It {example.does} text as its training data would; it can repeat that data, and what it writes may be wrong. Whoever
passes on what it writes answers for the licences of what it repeats.

## Results

{picture}| | |
|--|--|
{results}

## Settings

| | |
|--|--|
{settings}

## Data

Fingerprint `{plan.data_fingerprint}`.

{told or "Nothing more was recorded."}
"""


def _settings(plan: Plan, checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    recipe = plan.recipe
    groups = {
        "model": vars(recipe.model),
        "batch": vars(recipe.batch),
        "optimizer": vars(recipe.optimizer),
        "schedule": vars(recipe.schedule),
    }
    rows: list[tuple[str, Any]] = [("vocabulary", f"{plan.vocab_size:,}"), ("precision", checkpoint.precision)]
    rows += [("steps", f"{checkpoint.step:,} of {plan.max_steps:,}"), ("seed", recipe.seed)]
    return rows + [(f"{group}.{name}", value) for group, values in groups.items() for name, value in values.items()]


def _results(rows: list[Row]) -> list[tuple[str, str]]:
    told = []
    if rows:
        last = rows[-1]
        told = [("tokens seen", f"{last['tokens']:,}"), ("training loss", f"{last['loss']:.4f} nats a token")]
    evaluated = [row for row in rows if "validation_loss" in row]
    if evaluated:
        last = evaluated[-1]
        told += [
            ("held-out loss", f"{last['validation_loss']:.4f} nats a token, at step {last['step']:,}"),
            ("held-out perplexity", f"{last['perplexity']:.2f}"),
            ("held-out bits per byte", f"{last['bits_per_byte']:.4f}"),
        ]
    return told


def _curve(rows: list[Row]) -> str:
    lines = [
        Line("training", "own", [(row["step"], row["loss"]) for row in rows]),
        Line("held out", "third", [(r["step"], r["validation_loss"]) for r in rows if "validation_loss" in r], True),
    ]
    return chart(lines, width=900, height=300, label="Loss in nats a token, by step", alone=True)
