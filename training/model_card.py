"""README.md of an exported model: front matter for model hubs, settings, results, curve, data."""

from pathlib import Path
from typing import Any

from training import data_card
from training.checkpoint import Checkpoint
from training.line_charts import Line, chart
from training.meter import Row
from training.run_folder import Plan

CURVES = "curves.svg"


def write(plan: Plan, checkpoint: Checkpoint, rows: list[Row], data: data_card.Record, target: Path) -> None:
    """Write README.md, and the curve of the loss beside it, for the weights of a checkpoint.

    Args:
        rows: the run's metrics; those after the checkpoint are left out.
        data: what `data_card.describe` gives.
        target: the folder of the model.
    """
    rows = [row for row in rows if row["step"] <= checkpoint.step]
    curve = _curve(rows)
    if curve:
        (target / CURVES).write_text(curve)
    (target / "README.md").write_text(card(plan, checkpoint, rows, data, has_curve=bool(curve)))


def card(plan: Plan, checkpoint: Checkpoint, rows: list[Row], data: data_card.Record, *, has_curve: bool) -> str:
    """The text of the card."""
    settings = "\n".join(f"| {name} | {value} |" for name, value in _settings(plan, checkpoint))
    results = "\n".join(f"| {name} | {value} |" for name, value in _results(rows))
    told = "\n".join(data_card.told(data))
    picture = f"![Training and held-out loss by step]({CURVES})\n\n" if has_curve else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- code
- corella
---

# A language model of source code

Trained with Corella.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer("def fibonacci(n):", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

It continues text as its training data would; it can repeat that data, and what it writes may be wrong. Whoever passes
on what it writes answers for the licences of what it repeats.

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
