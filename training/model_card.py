"""README.md of an exported model: front matter for model hubs, settings, results, curve, data."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.encode import MASK, sentinel
from training import data_card
from training.line_charts import Line, chart
from training.marker import Checkpoint
from training.meter import Row, last_finite
from training.run_folder import Plan

CURVES = "curves.svg"
# What the card calls a part of the model's configuration, and what architectures call it.
_SHAPE = {
    "architecture": ("model_type",),
    "embedding_rows": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "key_value_heads": ("num_key_value_heads",),
    "feed_forward_size": ("intermediate_size", "n_inner", "d_ff"),
    "context": ("max_position_embeddings",),
    "tie_embeddings": ("tie_word_embeddings",),
    "dropout": ("attention_dropout", "resid_pdrop", "hidden_dropout_prob", "dropout_rate"),
}
# Identifiers of SPDX that model hubs take for a licence; to them every other is `other`, with a name.
_HUB_LICENCES = {
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
    *("bsl-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "ecl-2.0"),
    *("epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c"),
    *("mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib"),
}
# Settings that only these kinds of their group heed.
_ONLY_OF = {
    "objective.rate": ("fill_in_the_middle",),
    "objective.suffix_first": ("fill_in_the_middle",),
    "objective.noise": ("masked", "spans"),
    "objective.span_length": ("spans",),
    "optimizer.implementation": ("adamw",),
    "optimizer.gradient_clipping": ("adamw",),
    "optimizer.muon_learning_rate": ("muon",),
    "optimizer.muon_momentum": ("muon",),
    "schedule.final_fraction": ("cosine", "wsd"),
    "schedule.decay_share": ("wsd",),
}


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
    base = base_name(plan.recipe.from_pretrained)
    library = version("transformers")
    picture = f"![Training and held-out loss by step]({CURVES})\n\n" if has_curve else ""
    return f"""---
{front_matter(example.task, base, data)}---

# A language model of source code

Trained with Corella{f", from the weights of {data_card.as_text(base)}" if base else ""}.
Written by `transformers` {library}.

```python
from transformers import {example.model}, PreTrainedTokenizerFast

model, tokenizer = {example.model}.from_pretrained("."), PreTrainedTokenizerFast.from_pretrained(".")
inputs = tokenizer("{example.text}", add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")
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


def base_name(place: str) -> str:
    """What a card calls the folder that a run began from; empty where it began from none.

    That is its last name, so that no card tells the folders of a machine; the model's on its hub where the folder is a
    hub's local copy of it, or is named as there (owner/name).
    """
    parts = Path(place).parts
    copies = [part for part in parts if part.startswith("models--")]
    if copies:
        return copies[-1].removeprefix("models--").replace("--", "/")
    is_named = len(parts) == 2 and not {"/", ".."} & set(parts)
    return "/".join(parts) if is_named else Path(place).name or place


def front_matter(task: str, base: str, data: list[data_card.Record]) -> str:
    """What model hubs read, as lines of YAML. A licence is told where the data alone decides it."""
    import yaml

    record = {"library_name": "transformers", "pipeline_tag": task, "tags": ["code", "corella"]}
    licence = data_card.only_licence(data)
    if base:
        record["base_model"] = base
    elif licence in _HUB_LICENCES:
        record["license"] = licence
    elif licence:
        record |= {"license": "other", "license_name": data_card.on_one_line(licence)}
    text: str = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    return text


def _settings(plan: Plan, checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    recipe = plan.recipe
    rows: list[tuple[str, Any]] = [("vocabulary", f"{plan.vocab_size:,}"), ("precision", checkpoint.precision)]
    rows += [("steps", f"{checkpoint.step:,} of {plan.max_steps:,}"), ("seed", recipe.seed)]
    if recipe.from_pretrained:
        rows.append(("from_pretrained", data_card.as_text(base_name(recipe.from_pretrained))))
    rows += _shape(plan.model_config())
    rows.append(("attention", recipe.attention))
    for group in ("objective", "data", "batch", "optimizer", "schedule", "compute"):
        rows += _heeded(group, vars(getattr(recipe, group)))
    return rows


def _shape(config: Any) -> Iterator[tuple[str, Any]]:
    """What the configuration of a model says of it, whatever it was made from."""
    for told, names in _SHAPE.items():
        values = (getattr(config, name, None) for name in names)
        value = next((value for value in values if value is not None), None)
        if value is not None:
            yield f"model.{told}", value
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    if theta is not None:
        yield "model.rope_theta", theta


def _heeded(group: str, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a group, without those that its others leave without effect."""
    for name, value in settings.items():
        told = f"{group}.{name}"
        unused = told in _ONLY_OF and settings["kind"] not in _ONLY_OF[told]
        if unused or (told == "data.warmup_length" and not settings["warmup_steps"]):
            continue
        yield told, "by tokens" if told == "data.weights" and not value else value


def _results(rows: list[Row]) -> list[tuple[str, str]]:
    told = [("tokens seen", f"{rows[-1]['tokens']:,}")] if rows else []
    if last := last_finite(rows, "loss"):
        told.append(("training loss", f"{last['loss']:.4f} nats a token, at step {last['step']:,}"))
    if last := last_finite(rows, "validation_loss"):
        told.append(("held-out loss", f"{last['validation_loss']:.4f} nats a token, at step {last['step']:,}"))
    if last := last_finite(rows, "bits_per_byte"):
        told += [
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
