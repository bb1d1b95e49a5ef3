"""A checkpoint for another number of processes, or another ZeRO stage, than wrote it: whole tensors by parameter.

The folder is a universal checkpoint of DeepSpeed's: `zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt`. Its
converter (`ds_to_universal`) puts together the parts of stages 1 to 3; what it leaves out for a change of stage is
added here: stage 0, whose tensors are whole already; shapes and step counts after stage 3; and neutral settings of the
optimizer, for the loader of stage 3 would give all groups of parameters those of the first. A process of its own does
it, in one thread, and needs the memory of the largest file; the others wait. Costs 12 bytes a parameter on the disk,
twice that while it works.
"""

import argparse
import contextlib
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.shard_index import flush
from training.durable import PARTIAL
from training.processes import Processes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

NAMES = "parameter_names"
TOLD_SECONDS = 5.0
MOST_GROUPS = (
    64  # of parameters; as many neutral settings are written, the loader of stages 1 and 2 wants one for each
)
log = logging.getLogger("train")


def names_of_parameters(engine: "DeepSpeedEngine") -> dict[str, list[str]]:
    """What a checkpoint of stage 0 must say beside DeepSpeed's files: the parameters, in the optimizer's order."""
    if engine.zero_optimization():
        return {}
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return {NAMES: [names[id(p)] for group in engine.optimizer.param_groups for p in group["params"]]}


def convert(source: Path, target: Path, stage: int, processes: Processes) -> None:
    """Convert the checkpoint `source` unless `target` is there; every process must call.

    Raises:
        ValueError: on all processes, with the converter's last words.
    """
    if processes.from_first(target.is_dir()):
        return
    partial = target.with_name(target.name + PARTIAL)
    child = None
    if processes.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        child = multiprocessing.get_context("spawn").Process(target=_convert, args=(source, partial, stage))
        child.start()
    while processes.from_first(child is not None and _told(child, partial, source)):
        pass
    fault = None
    if child is not None and child.exitcode:
        words = (partial / "log").read_text().splitlines()
        fault = words[-1] if words else f"exit code {child.exitcode}"
        shutil.rmtree(partial, ignore_errors=True)
    elif child is not None:
        (partial / "log").unlink()
        for path in partial.rglob("*"):
            flush(path)
        partial.rename(target)
        flush(target.parent)
    fault = processes.from_first(fault)
    if fault is not None:
        raise ValueError(f"{source} cannot be converted for this layout: {fault}; start it in the one that saved it")


def _told(child: Any, partial: Path, source: Path) -> bool:
    """Wait for the converter a while; whether it still works, and then how far it is."""
    child.join(TOLD_SECONDS)
    if child.exitcode is None:
        done, whole = _megabytes(partial), _megabytes(source)
        log.info("converted %s of about %s MB", f"{done:,.0f}", f"{whole:,.0f}")
    return child.exitcode is None


