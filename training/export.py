"""A checkpoint of a run -> a Hugging Face folder that opens offline: weights, tokenizer, model card.

Works from the files alone, at any ZeRO stage and number of processes, so a run that is still training can be
exported beside it. The files that hold the weights are checked before they are read. Costs the memory of the weights
on one machine.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from tokenizer.command_line import run as run_command_line
from tokenizer.encode import MASK, TOKENIZER_FILE
from tokenizer.whole_folder import put_back, whole_folder
from training import data_card, model_card
from training.checkpoint import Checkpoints
from training.durable import FileRecord, damaged
from training.marker import MARKER, Checkpoint
from training.meter import read_metrics
from training.model import OBJECTIVE
from training.run_folder import Plan, RunFolder

if TYPE_CHECKING:
    import torch

WEIGHTS = "mp_rank_00_model_states.pt"  # below stage 3; there every process has a part of them

# What lies in an export, as globs; the weights of a large model are several files and their index.
WRITTEN = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "README.md", model_card.CURVES),
)


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
        overwrite: replace `output` if it holds a model and nothing else.
    """
    folder, target = RunFolder(run), Path(output)
    base = folder.plan.recipe.from_pretrained if folder.plan else ""
    refuse_taken(target, overwrite, [Path.cwd(), folder.path, *(Path(place) for place in (workspace, base) if place)])
    exported = export(folder, target, step=step, workspace=Path(workspace) if workspace else None)
    written = sum(path.stat().st_size for path in target.iterdir())
    print(f"the model after step {exported.step:,} is written to {target} ({written / 1e6:,.1f} MB)")


def refuse_taken(target: Path, overwrite: bool, needed: list[Path]) -> None:
    """ValueError unless a model may be written to `target`: nothing is there, or a model that is to be replaced,
    and nothing beside it.

    What a killed export had set aside is put back first.

    Args:
        needed: folders that must stay, so that `target` is none of them and holds none.
    """
    for place in needed:
        if place.resolve().is_relative_to(target.resolve()):
            raise ValueError(f"{target} is or holds {place}, which must stay; choose another --output")
    put_back(target.resolve())
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; choose another --output")
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / "config.json").is_file():
        raise ValueError(f"{target} exists and is no exported model; choose another --output")
    others = sorted(entry.name for entry in target.iterdir() if not any(map(entry.match, WRITTEN)))
    if others:
        raise ValueError(f"{target} holds {others[0]}, which no export writes; move it, or choose another --output")
    if not overwrite:
        raise ValueError(f"{target} exists; choose another --output, or --overwrite")


def export(folder: RunFolder, target: Path, *, step: int | None = None, workspace: Path | None = None) -> Checkpoint:
    """Write the model of a run's complete checkpoint to `target`, whole or not at all; replaces what is there.

    Returns the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged, or the run's tokenizer is missing.
        OSError: it cannot be written.
    """
    plan, checkpoint = folder.plan, checkpoint_of(folder, step)
    assert plan is not None
    require_sound(folder, checkpoint)
    tokenizer = folder.tokenizer / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise ValueError(f"no {TOKENIZER_FILE} in {folder.tokenizer}; put back the one that wrote the shards")
    data = folder.read_data()
    if workspace:
        data = data_card.of_workspace(data, workspace)
    weights, rows = read_weights(folder.checkpoints, checkpoint), read_metrics(folder.metrics)
    with whole_folder(target.resolve(), overwrite=True) as place:
        save_model(plan, weights, checkpoint.precision, place)
        save_tokenizer(tokenizer, plan, place)
        model_card.write(plan, checkpoint, rows, data, place)
    return checkpoint


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


def require_sound(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """ValueError names a file with weights of a checkpoint that is not as it was written, and the sound steps."""
    checkpoints = Checkpoints(folder.checkpoints)
    fault = _fault(checkpoints.path(checkpoint), checkpoint)
    if fault is None:
        return
    others = [one for one in checkpoints.complete() if one.step != checkpoint.step]
    sound = ", ".join(str(one.step) for one in others if _fault(checkpoints.path(one), one) is None)
    remedy = f"choose a sound --step ({sound}), or train on" if sound else "put it back, or train anew (--overwrite)"
    raise ValueError(f"{checkpoints.path(checkpoint)} is damaged: {fault}; {remedy}")


def _fault(path: Path, checkpoint: Checkpoint) -> str | None:
    """The first file with weights of a checkpoint that is not as it was written, and how it differs."""
    files: dict[str, FileRecord] = json.loads((path / MARKER).read_text()).get("files", {})
    read = sorted(files) if checkpoint.zero_stage == 3 else [name for name in files if name == WEIGHTS]
    faults = damaged(path, {name: files[name] for name in read})
    return next((f"{name} {fault}" for name, fault in faults), None)


def read_weights(checkpoints: Path, checkpoint: Checkpoint) -> dict[str, "torch.Tensor"]:
    """The weights of a checkpoint: below stage 3 as the module held them, else put together from all parts in fp32."""
    import torch

    if checkpoint.zero_stage == 3:
        return Checkpoints(checkpoints).parameters(checkpoint).weights()
    weights: dict[str, torch.Tensor]
    path = checkpoints / checkpoint.name / WEIGHTS
    weights = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["module"]
    return weights


def save_model(plan: Plan, weights: dict[str, "torch.Tensor"], precision: str, target: Path) -> None:
    """model.safetensors, config.json, which also names the objective, and generation_config.json, in the precision
    that was trained."""
    import torch
    from transformers import GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    from training.objectives import model_class

    disable_progress_bar()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    config = plan.model_config()
    model = model_class(config).from_config(config, dtype=dtype)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys)
    assert set(missing) <= tied, (missing, tied)
    assert not unexpected, unexpected
    model.tie_weights()
    if config.is_encoder_decoder:  # T5 needs one to make decoder inputs of labels, and its embedding has no such row
        model.config.pad_token_id = plan.end_of_text_id
    model.generation_config = GenerationConfig(
        bos_token_id=plan.end_of_text_id, eos_token_id=plan.end_of_text_id, pad_token_id=plan.end_of_text_id
    )
    model.save_pretrained(target)
    config_file = target / "config.json"
    record = json.loads(config_file.read_text())
    _write_json(config_file, record | older_names(record) | {OBJECTIVE: plan.recipe.objective.kind})


def older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions by the names of `transformers` 4, which takes its own defaults without them, and says nothing.

    Version 5 reads both. Empty where a model has none, or others in each kind of layer; GPT-NeoX has names of its own.
    """
    rotary = dict(config.get("rope_parameters") or {})
    if "rope_theta" not in rotary:
        return {}
    names = {name: rotary.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
    return names if rotary.get("rope_type") == "default" else names | {"rope_scaling": rotary}


def save_tokenizer(tokenizer: Path, plan: Plan, target: Path) -> None:
    """tokenizer.json as it was trained, and what `AutoTokenizer` wants beside it, of `transformers` 4 and 5 alike."""
    end_of_text = Tokenizer.from_file(str(tokenizer)).id_to_token(plan.end_of_text_id)
    names = {"bos_token": end_of_text, "eos_token": end_of_text, "pad_token": end_of_text}
    if plan.recipe.objective.kind == "masked":
        names["mask_token"] = MASK
    settings = {"model_max_length": plan.recipe.batch.sequence_length, "clean_up_tokenization_spaces": False}
    shutil.copyfile(tokenizer, target / "tokenizer.json")
    _write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | settings | names)
    _write_json(target / "special_tokens_map.json", names)


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_command_line(main)
