"""The last checkpoint of a run -> a Hugging Face folder that opens offline: weights, tokenizer, model card.

Works from the files alone, at any ZeRO stage and number of processes, so a run that is still training can be
exported beside it. Costs the memory of the weights on one machine; at stage 3 that of the optimizer state, too.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run as run_command_line
from training.checkpoint import Checkpoint, Checkpoints
from training.durable import PARTIAL
from training.meter import read_metrics
from training.run_folder import Plan, RunFolder

if TYPE_CHECKING:
    import torch


def main(*, run: str, output: str, overwrite: bool = False) -> None:
    """Export the last complete checkpoint of a training run as a Hugging Face folder.

    Args:
        run: folder that training/train.py wrote.
        output: folder to write.
        overwrite: replace `output` if it exists.
    """
    folder, target = RunFolder(run), Path(output)
    if target.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another --output, or --overwrite")
    export(folder, target)
    print(f"model written to {target}")


def export(folder: RunFolder, target: Path) -> None:
    """Write the model of a run's last complete checkpoint to `target`, whole or not at all; replaces it."""
    plan, checkpoints = folder.plan, Checkpoints(folder.checkpoints)
    checkpoint = checkpoints.latest_complete()
    if plan is None or checkpoint is None:
        raise ValueError(f"{folder.path} holds no complete checkpoint; train first (training/train.py)")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(plan, read_weights(folder.checkpoints, checkpoint), checkpoint.precision, partial)
    save_tokenizer(folder.tokenizer / "tokenizer.json", plan, partial)
    (partial / "README.md").write_text(model_card(plan, checkpoint, folder))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def read_weights(checkpoints: Path, checkpoint: Checkpoint) -> dict[str, "torch.Tensor"]:
    """The weights of a checkpoint: below stage 3 as the module held them, else put together from all parts in fp32."""
    import contextlib
    import io

    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    weights: dict[str, torch.Tensor]
    if checkpoint.zero_stage < 3:
        path = checkpoints / checkpoint.name / "mp_rank_00_model_states.pt"
        weights = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["module"]
        return weights
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoints), tag=checkpoint.name)
    return weights


def save_model(plan: Plan, weights: dict[str, "torch.Tensor"], precision: str, target: Path) -> None:
    """model.safetensors, config.json and generation_config.json, in the precision that was trained."""
    import torch
    from transformers import GenerationConfig

    from training.objectives import model_class

    dtype, config = torch.bfloat16 if precision == "bf16" else torch.float32, plan.model_config()
    model = model_class(config).from_config(config, dtype=dtype)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys)
    assert set(missing) <= tied, (missing, tied)
    assert not unexpected, unexpected
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=plan.end_of_text_id, eos_token_id=plan.end_of_text_id, pad_token_id=plan.end_of_text_id
    )
    model.save_pretrained(target)


def save_tokenizer(tokenizer: Path, plan: Plan, target: Path) -> None:
    """tokenizer.json as it was trained, and what `AutoTokenizer` wants beside it."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    end_of_text = fast.convert_ids_to_tokens(plan.end_of_text_id)
    names = {"bos_token": end_of_text, "eos_token": end_of_text, "pad_token": end_of_text}
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer),
        model_max_length=plan.recipe.batch.sequence_length,
        clean_up_tokenization_spaces=False,
        **names,
    )
    fast.save_pretrained(target)
    shutil.copyfile(tokenizer, target / "tokenizer.json")
    (target / "special_tokens_map.json").write_text(json.dumps(names, indent=1) + "\n")


def model_card(plan: Plan, checkpoint: Checkpoint, folder: RunFolder) -> str:
    """README.md with the front matter that model hubs read."""
    recipe = plan.recipe
    tokens = checkpoint.step * recipe.batch.tokens
    rows: list[tuple[str, Any]] = [
        ("architecture", recipe.model.architecture),
        ("hidden size, layers, heads", f"{recipe.model.hidden_size}, {recipe.model.layers}, {recipe.model.heads}"),
        ("vocabulary", f"{plan.vocab_size:,}"),
        ("context", f"{recipe.batch.sequence_length:,} tokens"),
        ("steps", f"{checkpoint.step:,} of {plan.max_steps:,}"),
        ("tokens seen", f"{tokens:,}"),
        ("tokens a step", f"{recipe.batch.tokens:,}"),
        ("peak learning rate", recipe.optimizer.learning_rate),
        ("weight decay", recipe.optimizer.weight_decay),
        ("precision", checkpoint.precision),
        ("data fingerprint", f"`{plan.data_fingerprint}`"),
    ]
    evaluated = [row for row in read_metrics(folder.metrics) if "validation_loss" in row]
    if evaluated:
        last = evaluated[-1]
        rows += [
            ("held-out loss", f"{last['validation_loss']:.4f} nats a token, at step {last['step']:,}"),
            ("held-out perplexity", f"{last['perplexity']:.2f}"),
            ("held-out bits per byte", f"{last['bits_per_byte']:.4f}"),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- code
- corella
---

# A language model of source code

Trained from scratch with Corella.

| | |
|--|--|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer("def fibonacci(n):", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

It continues text as its training data would; it can repeat that data, and what it writes may be wrong.
"""


if __name__ == "__main__":
    run_command_line(main)
