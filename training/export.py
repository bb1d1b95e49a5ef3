"""A checkpoint of a run -> a Hugging Face folder that opens offline: weights, tokenizer, model card.

Works from the files alone, at any ZeRO stage and number of processes, so a run that is still training can be
exported beside it. Costs the memory of the weights on one machine; at stage 3 that of the optimizer state, too.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.command_line import run as run_command_line
from training import data_card, model_card
from training.checkpoint import Checkpoint, Checkpoints
from training.durable import PARTIAL
from training.meter import read_metrics
from training.run_folder import Plan, RunFolder

if TYPE_CHECKING:
    import torch


def main(
    *, run: str, output: str, step: int | None = None, workspace: str | None = None, overwrite: bool = False
) -> None:
    """Export a complete checkpoint of a training run as a Hugging Face folder.

    Args:
        run: folder that training/train.py wrote.
        output: folder to write.
        step: of the checkpoint; default: the last.
        workspace: folder of the tables ledger and signals (or documents) that the shards were made from: the model
            card then tells the funnel and the licences of the files kept.
        overwrite: replace `output` if it exists.
    """
    folder, target = RunFolder(run), Path(output)
    if target.exists() and not overwrite:
        raise ValueError(f"{output} exists; choose another --output, or --overwrite")
    export(folder, target, step=step, workspace=Path(workspace) if workspace else None)
    print(f"model written to {target}")


def export(folder: RunFolder, target: Path, *, step: int | None = None, workspace: Path | None = None) -> None:
    """Write the model of a run's complete checkpoint to `target`, whole or not at all; replaces it."""
    plan, checkpoint = folder.plan, checkpoint_of(folder, step)
    assert plan is not None
    data = json.loads(folder.data.read_text()) if folder.data.is_file() else []
    if workspace:
        data = data_card.of_workspace(data, workspace)
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(plan, read_weights(folder.checkpoints, checkpoint), checkpoint.precision, partial)
    save_tokenizer(folder.tokenizer / "tokenizer.json", plan, partial)
    model_card.write(plan, checkpoint, read_metrics(folder.metrics), data, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def checkpoint_of(folder: RunFolder, step: int | None) -> Checkpoint:
    """The complete checkpoint of a step, or the last; ValueError names those that are there."""
    found = Checkpoints(folder.checkpoints).complete() if folder.plan else []
    if not found:
        raise ValueError(f"{folder.path} holds no complete checkpoint; train first (training/train.py)")
    wanted = [one for one in found if step in (None, one.step)]
    if not wanted:
        there = ", ".join(str(one.step) for one in found)
        raise ValueError(f"{folder.path} has no checkpoint of step {step}; it has {there}")
    return wanted[-1]


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


if __name__ == "__main__":
    run_command_line(main)