def _megabytes(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*.pt"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total / 1e6


def _convert(source: Path, target: Path, stage: int) -> None:
    """What the child does; its words go to `target`/log."""
    words = os.open(target / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(words, 1)
    os.dup2(words, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if stage == 0:
        _from_whole(source, target)
        return
    from deepspeed.checkpoint import ds_to_universal

    settings = {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(source),
            output_folder=str(target),
            num_extract_workers=1,
            num_merge_workers=1,
            **settings,
        )
    )
    (target.parent / "latest_universal").unlink()
    _complete(target, stage)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _complete(target: Path, stage: int) -> None:
    """Shapes, step counts and settings that the converter leaves out."""
    import torch

    first = sorted(target.glob("*model_states.pt"))[0]
    state = torch.load(first, map_location="cpu", weights_only=False)
    shapes = {name: shape for group in state["param_shapes"] for name, shape in group.items()}
    step = None
    if stage == 3:
        settings = torch.load(target / "zero" / "optimizer_state.pt", map_location="cpu", weights_only=False)
        step = settings["optimizer_state_dict"]["state"][0]["step"]
    for name, shape in shapes.items():
        folder = target / "zero" / name
        for path in folder.glob("*.pt"):
            value = torch.load(path, map_location="cpu", weights_only=False)
            if path.stem != "step" and torch.is_tensor(value):
                torch.save({"param": value.view(shape)}, path)
        if step is not None:
            torch.save(step, folder / "step.pt")
    if step is None:
        step = torch.load(target / "zero" / next(iter(shapes)) / "step.pt", map_location="cpu", weights_only=False)
    for path in target.glob("*model_states.pt"):
        path.unlink()
    _write_settings(target, state, step)


def _from_whole(source: Path, target: Path) -> None:
    """The universal folder of a checkpoint of stage 0."""
    import torch

    path = source / "mp_rank_00_model_states.pt"
    state = torch.load(path, map_location="cpu", weights_only=False, mmap=False)
    moments = state["optimizer"]["state"]
    # One for all: DeepSpeed's fused AdamW counts those of the last parameter of each group.
    step = max((values["step"] for values in moments.values() if "step" in values), default=None)
    for number, name in enumerate(state[NAMES]):
        folder = target / "zero" / name
        folder.mkdir(parents=True)
        torch.save({"param": state["module"][name].float().clone()}, folder / "fp32.pt")
        for key, value in moments[number].items():
            torch.save(step if key == "step" else {"param": value.clone()}, folder / f"{key}.pt")
    _write_settings(target, state, step)


def _write_settings(target: Path, state: dict[str, Any], step: Any) -> None:
    """The rest of a universal folder, in the forms that the loaders of stages 1 and 2, and of 3, look for."""
    import torch

    none: list[dict[str, Any]] = [{} for _ in range(MOST_GROUPS)]
    optimizer = {"state": [{"step": step}], "param_groups": none}
    settings = {"ds_version": state["ds_version"], "param_groups": none, "optimizer_state_dict": optimizer}
    torch.save(settings, target / "zero" / "optimizer_state.pt")
    kept = ("dp_world_size", "mp_world_size", "global_steps", "global_samples", "skipped_steps", "ds_version")
    model = {"module": {}, "lr_scheduler": None, "optimizer": None} | {name: state[name] for name in kept}
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        torch.save(model, target / name)


def load_whole(engine: "DeepSpeedEngine", folder: Path) -> None:
    """Restore weights and optimizer of stage 0, which DeepSpeed's loader of universal checkpoints does not know."""
    import torch

    state = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    engine.global_steps, engine.global_samples = state["global_steps"], state["global_samples"]
    for name, parameter in engine.module.named_parameters():
        values = dict(_values(folder / "zero" / name))
        parameter.data.copy_(values.pop("fp32")["param"])
        engine.optimizer.state[parameter] = {
            key: value if key == "step" else value["param"].to(parameter.device).contiguous()
            for key, value in values.items()
        }
    mend_steps(engine, folder)


def _values(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch

    for path in sorted(folder.glob("*.pt")):
        yield path.stem, torch.load(path, map_location="cpu", weights_only=False)


def mend_steps(engine: "DeepSpeedEngine", folder: Path) -> None:
    """Give each group a step count of its own, of the kind and on the device that its optimizer wants.

    The loader of stage 3 lets all groups share one tensor, which each then counts up.
    """
    import torch

    base: Any = getattr(engine.optimizer, "optimizer", engine.optimizer)
    settings = torch.load(folder / "zero" / "optimizer_state.pt", map_location="cpu", weights_only=False)
    step = float(settings["optimizer_state_dict"]["state"][0]["step"])
    in_torch = type(base).__module__.startswith("torch.")
    on_device = any(group.get("fused") or group.get("capturable") for group in base.param_groups)
    for parameter, state in base.state.items():
        device = parameter.device if on_device else torch.device("cpu")
        state["step"] = torch.tensor(step, dtype=torch.float32, device=device) if in_torch else int(step)
